"""Label Studio's webhook bodies as inbox rows: an event is a hint which task (or project) to look at again."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from qc_webhooks.errors import NotAnEvent

TASK = "qc.task"
PROJECT = "qc.project"

# Label Studio writes one batch of up to 5000 tasks in one request, and waits for us inside the annotator's: beyond this
# many rows, one row for the whole project does the same work later.
MOST_ROWS = 50

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


class Known(NamedTuple):
    """Where an annotation belongs, and its version when we read it last."""

    project: int
    task: int
    updated_at: str


Tasks = Callable[[Iterable[int]], Mapping[int, Sequence[Known]]]


@dataclass(frozen=True)
class QcEvent:
    """One row for the inbox.

    Attributes:
        topic: ``qc.task`` (subject ``<project>:<task>``) or ``qc.project`` (subject ``<project>``, ``*`` for all).
        subject: What is to be looked at again.
        key: The same change gives the same key, whoever reports it: a webhook, its duplicate or the poller.
        payload: What the job logs; it decides nothing by it.
    """

    topic: str
    subject: str
    key: str
    payload: Mapping[str, Any]


def read_event(body: Mapping[str, Any], *, task_of: Tasks) -> tuple[QcEvent, ...]:
    """What a webhook body asks us to look at; empty for an event that changes no verdict, known or not.

    Args:
        body: The JSON object that Label Studio posted, with or without payload.
        task_of: annotation ids -> {annotation: places where we read it} for those we know: deletions name no task.

    Raises:
        NotAnEvent: There is no ``action``, or the part that names the items is malformed.
    """
    action = body.get("action")
    if not isinstance(action, str) or not action:
        raise NotAnEvent("it has no action")
    read = ACTIONS.get(action)
    if read is None:
        return ()
    try:
        return tuple(read(action, body, task_of))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAnEvent(f"{action} with a malformed body ({type(error).__name__}: {error})") from None


def annotation_hint(project: int, task: int, annotation: int, updated_at: str, *, source: str) -> QcEvent:
    """An annotation that is new or changed; one key for each of its versions."""
    return _task_hint(project, task, f"annotation:{annotation}:{timestamp(updated_at)}", source)


def deletion_hint(annotation: int, known: Known, *, source: str) -> QcEvent:
    """An annotation that is gone, in the version that we knew."""
    key = f"annotation:{annotation}:{timestamp(known.updated_at)}:deleted"
    return _task_hint(known.project, known.task, key, source)


def task_deletion_hint(project: int, task: int, *, source: str) -> QcEvent:
    """A task that is gone; every call makes a new key, as Label Studio may give the id to another task."""
    return _task_hint(project, task, f"task:{task}:deleted:{time.time_ns()}", source)


def recheck_hint(project: int, task: int, *, source: str) -> QcEvent:
    """A task that somebody wants judged again although nothing changed; every call makes a new key."""
    return _task_hint(project, task, f"task:{task}:recheck:{time.time_ns()}", source)


def model_disagreement_event(project: int, task: int, updated_at: str) -> QcEvent:
    """A task of which the model says, or said, that something is wrong; one key for each change of the task."""
    return _task_hint(project, task, f"task:{task}:doubt:{timestamp(updated_at)}", "poll")


def overlay_hint(project: int, task: int, fingerprint: str, *, source: str) -> QcEvent:
    """A dispute whose overlays can be written now; one key for each of its states."""
    return _task_hint(project, task, f"task:{task}:overlays:{fingerprint}", source)


def gain_hint(project: int, task: int, fingerprint: str, *, source: str) -> QcEvent:
    """A task that agrees and yet looks doubtful by what is known of its annotators; one key for each of its states."""
    return _task_hint(project, task, f"task:{task}:gain:{fingerprint}", source)


def copy_hint(project: int, task: int, fingerprint: str, review: int, *, source: str) -> QcEvent:
    """A dispute that can be copied into a review project now; one key for each of its states and review projects."""
    return _task_hint(project, task, f"task:{task}:copy:{review}:{fingerprint}", source)


def seed_hint(project: int, task: int, revision: int) -> QcEvent:
    """A task with a ground truth that is to be served to more or fewer annotators; one key for each such wish."""
    return _task_hint(project, task, f"task:{task}:seed:{revision}", "seeding")


def raise_hint(project: int, task: int, annotators: int) -> QcEvent:
    """A task that is to be served to so many annotators; one key for each number: it is said once."""
    return _task_hint(project, task, f"task:{task}:overlap:{annotators}", "poll")


def sweep_hint(project: int | None, *, source: str, key: str = "") -> QcEvent:
    """A project (None: every connected one) whose tasks must all be compared with what we know."""
    subject = "*" if project is None else str(project)
    return QcEvent(PROJECT, subject, key or f"sweep:{subject}:{time.time_ns()}", {"source": source})


def timestamp(text: str) -> str:
    """One spelling for one moment, to the microsecond in UTC; a text that is no time stays as it is.

    It is Label Studio's own spelling, and the only one that its filters understand.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime(TIME_FORMAT)


