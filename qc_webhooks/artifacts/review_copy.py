"""Copies of disputed tasks in a review project, and the reviewer's decisions on them."""

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.studio.task import Annotation, Task
from qc_webhooks.artifacts.overlays import Overlay, digest

# Data key with the id of the original task.
ORIGIN = "qc_task"
NOTE = '<Header value="$qc_note"/>'
# URIs that Label Studio can resolve only with the storage of the original project.
_STORED = re.compile(r"(s3|gs|azure-blob)://")
_VIEW = re.compile(r"""<View(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*>""")


@dataclass(frozen=True)
class ReviewCopy:
    """A copy in a review project.

    Attributes:
        review: Id of the review project.
        task: Task id of the copy; 0: deliberately none, because it was removed.
        fingerprint: Fingerprint of the original task's state.
        content_hash: Digest of its content.
    """

    review: int
    task: int
    fingerprint: str
    content_hash: str


@dataclass(frozen=True)
class ReviewCopyContent:
    """The content of a copy.

    Attributes:
        overlays: Its predictions, in the order to write them; empty: no copy.
        note: The conflicts in words.
        agreement: Agreement of the annotators; None if nothing was compared.
    """

    overlays: tuple[Overlay, ...] = ()
    note: str = ""
    agreement: float | None = None

    @property
    def content_hash(self) -> str:
        """Digest of the content."""
        return digest([{"marks": [list(overlay.key) for overlay in self.overlays], "note": self.note}])


@dataclass(frozen=True)
class ReviewDecision:
    """A reviewer's annotation in the review project.

    Attributes:
        annotator: User id of the reviewer.
        results: Its results as Label Studio's JSON.
        annotation: Its annotation id in the review project.
        lead_time: Seconds of work; None if unknown.
    """

    annotator: int
    results: tuple[Mapping[str, Any], ...]
    annotation: int
    lead_time: float | None = None

    @property
    def content_hash(self) -> str:
        """Digest of its results."""
        return digest(self.results)


def decision_of(copy: Task) -> ReviewDecision | None:
    """The newest annotation of a copy; None without one."""
    submitted = [annotation for annotation in copy.annotations if _is_submitted(annotation)]
    newest = max(submitted, key=lambda annotation: (annotation.updated_at, annotation.id or 0), default=None)
    if newest is None or newest.completed_by is None:
        return None
    results = tuple(result.raw for result in newest.results)
    return ReviewDecision(newest.completed_by, results, newest.id or 0, newest.lead_time)


def imported_annotation(task: Task, annotator: int, content_hash: str) -> int | None:
    """Id of the annotation of the original task that equals this reviewer's decision; None if not imported yet."""
    matching = [
        annotation.id
        for annotation in task.annotations
        if _is_submitted(annotation)
        and annotation.completed_by == annotator
        and digest([result.raw for result in annotation.results]) == content_hash
    ]
    return max((annotation_id for annotation_id in matching if annotation_id is not None), default=None)


def origin_name(project: int, task: int) -> str:
    """Reference to the original task, as stored in a copy."""
    return f"{project}:{task}"


def copy_data(
    task: Task, project: int, content: ReviewCopyContent, *, own_keys: Collection[str], base: str = ""
) -> dict[str, Any]:
    """Build the data of a copy: the task's data, the conflicts and the reference to the original.

    Args:
        task: The original task.
        project: Its project id.
        content: Content of the copy.
        own_keys: Keys of the task's data that quality control wrote.
        base: Path prefix of Label Studio, empty or ``/path``.
    """
    url = f"{base}/tasks/{task.id}"
    data = {name: _resolvable(value, url) for name, value in task.data.items() if name not in own_keys}
    qc_values = {"qc_note": content.note, "qc_agreement": content.agreement, ORIGIN: origin_name(project, task.id or 0)}
    return data | qc_values


def with_note(label_config: str) -> str:
    """Add a header with the note to a labeling interface, unless it shows the note already.

    Raises:
        LabelingError: There is no <View> to add it to.
    """
    if "$qc_note" in label_config:
        return label_config
    view = _VIEW.search(label_config)
    if view is None:
        raise LabelingError("the labeling interface has no <View> that could show the note")
    return f"{label_config[: view.end()]}\n  {NOTE}{label_config[view.end() :]}"


def _is_submitted(annotation: Annotation) -> bool:
    return annotation.id is not None and not annotation.was_cancelled


def _resolvable(value: Any, task: str) -> Any:
    """Replace a storage URI by the URL that resolves it with the storage of the original project."""
    if isinstance(value, str) and _STORED.match(value):
        return f"{task}/resolve/?fileuri={base64.urlsafe_b64encode(value.encode()).decode()}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_resolvable(item, task) for item in value]
    return value
