"""Reliability of each annotator: accuracy, recall and precision with 95 % intervals, confusion matrix, strictness.

The truth is seldom known; only the probability of each answer given the *other* annotators' votes is. An annotator's
own vote is excluded from the reference they are measured by. A ground truth counts as certain, and its author is not
measured by it. For a rate r (accuracy, recall) each item has the likelihood

    likelihood(r) = r x P(vote | right) + (1 - r) x P(vote | wrong)

and the interval holds 95 % of the posterior under a uniform prior, computed on a grid. Uncertain votes of the others
carry little information, so the interval is wider than that of a rate over known truths.

Recall and precision of regions are given three times: of all objects, also of those that others missed or drew
elsewhere (`detection_rates`); relative to what the others found, which compares annotators best, since what is unknown
of all of them drops out; and against the ground truth, where there is one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import MATCH_IOU, AnnotatorModel, Evidence
from labelloop.labeling.consensus.crowd import ConfusionModel, LabelledItem
from labelloop.labeling.consensus.detection_model import DetectionModel, ObjectEvidence
from labelloop.labeling.consensus.tags import Answer, TagModel, expand
from qc_webhooks.annotators.detection_rates import DetectionRates, measure_detection
from qc_webhooks.statistics.bootstrap import LEVEL, MIN_UNITS, Estimate

Floats = NDArray[np.float64]

# Recall is measured on objects marked by at least this number of other annotators (where as many annotated the task):
# a region of a single other annotator may be no object, and would decide the result.
_MIN_OTHERS = 2

_GRID = 400

# In the confusion of tags: the answer of an annotator who did not give a true tag, and the truth of an absent tag.
NOT_GIVEN, NOT_TRUE = "(not given)", "(not true)"
_EPSILON = 1e-12
_NOTHING = Estimate.insufficient(0)


@dataclass(frozen=True)
class LabelReliability:
    """Classification reliability on one control.

    Attributes:
        accuracy: Share of right answers.
        confusion: truth -> answer -> expected count, with the truth weighted by its probability.
        bias: answer -> given minus true count, in percent of the answers.
    """

    accuracy: Estimate
    confusion: Mapping[str, Mapping[str, float]]
    bias: Mapping[str, float]


@dataclass(frozen=True)
class RegionReliability:
    """Detection reliability.

    Attributes:
        recall: Share found of all objects, with an overlap of at least ``match_iou`` for boxes.
        precision: Share of the annotator's regions that are objects, with such an overlap.
        drawn: Number of regions drawn.
        strictness: Real objects per drawn region: above 1 objects are missed, below 1 extra regions are drawn.
            None without a region.
        match_iou: IoU from which a box is at the right place.
        recall_of_found: Share marked of the objects that two others marked (one other, where the task has no more).
        precision_by_others: Share of the regions that are objects as far as the others' marks say.
        recall_on_truth: Recall on tasks with a ground truth.
        precision_on_truth: Precision on these.
    """

    recall: Estimate
    precision: Estimate
    drawn: int
    strictness: float | None
    match_iou: float = MATCH_IOU
    recall_of_found: Estimate = _NOTHING
    precision_by_others: Estimate = _NOTHING
    recall_on_truth: Estimate = _NOTHING
    precision_on_truth: Estimate = _NOTHING


@dataclass(frozen=True)
class Reliability:
    """Reliability of one annotator.

    Attributes:
        annotator: The annotator's id.
        tasks: Number of annotated tasks.
        regions: Detection; None without regions.
        labels: Classification of regions by control.
        choices: Answers about whole tasks by control.
    """

    annotator: int
    tasks: int
    regions: RegionReliability | None = None
    labels: Mapping[str, LabelReliability] = field(default_factory=dict)
    choices: Mapping[str, LabelReliability] = field(default_factory=dict)


def rate_annotators(
    tasks: Sequence[Evidence], model: AnnotatorModel, *, match_iou: float = MATCH_IOU
) -> tuple[Reliability, ...]:
    """Rate every annotator.

    Args:
        tasks: Evidence of each task, see ``labelloop.labeling.consensus.consensus.evidence``.
        model: Annotator model estimated from it, see ``fit_annotator_model``.
        match_iou: IoU from which a box is at the right place.

    Returns:
        One entry per annotator, ordered by id.
    """
    counts = Counter(who for task in tasks for who in task.rated_annotators)
    regions = _rate_regions(tasks, model, match_iou)
    labels = _rate_controls(
        (item for task in tasks for item in task.objects() if item.is_real is not False), model.labels, model.tags
    )
    choices = _rate_controls((item for task in tasks for item in task.answers()), model.choices, model.tags)
    return tuple(
        Reliability(who, counts[who], regions.get(who), labels.get(who, {}), choices.get(who, {}))
        for who in sorted(counts)
    )


def rate_interval(right: Floats, wrong: Floats) -> Estimate:
    """Rate with its interval from per-item likelihoods.

    Args:
        right: P(vote | the annotator is right about this item), ``(n,)``.
        wrong: P(vote | the annotator is wrong), ``(n,)``.
    """
    n = len(right)
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    grid = (np.arange(_GRID) + 0.5) / _GRID
    return _posterior(
        grid, np.log(np.maximum(np.outer(grid, right) + np.outer(1 - grid, wrong), _EPSILON)).sum(axis=1), n
    )


def _posterior(rates: Floats, logs: Floats, n: int) -> Estimate:
    """Median and highest-density interval of a posterior.

    Highest density, because the interval of an annotator without errors must reach 1.

    Args:
        rates: Grid of rates, ascending and evenly spaced, ``(grid,)``.
        logs: Log-likelihood at each rate, ``(grid,)``.
        n: Number of items.
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
    items: Iterable[LabelledItem], models: Mapping[str, ConfusionModel], tags: Mapping[str, TagModel]
) -> dict[int, dict[str, LabelReliability]]:
    by_control: dict[str, list[LabelledItem]] = defaultdict(list)
    for item in items:
        if item.votes:
            by_control[item.control].append(item)
    rated_by_annotator: dict[int, dict[str, LabelReliability]] = defaultdict(dict)
    for control, control_items in by_control.items():
        rated_labels = (
            _rate_tags(control_items, tags[control])
            if control in tags
            else _rate_labels(control_items, models[control])
        )
        for who, rated in rated_labels.items():
            rated_by_annotator[who][control] = rated
    return rated_by_annotator


