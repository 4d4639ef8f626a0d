"""Per-annotator bias and variance of upright boxes, estimated without ground truth, and the fusion of boxes with them.

The model of a box edge is

    edge of the object + margin of the annotator + noise, both in shares of the object's side

Margins and variances are estimated alternately from the boxes of the same object by the other annotators. Margins are
relative to the median annotator's: one that all share cannot be seen. With few boxes, a margin is shrunk towards 0 and
a variance towards the pooled variance.
"""

from collections.abc import Mapping, Sequence
from math import inf, sqrt

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.shapes import Geometry, Rectangle

Floats = NDArray[np.float64]
# Left, top, right, bottom, in pixels.
Edges = tuple[float, float, float, float]
# (annotator, box) pairs of one object.
AnnotatedBoxes = tuple[tuple[int, Edges], ...]

# Pseudo-boxes that shrink a margin towards 0 and a variance towards the pooled one.
POOLED_BOXES = 8.0
# Prior variance of an edge, in squared sides, and its weight in boxes.
VARIANCE, VARIANCE_BOXES = 0.01, 20.0
# Offsets of an edge are clipped to this, in sides: beyond it lie mistakes, not a drawing habit.
_MAX_OFFSET = 0.5
# Edges are clipped to this many standard deviations around the weighted median (winsorised mean).
_HUBER_SIGMAS = 2.5
_ITERATIONS = 6


class BoxBias(msgspec.Struct, frozen=True, gc=False):
    """Margins and variance of one annotator's boxes.

    Attributes:
        margin: Mean offset of the left, top, right and bottom edges, to the right or down, in shares of the box's side.
        variance: Variance of an edge around that offset, in squared sides.
    """

    margin: Edges = (0.0, 0.0, 0.0, 0.0)
    variance: float = VARIANCE


class BoxBiasModel(msgspec.Struct, frozen=True, rename={"by_annotator": "known"}):
    """Box bias of a project's annotators; ``typical`` is that of an annotator who is not in ``by_annotator``.

    It is stored as JSON: ``rename`` keeps the keys.
    """

    by_annotator: Mapping[int, BoxBias] = {}
    typical: BoxBias = BoxBias()

    def fuse_boxes(self, boxes: AnnotatedBoxes) -> Rectangle:
        """Fuse boxes of one object: bias-corrected, inverse-variance weighted mean of each edge.

        Args:
            boxes: At least one (annotator, box) pair.

        Returns:
            A box none of whose edges lies outside the given boxes.
        """
        first = boxes[0][1]
        if all(edges == first for _, edges in boxes):
            return Rectangle(first[0], first[1], first[2] - first[0], first[3] - first[1])
        # Plain Python: an object has a few boxes, for which an array takes ten times as long.
        biases = [self.by_annotator.get(annotator, self.typical) for annotator, _ in boxes]
        weights = [1 / bias.variance for bias in biases]
        lengths = [(max(right - left, 1.0), max(bottom - top, 1.0)) for _, (left, top, right, bottom) in boxes]
        middle, total = sum(sorted(weights)) / 2, sum(weights)
        fused = []
        for edge in range(4):
            drawn = [edges[edge] for _, edges in boxes]
            sides = [length[edge % 2] for length in lengths]
            corrected = [
                value - bias.margin[edge] * side for value, bias, side in zip(drawn, biases, sides, strict=True)
            ]
            centre = _median(corrected, weights, middle)
            reach = _HUBER_SIGMAS * (sum(sides) / len(sides))
            spans = [reach / sqrt(weight) for weight in weights]
            near = [min(max(value, centre - span), centre + span) for value, span in zip(corrected, spans, strict=True)]
            mean = sum(weight * value for weight, value in zip(weights, near, strict=True)) / total
            fused.append(min(max(mean, min(drawn)), max(drawn)))
        left, top, right, bottom = fused
        return Rectangle(left, top, right - left, bottom - top)


def box_edges(shape: Geometry) -> Edges | None:
    """The edges of an upright box with area; None for every other shape."""
    if isinstance(shape, Rectangle) and not shape.rotation and shape.width > 0 and shape.height > 0:
        return shape.bounds
    return None


