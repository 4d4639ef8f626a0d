"""Map Label Studio's webhook bodies to inbox rows: an event names the task or project to check again."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from qc_webhooks.errors import NotAnEvent

TASK = "qc.task"
PROJECT = "qc.project"

# Label Studio sends a batch of up to 5,000 tasks in one request and blocks the annotator's request meanwhile: above
# this many rows, one row for the whole project replaces them.
MAX_ROWS = 50

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


class StoredAnnotation(NamedTuple):
    """Location of a stored annotation, and its version when it was last read."""

    project: int
    task: int
    updated_at: str


AnnotationLookup = Callable[[Iterable[int]], Mapping[int, Sequence[StoredAnnotation]]]


@dataclass(frozen=True)
class QcEvent:
    """One row for the inbox.

    Attributes:
        topic: ``qc.task`` (subject ``<project>:<task>``) or ``qc.project`` (subject ``<project>``, ``*`` for all).
        subject: What to check again.
        key: Deduplication key: equal for the same change from a webhook, its duplicate or the poller.
        payload: For the job's log only.
    """

    topic: str
    subject: str
    key: str
    payload: Mapping[str, Any]


def read_event(body: Mapping[str, Any], *, task_of: AnnotationLookup) -> tuple[QcEvent, ...]:
    """Map a webhook body to events; empty for an action that changes no verdict, known or not.

    Args:
        body: The JSON object that Label Studio posted, with or without payload.
        task_of: Annotation ids -> stored locations of each: deletions do not name the task.

    Raises:
        NotAnEvent: There is no ``action``, or the part that names the items is malformed.
    """
    action = body.get("action")
    if not isinstance(action, str) or not action:
        raise NotAnEvent(reason="it has no action")
    read = ACTIONS.get(action)
    if read is None:
        return ()
    try:
        return tuple(read(action, body, task_of))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAnEvent(reason=f"{action} with a malformed body ({type(error).__name__}: {error})") from None


def annotation_event(project: int, task: int, annotation: int, updated_at: str, *, source: str) -> QcEvent:
    """A new or changed annotation; one key per version."""
    return _task_event(project, task, f"annotation:{annotation}:{timestamp(updated_at)}", source)


def annotation_deleted_event(annotation: int, stored: StoredAnnotation, *, source: str) -> QcEvent:
    """A deleted annotation, in the last stored version."""
    key = f"annotation:{annotation}:{timestamp(stored.updated_at)}:deleted"
    return _task_event(stored.project, stored.task, key, source)


def task_deleted_event(project: int, task: int, *, source: str) -> QcEvent:
    """A deleted task; a new key per call, since Label Studio may reuse the id."""
    return _task_event(project, task, f"task:{task}:deleted:{time.time_ns()}", source)


def recheck_event(project: int, task: int, *, source: str) -> QcEvent:
    """A task to check again without a change; a new key per call."""
    return _task_event(project, task, f"task:{task}:recheck:{time.time_ns()}", source)


def model_disagreement_event(project: int, task: int, updated_at: str) -> QcEvent:
    """A task whose model disagreement was written or removed; one key per change of the task."""
    return _task_event(project, task, f"task:{task}:doubt:{timestamp(updated_at)}", "poll")


def overlay_event(project: int, task: int, fingerprint: str, *, source: str) -> QcEvent:
    """A dispute whose overlays can be written now; one key per state."""
    return _task_event(project, task, f"task:{task}:overlays:{fingerprint}", source)


def uncertain_consensus_event(project: int, task: int, fingerprint: str, *, source: str) -> QcEvent:
    """An agreed task whose consensus became uncertain under the current reliability model; one key per state."""
    return _task_event(project, task, f"task:{task}:gain:{fingerprint}", source)


def review_copy_event(project: int, task: int, fingerprint: str, review: int, *, source: str) -> QcEvent:
    """A dispute that can be copied into a review project now; one key per state and review project."""
    return _task_event(project, task, f"task:{task}:copy:{review}:{fingerprint}", source)


def ground_truth_event(project: int, task: int, revision: int) -> QcEvent:
    """A ground-truth task whose requested overlap changed; one key per request."""
    return _task_event(project, task, f"task:{task}:seed:{revision}", "seeding")


def raise_overlap_event(project: int, task: int, annotators: int) -> QcEvent:
    """A task whose overlap is to be raised to this number of annotators; one key per number, so it is done once."""
    return _task_event(project, task, f"task:{task}:overlap:{annotators}", "poll")


def preview_event(project: int, task: int, defaults: int) -> QcEvent:
    """A task to judge under newer defaults of the policy, for comparison; one key per version of the defaults."""
    return _task_event(project, task, f"task:{task}:preview:{defaults}", "poll")


def sweep_event(project: int | None, *, source: str, key: str = "") -> QcEvent:
    """A project (None: all connected ones) whose tasks must all be compared with the stored state."""
    subject = "*" if project is None else str(project)
    return QcEvent(PROJECT, subject, key or f"sweep:{subject}:{time.time_ns()}", {"source": source})


def timestamp(text: str) -> str:
    """Normalise a timestamp to UTC with microseconds; other text is returned unchanged.

    The format is Label Studio's own, the only one that its filters accept.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime(TIME_FORMAT)


