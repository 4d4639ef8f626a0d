"""Yes-or-no questions that annotators answer about objects and tasks: the form in which explanations are compared.

Three kinds of question are asked of a project: whether an object is marked, which of two labels it has, and whether a
tag is given. Each is a matrix of answers with one row per object (or task) and one column per annotator.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import log, nan
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.statistics import ABSENT
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

QuestionKind = Literal["presence", "label", "answer", "tag"]

# Newest objects of a question that are used: more change no diagnosis, and memory stays bounded.
MAX_ITEMS = 20_000
# Pairs of labels examined per control, the most often confused ones.
MAX_PAIRS = 12
# Fewest items with both answers for a pair of labels to be examined.
MIN_SPLIT_ITEMS = 3
# In ``QuestionAnswers.answers``: the annotator did not see the item, or gave a third answer.
NOT_ASKED = -1

_ANY = "(any)"


@dataclass(frozen=True)
class QuestionAnswers:
    """A question and its answers.

    Attributes:
        control: The control.
        kind: ``presence``: whether an object is marked; ``label`` and ``answer``: which of two labels an object, or
            answers a task, has; ``tag``: whether a tag is given.
        names: The two answers; 1 in ``answers`` is the first.
        people: Annotator of each column, ascending.
        answers: (items, annotators): 1, 0 or NOT_ASKED.
        tasks: Index of the task of each item, ``(items,)``.
        sizes: Logarithm of the median area of the item's regions, ``(items,)``; NaN without one.
        labels: Most frequent label of each item.
    """

    control: str
    kind: QuestionKind
    names: tuple[str, str]
    people: tuple[int, ...]
    answers: NDArray[np.int8]
    tasks: NDArray[np.intp]
    sizes: Floats
    labels: tuple[str, ...]

    @property
    def disputed(self) -> Booleans:
        """Items that were given both answers, ``(items,)``."""
        both: Booleans = (self.answers == 1).any(axis=1) & (self.answers == 0).any(axis=1)
        return both

    def disagreement(self) -> float:
        """Share of the pairs of answers to one item that differ; 0 without pairs."""
        yes, no = (self.answers == 1).sum(axis=1), (self.answers == 0).sum(axis=1)
        pairs = ((yes + no) * (yes + no - 1) / 2).sum()
        return float((yes * no).sum() / pairs) if pairs else 0.0


@dataclass(frozen=True)
class _Item:
    task: int
    votes: Mapping[int, tuple[str, ...]]
    viewers: tuple[int, ...]
    size: float

    @cached_property
    def names(self) -> Mapping[int, str]:
        """Annotator -> name of the answer."""
        return {who: answer_name(answer) for who, answer in self.votes.items()}

    @cached_property
    def most_frequent(self) -> str:
        """Name of the most frequent answer; of several, the first by name."""
        counts = Counter(self.names.values())
        return min(counts, key=lambda name: (-counts[name], name))


def questions_of(tasks: Sequence[TaskFacts], *, without: Collection[int] = ()) -> tuple[QuestionAnswers, ...]:
    """All questions of a project; an unknown annotator (a negative id, another one in each task) answers none.

    Args:
        tasks: Facts of each task, newest first or in any other order.
        without: Annotators to leave out, because their answers are not their own.
    """
    objects: dict[str, list[_Item]] = defaultdict(list)
    answers: dict[str, list[_Item]] = defaultdict(list)
    for index, task in enumerate(tasks):
        viewers = tuple(item.annotator for item in task.blind if item.annotator >= 0 and item.annotator not in without)
        for marked_object in task.objects:
            votes = {mark.annotator: mark.labels for mark in marked_object.marks if mark.annotator in viewers}
            if votes and len(viewers) > 1:
                areas = [mark.area for mark in marked_object.marks if mark.annotator in votes and mark.area > 0]
                size = log(median(areas)) if areas else nan
                objects[marked_object.control].append(_Item(index, votes, viewers, size))
        for question in task.questions:
            votes = {who: answer for who, answer in question.votes if who in viewers}
            if len(votes) > 1:
                answers[question.control].append(_Item(index, votes, viewers, nan))
    asked = [question for control, items in objects.items() for question in _about_objects(control, items[:MAX_ITEMS])]
    asked += [question for control, items in answers.items() for question in _about_tasks(control, items[:MAX_ITEMS])]
    return tuple(asked)


def answer_name(labels: Sequence[str]) -> str:
    """Labels of an answer joined into one name."""
    return " + ".join(labels) or "(no label)"


def _about_objects(control: str, items: Sequence[_Item]) -> Iterator[QuestionAnswers]:
    rows = [{who: int(who in item.votes) for who in item.viewers} for item in items]
    yield _asked(control, "presence", (_ANY, ABSENT), items, rows)
    yield from _pairs(control, "label", items)


def _about_tasks(control: str, items: Sequence[_Item]) -> Iterator[QuestionAnswers]:
    if any(len(answer) > 1 for item in items for answer in item.votes.values()):
        tags = Counter(tag for item in items for answer in item.votes.values() for tag in answer)
        for tag, _ in tags.most_common(MAX_PAIRS * 2):
            rows = [{who: int(tag in answer) for who, answer in item.votes.items()} for item in items]
            yield _asked(control, "tag", (tag, ABSENT), items, rows)
        return
    yield from _pairs(control, "answer", items)


def _pairs(control: str, kind: QuestionKind, items: Sequence[_Item]) -> Iterator[QuestionAnswers]:
    """A question for each two labels that are confused."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in items:
        if len(given := set(item.names.values())) > 1:
            counts.update(combinations(sorted(given), 2))
    for names, count in counts.most_common(MAX_PAIRS):
        if count < MIN_SPLIT_ITEMS:
            continue
        chosen = [item for item in items if sum([name in names for name in item.names.values()]) > 1]
        rows = [{who: int(name == names[0]) for who, name in item.names.items() if name in names} for item in chosen]
        yield _asked(control, kind, names, chosen, rows)


def _asked(
    control: str, kind: QuestionKind, names: tuple[str, str], items: Sequence[_Item], rows: Sequence[Mapping[int, int]]
) -> QuestionAnswers:
    people = tuple(sorted({who for row in rows for who in row}))
    column = {who: index for index, who in enumerate(people)}
    answers = np.full((len(rows), len(people)), NOT_ASKED, dtype=np.int8)
    for index, row in enumerate(rows):
        for who, answer in row.items():
            answers[index, column[who]] = answer
    labels = tuple(item.most_frequent for item in items)
    return QuestionAnswers(
        control,
        kind,
        names,
        people,
        answers,
        np.array([item.task for item in items], dtype=np.intp),
        np.array([item.size for item in items]),
        labels,
    )
