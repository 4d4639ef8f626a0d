"""What became of every task, annotation and region of the input: written, or dropped with a reason. The sums match."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Kind = Literal["task", "annotation", "image", "region", "photo"]


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


class Report(msgspec.Struct, frozen=True):
    """What an export made: ``version`` at ``url``; ``published`` is false where too much of the input failed."""

    url: str
    version: str
    published: bool
    images: Mapping[str, int]
    classes: Mapping[str, int]
    accounts: Accounts
    files: int
    bytes: int
    manifest_sha256: str


class Ledger:
    """Where an export writes down each thing as it meets it; ``accounts()`` is the bill at the end."""

    def __init__(self) -> None:
        self.input: Counter[Kind] = Counter()
        self.kept: Counter[Kind] = Counter()
        self.dropped: dict[Kind, Counter[str]] = {kind: Counter() for kind in ("task", "annotation", "image", "region")}
        self.repaired: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.other_results: Counter[str] = Counter()
        self.chosen_by: Counter[str] = Counter()
        self.failed = 0
        self.failed_tasks = 0

    def drop(self, kind: Kind, reason: str, *, times: int = 1, failed: bool = False) -> None:
        """Count ``times`` things as dropped for ``reason``; ``failed``: they were wrong in themselves."""
        self.dropped[kind][reason] += times
        if failed:
            self.failed += times
            self.failed_tasks += times if kind != "region" else 0

    def accounts(self, formats: Mapping[str, FormatCount]) -> Accounts:
        """The bill: frozen, sorted by name, so that the same input gives the same bytes."""
        considered = self.input["region"] + self.failed_tasks
        return Accounts(
            tasks=self._count("task"),
            annotations=self._count("annotation"),
            images=self._count("image"),
            regions=self._count("region"),
            formats=dict(sorted(formats.items())),
            repaired=_sorted(self.repaired),
            notes=_sorted(self.notes),
            other_results=_sorted(self.other_results),
            chosen_by=_sorted(self.chosen_by),
            failed=self.failed,
            failed_share=self.failed / considered if considered else 0.0,
        )

    def _count(self, kind: Kind) -> Count:
        return Count(input=self.input[kind], kept=self.kept[kind], dropped=_sorted(self.dropped[kind]))


def _sorted(counter: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number for name, number in sorted(counter.items()) if number}
