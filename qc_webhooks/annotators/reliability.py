"""How reliable each annotator is: with a 95 % interval, a confusion matrix and strictness; never a bare percentage.

The truth is seldom known, only how likely each answer is in the light of what the *others* said: an annotator's own
vote has no part in what that annotator is measured by. Where a ground truth exists it is taken as certain, which says
far more, and whoever told it is not measured by it. For a rate r (accuracy, recall) each item then counts

    likelihood(r) = r x P(what was said | right) + (1 - r) x P(what was said | wrong)

and the interval holds 95 % of the posterior under a uniform prior, computed on a grid. Where the others are unsure an
item says little, so the interval is wider than that of a rate over known truths, as it must be.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence
from labelloop.labeling.consensus.crowd import Answer, ConfusionModel, LabelledItem
from labelloop.labeling.consensus.detection_model import DetectionModel, ObjectEvidence
from qc_webhooks.statistics.bootstrap import ENOUGH, LEVEL, Estimate

Floats = NDArray[np.float64]

# An object by which recall is measured was marked by so many others, where so many looked: what one other alone marked
# may be no object, and to take it for one or not would decide the result.
_WITNESSES = 2

_GRID = 400
_TINY = 1e-12


@dataclass(frozen=True)
class LabelReliability:
    """How an annotator labels on one control.

    Attributes:
        accuracy: How often the answer is right.
        confusion: truth -> answer -> how many answers, the truth being as likely as the others make it.
        bias: answer -> how many more times it was given than it was true, in percent of the answers.
    """

    accuracy: Estimate
    confusion: Mapping[str, Mapping[str, float]]
    bias: Mapping[str, float]


@dataclass(frozen=True)
class RegionReliability:
    """How an annotator finds objects.

    Attributes:
        recall: Share that the annotator marked of the objects that two others marked too (one other, where no more
            looked). Of what nobody else saw nothing can be known.
        precision: Share of the annotator's regions that are objects.
        drawn: How many regions the annotator drew.
        strictness: Objects that are there for each region drawn: above 1 marks less than there is, below 1 more.
            None without a region.
    """

    recall: Estimate
    precision: Estimate
    drawn: int
    strictness: float | None


@dataclass(frozen=True)
class Reliability:
    """One annotator.

    Attributes:
        annotator: The annotator's id.
        tasks: How many tasks were annotated.
        regions: As a finder of objects; None where there are no regions.
        labels: As a labeller of regions, by control.
        choices: As one who answers questions about whole tasks, by control.
    """

    annotator: int
    tasks: int
    regions: RegionReliability | None = None
    labels: Mapping[str, LabelReliability] = field(default_factory=dict)
    choices: Mapping[str, LabelReliability] = field(default_factory=dict)


def rate_annotators(tasks: Sequence[Evidence], crowd: AnnotatorModel) -> tuple[Reliability, ...]:
    """Every annotator's reliability.

    Args:
        tasks: What each task tells, see ``labelloop.labeling.consensus.consensus.evidence``.
        crowd: What was estimated from them, see ``estimate_crowd``.

    Returns:
        One entry an annotator, by id.
    """
    counts = Counter(who for task in tasks for who in task.blind)
    regions = _rate_regions(tasks, crowd.presence)
    labels = _rate_controls((each for task in tasks for each in task.objects() if each.real is not False), crowd.labels)
    choices = _rate_controls((each for task in tasks for each in task.answers()), crowd.choices)
    return tuple(
        Reliability(who, counts[who], regions.get(who), labels.get(who, {}), choices.get(who, {}))
        for who in sorted(counts)
    )


def rate_interval(right: Floats, wrong: Floats) -> Estimate:
    """A rate with its interval from how likely what was said is if right, and if wrong; one entry an item.

    Args:
        right: P(what was said | the annotator is right about this item), of shape ``(n,)``.
        wrong: P(what was said | wrong).
    """
    n = len(right)
    if n < ENOUGH:
        return Estimate.lacking(n)
    grid = (np.arange(_GRID) + 0.5) / _GRID
    return _posterior(grid, np.log(np.maximum(np.outer(grid, right) + np.outer(1 - grid, wrong), _TINY)).sum(axis=1), n)


def _posterior(rates: Floats, logs: Floats, n: int) -> Estimate:
    """Median and interval of highest density of a posterior on a grid of rates, ascending and evenly spaced.

    Highest density, because of an annotator who never erred the interval must reach up to 1.
    """
    density = np.exp(logs - logs.max())
    density /= density.sum()
    below = np.cumsum(density)
    value = float(np.interp(0.5, below - density / 2, rates))
    order = np.argsort(-density, kind="stable")
    inside = order[: int(np.searchsorted(np.cumsum(density[order]), LEVEL)) + 1]
    half = (rates[1] - rates[0]) / 2
    return Estimate(value, float(rates[inside.min()] - half), float(rates[inside.max()] + half), n)


def _rate_controls(
    items: Iterable[LabelledItem], known: Mapping[str, ConfusionModel]
) -> dict[int, dict[str, LabelReliability]]:
    by_control: dict[str, list[LabelledItem]] = defaultdict(list)
    for told in items:
        if told.votes:
            by_control[told.control].append(told)
    found: dict[int, dict[str, LabelReliability]] = defaultdict(dict)
    for control, asked in by_control.items():
        for who, rated in _rate_labels(asked, known[control]).items():
            found[who][control] = rated
    return found


def _rate_labels(items: Sequence[LabelledItem], labels: ConfusionModel) -> dict[int, LabelReliability]:
    """Every annotator's accuracy on one control, each item judged by its truth, or by the others' votes alone."""
    count = len(labels.classes)
    places = {answer: place for place, answer in enumerate(labels.classes)}
    log_marginals = np.log(np.maximum(labels.marginals, _TINY))
    log_confusion = np.log(np.maximum(labels.confusion, _TINY))
    truths: dict[int, list[Floats]] = defaultdict(list)
    said: dict[int, list[int]] = defaultdict(list)
    for _, votes, truth, _ in items:
        if truth is not None:
            for who, answer in votes:
                truths[who].append(np.eye(count)[places[truth]])
                said[who].append(places[answer])
            continue
        if len(votes) < 2:
            continue  # with nobody else there is nothing to measure by
        told = [log_confusion[labels.raters.get(who, -1), :, places[answer]] for who, answer in votes]
        total = log_marginals + np.sum(told, axis=0)
        for (who, answer), own in zip(votes, told, strict=True):
            others = np.exp(total - own - (total - own).max())
            truths[who].append(others / others.sum())
            said[who].append(places[answer])
    return {
        who: _label_reliability(np.array(truths[who]), np.array(said[who]), labels.classes, count) for who in truths
    }


def _label_reliability(
    truth: Floats, said: NDArray[np.intp], classes: Sequence[Answer], count: int
) -> LabelReliability:
    right = truth[np.arange(len(said)), said]
    accuracy = (
        rate_interval(right, (1 - right) / max(count - 1, 1))
        if count > 1
        else Estimate.lacking(len(said), "only one answer was ever given")
    )
    # How likely each truth is once the answer is known too: what a confusion matrix is made of.
    rate = accuracy.value if accuracy.value is not None else 0.8
    likely = truth * ((1 - rate) / max(count - 1, 1))
    likely[np.arange(len(said)), said] = right * rate
    likely /= np.maximum(likely.sum(axis=1, keepdims=True), _TINY)
    table = np.zeros((count, count))
    np.add.at(table.T, said, likely)
    names = [answer_name(answer) for answer in classes]
    bias = 100 * (table.sum(axis=0) - table.sum(axis=1)) / len(said)
    return LabelReliability(
        accuracy,
        {
            name: {
                other: round(float(table[row, column]), 2)
                for column, other in enumerate(names)
                if table[row, column] >= 0.005
            }
            for row, name in enumerate(names)
        },
        {name: round(float(each), 2) for name, each in zip(names, bias, strict=True)},
    )


def _rate_regions(tasks: Sequence[Evidence], presence: DetectionModel) -> dict[int, RegionReliability]:
    """Every annotator's recall, on objects that others marked, and precision."""
    seen: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    real: dict[int, list[tuple[float, float]]] = defaultdict(list)
    objects: Counter[int] = Counter()
    expected: dict[int, float] = defaultdict(float)

    @cache  # few people work on a project: the same of them have marked the same over and over
    def probability(looked: tuple[int, ...], marked: tuple[int, ...]) -> float:
        return presence.probability(ObjectEvidence(looked, marked))

    @cache
    def confirmed(looked: tuple[int, ...], marked: tuple[int, ...], who: int) -> tuple[float, float]:
        return presence.others(ObjectEvidence(looked, marked), who)

    for task in tasks:
        blind = task.blind
        for told in task.objects():
            marked = tuple(who for who, _ in told.votes)
            there = probability(blind, marked) if told.real is None else float(told.real)
            for who in blind:
                expected[who] += there
                others = tuple(other for other in marked if other != who)
                if told.real:
                    seen[who].append((1.0, who in marked))
                elif told.real is None and len(others) >= min(_WITNESSES, len(blind) - 1) > 0:
                    looked = tuple(other for other in blind if other != who)
                    seen[who].append((probability(looked, others), who in marked))
                if who in marked:
                    objects[who] += 1
                    if told.real is not None:
                        real[who].append((there, 1 - there))
                    elif len(blind) > 1:
                        real[who].append(confirmed(blind, marked, who))
    return {
        who: RegionReliability(
            _recall(seen[who], presence),
            rate_interval(*np.array(real[who]).reshape(-1, 2).T),
            objects[who],
            round(expected[who] / objects[who], 3) if objects[who] else None,
        )
        for who in sorted({*seen, *objects})
    }


def _recall(seen: Sequence[tuple[float, bool]], presence: DetectionModel) -> Estimate:
    """Recall of what somebody else marked: ``seen`` holds how likely each is there, and whether it was marked."""
    there, marked = np.array([each for each, _ in seen]), np.array([mark for _, mark in seen], dtype=bool)
    chance = np.where(marked, presence.coincidence, 1 - presence.coincidence)
    right = there * marked + (1 - there) * chance
    wrong = there * ~marked + (1 - there) * chance
    return rate_interval(right, wrong)


def answer_name(answer: Answer) -> str:
    """Labels of an answer as one name."""
    return " + ".join(answer) or "(no label)"
