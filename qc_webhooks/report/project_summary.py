"""What the dashboard shows of a project, counted from the facts of its tasks."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, estimate_crowd
from labelloop.labeling.consensus.crowd import Answer
from qc_webhooks.annotators import AnnotatorProfile, DisagreementPattern, portraits, splits
from qc_webhooks.report.project_statistics import ProjectStatistics
from qc_webhooks.report.replay import Replay
from qc_webhooks.statistics import ABSENT, ENOUGH, Estimate
from qc_webhooks.statistics.proportions import proportion_ci
from qc_webhooks.verdict.task_facts import Facts

Integers = NDArray[np.int64]

DAY_S = 86_400.0
# More days than these are told by the week.
_MOST_DAYS = 120
# Reliability, confusion and splits are of the latest tasks: people change, and ten thousand tasks say enough.
LATEST = 10_000
_RESAMPLES = 200
_NORMAL_95 = 1.959964


class Day(msgspec.Struct, frozen=True, gc=False):
    """One day, or one week.

    Attributes:
        at: When it begins, seconds since 1970.
        tasks: Tasks annotated last on that day.
        labels: Annotations of these.
        agreement: Mean agreement of those that at least two annotated.
        disputed: Share of those that is disputed now.
    """

    at: float
    tasks: int
    labels: int
    agreement: Estimate
    disputed: Estimate


class LabelRow(msgspec.Struct, frozen=True, gc=False):
    """How well annotators agree on one label.

    Attributes:
        control: The control.
        label: The label, or the answer.
        objects: For how many things at least one annotator gave it.
        agreement: Positive agreement (F1 of one annotator against another) on it.
        confused: What is most often said instead, and the share of the pairs that say so; empty: nothing.
    """

    control: str
    label: str
    objects: int
    agreement: Estimate
    confused: tuple[tuple[str, float], ...]


class Confusion(msgspec.Struct, frozen=True, gc=False):
    """What one annotator says of a thing against what another says of it.

    Attributes:
        control: The control.
        labels: The answers, the last one ``(absent)`` where things can be left out.
        pairs: ``pairs[one][other]``: how often; symmetric, agreements counted twice.
    """

    control: str
    labels: tuple[str, ...]
    pairs: tuple[tuple[int, ...], ...]


class Savings(msgspec.Struct, frozen=True, gc=False):
    """What asking one more annotator only where it pays has saved.

    Attributes:
        tasks: Tasks that are settled: agreed on, or with a reviewer.
        labels: Annotations that they took.
        by_labels: Number of annotations -> tasks.
        seconds: Median time of an annotation; None where no times are known.
    """

    tasks: int
    labels: int
    by_labels: dict[str, int]
    seconds: float | None

    def saved(self, annotators: int) -> int:
        """Annotations saved against giving every task to so many annotators."""
        return self.tasks * annotators - self.labels

    def hours(self, annotators: int) -> float | None:
        """The same in hours of work."""
        return None if self.seconds is None else self.saved(annotators) * self.seconds / 3600


class ProjectSummary(msgspec.Struct, frozen=True, gc=False):
    """All of it.

    Attributes:
        title: The project's title.
        names: Annotator -> name.
        days: The course of time.
        weekly: Whether ``days`` are weeks.
        agreement: Mean agreement over all tasks.
        savings: See ``Savings``.
        used: How many of the latest tasks the following is of.
        people: Everybody.
        splits: Where opinions split, and why.
        labels: Label by label.
        confusions: Control by control.
        statistics: Every statistic of every control, see ``Survey.statistics``.
    """

    title: str
    names: dict[int, str]
    days: tuple[Day, ...]
    weekly: bool
    agreement: Estimate
    savings: Savings
    used: int
    people: tuple[AnnotatorProfile, ...]
    splits: tuple[DisagreementPattern, ...]
    labels: tuple[LabelRow, ...]
    confusions: tuple[Confusion, ...]
    statistics: dict[str, dict[str, dict[str, Estimate]]]

    def name(self, annotator: int) -> str:
        """What an annotator is called."""
        return self.names.get(annotator) or (f"annotator {annotator}" if annotator > 0 else "somebody unknown")


def build_board(
    tasks: Iterable[Facts],
    *,
    title: str = "",
    names: Mapping[int, str] | None = None,
    latest: int = LATEST,
    crowd: AnnotatorModel | None = None,
) -> tuple[ProjectSummary, Replay]:
    """The board of a project, and its record for what-if.

    Args:
        tasks: The facts of every task, the newest first. They are gone through once, and only the latest are kept.
        title: The project's title.
        names: Annotator -> name.
        latest: How many tasks count for reliability and confusion.
        crowd: What is known of the annotators already; None, or where it does not know all their answers: it is
            estimated from the latest tasks, which takes a third of the time of a board.
    """
    course = _Course()
    kept: list[Facts] = []

    def pass_on() -> Iterator[Facts]:
        for task in tasks:
            course.add(task)
            if len(kept) < latest:
                kept.append(task)
            yield task

    replay = Replay.of(pass_on())
    survey = ProjectStatistics(evidence=[task.evidence() for task in kept])
    if crowd is None or not _knows(crowd, survey.evidence):
        crowd = estimate_crowd(survey.evidence)
    found = splits(kept)
    told = survey.statistics()
    board = ProjectSummary(
        title,
        dict(names or {}),
        *course.days(),
        course.agreement(),
        course.savings(),
        len(kept),
        portraits(kept, crowd, found),
        found,
        tuple(_labels(kept)),
        tuple(_confusions(kept)),
        {
            control: {
                kind: {name: each for name, each in values.items() if isinstance(each, Estimate)}
                for kind, values in kinds.items()
            }
            for control, kinds in told.items()
        },
    )
    return board, replay


def _knows(crowd: AnnotatorModel, tasks: Iterable[Evidence]) -> bool:
    """Whether every answer is one that the estimate was made from."""
    regions: dict[str, set[Answer]] = defaultdict(set)
    questions: dict[str, set[Answer]] = defaultdict(set)
    for task in tasks:
        for told, items in ((regions, task.clusters), (questions, task.choices)):
            for control, votes in items:
                told[control].update(answer for _, answer in votes)
    return all(
        control in known and answers <= set(known[control].classes)
        for told, known in ((regions, crowd.labels), (questions, crowd.choices))
        for control, answers in told.items()
    )


class _Course:
    """What is counted of every task, one at a time: days, times, how many annotations it took."""

    def __init__(self) -> None:
        self._days: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0, 0])
        self._settled: Counter[int] = Counter()
        self._seconds: list[float] = []

    def add(self, task: Facts) -> None:
        blind = task.blind
        if task.at > 0:
            day = self._days[int(task.at // DAY_S)]
            day[0] += 1
            day[1] += len(blind)
            if task.agreement is not None:
                day[2] += 1
                day[3] += task.agreement
                day[4] += task.agreement**2
                day[5] += task.outcome == "disputed"
        # An answer that was asked for to measure its annotator settled nothing.
        needed = sum(not turn.known for turn in blind)
        if (task.outcome == "agreed" or task.review) and needed:
            self._settled[needed] += 1
        self._seconds += [turn.seconds for turn in blind if turn.seconds]

    def days(self) -> tuple[tuple[Day, ...], bool]:
        weekly = len(self._days) > _MOST_DAYS
        length = 7 if weekly else 1
        together: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0, 0])
        for number, counts in self._days.items():
            # Weeks begin on Mondays; the first of January 1970 was a Thursday.
            start = (number + 3) // length * length - 3 if weekly else number
            together[start] = [one + other for one, other in zip(together[start], counts, strict=True)]
        found = tuple(
            Day(
                number * DAY_S,
                int(tasks),
                int(labels),
                _moments(int(n), total, squares, enough=5),
                proportion_ci(int(disputed), int(n), enough=5),
            )
            for number, (tasks, labels, n, total, squares, disputed) in sorted(together.items())
        )
        return found, weekly

    def agreement(self) -> Estimate:
        n, total, squares = (sum(day[place] for day in self._days.values()) for place in (2, 3, 4))
        return _moments(int(n), total, squares)

    def savings(self) -> Savings:
        return Savings(
            sum(self._settled.values()),
            sum(count * tasks for count, tasks in self._settled.items()),
            {str(count): tasks for count, tasks in sorted(self._settled.items())},
            float(np.median(self._seconds)) if self._seconds else None,
        )


def _moments(n: int, total: float, squares: float, enough: int = ENOUGH) -> Estimate:
    """A mean with the interval of the normal approximation, from sums."""
    if n < enough:
        return Estimate.lacking(n, f"{n} of the {enough} that it takes")
    mean = total / n
    half = _NORMAL_95 * math.sqrt(max(squares / n - mean**2, 0.0) / max(n - 1, 1))
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0), n)


def _votes(tasks: Sequence[Facts]) -> Iterator[tuple[int, str, dict[int, str]]]:
    """(place of the task, control, annotator -> answer) of every thing and question; who left a thing out, too."""
    for place, task in enumerate(tasks):
        blind = [turn.annotator for turn in task.blind]
        for thing in task.things:
            said = {mark.annotator: " + ".join(mark.labels) or "(no label)" for mark in thing.marks}
            yield place, thing.control, {who: said.get(who, ABSENT) for who in blind}
        for question in task.questions:
            yield place, question.control, {who: " + ".join(said) for who, said in question.votes if who in blind}


def _labels(tasks: Sequence[Facts]) -> Iterator[LabelRow]:
    objects: Counter[tuple[str, str]] = Counter()
    both: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    either: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    instead: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for place, control, said in _votes(tasks):
        for label in set(said.values()) - {ABSENT}:
            objects[control, label] += 1
        for one, other in combinations(said.values(), 2):
            for label, against in {(one, other), (other, one)}:
                if label == ABSENT:
                    continue
                either[control, label][place] += 2 if one == other else 1
                both[control, label][place] += 2 * (one == other)
                if one != other:
                    instead[control, label][against] += 1
    n = len(tasks)
    weights = (
        np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) if n else np.zeros((0, 0), int)
    )
    for key, count in sorted(objects.items(), key=lambda item: (item[0][0], -item[1])):
        # Where two say the same, both of them do: an agreement counts as two of two, a difference as none of one.
        pairs = sum(either[key].values()) - sum(both[key].values()) // 2
        confused = tuple((name, round(found / pairs, 4)) for name, found in instead[key].most_common(2))
        yield LabelRow(*key, count, _agreement(both[key], either[key], weights), confused)


def _agreement(both: Counter[int], either: Counter[int], weights: Integers) -> Estimate:
    """Positive agreement with the interval of a bootstrap over tasks."""
    if len(either) < ENOUGH:
        return Estimate.lacking(len(either))
    places = np.array(list(either), dtype=np.intp)
    held, value = weights[:, places], sum(both.values()) / sum(either.values())
    if value == 1:
        return proportion_ci(len(either), len(either))  # drawing anew what all agree on says that they always will
    hits, n = held @ np.array([both[place] for place in places]), held @ np.array([either[place] for place in places])
    low, high = np.quantile(hits[n > 0] / n[n > 0], [0.025, 0.975]).tolist()
    return Estimate(value, min(low, value), max(high, value), len(either))


def _confusions(tasks: Sequence[Facts]) -> Iterator[Confusion]:
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for _, control, said in _votes(tasks):
        for one, other in combinations(said.values(), 2):
            if (one, other) != (ABSENT, ABSENT):
                counts[control][one, other] += 1
                counts[control][other, one] += 1
    for control, pairs in sorted(counts.items()):
        names = sorted({one for one, _ in pairs}, key=lambda name: (name == ABSENT, name))
        yield Confusion(control, tuple(names), tuple(tuple(pairs[one, other] for other in names) for one in names))
