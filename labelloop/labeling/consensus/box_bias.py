"""How each annotator draws upright boxes: by how much too wide on each side, and how exactly; no truth is needed.

An edge of a box is taken for

    edge of the object + margin of the annotator + noise, both in shares of the object's side

and margins and noise are estimated from the boxes of the same object by others, in turns. Annotators of whom little is
known are drawn to nobody's margin and to everybody's noise.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.shapes import Geometry, Rectangle

Floats = NDArray[np.float64]
# Left, top, right, bottom, in pixels.
Edges = tuple[float, float, float, float]
# Who drew which box of one object.
AnnotatedBoxes = tuple[tuple[int, Edges], ...]

# Boxes by which a margin is drawn to none, and a noise to everybody's.
POOLED_BOXES = 8.0
# Variance of an edge before anything is known, in squared sides, and from how many boxes that would be known.
VARIANCE, VARIANCE_BOXES = 0.01, 20.0
# Farther off, in sides, an edge is a mistake and says little of how somebody draws.
_FARTHEST = 0.5
# An edge counts as if it were no farther from the middle one than this many standard deviations.
_REACH = 2.5
_ROUNDS = 6


class BoxBias(msgspec.Struct, frozen=True, gc=False):
    """How one annotator draws.

    Attributes:
        margin: How far the left, top, right and bottom edges lie to the right or below, in shares of the box's side.
        variance: Of an edge around that, in squared sides.
    """

    margin: Edges = (0.0, 0.0, 0.0, 0.0)
    variance: float = VARIANCE


class BoxBiasModel(msgspec.Struct, frozen=True):
    """How a project's annotators draw; who is not ``known`` draws as ``typical``."""

    known: Mapping[int, BoxBias] = {}
    typical: BoxBias = BoxBias()

    def fuse_boxes(self, boxes: AnnotatedBoxes) -> Rectangle:
        """The box that several boxes of one object mean: none of its edges lies outside what was drawn.

        Args:
            boxes: Who drew which box, at least one.
        """
        first = boxes[0][1]
        if all(edges == first for _, edges in boxes):
            return Rectangle(first[0], first[1], first[2] - first[0], first[3] - first[1])
        hands = [self.known.get(who, self.typical) for who, _ in boxes]
        drawn = np.array([edges for _, edges in boxes])
        sides = _sides(drawn)
        meant = drawn - np.array([hand.margin for hand in hands]) * sides
        weights = np.array([1 / hand.variance for hand in hands])[:, None]
        centre = _median(meant, weights[:, 0])
        reach = _REACH * sides.mean(axis=0) / np.sqrt(weights)
        found = (weights * np.clip(meant, centre - reach, centre + reach)).sum(axis=0) / weights.sum()
        left, top, right, bottom = np.clip(found, drawn.min(axis=0), drawn.max(axis=0)).tolist()
        return Rectangle(left, top, right - left, bottom - top)


def box_edges(shape: Geometry) -> Edges | None:
    """The edges of an upright box that encloses something; None of every other shape."""
    if isinstance(shape, Rectangle) and not shape.rotation and shape.width > 0 and shape.height > 0:
        return shape.bounds
    return None


def fit_box_bias(objects: Sequence[AnnotatedBoxes]) -> BoxBiasModel:
    """How everybody draws, from the boxes of each object; objects with one box tell nothing."""
    told = [boxes for boxes in objects if len(boxes) > 1]
    if not told:
        return BoxBiasModel()
    who = sorted({annotator for boxes in told for annotator, _ in boxes})
    index = {annotator: place for place, annotator in enumerate(who)}
    rows = np.repeat(np.arange(len(told)), [len(boxes) for boxes in told])
    columns = np.array([index[annotator] for boxes in told for annotator, _ in boxes], dtype=np.intp)
    edges = np.array([edges for boxes in told for _, edges in boxes])
    margins: Floats = np.zeros((len(who), 4))
    variances: Floats = np.full(len(who), VARIANCE)
    pooled = VARIANCE
    for _ in range(_ROUNDS):
        weights = 1 / variances[columns]
        total = _sums(rows, weights)
        meant = edges - margins[columns] * _sides(edges)
        sums = _sums(rows, weights[:, None] * meant)
        # Each box is held against the others alone, and counts the less the less exact these are.
        others = (total[rows] - weights)[:, None]
        rest = (sums[rows] - weights[:, None] * meant) / others
        off = np.clip((edges - rest) / _sides(rest), -_FARTHEST, _FARTHEST)
        share = (others[:, 0] / (others[:, 0] + weights))[:, None]
        margins = _sums(columns, share * off, len(who)) / (_sums(columns, share, len(who)) + POOLED_BOXES)
        centre = (sums / total[:, None])[rows]
        square = np.minimum((((meant - centre) / _sides(centre)) ** 2).mean(axis=1), _FARTHEST**2)
        free = 1 - weights / total[rows]  # the mean follows the boxes that it is made of
        pooled = float((square.sum() + VARIANCE * VARIANCE_BOXES) / (free.sum() + VARIANCE_BOXES))
        variances = _sums(columns, square, len(who)) + POOLED_BOXES * pooled
        variances = np.maximum(variances / (_sums(columns, free, len(who)) + POOLED_BOXES), pooled / 100)
    known = {
        annotator: BoxBias(tuple(margins[place].tolist()), float(variances[place]))
        for place, annotator in enumerate(who)
    }
    return BoxBiasModel(known, BoxBias(variance=pooled))


def _sides(edges: Floats) -> Floats:
    """(n, 4): the side along which each edge moves; at least a pixel."""
    sides: Floats = np.maximum(edges[:, 2:] - edges[:, :2], 1.0)
    return np.concatenate((sides, sides), axis=1)


def _median(values: Floats, weights: Floats) -> Floats:
    """(columns,): the weighted median of each column; between two neighbours by their weights."""
    lightest = np.argsort(weights, kind="stable")  # equal values are put by their weights, whoever was named first
    values, weights = values[lightest], weights[lightest]
    order = np.argsort(values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, axis=0)
    shares = np.cumsum(weights[order], axis=0) - weights[order] / 2
    middle = weights.sum() / 2
    return np.array([np.interp(middle, shares[:, each], ranked[:, each]) for each in range(values.shape[1])])


def _sums(places: NDArray[np.intp], values: Floats, n: int = 0) -> Floats:
    """The values of each place added up, by column where there are several."""
    if values.ndim == 1:
        return np.bincount(places, values, n).astype(np.float64, copy=False)
    return np.stack([np.bincount(places, column, n) for column in values.T], axis=1)
