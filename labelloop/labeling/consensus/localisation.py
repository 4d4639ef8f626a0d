"""How far drawn boxes lie from the object's border, and the probability that a box overlaps the object enough.

A box that finds an object and overlaps it less than required counts as a miss and as a false region. Where the object
ends is not known; it is the fused box plus an error of

    variance of one annotator x (1 / number of boxes + error of the reference itself)

in squared sides. A reference, such as a gold standard, is drawn by people too: on three crowds of pathologists its
error was 0.4 to 1.3 times the variance of one annotator. What it is cannot be known without one, so the range enters
every interval. Objects that few annotators find are drawn less alike: the log of the variance is linear in the share
that did not mark the object. Errors have a multivariate t distribution, since some boxes are far off with all edges.
Its variance and degrees of freedom are those whose mean and variance of log(squared length) are the data's (the squared
length has an F distribution).
"""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import VARIANCE, AnnotatedBoxes, BoxBiasModel

Floats = NDArray[np.float64]

# Possible errors of the reference, in variances of one annotator: none to that of a somewhat careless annotator.
REFERENCE_ERRORS = (0.0, 0.3, 0.6, 0.9, 1.2)
# Degrees of freedom n of the error -> trigamma(n / 2), and the mean of log F(4, n): for the fit by moments.
_MOMENTS = {
    3.0: (0.935, 0.099),
    4.0: (0.645, 0.0),
    6.0: (0.395, -0.095),
    10.0: (0.221, -0.167),
    30.0: (0.069, -0.237),
    100.0: (0.020, -0.260),
}
# Variance of log(chi-square(4) / 4): that of exactly normal errors.
_NORMAL_VARIANCE = 0.645
# Pseudo-boxes of the prior variance, and weight of a slope of 0.
_PRIOR_BOXES, _SLOPE_WEIGHT = 20.0, 10.0
_LEAST_SQUARE = 1e-6
# Draws of each object's error.
_DRAWS = 24
# Grid of standard deviations (in sides) of the table of region rates.
_DEVIATIONS = np.geomspace(0.005, 1.0, 48)


class Localisation(msgspec.Struct, frozen=True, gc=False):
    """Variance of a box's edges around the object's, in squared sides.

    Attributes:
        log_variance: Its log for an object that all annotators marked.
        slope: Increase of that log with the share of annotators who did not mark the object.
        degrees: Degrees of freedom of the error; few: some boxes are far off.
    """

    log_variance: float = float(np.log(VARIANCE))
    slope: float = 0.0
    degrees: float = 4.0

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
        rates: Floats = self.region_rates_by_reference(shares, counts, min_iou).mean(axis=0)
        return rates

    def region_rates_by_reference(self, shares: Floats, counts: Floats, min_iou: float) -> Floats:
        """`region_rates` for each of ``REFERENCE_ERRORS``, (references, n)."""
        error = self.variance(shares) * (1 / counts + np.array(REFERENCE_ERRORS)[:, None])
        rates: Floats = np.interp(np.sqrt(error), _DEVIATIONS, _rates_by_deviation(min_iou, self.degrees))
        return rates

    def box_rates(self, objects: Sequence[Floats], fused: Floats, shares: Floats, min_iou: float) -> Floats:
        """Probability that each annotator's box overlaps the object by at least ``min_iou``.

        Args:
            objects: The boxes of each object as edges, each (k, 4).
            fused: The fused box of each object, (n, 4).
            shares: Share of the annotators who marked it, (n,).
            min_iou: Required IoU.

        Returns:
            For each of ``REFERENCE_ERRORS``, all boxes in the order of the objects, (references, sum of k).
        """
        counts = np.array([len(boxes) for boxes in objects], dtype=np.intp)
        rows = np.repeat(np.arange(len(objects)), counts)
        drawn = np.concatenate(objects) if len(objects) else np.empty((0, 4))
        variance, sides = self.variance(shares), _sides(fused)
        hits = np.zeros((len(REFERENCE_ERRORS), len(drawn)))
        rng = np.random.default_rng(0)
        for _ in range(_DRAWS):
            # Other errors for each object: an error of chance common to all would not average out.
            steps = _errors(rng, self.degrees, len(objects)) * sides
            for index, reference in enumerate(REFERENCE_ERRORS):
                scale = np.sqrt(variance * (1 / np.maximum(counts, 1) + reference))[:, None]
                hits[index] += _overlaps(drawn, (fused + steps * scale)[rows]) >= min_iou
        rates: Floats = hits / _DRAWS
        return rates