def fit_box_bias(objects: Sequence[AnnotatedBoxes]) -> BoxBiasModel:
    """Estimate the box bias of all annotators.

    Args:
        objects: The boxes of each object; objects with one box are ignored.
    """
    shared = [boxes for boxes in objects if len(boxes) > 1]
    if not shared:
        return BoxBiasModel()
    annotators = sorted({annotator for boxes in shared for annotator, _ in boxes})
    column_of = {annotator: column for column, annotator in enumerate(annotators)}
    rows = np.repeat(np.arange(len(shared)), [len(boxes) for boxes in shared])
    columns = np.array([column_of[annotator] for boxes in shared for annotator, _ in boxes], dtype=np.intp)
    edges = np.array([edges for boxes in shared for _, edges in boxes])
    margins: Floats = np.zeros((len(annotators), 4))
    variances: Floats = np.full(len(annotators), VARIANCE)
    pooled = VARIANCE
    for _ in range(_ITERATIONS):
        weights = 1 / variances[columns]
        total = _sum_by_index(rows, weights)
        corrected = edges - margins[columns] * _sides(edges)
        sums = _sum_by_index(rows, weights[:, None] * corrected)
        # Each box is compared with the mean of the others, weighted by the precision of that mean.
        others = (total[rows] - weights)[:, None]
        others_mean = (sums[rows] - weights[:, None] * corrected) / others
        offsets = np.clip((edges - others_mean) / _sides(others_mean), -_MAX_OFFSET, _MAX_OFFSET)
        share = (others[:, 0] / (others[:, 0] + weights))[:, None]
        margins = _sum_by_index(columns, share * offsets, len(annotators)) / (
            _sum_by_index(columns, share, len(annotators)) + POOLED_BOXES
        )
        # Only differences of margins can be measured; a common one would grow with each iteration.
        margins -= np.median(margins, axis=0)
        centre = (sums / total[:, None])[rows]
        squared = np.minimum((((corrected - centre) / _sides(centre)) ** 2).mean(axis=1), _MAX_OFFSET**2)
        free = 1 - weights / total[rows]  # degrees of freedom: each box is part of the mean
        pooled = float((squared.sum() + VARIANCE * VARIANCE_BOXES) / (free.sum() + VARIANCE_BOXES))
        variances = _sum_by_index(columns, squared, len(annotators)) + POOLED_BOXES * pooled
        variances = np.maximum(variances / (_sum_by_index(columns, free, len(annotators)) + POOLED_BOXES), pooled / 100)
    biases = {
        annotator: BoxBias(tuple(margins[column].tolist()), float(variances[column]))
        for column, annotator in enumerate(annotators)
    }
    return BoxBiasModel(biases, BoxBias(variance=pooled))


def _sides(edges: Floats) -> Floats:
    """(n, 4) -> (n, 4): the side along which each edge moves, at least 1 pixel."""
    sides: Floats = np.maximum(edges[:, 2:] - edges[:, :2], 1.0)
    return np.concatenate((sides, sides), axis=1)


def _median(values: Sequence[float], weights: Sequence[float], middle: float) -> float:
    """Weighted median, interpolated between neighbours; ``middle`` is half the sum of the weights."""
    below, total = (-inf, 0.0), 0.0
    # Ties are sorted by weight, so the order of annotators does not matter.
    for value, weight in sorted(zip(values, weights, strict=True)):
        total += weight
        share = total - weight / 2
        if share >= middle:
            lower_share, lower = below
            is_between = lower_share > -inf and share > middle
            return (value - lower) / (share - lower_share) * (middle - lower_share) + lower if is_between else value
        below = share, value
    return below[1]


def _sum_by_index(indices: NDArray[np.intp], values: Floats, n: int = 0) -> Floats:
    """Sum the values by index: (n,) -> (m,) or (n, k) -> (m, k)."""
    if values.ndim == 1:
        return np.bincount(indices, values, n).astype(np.float64, copy=False)
    return np.stack([np.bincount(indices, column, n) for column in values.T], axis=1)
