"""Compare the tasks of two versions line by line: answers by control, labels of regions, splits."""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import groupby
from typing import Any

import msgspec

from exporters.dataset.shards import read_rows
from exporters.dataset.task_index import TaskIndex
from exporters.model.manifest import DatasetManifest
from labelloop.service.scratch import scratch_folder
from labelloop.service.store import Store

# The formats whose records are whole lines.
WHOLE_LINES = ("tasks-jsonl", "tasks-parquet")


class AnswerChange(msgspec.Struct, frozen=True):
    """The number of tasks whose answer to a control was added, removed, or changed."""

    added: int = 0
    removed: int = 0
    changed: int = 0


class TaskDifferences(msgspec.Struct, frozen=True):
    """What changed in the lines of tasks.

    Attributes:
        lines: Added, removed, changed and same lines.
        splits: The number of lines that changed split, by ``train -> val``.
        answers: The changes by control.
        regions: The number of regions added and removed, by label; a moved region counts as both.
        samples: Tasks that changed, and how.
    """

    lines: Mapping[str, int]
    splits: Mapping[str, int]
    answers: Mapping[str, AnswerChange]
    regions: Mapping[str, Mapping[str, int]]
    samples: tuple[tuple[int, str], ...]


class LineChanges:
    """Collects changes of lines, a task at a time."""

    def __init__(self, samples: int) -> None:
        self._lines: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._answers: dict[str, Counter[str]] = {}
        self._regions: dict[str, Counter[str]] = {}
        self._samples: list[tuple[int, str]] = []
        self._limit = samples

    def add(self, task: int, before: list[Any], after: list[Any]) -> None:
        """Add a task with its lines before and after."""
        old, new = ({_identity(line): line for line in lines} for lines in (before, after))
        what: Counter[str] = Counter()
        for key in {**old, **new}:
            self._add_line(old.get(key), new.get(key), what)
        if what and len(self._samples) < self._limit:
            words = [f"{number} {change}" for change, number in sorted(what.items())]
            self._samples.append((task, ", ".join(words)))

    def result(self, total: int) -> TaskDifferences:
        """Return the changes; ``total`` is the number of lines of the later version."""
        same = total - self._lines["added"] - self._lines["changed"]
        return TaskDifferences(
            {**{name: self._lines[name] for name in ("added", "removed", "changed")}, "same": same},
            dict(sorted(self._splits.items())),
            {control: AnswerChange(**counts) for control, counts in sorted(self._answers.items())},
            {label: dict(counts) for label, counts in sorted(self._regions.items())},
            tuple(self._samples),
        )

    def _add_line(self, old: Any, new: Any, what: Counter[str]) -> None:
        is_new, is_gone = old is None, new is None
        old, new = old or {}, new or {}
        if not (is_new or is_gone) and old["split"] != new["split"]:
            self._splits[f"{old['split']} -> {new['split']}"] += 1
            what["split"] += 1
        before, after = old.get("answers", {}), new.get("answers", {})
        for control in {**before, **after}:
            if control in before and control in after and before[control] == after[control]:
                continue
            is_changed = control in before and control in after
            change = "changed" if is_changed else "removed" if control in before else "added"
            self._answers.setdefault(control, Counter())[change] += 1
            what[f"answers {change}"] += 1
        was, now = Counter(_regions(old)), Counter(_regions(new))
        for change, regions in (("added", now - was), ("removed", was - now)):
            for (label, _), number in regions.items():
                self._regions.setdefault(label, Counter())[change] += number
                what[f"regions {change}"] += number
        has_changed = bool(what) or {**old, "annotation": 0} != {**new, "annotation": 0}
        if is_new or is_gone or has_changed:
            self._lines["added" if is_new else "removed" if is_gone else "changed"] += 1
            what["lines added" if is_new else "lines removed" if is_gone else "lines changed"] += 1


# What `_lines` needs of a version: store, manifest, index, format, tasks.
Side = tuple[Store, DatasetManifest, TaskIndex, str, set[int]]


def line_changes(sides: tuple[Side, Side], *, samples: int) -> TaskDifferences:
    """Compare the lines of some tasks of two versions.

    Lines of the earlier version wait in a temporary database, so that memory does not grow with the data set.
    """
    changes = LineChanges(samples)
    before, after = sides
    with (
        scratch_folder() as folder,
        closing(sqlite3.connect(folder / "lines.sqlite3", isolation_level=None)) as database,
    ):
        database.execute("PRAGMA synchronous=OFF")
        database.execute("CREATE TABLE lines (task INTEGER, line BLOB)")
        database.execute("BEGIN")
        for line in _lines(*before):
            database.execute("INSERT INTO lines VALUES (?, ?)", (_task(line), line))
        database.execute("CREATE INDEX by_task ON lines (task)")
        for task, group in groupby(_lines(*after), key=_task):
            earlier = database.execute("SELECT line FROM lines WHERE task = ?", (task,)).fetchall()
            database.execute("DELETE FROM lines WHERE task = ?", (task,))
            changes.add(task, [msgspec.json.decode(line) for (line,) in earlier], list(map(msgspec.json.decode, group)))
        removed = database.execute("SELECT line FROM lines ORDER BY task")
        for task, group in groupby((line for (line,) in removed), key=_task):
            changes.add(task, list(map(msgspec.json.decode, group)), [])
    return changes.result(sum(after[1].lines.values()))


class _Task(msgspec.Struct):
    task: int


_decode_task = msgspec.json.Decoder(_Task).decode


def _task(line: bytes) -> int:
    return _decode_task(line).task


def _lines(store: Store, manifest: DatasetManifest, index: TaskIndex, name: str, wanted: set[int]) -> Iterator[bytes]:
    """Yield the lines of some tasks, by generation."""
    keys = index.keys.tolist()
    for number, generation in enumerate(manifest.generations):
        rows = {
            row for key, (where, row) in zip(keys, index.locations(), strict=True) if where == number and key in wanted
        }
        if rows:
            yield from read_rows(store, generation, name, rows)


def _identity(line: Mapping[str, Any]) -> Any:
    """Return what identifies a line of a task: the annotator, as an edited annotation is the same one."""
    annotation = line["annotation"]
    return annotation.get("id") if annotation.get("rule") == "all" else None


def _regions(line: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    for region in line.get("regions", ()):
        own = msgspec.json.encode([region["shape"], region["answers"], region.get("object")], order="deterministic")
        for label in region["labels"] or ["(no label)"]:
            yield str(label), own
