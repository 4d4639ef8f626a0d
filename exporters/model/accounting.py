"""What became of every task, annotation and region of the input: written, or dropped with a reason. The sums match."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

Kind = Literal["task", "annotation", "image", "region", "photo", "split"]


class Count(msgspec.Struct, frozen=True):
    """So many of the input, so many of them kept, the rest dropped by reason: ``input == kept + sum(dropped)``."""

    input: int
    kept: int
    dropped: Mapping[str, int] = {}

    @property
    def balanced(self) -> bool:
        """Whether everything of the input is accounted for."""
        return self.input == self.kept + sum(self.dropped.values())


class FormatCount(msgspec.Struct, frozen=True):
    """What one format made of the kept regions: ``kept regions == regions + sum(dropped)``.

    ``objects`` may be more than ``regions``: a region with several labels is an object for each of them.
    """

    regions: int
    objects: int
    dropped: Mapping[str, int] = {}
    converted: Mapping[str, int] = {}


class Accounts(msgspec.Struct, frozen=True):
    """The whole bill of an export.

    ``images`` counts the images of the kept tasks. ``other_results`` are results that are no regions of an image
    (choices of the task, relations, text, video), by type. ``failed`` counts what was wrong in itself, not what the
    chosen policy left out, and ``failed_share`` is its share of all regions and failed tasks.
    """

    tasks: Count
    annotations: Count
    images: Count
    regions: Count
    formats: Mapping[str, FormatCount]
    repaired: Mapping[str, int] = {}
    notes: Mapping[str, int] = {}
    other_results: Mapping[str, int] = {}
    chosen_by: Mapping[str, int] = {}
    failed: int = 0
    failed_share: float = 0.0

    @property
    def balanced(self) -> bool:
        """Whether every sum of the bill matches."""
        return all(count.balanced for count in (self.tasks, self.annotations, self.images, self.regions)) and all(
            self.regions.kept == each.regions + sum(each.dropped.values()) for each in self.formats.values()
        )


class Loss(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing of the input that is not in the data set, and why: a line of ``dropped.jsonl``."""

    kind: Kind
    reason: str
    task: int | None = None
    annotation: int | None = None
    region: str = ""
    format: str = ""
    detail: str = ""


class Written(msgspec.Struct, frozen=True):
    """What an export had to do: objects and bytes that were not in the store yet, tasks that it converted."""

    objects: int
    bytes: int
    tasks: int


class Report(msgspec.Struct, frozen=True):
    """What an export made: ``version`` at ``url``; where it was not ``published``, ``refused`` says why.

    ``version`` is empty where there was nothing to make one of.

    ``objects`` and ``bytes`` are those that the version is made of, ``written`` what of it is new. ``left_out`` are the
    formats that were asked for and cannot be made of this project, with the reason.
    """

    url: str
    version: str
    published: bool
    images: Mapping[str, int]
    classes: Mapping[str, int]
    accounts: Accounts
    objects: int
    bytes: int
    written: Written
    manifest_sha256: str
    left_out: Mapping[str, str] = {}
    refused: str = ""


Line = tuple[tuple[str, ...], int]
"""What was counted and how often: ``(("dropped", "region", "no label"), 2)``."""
TaskAccount = tuple[Line, ...]
"""What became of one task, each line once, sorted: equal bills are equal values, and the whole bill is their sum."""

_KINDS: tuple[Kind, ...] = ("task", "annotation", "image", "region")


class Ledger:
    """Where an export writes down what becomes of a task; ``settle()`` closes the task's bill and opens the next."""

    def __init__(self) -> None:
        self.input: Counter[Kind] = Counter()
        self.kept: Counter[Kind] = Counter()
        self.dropped: dict[Kind, Counter[str]] = {kind: Counter() for kind in _KINDS}
        self.repaired: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.other_results: Counter[str] = Counter()
        self.chosen_by: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def drop(self, kind: Kind, reason: str, *, times: int = 1, failed: bool = False) -> None:
        """Count ``times`` things as dropped for ``reason``; ``failed``: they were wrong in themselves."""
        self.dropped[kind][reason] += times
        if failed:
            self.failed["regions" if kind == "region" else "others"] += times

    def settle(self) -> Counter[tuple[str, ...]]:
        """What was counted since the last call; the counters start from zero again."""
        found: Counter[tuple[str, ...]] = Counter()
        for section, counter in self._sections():
            if counter:
                for name, number in counter.items():
                    found[(*section, name)] += number
                counter.clear()
        return found

    def _sections(self) -> Iterator[tuple[tuple[str, ...], Counter[Any]]]:
        for section in ("input", "kept", "repaired", "notes", "other_results", "chosen_by", "failed"):
            yield (section,), getattr(self, section)
        for kind in _KINDS:
            yield ("dropped", kind), self.dropped[kind]


def bill_of(counted: Mapping[tuple[str, ...], int]) -> TaskAccount:
    """What was counted for a task as its bill."""
    return tuple(sorted(line for line in counted.items() if line[1]))


class TaskAccountTable:
    """The bills of tasks, equal ones kept once, each by a number; their sum is the bill of the export."""

    def __init__(self) -> None:
        self._numbers: dict[TaskAccount, int] = {}
        self._times: Counter[int] = Counter()

    @property
    def known(self) -> tuple[TaskAccount, ...]:
        """Every bill, in the order of the numbers."""
        return tuple(self._numbers)

    def number(self, bill: TaskAccount) -> int:
        """The number of a bill, known or new."""
        return self._numbers.setdefault(bill, len(self._numbers))

    def add(self, numbers: Iterable[int]) -> None:
        """Count tasks, each with the bill of its number."""
        self._times.update(numbers)

    def times(self, number: int) -> int:
        """How many tasks have the bill of this number."""
        return self._times[number]

    def take(self, other: "TaskAccountTable") -> list[int]:
        """Add the tasks of other bills; gives, for each number of a bill there, its number here."""
        numbers = [self.number(bill) for bill in other.known]
        for number, here in enumerate(numbers):
            self._times[here] += other.times(number)
        return numbers

    def total(self) -> Counter[tuple[str, ...]]:
        """All lines of all tasks, added up."""
        total: Counter[tuple[str, ...]] = Counter()
        for bill, number in self._numbers.items():
            times = self._times[number]
            for name, count in bill:
                total[name] += count * times
        return total


def accounts_of(total: Mapping[tuple[str, ...], int], formats: Iterable[str]) -> Accounts:
    """The bill of an export: frozen, sorted by name, so that the same input gives the same bytes."""

    def section(*path: str) -> dict[str, int]:
        found = {name[-1]: number for name, number in total.items() if name[:-1] == path and number}
        return dict(sorted(found.items()))

    def count(kind: Kind) -> Count:
        return Count(
            input=section("input").get(kind, 0), kept=section("kept").get(kind, 0), dropped=section("dropped", kind)
        )

    failed = section("failed")
    tasks, annotations, images, regions = (count(kind) for kind in _KINDS)
    considered = regions.input + failed.get("others", 0)
    return Accounts(
        tasks=tasks,
        annotations=annotations,
        images=images,
        regions=regions,
        formats={
            name: FormatCount(
                regions=section("format", name).get("regions", 0),
                objects=section("format", name).get("objects", 0),
                dropped=section("format", name, "dropped"),
                converted=section("format", name, "converted"),
            )
            for name in sorted(formats)
        },
        repaired=section("repaired"),
        notes=section("notes"),
        other_results=section("other_results"),
        chosen_by=section("chosen_by"),
        failed=sum(failed.values()),
        failed_share=sum(failed.values()) / considered if considered else 0.0,
    )
