"""What of a task is not in the data set: counted in the ledger's sums, and listed with the task, one by one."""

from exporters.model.accounting import Kind, Ledger, Loss
from exporters.model.file_names import public_url
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.region import Reading
from labelloop.labeling.studio.task import Annotation, Task

MALFORMED = "malformed"
MOVED = "images moved to the split of the same image in an earlier task (see dropped.jsonl)"


def moved(task: int | None, url: str, split: str, wanted: str, why: str) -> Loss:
    """The line of an image that is in another split than its task asks for."""
    return Loss("split", "moved", task=task, detail=f"{url}: in {split}, not in {wanted}, as an earlier task {why} is")


class LossRecorder:
    """The losses of one task.

    Args:
        ledger: Its sums.
        task: The task's number, if it has one; else what is lost is named by its place in the source.
        position: That place, from 1.

    Attributes:
        listed: Each loss.
    """

    def __init__(self, ledger: Ledger, task: int | None, position: int) -> None:
        self.listed: list[Loss] = []
        self._ledger = ledger
        self._task = task
        self._place = "" if task is not None else f"number {position} in the source, without an id"

    def malformed(self, error: MalformedTask) -> None:
        """A task that cannot be read."""
        self._ledger.drop("task", MALFORMED, failed=True)
        self._list("task", MALFORMED, detail=f"{error.field}: {error.reason}" if error.field else error.reason)

    def malformed_annotations(self, task: Task) -> int:
        """Those of a task that cannot be read; gives how many."""
        broken = [each for each in task.malformed if each.field.startswith("annotations")]
        for each in broken:
            self._ledger.drop("annotation", MALFORMED, failed=True)
            self._list("annotation", MALFORMED, detail=f"{each.field}: {each.reason}")
        return len(broken)

    def task(self, reason: str, detail: str = "", *, failed: bool = False) -> None:
        """The task; what is in it is told by `annotation`."""
        self._ledger.drop("task", reason, failed=failed)
        self._list("task", reason, detail=detail)

    def image(self, url: str, reason: str, why: str, *, failed: bool) -> None:
        """An image of the task; ``failed``: no region on it is counted as failed instead."""
        self._ledger.drop("image", reason, failed=failed)
        self._list("image", reason, detail=f"{public_url(url)}: {why}")

    def moved(self, url: str, split: str, wanted: str, why: str) -> None:
        """An image that is in another split than its task asks for."""
        self._ledger.notes[MOVED] += 1
        self.listed.append(moved(self._task, url, split, wanted, why))

    def annotation(self, annotation: Annotation, reading: Reading, reason: str, *, failed: bool = False) -> None:
        """An annotation that is left out whole: its regions go with it, counted but not listed one by one."""
        regions = len(reading.regions) + len(reading.errors)
        self._ledger.input["region"] += regions
        self._ledger.drop("annotation", reason)
        if regions:
            self._ledger.drop("region", reason, times=regions, failed=failed)
        self._list("annotation", reason, annotation.id, detail=f"{regions} regions")

    def region(
        self, annotation: Annotation, region: str, reason: str, detail: str = "", *, failed: bool = True
    ) -> None:
        """A region of an annotation that is kept otherwise."""
        self._ledger.drop("region", reason, failed=failed)
        self._list("region", reason, annotation.id, region, detail)

    def _list(self, kind: Kind, reason: str, annotation: int | None = None, region: str = "", detail: str = "") -> None:
        told = "; ".join(filter(None, (detail, self._place)))
        self.listed.append(Loss(kind, reason, task=self._task, annotation=annotation, region=region, detail=told))
