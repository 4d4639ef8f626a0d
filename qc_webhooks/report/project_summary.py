"""Summary of a project for the dashboard, computed from the facts of its tasks."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import MATCH_IOU, AnnotatorModel, Evidence, fit_annotator_model
from labelloop.labeling.consensus.crowd import ConfusionModel
from labelloop.labeling.consensus.tags import Answer, TagModel
from qc_webhooks.annotators import AnnotatorProfile, Diagnosis, find_diagnoses, profile_annotators
from qc_webhooks.report.project_statistics import RECENT_TASKS, ProjectStatistics
from qc_webhooks.report.replay import Replay
from qc_webhooks.statistics import ABSENT, MIN_UNITS, Estimate
from qc_webhooks.statistics.bootstrap import proportion_ci
from qc_webhooks.statistics.detection_alpha import DetectionAlpha
from qc_webhooks.verdict.task_facts import TaskFacts

Integers = NDArray[np.int64]

DAY_S = 86_400.0
# With more days than this, statistics are per week.
_MAX_DAYS = 120
_RESAMPLES = 200
_NORMAL_95 = 1.959964


class Day(msgspec.Struct, frozen=True, gc=False):
    """Statistics of one day or one week.

    Attributes:
        at: Start, seconds since 1970.
        tasks: Tasks whose last annotation is of that day.
        labels: Their annotations.
        agreement: Mean agreement of those with at least two annotators.
        disputed: Share of those that are disputed now.
    """

    at: float
    tasks: int
    labels: int
    agreement: Estimate
    disputed: Estimate


class LabelAgreement(msgspec.Struct, frozen=True, gc=False):
    """Agreement on one label.

    Attributes:
        control: The control.
        label: The label or answer.
        objects: Objects that at least one annotator gave this label.
        agreement: Positive agreement (F1 of one annotator against another).
        confused: Most frequent other labels, each with its share of the pairs.
    """

    control: str
    label: str
    objects: int
    agreement: Estimate
    confused: tuple[tuple[str, float], ...]


class Confusion(msgspec.Struct, frozen=True, gc=False):
    """Confusion matrix between annotators.

    Attributes:
        control: The control.
        labels: The answers; the last one is ``(absent)`` where objects can be left out.
        pairs: ``pairs[i][j]``: number of pairs; symmetric, agreements counted twice.
    """

    control: str
    labels: tuple[str, ...]
    pairs: tuple[tuple[int, ...], ...]


class Savings(msgspec.Struct, frozen=True, gc=False):
    """Annotations saved by asking one more annotator only for disputes.

    Attributes:
        tasks: Resolved tasks: agreed, or for a reviewer.
        labels: Their annotations.
        by_labels: Number of annotations -> tasks.
        seconds: Median time of an annotation in seconds; None without known times.
    """

    tasks: int
    labels: int
    by_labels: dict[str, int]
    seconds: float | None

    def saved(self, annotators: int) -> int:
        """Annotations saved against a fixed number of annotators per task."""
        return self.tasks * annotators - self.labels

    def hours(self, annotators: int) -> float | None:
        """Hours of work saved against it; None without known times."""
        return None if self.seconds is None else self.saved(annotators) * self.seconds / 3600


class ProjectSummary(msgspec.Struct, frozen=True, gc=False):
    """Summary of a project.

    Attributes:
        title: The project's title.
        names: Annotator id -> name.
        days: Statistics by day or week.
        weekly: Whether ``days`` are weeks.
        agreement: Mean agreement over all tasks.
        savings: See ``Savings``.
        used: Number of newest tasks that the following fields use.
        people: Profile of each annotator.
        splits: Why annotators disagree, see ``find_diagnoses``.
        labels: Agreement by label.
        confusions: Confusion matrix by control.
        statistics: See ``ProjectStatistics.statistics``.
        detections: Detection alpha by control, over all tasks.
    """

    title: str
    names: dict[int, str]
    days: tuple[Day, ...]
    weekly: bool
    agreement: Estimate
    savings: Savings
    used: int
    people: tuple[AnnotatorProfile, ...]
    splits: tuple[Diagnosis, ...]
    labels: tuple[LabelAgreement, ...]
    confusions: tuple[Confusion, ...]
    statistics: dict[str, dict[str, dict[str, Estimate]]]
    detections: dict[str, DetectionAlpha] = {}

    def name(self, annotator: int) -> str:
        """Display name of an annotator."""
        return self.names.get(annotator) or (f"annotator {annotator}" if annotator > 0 else "unknown annotator")


def summarize_project(
    tasks: Iterable[TaskFacts],
    *,
    title: str = "",
    names: Mapping[int, str] | None = None,
    model: AnnotatorModel | None = None,
) -> tuple[ProjectSummary, Replay]:
    """Compute the summary of a project and its arrays for what-if.

    Args:
        tasks: Facts of all tasks, newest first. Iterated once; only the newest `RECENT_TASKS` are held in memory, for
            reliability and confusion.
        title: The project's title.
        names: Annotator id -> name.
        model: Annotator model. Estimated from the newest tasks where None or where it lacks an answer; that takes a
            third of the time.
    """
    timeline, collected = _Timeline(), ProjectStatistics()
    recent: list[TaskFacts] = []

    def record_tasks() -> Iterator[TaskFacts]:
        for task in tasks:
            timeline.add(task)
            collected.add_facts(task)
            if len(recent) < RECENT_TASKS:
                recent.append(task)
            yield task

    replay = Replay.of(record_tasks())
    collected.evidence += [task.evidence() for task in recent]
    if model is None or not _covers_answers(model, collected.evidence):
        model = fit_annotator_model(collected.evidence)
    diagnoses = find_diagnoses(recent)
    statistics = collected.statistics()
    summary = ProjectSummary(
        title,
        dict(names or {}),
        *timeline.days(),
        timeline.agreement(),
        timeline.savings(),
        len(recent),
        profile_annotators(recent, model, diagnoses, match_iou=_match_iou(recent)),
        diagnoses,
        tuple(_labels(recent)),
        tuple(_confusions(recent)),
        {
            control: {
                kind: {name: value for name, value in values.items() if isinstance(value, Estimate)}
                for kind, values in kinds.items()
            }
            for control, kinds in statistics.items()
        },
        collected.detections.estimates(),
    )
    return summary, replay


def _match_iou(tasks: Iterable[TaskFacts]) -> float:
    """The policy's threshold when the newest task with regions was judged."""
    counts = (count for task in tasks for count in (task.detections or {}).values())
    return next((count.match_iou for count in counts), MATCH_IOU)