def fit_localisation(objects: Sequence[tuple[AnnotatedBoxes, int]], bias: BoxBiasModel) -> Localisation:
    """Estimate the variance of boxes from those of the same objects.

    Args:
        objects: The boxes of each object, and the number of annotators of its image; single boxes say nothing.
        bias: How boxes are fused.
    """
    shared = [(boxes, annotators) for boxes, annotators in objects if len(boxes) > 1]
    if not shared:
        return Localisation()
    counts = np.array([len(boxes) for boxes, _ in shared])
    rows = np.repeat(np.arange(len(shared)), counts)
    drawn = np.array([edges for boxes, _ in shared for _, edges in boxes])
    fused = np.array([bias.fuse_boxes(boxes).bounds for boxes, _ in shared])
    squares = (((drawn - fused[rows]) / _sides(fused)[rows]) ** 2).mean(axis=1)
    squares *= (counts / (counts - 1))[rows]  # each box is part of the mean
    x = (1 - counts / np.maximum([annotators for _, annotators in shared], counts))[rows]
    y = np.log(np.maximum(squares, _LEAST_SQUARE))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (((x - x.mean()) ** 2).sum() + _SLOPE_WEIGHT))
    rest = y - slope * x
    spread = float(((rest - rest.mean()) ** 2).sum() + _PRIOR_BOXES * 2 * _NORMAL_VARIANCE) / (len(y) + _PRIOR_BOXES)
    degrees = min(_MOMENTS, key=lambda number: abs(_MOMENTS[number][0] - (spread - _NORMAL_VARIANCE)))
    level = float((rest - _MOMENTS[degrees][1]).sum() + _PRIOR_BOXES * np.log(VARIANCE)) / (len(y) + _PRIOR_BOXES)
    return Localisation(level, slope, degrees)


def _errors(rng: np.random.Generator, degrees: float, count: int) -> Floats:
    """Standard errors of the four edges, (count, 4)."""
    steps: Floats = rng.normal(size=(count, 4)) / np.sqrt(rng.chisquare(degrees, size=(count, 1)) / degrees)
    return steps


@lru_cache(maxsize=32)
def _rates_by_deviation(min_iou: float, degrees: float) -> Floats:
    """Share of errors of each of ``_DEVIATIONS`` that leave an IoU of at least ``min_iou`` with a unit square."""
    steps = _errors(np.random.default_rng(0), degrees, 4000)
    square = np.array([[0.0, 0.0, 1.0, 1.0]])
    return np.array([(_overlaps(square, square + deviation * steps) >= min_iou).mean() for deviation in _DEVIATIONS])


def _overlaps(a: Floats, b: Floats) -> Floats:
    """(n, 4), (n, 4) -> (n,): IoU of pairs of boxes; 0 where a box is turned inside out."""
    shared = _area(
        np.maximum(a[:, 0], b[:, 0]), np.maximum(a[:, 1], b[:, 1]),
        np.minimum(a[:, 2], b[:, 2]), np.minimum(a[:, 3], b[:, 3]),
    )  # fmt: skip
    ious: Floats = shared / np.maximum(_area(*a.T) + _area(*b.T) - shared, 1e-12)
    return ious


def _area(left: Floats, top: Floats, right: Floats, bottom: Floats) -> Floats:
    areas: Floats = np.maximum(right - left, 0.0) * np.maximum(bottom - top, 0.0)
    return areas


def _sides(edges: Floats) -> Floats:
    """(n, 4) -> (n, 4): the side along which each edge moves, at least 1 pixel."""
    sides: Floats = np.maximum(edges[:, 2:] - edges[:, :2], 1.0)
    return np.concatenate((sides, sides), axis=1)
