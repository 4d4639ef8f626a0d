"""Whether an object that some annotators marked is there: each annotator's recall and false regions, by EM.

The idea is Dawid and Skene's, for regions: nobody marks an object as absent, so what is known is who looked and who
marked. A cluster of regions is a real object with odds

    density x product of recalls of those who marked it and of (1 - recall) of those who did not
    : false regions an image of those who marked it x coincidence for each further one who did

Real objects are easy or hard in equal shares (`DIFFICULTY` on the logit of recall): without that, nine annotators of
whom three saw a small object would prove that it is not there. Annotators of whom little is known are drawn to the
average one.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Logits by which an object is harder or easier than the annotators' mean; both equally common.
DIFFICULTY = (-1.5, 1.5)
# Recall before anything is known: a Beta distribution with these pseudo-objects found and missed.
RECALL = (2.0, 1.0)
# Images by which an annotator's rate of false regions is drawn to everybody's.
POOLED_IMAGES = 5.0
# How often a second annotator marks what is no object, and from how many occasions that would be known.
FALSE_MATCH_RATE, OCCASIONS = 0.05, 200.0
# At most so often, or everything that careful annotators agree on could pass for a coincidence.
MOST_COINCIDENCE = 0.1
# Regions an image that are no object, before anything is known, and from how many images that would be known.
FALSE_REGIONS, FALSE_IMAGES = 0.3, 10.0
# However careful the crowd: a slip in fifty images stays possible, or a lone one would count for more than everybody.
LEAST_FALSE_REGIONS = 0.02

_ROUNDS = 40
_TINY = 1e-12
_MOST = 4.0  # a logit of recall: between 1.8 and 98.2 percent


class ObjectEvidence(msgspec.Struct, frozen=True, gc=False):
    """A cluster of regions as evidence.

    Attributes:
        looked: Annotators who annotated the image.
        marked: Those of them who marked this object.
        real: Whether it is one, where the truth is known; who looked then is everybody but the one who told the truth.
    """

    looked: tuple[int, ...]
    marked: tuple[int, ...]
    real: bool | None = None


class DetectionModel(msgspec.Struct, frozen=True):
    """What is known of annotators as finders of objects.

    Attributes:
        logits: Annotator -> logit of the recall of an object of mean difficulty.
        false_regions: Annotator -> regions an image that are no object.
        density: Objects an image.
        coincidence: How often a further annotator marks the same thing that is no object.
        typical: Logit and false regions of an annotator who is not known.
    """

    logits: Mapping[int, float]
    false_regions: Mapping[int, float]
    density: float
    coincidence: float
    typical: tuple[float, float]

    def recall(self, annotator: int) -> float:
        """Share of all objects that the annotator marks, easy and hard ones."""
        logit = self.logits.get(annotator, self.typical[0])
        return float(_expit(logit + np.array(DIFFICULTY)).mean())

    def probability(self, sighting: ObjectEvidence) -> float:
        """How likely the object is there, 0 to 1."""
        return float(1 - self.states(sighting)[-1])

    def others(self, sighting: ObjectEvidence, annotator: int) -> tuple[float, float]:
        """How likely the others of a sighting do what they did about a region of this annotator.

        Returns:
            If it is an object (an easy one more likely than a hard one, since the annotator saw it), and if it is none.
        """
        marked = frozenset(sighting.marked) - {annotator}
        others = [who for who in sighting.looked if who != annotator]
        logits = [(self.logits.get(who, self.typical[0]), who in marked) for who in others]
        own, real, seen = self.logits.get(annotator, self.typical[0]), 0.0, 0.0
        for shift in DIFFICULTY:
            likely = 1 / (1 + math.exp(-(own + shift)))
            seen += likely
            for logit, mark in logits:
                likely /= 1 + math.exp(-(logit + shift) if mark else logit + shift)
            real += likely
        chance: float = self.coincidence ** len(marked) * (1 - self.coincidence) ** (len(others) - len(marked))
        return real / seen, chance

    def states(self, sighting: ObjectEvidence) -> Floats:
        """How likely it is a real object of each ``DIFFICULTY`` or, last, no object; they sum to 1."""
        # In plain floats: for three annotators numpy's calls take twenty times as long, and every cluster is asked.
        marked, looked = frozenset(sighting.marked), sighting.looked
        logits = [(self.logits.get(who, self.typical[0]), who in marked) for who in looked]
        logs = [
            math.log(self.density / len(DIFFICULTY))
            # log(recall) of those who marked it, log(1 - recall) of the others
            - sum(math.log1p(math.exp(-(logit + shift) if mark else logit + shift)) for logit, mark in logits)
            for shift in DIFFICULTY
        ]
        marks = [who for who in looked if who in marked]
        rates = sum(self.false_regions.get(who, self.typical[1]) for who in marks)
        further, others = len(marks) - 1, len(looked) - len(marks)
        logs.append(
            math.log(rates) + further * math.log(self.coincidence) + others * math.log1p(-self.coincidence)
            if marks
            else -math.inf
        )
        highest = max(logs)
        shares = [math.exp(each - highest) for each in logs]
        total = sum(shares)
        return np.array([each / total for each in shares])


# Before anything is known.
UNKNOWN = DetectionModel({}, {}, 1.0, FALSE_MATCH_RATE, (float(np.log(RECALL[0] / RECALL[1])), FALSE_REGIONS))


def fit_detection_model(
    sightings: Sequence[ObjectEvidence],
    images: Mapping[tuple[int, ...], int],
    known: Mapping[tuple[int, ...], int] | None = None,
) -> DetectionModel:
    """Recall and false regions of every annotator, from who marked what; no truth is needed.

    Objects that everybody overlooked left no trace, and are reckoned in: recall is of all objects, not of those that
    somebody marked.

    Args:
        sightings: Every cluster of regions.
        images: Who looked at an image -> how many images these people looked at, those left empty too.
        known: The same, of images of which every object is known: nothing was overlooked there without a trace.

    Returns:
        The maximum a posteriori estimate. Without sightings, what holds before anything is known.
    """
    if not sightings:
        return UNKNOWN
    who = sorted({annotator for looked in images for annotator in looked})
    index = {annotator: place for place, annotator in enumerate(who)}
    # Behind the clusters one row for each group of annotators: what all of them overlooked.
    looked = [*(sighting.looked for sighting in sightings), *images]
    rows = np.repeat(np.arange(len(looked)), [len(people) for people in looked])
    columns = np.array([index[annotator] for people in looked for annotator in people], dtype=np.intp)
    marked = np.zeros(len(rows))
    marks = [annotator in sighting.marked for sighting in sightings for annotator in sighting.looked]
    marked[: len(marks)] = marks
    seen = rows < len(sightings)
    counts = np.array(list(images.values()), dtype=float)
    annotated = _sums(columns[~seen], counts[rows[~seen] - len(sightings)], len(who))
    open_ = counts - np.array([(known or {}).get(people, 0) for people in images], dtype=float)
    truth = np.array([math.nan if each.real is None else float(each.real) for each in sightings])
    return _estimate(_Data(rows, columns, marked, len(sightings), counts, annotated, open_, truth), who)


class _Data(msgspec.Struct, frozen=True):
    """One entry of the first three an annotator who looked at a cluster's image, or at a group's images."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    marked: Floats
    clusters: int
    counts: Floats
    images: Floats
    open: Floats
    truth: Floats