def _rate_tags(items: Sequence[LabelledItem], model: TagModel) -> dict[int, LabelReliability]:
    """Accuracy on one control of several tags by annotator id: the share of right decisions on single tags.

    Decisions are counted on the tags that an annotator gave on the item: all others are right and say nothing. The
    confusion counts, for each tag, whether it was given and whether it is true.
    """
    right: dict[int, list[float]] = defaultdict(list)
    table: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for _, votes, truth, _ in items:
        if truth is None and len(votes) < 2:
            continue  # no other vote to measure by
        given_tags = {tag for _, answer in votes for tag in answer} | set(truth or ())
        expanded_truth = None if truth is None else expand(truth)
        for index, (who, answer) in enumerate(votes):
            present = (
                model.probabilities(votes, skip=index)
                if expanded_truth is None
                else {tag: float(tag in expanded_truth) for tag in given_tags}
            )
            for tag in sorted(given_tags):
                probability = present.get(tag, 0.0)
                right[who].append(probability if tag in answer else 1 - probability)
                chosen = tag if tag in answer else NOT_GIVEN
                table[who][tag][chosen] += probability
                if tag in answer:
                    table[who][NOT_TRUE][tag] += 1 - probability
    return {
        who: LabelReliability(
            rate_interval(np.array(rights), 1 - np.array(rights)),
            {
                truth: counted
                for truth, row in sorted(table[who].items())
                if (counted := {name: round(float(count), 2) for name, count in sorted(row.items()) if count >= 0.005})
            },
            _tag_bias(table[who], len(rights)),
        )
        for who, rights in right.items()
    }


def _tag_bias(table: Mapping[str, Mapping[str, float]], decisions: int) -> dict[str, float]:
    """Tag -> times given minus times true, in percent of the decisions."""
    extra = table.get(NOT_TRUE, {})
    tags = sorted(set(table) - {NOT_TRUE} | set(extra))
    return {
        tag: round(
            100 * (table.get(NOT_TRUE, {}).get(tag, 0.0) - table.get(tag, {}).get(NOT_GIVEN, 0.0)) / decisions, 2
        )
        for tag in tags
    }


def _rate_labels(items: Sequence[LabelledItem], labels: ConfusionModel) -> dict[int, LabelReliability]:
    """Accuracy on one control by annotator id; the reference is the ground truth, or the others' votes alone."""
    count = len(labels.classes)
    class_index = {answer: index for index, answer in enumerate(labels.classes)}
    log_marginals = np.log(np.maximum(labels.marginals, _EPSILON))
    log_confusion = np.log(np.maximum(labels.confusion, _EPSILON))
    truths: dict[int, list[Floats]] = defaultdict(list)
    answer_indices: dict[int, list[int]] = defaultdict(list)
    for _, votes, truth, _ in items:
        if truth is not None:
            for who, answer in votes:
                truths[who].append(np.eye(count)[class_index[truth]])
                answer_indices[who].append(class_index[answer])
            continue
        if len(votes) < 2:
            continue  # no other vote to measure by
        log_votes = [log_confusion[labels.raters.get(who, -1), :, class_index[answer]] for who, answer in votes]
        total = log_marginals + np.sum(log_votes, axis=0)
        for (who, answer), own in zip(votes, log_votes, strict=True):
            others = np.exp(total - own - (total - own).max())
            truths[who].append(others / others.sum())
            answer_indices[who].append(class_index[answer])
    return {
        who: _label_reliability(np.array(truths[who]), np.array(answer_indices[who]), labels.classes, count)
        for who in truths
    }