def _covers_answers(model: AnnotatorModel, tasks: Iterable[Evidence]) -> bool:
    """Whether the model knows all answers of the tasks."""
    regions: dict[str, set[Answer]] = defaultdict(set)
    questions: dict[str, set[Answer]] = defaultdict(set)
    for task in tasks:
        for answers_by_control, items in ((regions, task.clusters), (questions, task.choices)):
            for control, votes in items:
                answers_by_control[control].update(answer for _, answer in votes)
    return all(
        _knows_answers(models.get(control), model.tags.get(control), answers)
        for answers_by_control, models in ((regions, model.labels), (questions, model.choices))
        for control, answers in answers_by_control.items()
    )


def _knows_answers(confusion: ConfusionModel | None, tags: TagModel | None, answers: AbstractSet[Answer]) -> bool:
    if tags is not None:
        return {tag for answer in answers for tag in answer} <= set(tags.tags)
    return confusion is not None and answers <= set(confusion.classes)


class _Timeline:
    """Accumulates per-day statistics, annotation times and annotation counts over all tasks."""

    def __init__(self) -> None:
        self._days: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0, 0])
        self._settled: Counter[int] = Counter()
        self._seconds: list[float] = []

    def add(self, task: TaskFacts) -> None:
        blind = task.blind
        if task.last_annotated_at > 0:
            day = self._days[int(task.last_annotated_at // DAY_S)]
            day[0] += 1
            day[1] += len(blind)
            if task.agreement is not None:
                day[2] += 1
                day[3] += task.agreement
                day[4] += task.agreement**2
                day[5] += task.outcome == "disputed"
        # Annotations requested to measure their annotator do not count.
        needed = sum(not annotation.measures_annotator for annotation in blind)
        if (task.outcome == "agreed" or task.review) and needed:
            self._settled[needed] += 1
        self._seconds += [annotation.seconds for annotation in blind if annotation.seconds]

    def days(self) -> tuple[tuple[Day, ...], bool]:
        weekly = len(self._days) > _MAX_DAYS
        length = 7 if weekly else 1
        totals: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0, 0])
        for number, counts in self._days.items():
            # Weeks begin on Mondays; the first of January 1970 was a Thursday.
            start = (number + 3) // length * length - 3 if weekly else number
            totals[start] = [first + second for first, second in zip(totals[start], counts, strict=True)]
        days = tuple(
            Day(
                number * DAY_S,
                int(tasks),
                int(labels),
                _mean_with_interval(int(n), total, squares, enough=5),
                proportion_ci(int(disputed), int(n), enough=5),
            )
            for number, (tasks, labels, n, total, squares, disputed) in sorted(totals.items())
        )
        return days, weekly

    def agreement(self) -> Estimate:
        n, total, squares = (sum(day[column] for day in self._days.values()) for column in (2, 3, 4))
        return _mean_with_interval(int(n), total, squares)

    def savings(self) -> Savings:
        return Savings(
            sum(self._settled.values()),
            sum(count * tasks for count, tasks in self._settled.items()),
            {str(count): tasks for count, tasks in sorted(self._settled.items())},
            float(np.median(self._seconds)) if self._seconds else None,
        )