def _estimate(data: _Data, who: Sequence[int]) -> DetectionModel:
    rows, columns, marked, n, m = data.rows, data.columns, data.marked, data.clusters, len(who)
    total, everything = float(data.counts.sum()), n + len(data.counts)
    seen = rows < n
    size = _sums(rows, marked, everything)[:n]
    looked = _sums(rows, np.ones(len(rows)), everything)[:n]
    told = ~np.isnan(data.truth)
    real: Floats = np.where(told, data.truth, np.clip((size - 0.5) / looked, 0.02, 0.98))
    size = np.maximum(size, 1.0)  # what nobody marked is there because the truth says so, and is nobody's false region
    unseen: Floats = np.zeros(len(data.counts))
    hard: Floats = np.full((everything, len(DIFFICULTY)), 1 / len(DIFFICULTY))
    logits: Floats = np.full(m, 0.5)
    false: Floats = np.zeros(m)
    pooled, coincidence, density = 0.0, FALSE_MATCH_RATE, 1.0
    for _ in range(_ROUNDS):
        logits = _recalls(logits, np.concatenate((real, unseen)), hard, data)
        pooled = float((1 - real).sum() + FALSE_REGIONS * FALSE_IMAGES) / float(data.images.sum() + FALSE_IMAGES)
        pooled = max(pooled, LEAST_FALSE_REGIONS)
        own = _sums(columns[seen], (1 - real)[rows[seen]] * marked[seen] / size[rows[seen]], m)
        false = (own + POOLED_IMAGES * pooled) / (data.images + POOLED_IMAGES)
        false = np.maximum(false, LEAST_FALSE_REGIONS)
        together, occasions = (1 - real) @ (size - 1), (1 - real) @ (looked - 1)
        coincidence = float((together + FALSE_MATCH_RATE * OCCASIONS) / (occasions + OCCASIONS))
        coincidence = min(coincidence, MOST_COINCIDENCE)
        density = float((real.sum() + unseen.sum() + 1) / total)
        logs = _log_real(logits[columns], marked, rows, everything)
        log_real = np.logaddexp.reduce(logs, axis=1)
        hard = np.exp(logs - log_real[:, None])
        log_false = _log_false(_sums(rows, marked * false[columns], everything)[:n], size, looked, coincidence)
        real = np.where(told, data.truth, _expit(np.log(density) + log_real[:n] - log_false))
        unseen = data.open * density * np.exp(log_real[n:])
    return DetectionModel(
        {annotator: float(logits[place]) for place, annotator in enumerate(who)},
        {annotator: float(false[place]) for place, annotator in enumerate(who)},
        density,
        coincidence,
        (float(np.average(logits, weights=data.images)), pooled),
    )


