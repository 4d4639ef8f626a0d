"""Probability that an object exists, given who marked it: recall and false-region rate of each annotator, by EM.

Dawid-Skene for detections: annotators never mark an object as absent, so the data are who annotated the image and who
marked the object. A cluster of regions is a real object with odds

    density x product of recall of those who marked it and of (1 - recall) of the others
    : false regions per image of those who marked it x false match rate for each further one who did

Real objects are easy or hard with equal probability (`DIFFICULTY`, added to the logit of recall). Without this, nine
annotators of whom three saw a small object would prove that it does not exist. Annotators with little data are shrunk
to the average.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Offsets of the recall logit for hard and easy objects; both are equally common.
DIFFICULTY = (-1.5, 1.5)
# Beta prior of recall: pseudo-objects found and missed.
RECALL = (2.0, 1.0)
# Pseudo-images that shrink an annotator's false-region rate to the pooled rate.
POOLED_IMAGES = 5.0
# Prior probability that a further annotator marks the same false region, and its weight in occasions.
FALSE_MATCH_RATE, OCCASIONS = 0.05, 200.0
# Upper limit of that rate; otherwise any agreement of careful annotators could count as coincidence.
MAX_FALSE_MATCH_RATE = 0.1
# Prior number of false regions per image, and its weight in images.
FALSE_REGIONS, FALSE_IMAGES = 0.3, 10.0
# Lower limit: one false region in fifty images; otherwise a single annotator could outweigh all others.
MIN_FALSE_REGIONS = 0.02

_ITERATIONS = 40
_TINY = 1e-12
_MAX_LOGIT = 4.0  # logits of recall are clipped: 1.8 to 98.2 percent


class ObjectEvidence(msgspec.Struct, frozen=True, gc=False):
    """Who marked one object.

    Attributes:
        annotators: Annotators of the image, without the one of the ground truth.
        marked_by: Those of them who marked this object.
        is_real: Whether the object exists, from the ground truth; None: unknown.
    """

    annotators: tuple[int, ...]
    marked_by: tuple[int, ...]
    is_real: bool | None = None


class DetectionModel(msgspec.Struct, frozen=True, rename={"false_match_rate": "coincidence"}):
    """Detection performance of the annotators. It is stored as JSON: ``rename`` keeps the key.

    Attributes:
        logits: Annotator -> logit of recall for an object of mean difficulty.
        false_regions: Annotator -> false regions per image.
        density: Objects per image.
        false_match_rate: Probability that a further annotator marks the same false region.
        typical: Logit of recall and false regions per image of an unknown annotator.
    """

    logits: Mapping[int, float]
    false_regions: Mapping[int, float]
    density: float
    false_match_rate: float
    typical: tuple[float, float]

    def recall(self, annotator: int) -> float:
        """Share of all objects, easy and hard, that the annotator marks."""
        logit = self.logits.get(annotator, self.typical[0])
        return float(expit(logit + np.array(DIFFICULTY)).mean())

    def probability(self, evidence: ObjectEvidence) -> float:
        """Probability that the object exists, 0 to 1."""
        return float(1 - self.state_probabilities(evidence)[-1])

    def likelihood_of_others(self, evidence: ObjectEvidence, annotator: int) -> tuple[float, float]:
        """Likelihood of the marks of the other annotators, given that this one marked the region.

        Returns:
            The likelihood if it is an object (more likely an easy one, since this annotator saw it), and if it is not.
        """
        marked_by = frozenset(evidence.marked_by) - {annotator}
        others = [who for who in evidence.annotators if who != annotator]
        logits = [(self.logits.get(who, self.typical[0]), who in marked_by) for who in others]
        own, joint, marginal = self.logits.get(annotator, self.typical[0]), 0.0, 0.0
        for shift in DIFFICULTY:
            likely = 1 / (1 + math.exp(-(own + shift)))
            marginal += likely
            for logit, mark in logits:
                likely /= 1 + math.exp(-(logit + shift) if mark else logit + shift)
            joint += likely
        chance: float = self.false_match_rate ** len(marked_by) * (1 - self.false_match_rate) ** (
            len(others) - len(marked_by)
        )
        return joint / marginal, chance

    def state_probabilities(self, evidence: ObjectEvidence) -> Floats:
        """Probabilities of a real object of each ``DIFFICULTY`` and, last, of no object; (3,), sum 1."""
        # Plain floats: for three annotators numpy takes twenty times as long, and this runs for every cluster.
        marked_by, annotators = frozenset(evidence.marked_by), evidence.annotators
        logits = [(self.logits.get(who, self.typical[0]), who in marked_by) for who in annotators]
        logs = [
            math.log(self.density / len(DIFFICULTY))
            # log(recall) of those who marked it, log(1 - recall) of the others
            - sum(math.log1p(math.exp(-(logit + shift) if mark else logit + shift)) for logit, mark in logits)
            for shift in DIFFICULTY
        ]
        marks = [who for who in annotators if who in marked_by]
        rates = sum(self.false_regions.get(who, self.typical[1]) for who in marks)
        further, others = len(marks) - 1, len(annotators) - len(marks)
        logs.append(
            math.log(rates) + further * math.log(self.false_match_rate) + others * math.log1p(-self.false_match_rate)
            if marks
            else -math.inf
        )
        highest = max(logs)
        shares = [math.exp(log - highest) for log in logs]
        total = sum(shares)
        return np.array([share / total for share in shares])


# The model without data.
PRIOR = DetectionModel({}, {}, 1.0, FALSE_MATCH_RATE, (float(np.log(RECALL[0] / RECALL[1])), FALSE_REGIONS))


def fit_detection_model(
    objects: Sequence[ObjectEvidence],
    images: Mapping[tuple[int, ...], int],
    known_images: Mapping[tuple[int, ...], int] | None = None,
) -> DetectionModel:
    """Estimate recall and false regions of every annotator; ground truth is optional.

    Objects that all annotators missed leave no data and are estimated too: recall refers to all objects, not only to
    marked ones.

    Args:
        objects: All clusters of regions.
        images: Annotators of an image -> number of images that they annotated, including empty ones.
        known_images: The same for images with ground truth, where no object is unknown.

    Returns:
        The maximum a posteriori estimate; `PRIOR` without objects.
    """
    if not objects:
        return PRIOR
    annotators = sorted({annotator for group in images for annotator in group})
    column_of = {annotator: column for column, annotator in enumerate(annotators)}
    # After the clusters, one row per group of annotators: the objects that all of them missed.
    groups = [*(evidence.annotators for evidence in objects), *images]
    rows = np.repeat(np.arange(len(groups)), [len(people) for people in groups])
    columns = np.array([column_of[annotator] for people in groups for annotator in people], dtype=np.intp)
    marked = np.zeros(len(rows))
    marks = [annotator in evidence.marked_by for evidence in objects for annotator in evidence.annotators]
    marked[: len(marks)] = marks
    has_cluster = rows < len(objects)
    counts = np.array(list(images.values()), dtype=float)
    annotated = _sum_by_index(columns[~has_cluster], counts[rows[~has_cluster] - len(objects)], len(annotators))
    open_images = counts - np.array([(known_images or {}).get(people, 0) for people in images], dtype=float)
    truth = np.array([math.nan if evidence.is_real is None else float(evidence.is_real) for evidence in objects])
    return _estimate(_Data(rows, columns, marked, len(objects), counts, annotated, open_images, truth), annotators)


class _Data(msgspec.Struct, frozen=True):
    """The first three arrays have one entry per annotator of a cluster's image or of a group's images."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    marked: Floats
    clusters: int
    counts: Floats
    images: Floats
    open: Floats
    truth: Floats


