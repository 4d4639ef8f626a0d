"""Count what the steps of a conversion keep and leave out of a task: each step returns its `Tally`."""

from collections import Counter
from typing import Self

import msgspec

from exporters.model.accounting import AccountLine, Kind, Loss
from exporters.model.file_names import public_url
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.region import ParsedAnnotation
from labelloop.labeling.studio.task import Annotation, Task

MALFORMED = "malformed"
MOVED = "images moved to the split of the same image in an earlier task (see dropped.jsonl)"

# Reasons of a consensus.
MERGED = "joined with the same object of another annotator"
OUTVOTED = "not in the consensus"
PARTLY_READABLE = "of an annotation that cannot be read whole"
TOO_LARGE = "too many regions for a consensus"

Counted = Counter[tuple[str, ...]]


class Tally(msgspec.Struct, frozen=True):
    """What one step of a conversion adds to the account of a task.

    Attributes:
        lines: Counters with their values; a counter may occur several times.
        losses: What is not in the data set, in the order of the source.
    """

    lines: tuple[AccountLine, ...] = ()
    losses: tuple[Loss, ...] = ()

    @classmethod
    def join(cls, *tallies: Self) -> Self:
        """Return the tally of several steps, in their order."""
        lines: list[AccountLine] = []
        losses: list[Loss] = []
        for tally in tallies:
            lines += tally.lines
            losses += tally.losses
        return cls(tuple(lines), tuple(losses))

    @classmethod
    def count(cls, *counter: str, times: int = 1) -> Self:
        """Return a tally of one counter, such as ``Tally.count("kept", "region")``."""
        return cls(((counter, times),))

    @classmethod
    def drop(cls, kind: Kind, reason: str, *, times: int = 1, failed: bool = False, loss: Loss | None = None) -> Self:
        """Return a tally of items that are left out; ``failed``: they are invalid input."""
        lines: tuple[AccountLine, ...] = ((("dropped", kind, reason), times),)
        if failed:
            lines = (*lines, (("failed", "regions" if kind == "region" else "others"), times))
        return cls(lines, () if loss is None else (loss,))

    def counted(self) -> Counted:
        """Return the sum of each counter."""
        counted: Counted = Counter()
        for counter, times in self.lines:
            counted[counter] += times
        return counted


NOTHING = Tally()


def moved_image(task: int | None, url: str, split: str, wanted: str, why: str) -> Tally:
    """Return the tally of an image that is in another split than its task states."""
    detail = f"{url}: in {split}, not in {wanted}, as an earlier task {why} is"
    return Tally(((("notes", MOVED), 1),), (Loss("split", "moved", task=task, detail=detail),))


class TaskLosses(msgspec.Struct, frozen=True):
    """Makes the tallies of what is left out of one task.

    Attributes:
        task: Its id; without one its losses name its position.
        position: Its position in the source, from 1.
    """

    task: int | None
    position: int

    def malformed_task(self, error: MalformedTask) -> Tally:
        """Return the tally of a task that cannot be read."""
        detail = f"{error.field}: {error.reason}" if error.field else error.reason
        return Tally.drop("task", MALFORMED, failed=True, loss=self._loss("task", MALFORMED, detail=detail))

    def malformed_annotations(self, task: Task) -> Tally:
        """Return the tally of the unreadable annotations of a task; it has a loss for each."""
        if not task.malformed:
            return NOTHING
        return Tally.join(
            *[
                Tally.drop(
                    "annotation",
                    MALFORMED,
                    failed=True,
                    loss=self._loss("annotation", MALFORMED, detail=f"{error.field}: {error.reason}"),
                )
                for error in task.malformed
                if error.field.startswith("annotations")
            ]
        )

    def whole_task(self, reason: str, detail: str = "", *, failed: bool = False) -> Tally:
        """Return the tally of the task itself; that of its contents is made by `annotation`."""
        return Tally.drop("task", reason, failed=failed, loss=self._loss("task", reason, detail=detail))

    def image(self, url: str, reason: str, why: str, *, failed: bool) -> Tally:
        """Return the tally of an image; ``failed``: it is a failure, because no region on it is counted as one."""
        loss = self._loss("image", reason, detail=f"{public_url(url)}: {why}")
        return Tally.drop("image", reason, failed=failed, loss=loss)

    def annotation(
        self, annotation: Annotation, reading: ParsedAnnotation, reason: str, *, failed: bool = False
    ) -> Tally:
        """Return the tally of a whole annotation: its regions are counted, but not listed."""
        return self.whole_annotation(annotation, reason, len(reading.regions) + len(reading.errors), failed=failed)

    def whole_annotation(self, annotation: Annotation, reason: str, regions: int, *, failed: bool = False) -> Tally:
        """Return the tally of a whole annotation with some number of regions."""
        loss = self._loss("annotation", reason, annotation.id, detail=f"{regions} regions")
        dropped = Tally.drop("annotation", reason, loss=loss)
        if not regions:
            return dropped
        return Tally.join(
            dropped,
            Tally.count("input", "region", times=regions),
            Tally.drop("region", reason, times=regions, failed=failed),
        )

    def region(
        self, annotation: Annotation, region: str, reason: str, detail: str = "", *, failed: bool = True
    ) -> Tally:
        """Return the tally of a region of an annotation that is otherwise kept."""
        loss = self._loss("region", reason, annotation.id, region, detail)
        return Tally.drop("region", reason, failed=failed, loss=loss)

    def _loss(self, kind: Kind, reason: str, annotation: int | None = None, region: str = "", detail: str = "") -> Loss:
        position = "" if self.task is not None else f"number {self.position} in the source, without an id"
        full_detail = "; ".join(filter(None, (detail, position)))
        return Loss(kind, reason, task=self.task, annotation=annotation, region=region, detail=full_detail)
