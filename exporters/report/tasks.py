"""Statistics of the tasks of a version: answers by control, labels of regions, annotators; from tasks-jsonl."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from exporters.dataset.shards import read_table
from exporters.formats.base import LEFT_OUT
from exporters.model.manifest import DatasetManifest
from labelloop.service.store import Store

# The formats whose records are whole lines.
_WHOLE = ("tasks-jsonl", "tasks-parquet")
# Distinct answers of a control that are counted one by one, and listed.
MAX_VALUES, LISTED_VALUES = 1000, 20
# A control whose answers are longer than this on average has texts, not values.
_LONGEST_VALUE = 40


class _Line(msgspec.Struct):
    split: str
    answers: dict[str, Any] = {}
    regions: list["_Region"] = []
    relations: list[Any] = []
    annotation: dict[str, Any] = {}


class _Region(msgspec.Struct):
    labels: list[Any] = []
    type: Any = None


class AnswerStatistics(msgspec.Struct):
    """The answers to one control.

    Attributes:
        tasks: The number of tasks with an answer.
        values: Answer -> tasks, of up to `MAX_VALUES` answers; of a list each item counts.
        others: Answers that are not in ``values``.
        characters: The sum of the lengths of all texts.
        low: The smallest number; None without numbers.
        high: The largest number.
    """

    tasks: int = 0
    values: Counter[str] = msgspec.field(default_factory=Counter)
    others: int = 0
    characters: int = 0
    low: float | None = None
    high: float | None = None

    def add(self, answer: Any) -> None:
        """Count an answer."""
        self.tasks += 1
        for value in answer if isinstance(answer, list) else [answer]:
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.low = value if self.low is None else min(self.low, value)
                self.high = value if self.high is None else max(self.high, value)
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            self.characters += len(text)
            if len(text) <= 2 * _LONGEST_VALUE and (text in self.values or len(self.values) < MAX_VALUES):
                self.values[text] += 1
            else:
                self.others += 1

    @property
    def listed(self) -> Sequence[tuple[str, int]]:
        """The most frequent answers; none for a control of free texts."""
        number = self.values.total() + self.others
        is_text = self.others or self.characters > _LONGEST_VALUE * number or len(self.values) > number / 2 + 5
        return () if is_text else self.values.most_common(LISTED_VALUES)

    @property
    def summary(self) -> str:
        """The answers in words, where they are not listed one by one."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        number = self.values.total() + self.others
        return "" if self.listed or not number else f"{number:,} texts, {self.characters / number:.0f} characters each"


class TaskStatistics(msgspec.Struct):
    """Counts of the lines of a version.

    Attributes:
        answers: Control -> its answers.
        labels: Label of a region -> split -> regions.
        types: Type of a region -> regions.
        relations: The number of relations.
        annotators: Annotator -> lines.
    """

    answers: dict[str, AnswerStatistics] = {}
    labels: dict[str, Counter[str]] = {}
    types: Counter[str] = msgspec.field(default_factory=Counter)
    relations: int = 0
    annotators: Counter[str] = msgspec.field(default_factory=Counter)


def task_statistics(store: Store, manifest: DatasetManifest) -> TaskStatistics | None:
    """Return the statistics of a version's tasks; None if it has no format that holds whole lines."""
    name = next((name for name in _WHOLE if name in manifest.formats), "")
    if not name:
        return None
    statistics = TaskStatistics({}, {})
    decode = msgspec.json.Decoder(_Line).decode
    for record in read_table(store, manifest, name):
        if bytes(record.body) != LEFT_OUT:
            _add(statistics, decode(record.body))
    return statistics


def listed_labels(statistics: TaskStatistics, limit: int) -> Sequence[tuple[str, Mapping[str, int]]]:
    """Return the labels with the most regions, and the regions of each by split."""
    return sorted(statistics.labels.items(), key=lambda row: (-row[1].total(), row[0]))[:limit]


def _add(statistics: TaskStatistics, line: _Line) -> None:
    for control, answer in line.answers.items():
        statistics.answers.setdefault(control, AnswerStatistics()).add(answer)
    for region in line.regions:
        statistics.types[str(region.type or "without a shape").lower()] += 1
        for label in region.labels:
            statistics.labels.setdefault(str(label), Counter())[line.split] += 1
    statistics.relations += len(line.relations)
    annotators = line.annotation.get("annotators") or [line.annotation.get("by")]
    statistics.annotators.update(["unknown" if who is None else str(who) for who in annotators])
