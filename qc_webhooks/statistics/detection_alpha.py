"""Detection alpha: Krippendorff's alpha of detections as a function of the IoU threshold, and F1 between annotators.

As KaLOS 0.8.0 computes it (Tschirschwitz and others, "KaLOS", CVPR 2026), from `DetectionCounts`: nominal alpha of the
units of all images together (global), and the mean of the images' own alphas. An image without regions is one unit that
all rate as absent; on its own its alpha is 1. An image with one annotator is left out: KaLOS asks for two, and its
alpha of one rating is 1.

All images are reduced to sums, those of the data and those of `RESAMPLES` bootstrap samples, so that memory does not
grow with the images (Poisson bootstrap: an image has a Poisson weight in each sample, drawn when it is read; Hanley and
MacGibbon, "Creating Non-parametric Bootstrap Samples Using Poisson Frequencies", 2006).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from qc_webhooks.agreement.detection_counts import F1_IOU, THRESHOLDS, DetectionCounts
from qc_webhooks.statistics.bootstrap import LEVEL, MIN_UNITS, Estimate, proportion_ci

Floats = NDArray[np.float64]

# Fewest images with objects of an estimate; the objects must be at least ``MIN_UNITS``.
MIN_IMAGES = 5
RESAMPLES = 500

# Images whose weights and counts are held before they are added to the sums.
_BUFFERED = 256


@dataclass
class DetectionAgreement:
    """Sums over all images, for the agreement of the detections of each control; flat in the number of images.

    An image without a region of a control counts for it as one on which all annotators agree.
    """

    seed: int = 0
    _rng: np.random.Generator = field(init=False)
    _all: "_Sums" = field(init=False)
    _controls: "dict[str, _Sums]" = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._all, self._controls = _Sums(), defaultdict(_Sums)

    def add(self, counts: Mapping[str, DetectionCounts], *, annotators: int) -> None:
        """Add an image.

        Args:
            counts: Control -> its counts, for every control with a region on the image.
            annotators: Annotators of the image, without the one of a ground truth; images with fewer than two have no
                agreement and are left out.
        """
        if annotators < 2:
            return
        # The first sample is the data: each image has weight 1.
        weights = np.concatenate(([1.0], self._rng.poisson(1.0, RESAMPLES)))
        self._all.add(weights, None, annotators)
        for control, values in counts.items():
            self._controls[control].add(weights, values, annotators)

    def estimates(self) -> dict[str, "DetectionAlpha"]:
        """Control -> its estimates."""
        return {name: _estimates(sums, self._all) for name, sums in sorted(self._controls.items())}


class DetectionAlpha(msgspec.Struct, frozen=True, gc=False):
    """Agreement of the detections of one control.

    Attributes:
        match_iou: The policy's threshold.
        alpha: Alpha of all images together at that threshold.
        mean_alpha: Mean of the images' alphas at that threshold.
        f1: F1 of one annotator against another at an IoU of 0.5, labels equal, over all pairs of all images.
        curve: (threshold, alpha, mean alpha) at each of ``THRESHOLDS``.
        images: Images with at least two annotators.
        images_with_regions: Those of them with a region of this control.
    """

    match_iou: float
    alpha: Estimate
    mean_alpha: Estimate
    f1: Estimate
    curve: tuple[tuple[float, Estimate, Estimate], ...]
    images: int
    images_with_regions: int


_COLUMNS = len(THRESHOLDS) + 1  # the last one is the policy's threshold


class _Sums:
    """Weighted sums over images, one row per bootstrap sample."""

    def __init__(self) -> None:
        self.labels: dict[str, Floats] = {}
        self.images: dict[int, Floats] = {}
        # Ratings, observed agreement, image alphas: (samples, thresholds).
        self.ratings, self.agreeing, self.alphas = (np.zeros((RESAMPLES + 1, _COLUMNS)) for _ in range(3))
        # Twice the matches, and the regions that could match: (samples,).
        self.f1 = np.zeros((RESAMPLES + 1, 2))
        self.match_iou = 0.5
        self.objects = 0
        self._buffer: list[tuple[Floats, DetectionCounts | None, int]] = []

    def add(self, weights: Floats, counts: DetectionCounts | None, annotators: int) -> None:
        """Add an image with its weight in each sample."""
        self._buffer.append((weights, counts, annotators))
        if len(self._buffer) >= _BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Add what is held to the sums."""
        if not self._buffer:
            return
        weights = np.stack([row for row, _, _ in self._buffer], axis=1)
        by_size: dict[int, list[int]] = defaultdict(list)
        for index, (_, _, annotators) in enumerate(self._buffer):
            by_size[annotators].append(index)
        for annotators, indices in by_size.items():
            previous = self.images.get(annotators, np.zeros(RESAMPLES + 1))
            self.images[annotators] = previous + weights[:, indices].sum(axis=1)
        images = [counts for _, counts, _ in self._buffer if counts is not None]
        if images:
            self._add_counts(weights, images)
        self._buffer.clear()

    def _add_counts(self, weights: Floats, images: Sequence[DetectionCounts]) -> None:
        names = {name for counts in images for name in counts.labels}
        for name in names:
            regions = np.array([counts.labels.get(name, 0) for counts in images], dtype=np.float64)
            self.labels[name] = self.labels.get(name, np.zeros(RESAMPLES + 1)) + weights @ regions
        size = np.array([counts.annotators for counts in images], dtype=np.float64)[:, None]
        table = np.array([_row(counts) for counts in images], dtype=np.float64)
        units, agreeing = table[..., 0], table[..., 1] / (size - 1)
        squares = np.array(
            [sum(count * (count - 1) for count in counts.labels.values()) for counts in images], dtype=np.float64
        )[:, None]
        regions = np.array([counts.regions for counts in images], dtype=np.float64)[:, None]
        absent = size * units - regions
        self.ratings += weights @ (size * units)
        self.agreeing += weights @ agreeing
        self.alphas += weights @ _alpha(size * units, agreeing, squares + absent * (absent - 1))
        hits = np.array([2.0 * counts.f1_matches for counts in images])
        self.f1 += weights @ np.column_stack((hits, regions[:, 0] * (size[:, 0] - 1)))
        self.match_iou = images[-1].match_iou
        self.objects += int(units[:, THRESHOLDS.index(F1_IOU)].sum())