def _estimate(data: _Data, annotators: Sequence[int]) -> DetectionModel:
    rows, columns, marked, n, m = data.rows, data.columns, data.marked, data.clusters, len(annotators)
    total, row_count = float(data.counts.sum()), n + len(data.counts)
    has_cluster = rows < n
    marker_count = _sum_by_index(rows, marked, row_count)[:n]
    annotator_count = _sum_by_index(rows, np.ones(len(rows)), row_count)[:n]
    is_known = ~np.isnan(data.truth)
    p_real: Floats = np.where(is_known, data.truth, np.clip((marker_count - 0.5) / annotator_count, 0.02, 0.98))
    marker_count = np.maximum(
        marker_count, 1.0
    )  # objects known only from the ground truth have no marker, and are no false region
    missed: Floats = np.zeros(len(data.counts))
    difficulty: Floats = np.full((row_count, len(DIFFICULTY)), 1 / len(DIFFICULTY))
    logits: Floats = np.full(m, 0.5)
    false_regions: Floats = np.zeros(m)
    pooled, false_match_rate, density = 0.0, FALSE_MATCH_RATE, 1.0
    for _ in range(_ITERATIONS):
        logits = _update_logits(logits, np.concatenate((p_real, missed)), difficulty, data)
        pooled = float((1 - p_real).sum() + FALSE_REGIONS * FALSE_IMAGES) / float(data.images.sum() + FALSE_IMAGES)
        pooled = max(pooled, MIN_FALSE_REGIONS)
        own = _sum_by_index(
            columns[has_cluster],
            (1 - p_real)[rows[has_cluster]] * marked[has_cluster] / marker_count[rows[has_cluster]],
            m,
        )
        false_regions = (own + POOLED_IMAGES * pooled) / (data.images + POOLED_IMAGES)
        false_regions = np.maximum(false_regions, MIN_FALSE_REGIONS)
        together, occasions = (1 - p_real) @ (marker_count - 1), (1 - p_real) @ (annotator_count - 1)
        false_match_rate = float((together + FALSE_MATCH_RATE * OCCASIONS) / (occasions + OCCASIONS))
        false_match_rate = min(false_match_rate, MAX_FALSE_MATCH_RATE)
        density = float((p_real.sum() + missed.sum() + 1) / total)
        logs = _log_real(logits[columns], marked, rows, row_count)
        log_real = np.logaddexp.reduce(logs, axis=1)
        difficulty = np.exp(logs - log_real[:, None])
        log_false = _log_false(
            _sum_by_index(rows, marked * false_regions[columns], row_count)[:n],
            marker_count,
            annotator_count,
            false_match_rate,
        )
        p_real = np.where(is_known, data.truth, expit(np.log(density) + log_real[:n] - log_false))
        missed = data.open * density * np.exp(log_real[n:])
    return DetectionModel(
        {annotator: float(logits[index]) for index, annotator in enumerate(annotators)},
        {annotator: float(false_regions[index]) for index, annotator in enumerate(annotators)},
        density,
        false_match_rate,
        (float(np.average(logits, weights=data.images)), pooled),
    )