def _task_hint(project: int, task: int, key: str, source: str) -> QcEvent:
    return QcEvent(TASK, f"{project}:{task}", key, {"source": source})


def _listed(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) for item in items):
        raise ValueError("a list of objects was expected")
    return items


def _annotations(action: str, body: Mapping[str, Any], _task_of: Tasks) -> Iterable[QcEvent]:
    if "annotation" not in body:  # a hook with send_payload off
        return (sweep_hint(_project(body), source=action),)
    hints = [
        annotation_hint(
            int(item["project"]), int(item["task"]), int(item["id"]), str(item["updated_at"]), source=action
        )
        for item in _listed(body["annotation"])
    ]
    return _at_most(hints, body, action)


def _annotations_deleted(action: str, body: Mapping[str, Any], task_of: Tasks) -> Iterable[QcEvent]:
    if "annotations" not in body:
        return (sweep_hint(_project(body), source=action),)
    ids = [int(item["id"]) for item in _listed(body["annotations"])]
    known = task_of(ids) if len(ids) <= MOST_ROWS else {}
    hints = [deletion_hint(id_, place, source=action) for id_ in ids for place in known.get(id_, ())]
    if all(id_ in known for id_ in ids):
        return hints
    # Deleted before its creation was worked on, or never seen: what is missing shows when the project is compared.
    first = next(id_ for id_ in ids if id_ not in known)
    return (*hints, sweep_hint(_project(body), source=action, key=f"annotation:{first}:deleted:{time.time_ns()}"))


def _tasks_created(action: str, body: Mapping[str, Any], _task_of: Tasks) -> Iterable[QcEvent]:
    if "tasks" not in body:
        return (sweep_hint(_project(body), source=action),)
    hints = [
        _task_hint(int(item["project"]), int(item["id"]), f"task:{int(item['id'])}:{item['created_at']}", action)
        for item in _listed(body["tasks"])
        if item.get("total_annotations")  # an import with annotations says so here and nowhere else
    ]
    return _at_most(hints, body, action)


def _tasks_deleted(action: str, body: Mapping[str, Any], _task_of: Tasks) -> Iterable[QcEvent]:
    project = _project(body)
    if "tasks" not in body or project is None:
        return (sweep_hint(project, source=action),)
    hints = [task_deletion_hint(project, int(item["id"]), source=action) for item in _listed(body["tasks"])]
    return _at_most(hints, body, action)


def _at_most(hints: list[QcEvent], body: Mapping[str, Any], action: str) -> Iterable[QcEvent]:
    return (
        hints if len(hints) <= MOST_ROWS else (sweep_hint(_project(body), source=action, key=f"many:{hints[0].key}"),)
    )


def _project(body: Mapping[str, Any]) -> int | None:
    project = body.get("project")
    return int(project["id"]) if isinstance(project, Mapping) else None


def _nothing(_action: str, _body: Mapping[str, Any], _task_of: Tasks) -> Iterable[QcEvent]:
    return ()


# Every action that Label Studio 1.23 can send. PROJECT_* and LABEL_LINK_* change no verdict; START_TRAINING is sent to
# ML backends only, and a hook at the wrong address must not be an error there.
ACTIONS: Mapping[str, Callable[[str, Mapping[str, Any], Tasks], Iterable[QcEvent]]] = {
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