def _row(counts: DetectionCounts) -> list[tuple[int, int]]:
    """(units, S) at each of ``THRESHOLDS`` and at the policy's threshold."""
    row: list[tuple[int, int]] = []
    ends = [index for index, _, _ in counts.curve[1:]]
    for (start, units, agreeing), end in zip(counts.curve, [*ends, len(THRESHOLDS)], strict=True):
        row += [(units, agreeing)] * (end - start)
    return [*row, counts.matched]


def _alpha(ratings: Floats, agreeing: Floats, squares: Floats) -> Floats:
    """Nominal alpha; 1 where all ratings are equal.

    Args:
        ratings: Number of ratings n.
        agreeing: Diagonal of the coincidence matrix.
        squares: Sum over the values of count x (count - 1).
    """
    chance = ratings * (ratings - 1) - squares
    alpha: Floats = np.ones(np.broadcast_shapes(ratings.shape, agreeing.shape, squares.shape))
    np.divide((ratings - 1) * agreeing - squares, chance, out=alpha, where=chance > 0)
    return alpha


def _estimates(sums: _Sums, all_images: _Sums) -> DetectionAlpha:
    sums.flush()
    all_images.flush()
    # Images without a region: one unit that all rate as absent, with alpha 1.
    empty = {m: weight - sums.images.get(m, 0.0) for m, weight in all_images.images.items()}
    unmarked = sum(empty.values(), start=np.zeros(RESAMPLES + 1))[:, None]
    ratings_there = sum((m * weight for m, weight in empty.items()), start=np.zeros(RESAMPLES + 1))[:, None]
    ratings = sums.ratings + ratings_there
    labels = np.stack(list(sums.labels.values()), axis=1)
    absent = ratings - labels.sum(axis=1, keepdims=True)
    squares = (labels * (labels - 1)).sum(axis=1, keepdims=True) + absent * (absent - 1)
    alphas = _alpha(ratings, sums.agreeing + ratings_there, squares)
    images = sum(all_images.images.values(), start=np.zeros(RESAMPLES + 1))[:, None]
    means = np.divide(sums.alphas + unmarked, images, out=np.ones_like(sums.alphas), where=images > 0)
    f1 = np.divide(sums.f1[:, 0], sums.f1[:, 1], out=np.full(RESAMPLES + 1, np.nan), where=sums.f1[:, 1] > 0)
    n, marked = round(float(images[0, 0])), round(float(images[0, 0] - unmarked[0, 0]))

    def estimate(values: Floats) -> Estimate:
        return _estimate(values, n, marked, sums.objects)

    curve = tuple(
        (threshold, estimate(alphas[:, index]), estimate(means[:, index])) for index, threshold in enumerate(THRESHOLDS)
    )
    return DetectionAlpha(
        sums.match_iou, estimate(alphas[:, -1]), estimate(means[:, -1]), estimate(f1), curve, n, marked
    )


def _estimate(values: Floats, n: int, marked: int, objects: int) -> Estimate:
    """The value of the data with the expanded percentile interval of its bootstrap samples.

    Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69 (2015), section 4.1.2: the
    percentiles are those of Student's t, so that the interval of few images is not too narrow.
    """
    if marked < MIN_IMAGES:
        return Estimate.insufficient(n, f"{marked} of the {MIN_IMAGES} required images have objects")
    if objects < MIN_UNITS:
        return Estimate.insufficient(n, f"{objects} of the {MIN_UNITS} required objects")
    value, samples = float(values[0]), values[1:][~np.isnan(values[1:])]
    if value >= 1 and (samples >= 1).all():  # equal samples have an interval of width zero
        low = proportion_ci(n, n, enough=1).low
        return Estimate(value, low, 1.0, n)
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - LEVEL) / 2)))
    low, high = np.quantile(samples, [tail, 1 - tail]).tolist()
    return Estimate(value, min(low, value), max(high, value), n)