def _recalls(logits: Floats, real: Floats, hard: Floats, data: _Data) -> Floats:
    """Two Newton steps of every annotator's logit, with a Beta prior on the recall of a mean object."""
    rows, columns, marked = data.rows, data.columns, data.marked
    weights = real[rows][:, None] * hard[rows]
    found, missed = RECALL
    for _ in range(2):
        likely = _expit(logits[columns][:, None] + np.array(DIFFICULTY))
        mean = _expit(logits)
        slope: Floats = _sums(columns, (weights * (marked[:, None] - likely)).sum(axis=1), len(logits))
        curve: Floats = _sums(columns, (weights * likely * (1 - likely)).sum(axis=1), len(logits))
        slope += found * (1 - mean) - missed * mean
        curve += (found + missed) * mean * (1 - mean)
        logits = np.clip(logits + np.clip(slope / curve, -1, 1), -_MOST, _MOST)
    return logits


def _log_real(logits: Floats, marked: Floats, rows: NDArray[np.intp], n: int) -> Floats:
    """(n, difficulties): log-probability of who marked a real object of each difficulty, and of that difficulty."""
    logs: Floats = np.empty((n, len(DIFFICULTY)))
    for place, shift in enumerate(DIFFICULTY):
        likely = _expit(logits + shift)
        logs[:, place] = _sums(rows, marked * np.log(likely) + (1 - marked) * np.log1p(-likely), n)
    logs -= np.log(len(DIFFICULTY))
    return logs


def _log_false(rates: Floats, size: Floats, looked: Floats, coincidence: float) -> Floats:
    """(n,): log-density of a region that is no object; ``rates`` is the sum over those who marked it."""
    found: Floats = (
        np.log(np.maximum(rates, _TINY)) + (size - 1) * np.log(coincidence) + (looked - size) * np.log1p(-coincidence)
    )
    return found


def _sums(places: NDArray[np.intp], weights: Floats, n: int) -> Floats:
    """(n,): the weights of each place added up."""
    found: Floats = np.bincount(places, weights, n).astype(np.float64, copy=False)
    return found


def _expit(values: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-values))
    return found
