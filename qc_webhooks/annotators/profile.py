"""Profile of each annotator: reliability, speed, drift, duplicates, pre-label bias, and flags for the lead."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import MATCH_IOU, AnnotatorModel
from qc_webhooks.annotators.copied_work import DuplicatePair, find_duplicates
from qc_webhooks.annotators.diagnosis import Diagnosis, named_by_measure
from qc_webhooks.annotators.drift import Drift, detect_drift
from qc_webhooks.annotators.reliability import Reliability, rate_annotators
from qc_webhooks.annotators.work_habits import PrelabelBias, Speed, measure_prelabel_bias, measure_speed
from qc_webhooks.statistics.bootstrap import MIN_UNITS, RESAMPLES, Estimate, proportion_ci
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

# Smallest deviation of a rate below the median that raises a flag.
_MARGIN = 0.03
# Share of hasty tasks above which a flag is raised.
_MAX_HASTY = 0.1
_MIN_REPEATABILITY = 0.8
# Fewest tasks with a ground truth for an estimate.
_MIN_TRUTHS = 5
# Number of worst tasks listed.
_MAX_WORST = 5
_TRUTH_RATE = "agreement with the ground truth"
# Name of a rate -> measures of a diagnosis that it belongs to.
_MEASURES: Mapping[str, frozenset[str]] = {
    "accuracy": frozenset({"labels", "answers"}),
    "recall": frozenset({"misses"}),
    "precision": frozenset({"extras"}),
}
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class AnnotatorProfile:
    """One annotator.

    Attributes:
        reliability: Accuracy, confusion, recall, precision, strictness.
        speed: None without known times.
        drift: Change of agreement over time; None without a significant one.
        anchoring: Pre-label bias; None without pre-labels.
        copies: Annotators with near-identical regions too often.
        repeats: Intra-annotator agreement on tasks done twice.
        against_truth: Agreement with the ground truth on tasks served to measure the annotator.
        against_decided: The same on tasks decided after the annotator submitted. Many of these are disputes that a
            reviewer resolved, so it is lower than on other tasks.
        furthest: (task, agreement) of the worst tasks among those served to measure.
        size: Geometric mean of the area ratio to the others' regions of the same objects.
        concerns: Flags in words.
    """

    reliability: Reliability
    speed: Speed | None = None
    drift: Drift | None = None
    anchoring: PrelabelBias | None = None
    copies: tuple[DuplicatePair, ...] = ()
    repeats: Estimate = field(default_factory=lambda: Estimate.insufficient(0))
    size: Estimate = field(default_factory=lambda: Estimate.insufficient(0))
    against_truth: Estimate = field(default_factory=lambda: Estimate.insufficient(0))
    against_decided: Estimate = field(default_factory=lambda: Estimate.insufficient(0))
    furthest: tuple[tuple[int, float], ...] = ()
    concerns: tuple[str, ...] = ()

    @property
    def annotator(self) -> int:
        """The annotator's id."""
        return self.reliability.annotator

    def as_json(self) -> dict[str, Any]:
        """Fields for a report, with those of the reliability at the top level."""
        fields = asdict(self)
        return {**fields.pop("reliability"), **fields}


def profile_annotators(
    tasks: Sequence[TaskFacts],
    model: AnnotatorModel,
    diagnoses: Sequence[Diagnosis] = (),
    *,
    match_iou: float = MATCH_IOU,
) -> tuple[AnnotatorProfile, ...]:
    """Profiles of all annotators of the tasks, by id; an unknown one (a negative id) is another one in each task.

    Args:
        tasks: Facts of each task.
        model: Annotator model estimated from their evidence.
        diagnoses: See ``find_diagnoses``; they say who is flagged for errors.
        match_iou: IoU from which a box is at the right place, see `RegionReliability`.
    """
    rated = rate_annotators([task.evidence() for task in tasks], model, match_iou=match_iou)
    speeds, drifts, prelabel_biases, duplicates = (
        measure_speed(tasks),
        detect_drift(tasks),
        measure_prelabel_bias(tasks),
        find_duplicates(tasks),
    )
    repeats, sizes = _repeats(tasks), _sizes(tasks)
    against_truth, against_decided = _against_truths(tasks, served=True), _against_truths(tasks, served=False)
    nothing, worst = Estimate.insufficient(0), _worst_against_truth(tasks)
    profiles = [
        AnnotatorProfile(
            reliability,
            speeds.get(reliability.annotator),
            drifts.get(reliability.annotator),
            prelabel_biases.get(reliability.annotator),
            duplicates.get(reliability.annotator, ()),
            repeats.get(reliability.annotator, nothing),
            sizes.get(reliability.annotator, nothing),
            against_truth.get(reliability.annotator, nothing),
            against_decided.get(reliability.annotator, nothing),
            worst.get(reliability.annotator, ()),
        )
        for reliability in rated
        if reliability.annotator >= 0
    ]
    medians = _median_rates(profiles)
    named = named_by_measure(diagnoses)
    return tuple(
        replace(
            profile,
            concerns=tuple(_concerns(profile, medians, diagnoses, named.get(profile.annotator, frozenset()))),
        )
        for profile in profiles
    )


