"""Record what is left out of the data set: counted in the ledger, and listed per task."""

from exporters.model.accounting import Kind, Ledger, Loss
from exporters.model.file_names import public_url
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.region import ParsedAnnotation
from labelloop.labeling.studio.task import Annotation, Task

MALFORMED = "malformed"
MOVED = "images moved to the split of the same image in an earlier task (see dropped.jsonl)"


def moved_image_loss(task: int | None, url: str, split: str, wanted: str, why: str) -> Loss:
    """Return the loss of an image that is in another split than its task states."""
    return Loss("split", "moved", task=task, detail=f"{url}: in {split}, not in {wanted}, as an earlier task {why} is")


class LossRecorder:
    """The losses of one task.

    Args:
        ledger: Counts the losses.
        task: The task's id; without one its losses name its position.
        position: The task's position in the source, from 1.

    Attributes:
        losses: Each loss.
    """

    def __init__(self, ledger: Ledger, task: int | None, position: int) -> None:
        self.losses: list[Loss] = []
        self._ledger = ledger
        self._task = task
        self._place = "" if task is not None else f"number {position} in the source, without an id"

    def malformed(self, error: MalformedTask) -> None:
        """Record a task that cannot be read."""
        self._ledger.drop("task", MALFORMED, failed=True)
        self._list("task", MALFORMED, detail=f"{error.field}: {error.reason}" if error.field else error.reason)

    def malformed_annotations(self, task: Task) -> int:
        """Record the unreadable annotations of a task. Return their number."""
        broken = [error for error in task.malformed if error.field.startswith("annotations")]
        for error in broken:
            self._ledger.drop("annotation", MALFORMED, failed=True)
            self._list("annotation", MALFORMED, detail=f"{error.field}: {error.reason}")
        return len(broken)

    def task(self, reason: str, detail: str = "", *, failed: bool = False) -> None:
        """Record the task itself; its contents are recorded by `annotation`."""
        self._ledger.drop("task", reason, failed=failed)
        self._list("task", reason, detail=detail)

    def image(self, url: str, reason: str, why: str, *, failed: bool) -> None:
        """Record an image; ``failed``: count it as a failure, because no region on it is counted as one."""
        self._ledger.drop("image", reason, failed=failed)
        self._list("image", reason, detail=f"{public_url(url)}: {why}")

    def image_moved(self, url: str, split: str, wanted: str, why: str) -> None:
        """Record an image that is in another split than its task states."""
        self._ledger.notes[MOVED] += 1
        self.losses.append(moved_image_loss(self._task, url, split, wanted, why))

    def annotation(
        self, annotation: Annotation, reading: ParsedAnnotation, reason: str, *, failed: bool = False
    ) -> None:
        """Record a whole annotation: its regions are counted, but not listed."""
        regions = len(reading.regions) + len(reading.errors)
        self._ledger.input["region"] += regions
        self._ledger.drop("annotation", reason)
        if regions:
            self._ledger.drop("region", reason, times=regions, failed=failed)
        self._list("annotation", reason, annotation.id, detail=f"{regions} regions")

    def region(
        self, annotation: Annotation, region: str, reason: str, detail: str = "", *, failed: bool = True
    ) -> None:
        """Record a region of an annotation that is otherwise kept."""
        self._ledger.drop("region", reason, failed=failed)
        self._list("region", reason, annotation.id, region, detail)

    def _list(self, kind: Kind, reason: str, annotation: int | None = None, region: str = "", detail: str = "") -> None:
        full_detail = "; ".join(filter(None, (detail, self._place)))
        self.losses.append(
            Loss(kind, reason, task=self._task, annotation=annotation, region=region, detail=full_detail)
        )