def _update_logits(logits: Floats, p_real: Floats, difficulty: Floats, data: _Data) -> Floats:
    """(m,): two Newton steps of every annotator's logit, with a Beta prior on the recall of a mean object."""
    rows, columns, marked = data.rows, data.columns, data.marked
    weights = p_real[rows][:, None] * difficulty[rows]
    hits, misses = RECALL
    for _ in range(2):
        likely = expit(logits[columns][:, None] + np.array(DIFFICULTY))
        mean = expit(logits)
        slope: Floats = _sum_by_index(columns, (weights * (marked[:, None] - likely)).sum(axis=1), len(logits))
        curve: Floats = _sum_by_index(columns, (weights * likely * (1 - likely)).sum(axis=1), len(logits))
        slope += hits * (1 - mean) - misses * mean
        curve += (hits + misses) * mean * (1 - mean)
        logits = np.clip(logits + np.clip(slope / curve, -1, 1), -_MAX_LOGIT, _MAX_LOGIT)
    return logits


def _log_real(logits: Floats, marked: Floats, rows: NDArray[np.intp], n: int) -> Floats:
    """(n, difficulties): joint log-probability of the marks on a real object and its difficulty."""
    logs: Floats = np.empty((n, len(DIFFICULTY)))
    for index, shift in enumerate(DIFFICULTY):
        likely = expit(logits + shift)
        logs[:, index] = _sum_by_index(rows, marked * np.log(likely) + (1 - marked) * np.log1p(-likely), n)
    logs -= np.log(len(DIFFICULTY))
    return logs


def _log_false(rates: Floats, marker_count: Floats, annotator_count: Floats, false_match_rate: float) -> Floats:
    """(n,): log-density of a false region; ``rates`` is the sum of the rates of those who marked it."""
    log_density: Floats = (
        np.log(np.maximum(rates, _TINY))
        + (marker_count - 1) * np.log(false_match_rate)
        + (annotator_count - marker_count) * np.log1p(-false_match_rate)
    )
    return log_density


def _sum_by_index(indices: NDArray[np.intp], weights: Floats, n: int) -> Floats:
    """(n,): sum of the weights by index."""
    sums: Floats = np.bincount(indices, weights, n).astype(np.float64, copy=False)
    return sums


def expit(values: Floats) -> Floats:
    """The sigmoid of log odds; without SciPy, which takes longer to load than most consensus takes."""
    probabilities: Floats = 1 / (1 + np.exp(-values))
    return probabilities