def _against_truths(tasks: Sequence[TaskFacts], *, served: bool) -> dict[int, Estimate]:
    """Agreement with the ground truth by annotator id.

    Args:
        tasks: Facts of each task.
        served: Count annotations submitted after the ground truth was known; otherwise those submitted before.
    """
    scores: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        for annotation in task.blind:
            if annotation.ground_truth_agreement is not None and annotation.measures_annotator == served:
                scores[annotation.annotator].append(annotation.ground_truth_agreement)
    return {who: _mean(np.array(values), _MIN_TRUTHS) for who, values in scores.items()}


def _worst_against_truth(tasks: Sequence[TaskFacts]) -> dict[int, tuple[tuple[int, float], ...]]:
    scores: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for task in tasks:
        for annotation in task.blind:
            if (
                annotation.measures_annotator
                and annotation.ground_truth_agreement is not None
                and annotation.ground_truth_agreement < 1
            ):
                scores[annotation.annotator].append((annotation.ground_truth_agreement, task.task))
    return {who: tuple((task, score) for score, task in sorted(pairs)[:_MAX_WORST]) for who, pairs in scores.items()}


def _repeats(tasks: Sequence[TaskFacts]) -> dict[int, Estimate]:
    scores: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        for repeat in task.repeats:
            scores[repeat.annotator].append(repeat.agreement)
    return {who: _mean(np.array(values)) for who, values in scores.items()}


def _mean(scores: Floats, enough: int = 5) -> Estimate:
    """Mean with a bootstrap interval, from 5 scores on: an annotator seldom has 20 repeats."""
    n = len(scores)
    if n < enough:
        return Estimate.insufficient(n, f"{n} of the {enough} required")
    drawn = scores[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    if scores.min() == scores.max():
        # Equal scores give a bootstrap interval of width zero; widen it by the chance of a rare miss.
        value, unseen = float(scores[0]), 1 - (proportion_ci(n, n, enough=enough).low or 0.0)
        low, high = value * (1 - unseen), value + (1 - value) * unseen
    return Estimate(float(scores.mean()), low, high, n)


def _sizes(tasks: Sequence[TaskFacts]) -> dict[int, Estimate]:
    logs: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        for marked_object in task.objects:
            areas = [(mark.annotator, math.log(mark.area)) for mark in marked_object.marks if mark.area > 0]
            total = sum(area for _, area in areas)
            for who, area in areas if len(areas) > 1 else ():
                logs[who].append(area - (total - area) / (len(areas) - 1))
    estimates = {}
    for who, ratios in logs.items():
        if len(ratios) < MIN_UNITS:
            estimates[who] = Estimate.insufficient(len(ratios))
            continue
        clipped = np.clip(np.array(ratios), -1.0, 1.0)
        middle, half = float(clipped.mean()), _NORMAL_95 * float(clipped.std(ddof=1)) / math.sqrt(len(ratios))
        estimates[who] = Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(ratios))
    return estimates


def _median_rates(profiles: Sequence[AnnotatorProfile]) -> Mapping[str, float]:
    """Median of all annotators by rate."""
    values: dict[str, list[float]] = defaultdict(list)
    for profile in profiles:
        for name, estimate in _rates(profile).items():
            if estimate.value is not None:
                values[name].append(estimate.value)
    return {name: float(np.median(rates)) for name, rates in values.items()}


def _rates(profile: AnnotatorProfile) -> dict[str, Estimate]:
    reliability = profile.reliability
    rates = {
        f"accuracy of {name}": rated.accuracy for name, rated in {**reliability.labels, **reliability.choices}.items()
    }
    if reliability.regions:
        # Annotators are compared by what others found: what is unknown of all objects is the same for all of them.
        rates |= {
            "recall of what others found": reliability.regions.recall_of_found,
            "precision of what others confirm": reliability.regions.precision_by_others,
        }
    return rates | {_TRUTH_RATE: profile.against_truth}


def _concerns(
    profile: AnnotatorProfile, medians: Mapping[str, float], diagnoses: Sequence[Diagnosis], named: frozenset[str]
) -> list[str]:
    """Flags in words. A rate is flagged only where a diagnosis names the annotator on that measure."""
    lines = []
    for name, rate in _rates(profile).items():
        is_named = name == _TRUTH_RATE or bool(_MEASURES.get(name.split(" of ")[0], frozenset()) & named)
        if is_named and rate.high is not None and rate.value is not None and rate.high < medians[name] - _MARGIN:
            lines.append(
                f"{name[0].upper()}{name[1:]} {_percent(rate.value)} ({_percent(rate.low)} to {_percent(rate.high)}),"
                f" median {_percent(medians[name])}."
            )
    lines += [item.text for item in diagnoses if profile.annotator in item.who]
    if profile.drift:
        way = "fell" if profile.drift.after < profile.drift.before else "rose"
        lines.append(
            f"Agreement with the others {way} from {_percent(profile.drift.before)} to {_percent(profile.drift.after)}."
        )
    if profile.speed and profile.speed.hasty.low is not None and profile.speed.hasty.low > _MAX_HASTY:
        lines.append(
            f"{_percent(profile.speed.hasty.value)} of the tasks took less than a quarter of the others' time."
        )
    if profile.repeats.high is not None and profile.repeats.high < _MIN_REPEATABILITY:
        lines.append(f"Repeated tasks agree with the earlier annotation by {_percent(profile.repeats.value)} only.")
    return lines


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.0f} %"
