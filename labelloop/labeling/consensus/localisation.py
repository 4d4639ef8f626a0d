"""How far drawn boxes lie from the object's border, and the probability that a box overlaps the object enough.

A box that finds an object and overlaps it less than required counts as a miss and as a false region. Where the object
ends is not known; it is the fused box plus an error of

    variance of one annotator x (1 / number of boxes + error of the reference itself)

in squared sides. A reference, such as a gold standard, is drawn by people too: on three crowds of pathologists its
error was 0.4 to 1.1 times the variance of one annotator. Objects that few annotators find are drawn less alike, so the
log of the variance is linear in the share that marked the object. Errors have a multivariate t distribution: some boxes
are far off with all edges. Its squared length has a symmetric distribution in logs, which gives the fit.
"""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import VARIANCE, AnnotatedBoxes, BoxBiasModel

Floats = NDArray[np.float64]

# Range of the reference's error, in variances of one annotator.
REFERENCE_ERROR = (0.4, 1.1)
# Degrees of freedom of the error, equal to the number of edges: the fit relies on it.
_DEGREES = 4
# Pseudo-boxes of the prior variance, and weight of a slope of 0.
_PRIOR_BOXES, _SLOPE_WEIGHT = 20.0, 10.0
_LEAST_SQUARE = 1e-6
_DRAWS = 128
# Grid of standard deviations (in sides) of the table of region rates.
_DEVIATIONS = np.geomspace(0.005, 1.0, 48)


class Localisation(msgspec.Struct, frozen=True, gc=False):
    """Variance of a box's edges around the object's, in squared sides.

    Attributes:
        log_variance: Its log for an object that all annotators marked.
        slope: Increase of that log with the share of annotators who did not mark the object.
    """

    log_variance: float = float(np.log(VARIANCE))
    slope: float = 0.0

    def variance(self, share: Floats) -> Floats:
        """Variance of one annotator's boxes of objects that this share of the annotators marked."""
        variances: Floats = np.exp(self.log_variance + self.slope * (1 - share))
        return variances

    def region_rates(self, shares: Floats, counts: Floats, min_iou: float) -> Floats:
        """Probability that the fused box of each object overlaps the object by at least ``min_iou``, (n,).

        Args:
            shares: Share of the annotators who marked it, (n,).
            counts: Number of its boxes, (n,).
            min_iou: Required IoU.
        """
        error = self.variance(shares) * (1 / counts + sum(REFERENCE_ERROR) / 2)
        return np.interp(np.sqrt(error), _DEVIATIONS, _rates_by_deviation(min_iou))

    def box_rates(self, objects: Sequence[Floats], fused: Floats, shares: Floats, min_iou: float) -> Floats:
        """Probability that each annotator's box overlaps the object by at least ``min_iou``.

        Args:
            objects: The boxes of each object as edges, each (k, 4).
            fused: The fused box of each object, (n, 4).
            shares: Share of the annotators who marked it, (n,).
            min_iou: Required IoU.

        Returns:
            All boxes in the order of the objects, (sum of k,).
        """
        counts = np.array([len(boxes) for boxes in objects], dtype=np.intp)
        rows = np.repeat(np.arange(len(objects)), counts)
        drawn = np.concatenate(objects) if len(objects) else np.empty((0, 4))
        variance, sides = self.variance(shares), _sides(fused)
        hits = np.zeros(len(drawn))
        for step, reference in _errors():
            scale = np.sqrt(variance * (1 / np.maximum(counts, 1) + reference))[:, None] * sides
            hits += _overlaps(drawn, (fused + step * scale)[rows]) >= min_iou
        rates: Floats = hits / _DRAWS
        return rates


def fit_localisation(objects: Sequence[tuple[AnnotatedBoxes, int]], bias: BoxBiasModel) -> Localisation:
    """Estimate the variance of boxes from those of the same objects.

    Args:
        objects: The boxes of each object, and the number of annotators of its image; single boxes say nothing.
        bias: How boxes are fused.
    """
    missed, logs = [], []
    for boxes, annotators in objects:
        if len(boxes) < 2:
            continue
        drawn = np.array([edges for _, edges in boxes])
        fused = np.array(bias.fuse_boxes(boxes).bounds)
        # Each box is part of the mean.
        squares = (((drawn - fused) / _sides(fused[None])) ** 2).mean(axis=1) * len(boxes) / (len(boxes) - 1)
        logs += np.log(np.maximum(squares, _LEAST_SQUARE)).tolist()
        missed += [1 - len(boxes) / max(annotators, len(boxes))] * len(boxes)
    x, y = np.array(missed), np.array(logs)
    if not len(y):
        return Localisation()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (((x - x.mean()) ** 2).sum() + _SLOPE_WEIGHT))
    level = float((y - slope * x).sum() + _PRIOR_BOXES * np.log(VARIANCE)) / (len(y) + _PRIOR_BOXES)
    return Localisation(level, slope)


def _errors() -> list[tuple[Floats, float]]:
    """Standard errors of the four edges and the reference's share of error, the same for every object."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(_DRAWS, 4)) / np.sqrt(rng.chisquare(_DEGREES, size=(_DRAWS, 1)) / _DEGREES)
    return list(zip(steps, rng.uniform(*REFERENCE_ERROR, size=_DRAWS).tolist(), strict=True))


@lru_cache(maxsize=16)
def _rates_by_deviation(min_iou: float) -> Floats:
    """Share of errors of each of ``_DEVIATIONS`` that leave an IoU of at least ``min_iou`` with a unit square."""
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(4000, 4)) / np.sqrt(rng.chisquare(_DEGREES, size=(4000, 1)) / _DEGREES)
    square = np.array([[0.0, 0.0, 1.0, 1.0]])
    return np.array([(_overlaps(square, square + deviation * steps) >= min_iou).mean() for deviation in _DEVIATIONS])


def _overlaps(a: Floats, b: Floats) -> Floats:
    """(n, 4), (n, 4) -> (n,): IoU of pairs of boxes; 0 where a box is turned inside out."""
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0.0, None).prod(axis=1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=1) for boxes in (a, b)]
    ious: Floats = shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)
    return ious


def _sides(edges: Floats) -> Floats:
    """(n, 4) -> (n, 4): the side along which each edge moves, at least 1 pixel."""
    sides: Floats = np.maximum(edges[:, 2:] - edges[:, :2], 1.0)
    return np.concatenate((sides, sides), axis=1)