def _mean_with_interval(n: int, total: float, squares: float, enough: int = MIN_UNITS) -> Estimate:
    """Mean with a normal-approximation interval, from the sum and the sum of squares."""
    if n < enough:
        return Estimate.insufficient(n, f"{n} of the {enough} required")
    mean = total / n
    half = _NORMAL_95 * math.sqrt(max(squares / n - mean**2, 0.0) / max(n - 1, 1))
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0), n)


def _votes(tasks: Sequence[TaskFacts]) -> Iterator[tuple[int, str, dict[int, str]]]:
    """(task index, control, annotator -> answer) of each object and question; ``(absent)`` for a missing object."""
    for index, task in enumerate(tasks):
        blind = [annotation.annotator for annotation in task.blind]
        for marked_object in task.objects:
            labels_by_annotator = {
                mark.annotator: " + ".join(mark.labels) or "(no label)" for mark in marked_object.marks
            }
            yield index, marked_object.control, {who: labels_by_annotator.get(who, ABSENT) for who in blind}
        for question in task.questions:
            yield (
                index,
                question.control,
                {who: " + ".join(labels_by_annotator) for who, labels_by_annotator in question.votes if who in blind},
            )


def _labels(tasks: Sequence[TaskFacts]) -> Iterator[LabelAgreement]:
    objects: Counter[tuple[str, str]] = Counter()
    both: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    either: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    instead: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for index, control, votes in _votes(tasks):
        for label in set(votes.values()) - {ABSENT}:
            objects[control, label] += 1
        for first, second in combinations(votes.values(), 2):
            for label, other_label in {(first, second), (second, first)}:
                if label == ABSENT:
                    continue
                either[control, label][index] += 2 if first == second else 1
                both[control, label][index] += 2 * (first == second)
                if first != second:
                    instead[control, label][other_label] += 1
    n = len(tasks)
    weights = (
        np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) if n else np.zeros((0, 0), int)
    )
    for key, count in sorted(objects.items(), key=lambda item: (item[0][0], -item[1])):
        # An agreement counts two of two, a difference none of one.
        pairs = sum(either[key].values()) - sum(both[key].values()) // 2
        confused = tuple(
            (name, round(pairs_with_label / pairs, 4)) for name, pairs_with_label in instead[key].most_common(2)
        )
        yield LabelAgreement(*key, count, _agreement(both[key], either[key], weights), confused)


def _agreement(both: Counter[int], either: Counter[int], weights: Integers) -> Estimate:
    """Positive agreement with a bootstrap interval over tasks."""
    if len(either) < MIN_UNITS:
        return Estimate.insufficient(len(either))
    indices = np.array(list(either), dtype=np.intp)
    sampled, value = weights[:, indices], sum(both.values()) / sum(either.values())
    if value == 1:
        return proportion_ci(len(either), len(either))  # a bootstrap of equal values has width zero
    hits, n = (
        sampled @ np.array([both[index] for index in indices]),
        sampled @ np.array([either[index] for index in indices]),
    )
    low, high = np.quantile(hits[n > 0] / n[n > 0], [0.025, 0.975]).tolist()
    return Estimate(value, min(low, value), max(high, value), len(either))


def _confusions(tasks: Sequence[TaskFacts]) -> Iterator[Confusion]:
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for _, control, votes in _votes(tasks):
        for first, second in combinations(votes.values(), 2):
            if (first, second) != (ABSENT, ABSENT):
                counts[control][first, second] += 1
                counts[control][second, first] += 1
    for control, pairs in sorted(counts.items()):
        names = sorted({first for first, _ in pairs}, key=lambda name: (name == ABSENT, name))
        yield Confusion(
            control, tuple(names), tuple(tuple(pairs[first, second] for second in names) for first in names)
        )