def _task_event(project: int, task: int, key: str, source: str) -> QcEvent:
    return QcEvent(TASK, f"{project}:{task}", key, {"source": source})


def _objects(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) for item in items):
        raise ValueError("a list of objects was expected")
    return items


def _annotations(action: str, body: Mapping[str, Any], _task_of: AnnotationLookup) -> Iterable[QcEvent]:
    if "annotation" not in body:  # a webhook without payload
        return (sweep_event(_project(body), source=action),)
    events = [
        annotation_event(
            int(item["project"]), int(item["task"]), int(item["id"]), str(item["updated_at"]), source=action
        )
        for item in _objects(body["annotation"])
    ]
    return _at_most(events, body, action)


def _annotations_deleted(action: str, body: Mapping[str, Any], task_of: AnnotationLookup) -> Iterable[QcEvent]:
    if "annotations" not in body:
        return (sweep_event(_project(body), source=action),)
    ids = [int(item["id"]) for item in _objects(body["annotations"])]
    records = task_of(ids) if len(ids) <= MAX_ROWS else {}
    events = [annotation_deleted_event(id_, record, source=action) for id_ in ids for record in records.get(id_, ())]
    if all(id_ in records for id_ in ids):
        return events
    # Deleted before its creation was processed, or never seen: the sweep of the project finds the difference.
    first = next(id_ for id_ in ids if id_ not in records)
    return (*events, sweep_event(_project(body), source=action, key=f"annotation:{first}:deleted:{time.time_ns()}"))


def _tasks_created(action: str, body: Mapping[str, Any], _task_of: AnnotationLookup) -> Iterable[QcEvent]:
    if "tasks" not in body:
        return (sweep_event(_project(body), source=action),)
    events = [
        _task_event(int(item["project"]), int(item["id"]), f"task:{int(item['id'])}:{item['created_at']}", action)
        for item in _objects(body["tasks"])
        if item.get("total_annotations")  # imported annotations cause no other event
    ]
    return _at_most(events, body, action)


def _tasks_deleted(action: str, body: Mapping[str, Any], _task_of: AnnotationLookup) -> Iterable[QcEvent]:
    project = _project(body)
    if "tasks" not in body or project is None:
        return (sweep_event(project, source=action),)
    events = [task_deleted_event(project, int(item["id"]), source=action) for item in _objects(body["tasks"])]
    return _at_most(events, body, action)


def _at_most(events: list[QcEvent], body: Mapping[str, Any], action: str) -> Iterable[QcEvent]:
    return (
        events
        if len(events) <= MAX_ROWS
        else (sweep_event(_project(body), source=action, key=f"many:{events[0].key}"),)
    )


def _project(body: Mapping[str, Any]) -> int | None:
    project = body.get("project")
    return int(project["id"]) if isinstance(project, Mapping) else None


def _nothing(_action: str, _body: Mapping[str, Any], _task_of: AnnotationLookup) -> Iterable[QcEvent]:
    return ()


# Every action that Label Studio 1.23 can send. PROJECT_* and LABEL_LINK_* change no verdict; START_TRAINING goes to ML
# backends, and a webhook with the wrong URL should not cause errors.
ACTIONS: Mapping[str, Callable[[str, Mapping[str, Any], AnnotationLookup], Iterable[QcEvent]]] = {
    "ANNOTATION_CREATED": _annotations,
    "ANNOTATIONS_CREATED": _annotations,
    "ANNOTATION_UPDATED": _annotations,
    "ANNOTATIONS_DELETED": _annotations_deleted,
    "TASKS_CREATED": _tasks_created,
    "TASKS_DELETED": _tasks_deleted,
    "PROJECT_CREATED": _nothing,
    "PROJECT_UPDATED": _nothing,
    "PROJECT_DELETED": _nothing,
    "LABEL_LINK_CREATED": _nothing,
    "LABEL_LINK_UPDATED": _nothing,
    "LABEL_LINK_DELETED": _nothing,
    "START_TRAINING": _nothing,
}

# The actions that `connect` asks Label Studio to send.
SUBSCRIBED_ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
)
