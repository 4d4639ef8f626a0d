"""Active learning: choose the images to label next. Pure functions; see `next_images`."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.detection.detections import Detections, Floats
from ml_backend.training.backbone import CandidateFeatures

# Images labelled at random before the head's output counts; dispersion needs at least two images.
COLD_START_IMAGES = 2

# Images considered for a batch, as a multiple of its size.
POOL = 5

# Detections count from this calibrated score; below it there are many false positives.
CONFIDENT = 0.1

# Minimum index of dispersion of a class's count per image; below it the order is random, since expected counts then
# only measure similarity to the labelled images.
MIN_DISPERSION = 0.7

# Weight of an object that the image edge cuts: it is a poorer example of its class.
TRUNCATED_WEIGHT = 0.3

# A box within this share of its side from the image edge counts as cut.
EDGE = 0.03

# Maximum random tie-breaker added to an image's value.
MAX_TIE_BREAKER = 1e-3

# Two images closer than this share of the median distance are near-duplicates; one of them goes last.
NEAR_DUPLICATE = 0.1

# Images at the head of an order that are checked for near-duplicates.
DUPLICATE_WINDOW = 200

# One in EMPTY_EVERY images is one without detections, while there are any; labelled images count.
EMPTY_EVERY = 5

# Position of that image in each cycle; not the last, where held-out tasks (a tenth or a fifth of all) are served.
EMPTY_POSITION = 3

# Minimum score of the detections that are considered.
FLOOR = 0.05


@dataclass(frozen=True, eq=False)
class UnlabelledImage:
    """An image without labels.

    Attributes:
        vector: (d,) float32 of length 1 from `image_vector`.
        uncertainty: Value of labelling it, from `uncertainty`; None without detections.
    """

    vector: Floats
    uncertainty: float | None = None


@dataclass(frozen=True)
class LabelCounts:
    """Counts of the labels so far.

    Attributes:
        objects: Weighted objects per class, see `object_weights`.
        dispersion: Index of dispersion of each labelled class's count per image, in (0, 1].
    """

    objects: Mapping[str, float]
    dispersion: Mapping[str, float]

    @classmethod
    def from_images(cls, photos: Iterable[tuple[Sequence[str], Floats]]) -> LabelCounts:
        """Count labels of images, given as (labels, `object_weights`).

        `dispersion` is the index variance / mean, which is 1 for Poisson counts (Fisher 1925, "Statistical Methods for
        Research Workers", section 16), with one pseudo-image of index 1 added, and capped at 1. A class that is on
        every image once has 1 / n: a head that detects two there is wrong.
        """
        sums: dict[str, float] = defaultdict(float)
        squares: dict[str, float] = defaultdict(float)
        count = 0
        for labels, shares in photos:
            count += 1
            image_counts: dict[str, float] = defaultdict(float)
            for label, share in zip(labels, shares.tolist(), strict=True):
                image_counts[label] += share
            for label, number in image_counts.items():
                sums[label] += number
                squares[label] += number * number
        dispersion = {name: min(1.0, squares[name] / total - total / count + 1 / count) for name, total in sums.items()}
        return cls(dict(sums), dispersion)


def object_weights(boxes: Floats, *, width: int, height: int) -> Floats:
    """Weight each object: 1, or `TRUNCATED_WEIGHT` where the image edge cuts it.

    Args:
        boxes: (n, 4) x_min, y_min, x_max, y_max in pixels of the image.
        width: Of the image in pixels; 0: unknown, and no object counts as cut.
        height: Of the image in pixels.

    Returns:
        (n,) float32.
    """
    near = np.tile(np.maximum((boxes[:, 2:] - boxes[:, :2]) * EDGE, 1.0), 2)
    to_edge = np.concatenate([boxes[:, :2], np.array([width, height], np.float32) - boxes[:, 2:]], axis=1)
    cut = (to_edge <= near).any(axis=1) & (width > 0)
    return np.where(cut, np.float32(TRUNCATED_WEIGHT), np.float32(1))


def image_vector(candidates: CandidateFeatures) -> Floats:
    """Objectness-weighted mean embedding of the candidates, or the image's features without any: (d,), of length 1."""
    if not len(candidates) and candidates.image_features is not None:
        whole = candidates.image_features.astype(np.float32)
        return np.asarray(whole / (np.linalg.norm(whole) + 1e-12), np.float32)
    weights = candidates.objectness + 1e-6
    mean = weights @ candidates.embeddings / weights.sum()
    candidates.release()
    return np.asarray(mean / (np.linalg.norm(mean) + 1e-12), np.float32)


def uncertainty(detections: Detections, shares: Floats, *, names: Sequence[str], labelled: LabelCounts) -> float | None:
    """Estimate how much labelling an image would improve the head.

    The sum over classes of dispersion x ln(1 + expected / (1 + labelled)), where `labelled` is the number of labelled
    objects of the class and `expected` the sum of its confident scores, both weighted by `object_weights`. It
    approximates the growth of log counts, with which AP50 grows. Where no class reaches `MIN_DISPERSION`, the value is
    random. Entropy and distances between embeddings chose worse than chance in `bench/results/learn_ablation.md`.

    Args:
        detections: After suppression, with calibrated scores of at least `FLOOR`.
        shares: (n,) float32 `object_weights`.
        names: Class names of the detections.
        labelled: Counts of the labelled images.

    Returns:
        The value; None without detections.
    """
    if not len(detections):
        return None
    total = MAX_TIE_BREAKER * zlib.crc32(np.ascontiguousarray(detections.scores).tobytes()) / 2**32
    confident = detections.scores >= CONFIDENT
    by_class = {
        names[index]: confident & (detections.classes == index)
        for index in np.unique(detections.classes[confident]).tolist()
    }
    dispersion = {**dict.fromkeys(by_class, 1.0), **labelled.dispersion}
    if max(dispersion.values(), default=0.0) < MIN_DISPERSION:
        return total
    for name, of_class in by_class.items():
        expected = float(detections.scores[of_class] @ shares[of_class])
        total += dispersion[name] * float(np.log1p(expected / (1 + labelled.objects.get(name, 0.0))))
    return total


def answer_uncertainty(uncertainties: Sequence[float]) -> float | None:
    """Value of labelling an image for its answers: the mean of 1 - margin of each; None without answers.

    Args:
        uncertainties: 1 - margin of each predicted answer, in [0, 1].
    """
    return float(np.mean(uncertainties)) if len(uncertainties) else None


def random_order(vectors: Floats, *, seed: int = 0) -> list[int]:
    """Shuffle images by a hash of their vectors: reproducible for a seed, and independent of their input order.

    Args:
        vectors: (n, d) float32.
        seed: Of the hash.

    Returns:
        Indices into `vectors`.
    """
    return sorted(range(len(vectors)), key=lambda index: zlib.crc32(vectors[index].astype("<f4").tobytes(), seed))


def sample_without_near_duplicates(vectors: Floats, labelled: Floats, count: int, *, seed: int = 0) -> list[int]:
    """Sample images at random; near-duplicates of others or of labelled images come last.

    Random sampling follows the distribution of the images that the model will serve.

    Args:
        vectors: (n, d) float32 of the images to choose from.
        labelled: (m, d) float32 of the labelled images.
        count: Number of images.
        seed: Of the random order.

    Returns:
        Indices into `vectors`, in order.
    """
    return _near_duplicates_last(random_order(vectors, seed=seed), vectors, labelled, count)


def _near_duplicates_last(order: Sequence[int], vectors: Floats, labelled: Floats, count: int) -> list[int]:
    """Take the first `count` of an order; near-duplicates among its first `DUPLICATE_WINDOW` move behind the others."""
    if not len(order):
        return []
    head, rest = list(order[:DUPLICATE_WINDOW]), list(order[DUPLICATE_WINDOW:])
    typical_distance = float(np.median(np.linalg.norm(vectors[head] - vectors[head].mean(axis=0), axis=1))) * 2**0.5
    selected: list[int] = []
    duplicates: list[int] = []
    for index in head:
        if len(selected) == count:
            return selected
        others = np.concatenate([labelled.reshape(-1, vectors.shape[1]), vectors[selected]])
        nearest = np.linalg.norm(others - vectors[index], axis=1).min(initial=np.inf)
        (duplicates if nearest < NEAR_DUPLICATE * typical_distance else selected).append(index)
    return [*selected, *duplicates, *rest][:count]


def rank(uncertainties: Sequence[float | None], *, labelled: int = 0) -> list[int]:
    """Rank images by value, highest first, with every `EMPTY_EVERY`-th one without detections.

    An image without detections may be empty, or show what the head misses. Interleaving neither floods the queue with
    them nor starves them.

    Args:
        uncertainties: Value of each image; None without detections.
        labelled: Number of labelled images: it sets the position in the cycle, since the order is computed again after
            each label.

    Returns:
        Indices into `uncertainties`, all of them.
    """
    valued = sorted(
        (index for index, value in enumerate(uncertainties) if value is not None),
        key=lambda i: -(uncertainties[i] or 0),
    )
    empty = [index for index, value in enumerate(uncertainties) if value is None]
    order: list[int] = []
    run_length = (EMPTY_POSITION - labelled) % EMPTY_EVERY
    while valued and empty:
        order += valued[:run_length] + empty[:1]
        valued, empty, run_length = valued[run_length:], empty[1:], EMPTY_EVERY - 1
    return order + valued + empty


def next_images(images: Sequence[UnlabelledImage], labelled: Floats, count: int, *, seed: int = 0) -> list[int]:
    """Choose the images to label next, best first.

    The order is random for the first `COLD_START_IMAGES`, and where no image has a value. Else images follow `rank`.
    Near-duplicates come last.

    Args:
        images: To choose from.
        labelled: (m, d) float32 vectors of the labelled images.
        count: Number of images.
        seed: Of the random order.

    Returns:
        Indices into `images`.
    """
    vectors = np.stack([image.vector for image in images])
    values = [image.uncertainty for image in images]
    if len(labelled) < COLD_START_IMAGES or max(value or 0.0 for value in values) <= MAX_TIE_BREAKER:
        return sample_without_near_duplicates(vectors, labelled, count, seed=seed)
    return _near_duplicates_last(rank(values, labelled=len(labelled)), vectors, labelled, count)