def _label_reliability(
    truth: Floats, answer_indices: NDArray[np.intp], classes: Sequence[Answer], count: int
) -> LabelReliability:
    right = truth[np.arange(len(answer_indices)), answer_indices]
    accuracy = (
        rate_interval(right, (1 - right) / max(count - 1, 1))
        if count > 1
        else Estimate.insufficient(len(answer_indices), "only one answer was given")
    )
    # Posterior of the truth given the answer too: entries of the confusion matrix.
    rate = accuracy.value if accuracy.value is not None else 0.8
    likely = truth * ((1 - rate) / max(count - 1, 1))
    likely[np.arange(len(answer_indices)), answer_indices] = right * rate
    likely /= np.maximum(likely.sum(axis=1, keepdims=True), _EPSILON)
    table = np.zeros((count, count))
    np.add.at(table.T, answer_indices, likely)
    names = [answer_name(answer) for answer in classes]
    bias = 100 * (table.sum(axis=0) - table.sum(axis=1)) / len(answer_indices)
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
        {name: round(float(share), 2) for name, share in zip(names, bias, strict=True)},
    )


def _rate_regions(tasks: Sequence[Evidence], model: AnnotatorModel, match_iou: float) -> dict[int, RegionReliability]:
    """Recall and precision by annotator id."""
    presence = model.detection
    nothing = DetectionRates(_NOTHING, _NOTHING)
    overall = measure_detection(tasks, model, match_iou=match_iou)
    known = measure_detection([task for task in tasks if task.truth is not None], model, match_iou=match_iou)
    recall_items: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    precision_items: dict[int, list[tuple[float, float]]] = defaultdict(list)
    objects: Counter[int] = Counter()
    expected: dict[int, float] = defaultdict(float)

    @cache  # few annotators work on a project, so the same combinations recur
    def probability(viewers: tuple[int, ...], marked: tuple[int, ...]) -> float:
        return presence.probability(ObjectEvidence(viewers, marked))

    @cache
    def confirmed(viewers: tuple[int, ...], marked: tuple[int, ...], who: int) -> tuple[float, float]:
        return presence.likelihood_of_others(ObjectEvidence(viewers, marked), who)

    for task in tasks:
        blind = task.rated_annotators
        for item in task.objects():
            marked = tuple(who for who, _ in item.votes)
            probability_real = probability(blind, marked) if item.is_real is None else float(item.is_real)
            for who in blind:
                expected[who] += probability_real
                others = tuple(other for other in marked if other != who)
                if item.is_real:
                    recall_items[who].append((1.0, who in marked))
                elif item.is_real is None and len(others) >= min(_MIN_OTHERS, len(blind) - 1) > 0:
                    viewers = tuple(other for other in blind if other != who)
                    recall_items[who].append((probability(viewers, others), who in marked))
                if who in marked:
                    objects[who] += 1
                    if item.is_real is not None:
                        precision_items[who].append((probability_real, 1 - probability_real))
                    elif len(blind) > 1:
                        precision_items[who].append(confirmed(blind, marked, who))
    return {
        who: RegionReliability(
            overall.get(who, nothing).recall,
            overall.get(who, nothing).precision,
            objects[who],
            round(expected[who] / objects[who], 3) if objects[who] else None,
            match_iou,
            _recall(recall_items[who], presence),
            rate_interval(*np.array(precision_items[who]).reshape(-1, 2).T),
            known.get(who, nothing).recall,
            known.get(who, nothing).precision,
        )
        for who in sorted({*recall_items, *objects})
    }


def _recall(items: Sequence[tuple[float, bool]], presence: DetectionModel) -> Estimate:
    """Recall from (probability that the object is real, whether the annotator marked it) of each item."""
    real, marked = (
        np.array([real_probability for real_probability, _ in items]),
        np.array([was_marked for _, was_marked in items], dtype=bool),
    )
    chance = np.where(marked, presence.false_match_rate, 1 - presence.false_match_rate)
    right = real * marked + (1 - real) * chance
    wrong = real * ~marked + (1 - real) * chance
    return rate_interval(right, wrong)


def answer_name(answer: Answer) -> str:
    """Labels of an answer joined into one name."""
    return " + ".join(answer) or "(no label)"
