"""Account for every task, annotation, image and region of the input: kept, or dropped with a reason; the sums match."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

Kind = Literal["task", "annotation", "image", "region", "photo", "split"]


class Count(msgspec.Struct, frozen=True):
    """Counts of one kind of input, dropped by reason: ``input == kept + sum(dropped.values())``."""

    input: int
    kept: int
    dropped: Mapping[str, int] = {}

    @property
    def balanced(self) -> bool:
        """Whether everything of the input is accounted for."""
        return self.input == self.kept + sum(self.dropped.values())


class FormatCount(msgspec.Struct, frozen=True):
    """Counts of one format: ``kept regions == regions + sum(dropped.values())``.

    ``objects`` may exceed ``regions``: a region with several labels is one object per label. A format of tasks has
    ``tasks`` instead of regions: ``kept tasks == tasks + sum(dropped.values())``, and ``objects`` are its entries.
    """

    regions: int
    objects: int
    dropped: Mapping[str, int] = {}
    converted: Mapping[str, int] = {}
    tasks: int | None = None


class Accounts(msgspec.Struct, frozen=True):
    """The accounts of an export.

    ``images`` counts the images of the kept tasks. ``other_results`` counts results that are not regions of an image
    (choices of the task, relations, text, video), by type. ``failed`` counts invalid input, not what the options
    exclude; ``failed_share`` is its share of all regions and failed tasks.
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
        """Whether all sums match."""
        return all(count.balanced for count in (self.tasks, self.annotations, self.images, self.regions)) and all(
            self.regions.kept == format_count.regions + sum(format_count.dropped.values())
            if format_count.tasks is None
            else self.tasks.kept == format_count.tasks + sum(format_count.dropped.values())
            for format_count in self.formats.values()
        )


class Loss(msgspec.Struct, frozen=True, omit_defaults=True):
    """One item of the input that is not in the data set, with the reason: a line of ``dropped.jsonl``."""

    kind: Kind
    reason: str
    task: int | None = None
    annotation: int | None = None
    region: str = ""
    format: str = ""
    detail: str = ""


class WriteStats(msgspec.Struct, frozen=True):
    """Objects and bytes that an export added to the store, and the number of tasks it converted."""

    objects: int
    bytes: int
    tasks: int


class ExportReport(msgspec.Struct, frozen=True):
    """The result of an export: ``version`` at ``url``; ``refused`` is the reason if it was not ``published``.

    ``version`` is empty if no version was made. ``objects`` and ``bytes`` are those of the version, ``written`` those
    added by this export. ``left_out`` maps requested formats that the project cannot fill to the reason. ``latest`` is
    the version in ``latest/``: empty if its update failed, None if the export did not write it. ``latest_files`` are
    the numbers of its files. ``archives`` are the version's plain files. ``lines`` are the lines of tasks by split.
    """

    url: str
    version: str
    published: bool
    images: Mapping[str, int]
    classes: Mapping[str, int]
    accounts: Accounts
    objects: int
    bytes: int
    written: WriteStats
    manifest_sha256: str
    left_out: Mapping[str, str] = {}
    refused: str = ""
    latest: str | None = None
    latest_files: Mapping[str, int] = {}
    archives: Sequence[str] = ()
    lines: Mapping[str, int] = {}
    warnings: tuple[str, ...] = ()


# A counter and its value: ``(("dropped", "region", "no label"), 2)``.
AccountLine = tuple[tuple[str, ...], int]
# The account of one task: sorted lines, so that equal accounts are equal values. The export's accounts are their sum.
TaskAccount = tuple[AccountLine, ...]

_KINDS: tuple[Kind, ...] = ("task", "annotation", "image", "region")


def task_account(counts: Mapping[tuple[str, ...], int]) -> TaskAccount:
    """Freeze the counts of a task into its account."""
    return tuple(sorted(line for line in counts.items() if line[1]))


class TaskAccountTable:
    """Task accounts, deduplicated and numbered, with the number of tasks of each; their sum accounts for the export."""

    def __init__(self) -> None:
        self._numbers: dict[TaskAccount, int] = {}
        self._times: Counter[int] = Counter()

    @property
    def accounts(self) -> tuple[TaskAccount, ...]:
        """All accounts, in the order of their numbers."""
        return tuple(self._numbers)

    def number(self, account: TaskAccount) -> int:
        """Return the number of an account, adding it if it is new."""
        return self._numbers.setdefault(account, len(self._numbers))

    def add(self, numbers: Iterable[int]) -> None:
        """Count tasks by the numbers of their accounts."""
        self._times.update(numbers)

    def times(self, number: int) -> int:
        """Return the number of tasks with this account."""
        return self._times[number]

    def merge(self, other: "TaskAccountTable") -> list[int]:
        """Add the tasks of another table. Return, for each account number there, the number here."""
        numbers = [self.number(account) for account in other.accounts]
        for number, own_number in enumerate(numbers):
            self._times[own_number] += other.times(number)
        return numbers

    def total(self) -> Counter[tuple[str, ...]]:
        """Return the sum of the accounts of all tasks."""
        total: Counter[tuple[str, ...]] = Counter()
        for account, number in self._numbers.items():
            times = self._times[number]
            for name, count in account:
                total[name] += count * times
        return total


def build_accounts(
    total: Mapping[tuple[str, ...], int], formats: Iterable[str], task_formats: Iterable[str] = ()
) -> Accounts:
    """Build the accounts of an export, sorted by name, so that equal input gives equal bytes.

    Args:
        total: The counts of all tasks.
        formats: All formats.
        task_formats: Those of them that are of tasks.
    """
    of_tasks = frozenset(task_formats)

    def section(*path: str) -> dict[str, int]:
        numbers = {name[-1]: number for name, number in total.items() if name[:-1] == path and number}
        return dict(sorted(numbers.items()))

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
                tasks=section("format", name).get("tasks", 0) if name in of_tasks else None,
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
