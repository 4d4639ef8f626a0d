"""What a review project holds: the copy of a disputed task, and what a reviewer submitted there."""

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.studio.task import Annotation, Task
from qc_webhooks.artifacts.overlays import Overlay, digest

# The data key that says of which task a copy is.
ORIGIN = "qc_task"
NOTE = '<Header value="$qc_note"/>'
# Addresses that Label Studio can show only with the storage of the project that they came from.
_STORED = re.compile(r"(s3|gs|azure-blob)://")
_VIEW = re.compile(r"""<View(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*>""")


@dataclass(frozen=True)
class Copy:
    """A copy in a review project.

    Attributes:
        review: The review project's id.
        copy: The copy's id; 0: there is none on purpose, because it was taken back.
        fingerprint: For which state of the task it was made.
        mark: A digest of what it holds.
    """

    review: int
    copy: int
    fingerprint: str
    mark: str


@dataclass(frozen=True)
class ReviewCopyContent:
    """What a copy is to hold.

    Attributes:
        overlays: Its predictions, in the order of writing; empty: there is to be no copy.
        note: What is disputed, in words.
        agreement: The agreement of the annotators; None where nothing was compared.
    """

    overlays: tuple[Overlay, ...] = ()
    note: str = ""
    agreement: float | None = None

    @property
    def mark(self) -> str:
        """A digest of it."""
        return digest([{"marks": [list(each.mark) for each in self.overlays], "note": self.note}])


@dataclass(frozen=True)
class Decision:
    """What a reviewer submitted in the review project.

    Attributes:
        annotator: The reviewer.
        results: The annotation's results as Label Studio's JSON.
        annotation: Its id there.
        lead_time: Seconds of work; None where that is not known.
    """

    annotator: int
    results: tuple[Mapping[str, Any], ...]
    annotation: int
    lead_time: float | None = None

    @property
    def mark(self) -> str:
        """A digest of its results."""
        return digest(self.results)


def decision_of(copy: Task) -> Decision | None:
    """What was submitted to a copy, the newest should there be several; None: nothing yet."""
    submitted = [each for each in copy.annotations if _counts(each)]
    newest = max(submitted, key=lambda each: (each.updated_at, each.id or 0), default=None)
    if newest is None or newest.completed_by is None:
        return None
    results = tuple(result.raw for result in newest.results)
    return Decision(newest.completed_by, results, newest.id or 0, newest.lead_time)


def imported_decision(task: Task, annotator: int, mark: str) -> int | None:
    """The annotation of the original task that is what this reviewer submitted; None: it is not there."""
    same = [
        each.id
        for each in task.annotations
        if _counts(each) and each.completed_by == annotator and digest([one.raw for one in each.results]) == mark
    ]
    return max((each for each in same if each is not None), default=None)


def origin_name(project: int, task: int) -> str:
    """How a copy says of which task it is."""
    return f"{project}:{task}"


def copy_data(
    task: Task, project: int, sheet: ReviewCopyContent, *, ours: Collection[str], base: str = ""
) -> dict[str, Any]:
    """The data of a copy: the task's, what is disputed, and where it came from.

    Args:
        task: The task.
        project: Its project.
        sheet: What the copy is to hold.
        ours: The keys of its data that quality control wrote.
        base: The path under which Label Studio is served, empty or ``/path``.
    """
    shown = {name: _shown(value, f"{base}/tasks/{task.id}") for name, value in task.data.items() if name not in ours}
    told = {"qc_note": sheet.note, "qc_agreement": sheet.agreement, ORIGIN: origin_name(project, task.id or 0)}
    return shown | told


def with_note(label_config: str) -> str:
    """A labelling interface that shows the note above everything else, if it does not show it already.

    Raises:
        LabelingError: There is no view to put it in.
    """
    if "$qc_note" in label_config:
        return label_config
    view = _VIEW.search(label_config)
    if view is None:
        raise LabelingError("the labelling interface has no <View> that the note could stand in")
    return f"{label_config[: view.end()]}\n  {NOTE}{label_config[view.end() :]}"


def _counts(annotation: Annotation) -> bool:
    return annotation.id is not None and not annotation.was_cancelled


def _shown(value: Any, task: str) -> Any:
    """An address in a storage as Label Studio resolves it with the storage of the original project."""
    if isinstance(value, str) and _STORED.match(value):
        return f"{task}/resolve/?fileuri={base64.urlsafe_b64encode(value.encode()).decode()}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_shown(each, task) for each in value]
    return value
