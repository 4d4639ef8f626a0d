"""Translate Label Studio webhooks into learning events. An event says what to re-read, not what changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.service.errors import BadRequest
from labelloop.service.jobs.inbox import Event

# Topic of changes to training data; the subject is the project id.
LEARN = "learn"

# Topic of pre-labelling and ranking open tasks; the subject is the project id.
QUEUE = "learn.queue"

# Topic of finding label errors; the subject is the project id.
LABEL_ERRORS = "learn.opinion"

# Most tasks in one event; with more, the whole project is compared.
MOST_TASKS = 200


@dataclass(frozen=True)
class LearningEvent:
    """An event for the inbox.

    Attributes:
        topic: `LEARN`, `QUEUE` or `LABEL_ERRORS`.
        project: Its subject.
        key: Deduplication key: one change has one key, whatever reports it.
        payload: `source`, and one of `tasks`, `annotations` (ids), `sweep` and `now`; see `TrainingRequest`.
    """

    topic: str
    project: int
    key: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingRequest:
    """Several events, coalesced into one request.

    Attributes:
        tasks: Tasks to read again.
        annotations: Deleted annotations, whose tasks are to be read again.
        sweep: Whether to compare the whole project.
        immediate: Whether to train at once, even if nothing changed.
        source: Sources of the events, joined by +.
        asked_at: Time of the first event, seconds since 1970.
        newest_at: Time of the last event, seconds since 1970.
    """

    tasks: frozenset[int]
    annotations: frozenset[int]
    sweep: bool
    immediate: bool
    source: str
    asked_at: float
    newest_at: float

    @classmethod
    def of(cls, events: Sequence[Event]) -> TrainingRequest:
        """Coalesce one or more events."""
        payloads = [event.payload for event in events]
        return cls(
            tasks=frozenset(task for payload in payloads for task in payload.get("tasks", ())),
            annotations=frozenset(number for payload in payloads for number in payload.get("annotations", ())),
            sweep=any(payload.get("sweep") for payload in payloads),
            immediate=any(payload.get("now") for payload in payloads),
            source="+".join(dict.fromkeys(str(payload.get("source", "?")) for payload in payloads)),
            asked_at=min(event.created_at for event in events),
            newest_at=max(event.created_at for event in events),
        )


def read_event(body: Mapping[str, Any]) -> tuple[LearningEvent, ...]:
    """Return the events of a webhook body; empty for actions that do not affect learning.

    Raises:
        BadRequest: The project or the items are malformed.
    """
    action = body.get("action")
    read = ACTIONS.get(action) if isinstance(action, str) else None
    if read is None:
        return ()
    try:
        return tuple(read(str(action), body, project_of(body)))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadRequest(f"The event {action} is malformed ({type(error).__name__}: {error}).") from None


def tasks_event(project: int, tasks: Iterable[int], *, key: str, source: str) -> LearningEvent:
    """Return the event for changed tasks."""
    numbers = sorted(set(tasks))
    if len(numbers) > MOST_TASKS:
        return LearningEvent(LEARN, project, key, {"sweep": True, "source": source})
    return LearningEvent(LEARN, project, key, {"tasks": numbers, "source": source})


def train_now_event(project: int, *, source: str) -> LearningEvent:
    """Return the event that requests training now, with a unique key."""
    return LearningEvent(LEARN, project, f"now:{project}:{time.time_ns()}", {"now": True, "source": source})


def sweep_event(project: int, *, source: str) -> LearningEvent:
    """Return the event that compares the whole project, with a unique key."""
    return LearningEvent(LEARN, project, f"sweep:{project}:{time.time_ns()}", {"sweep": True, "source": source})


def queue_event(project: int, *, source: str) -> LearningEvent:
    """Return the event that ranks the open tasks, with a unique key."""
    return LearningEvent(QUEUE, project, f"queue:{project}:{time.time_ns()}", {"source": source})


def activation_events(project: int, *, base: bool) -> tuple[LearningEvent, ...]:
    """Return the events after an activation: rank the open tasks, and train if the version is a new base."""
    learning = LearningEvent(
        LEARN, project, f"activated:{project}:{time.time_ns()}", {"tasks": [], "source": "activation"}
    )
    return (*([learning] if base else []), queue_event(project, source="activation"))


def label_error_event(project: int, *, since: float) -> LearningEvent:
    """Return the event that looks for label errors, with a unique key.

    Args:
        project: The project id.
        since: Time of the first change not reviewed yet, seconds since 1970.
    """
    return LearningEvent(LABEL_ERRORS, project, f"opinion:{project}:{time.time_ns()}", {"since": since})


def _annotated(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    if "annotation" not in body:  # a webhook with send_payload off
        return (sweep_event(project, source=action),)
    items = _listed(body["annotation"])
    first = items[0]
    key = f"annotation:{int(first['id'])}:{first['updated_at']}"
    return (tasks_event(project, [int(item["task"]) for item in items], key=key, source=action),)


def _deleted(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    if "annotations" not in body:
        return (sweep_event(project, source=action),)
    numbers = [int(item["id"]) for item in _listed(body["annotations"])]
    key = f"annotations:{numbers[0] if numbers else 0}:deleted:{time.time_ns()}"
    return (LearningEvent(LEARN, project, key, {"annotations": numbers[: 10 * MOST_TASKS], "source": action}),)


def _tasks_created(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    items = _listed(body.get("tasks", []))
    annotated = [int(item["id"]) for item in items if item.get("total_annotations")]
    if annotated:
        yield tasks_event(project, annotated, key=f"tasks:{annotated[0]}:created:{time.time_ns()}", source=action)
    yield queue_event(project, source=action)


def _tasks_deleted(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    if "tasks" not in body:
        return (sweep_event(project, source=action),)
    numbers = [int(item["id"]) for item in _listed(body["tasks"])]
    return (tasks_event(project, numbers, key=f"tasks:{project}:deleted:{time.time_ns()}", source=action),)


def _training(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    del body
    return (train_now_event(project, source=action),)


def _listed(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) for item in items):
        raise ValueError("a list of objects was expected")
    return items


def project_of(body: Mapping[str, Any]) -> int:
    """Return the project id of a webhook body: in an object, plain, or as `<id>.<creation time>`.

    Raises:
        BadRequest: The body has no project.
    """
    project = body.get("project")
    number = project.get("id") if isinstance(project, Mapping) else project
    text = str(number).partition(".")[0]
    if not text.isdecimal():
        raise BadRequest("The event names no project.", fix='Send {"project": {"id": NUMBER}} with it.')
    return int(text)


# Label Studio actions that affect learning, and "Start training"; others are ignored.
ACTIONS: Mapping[str, Callable[[str, Mapping[str, Any], int], Iterable[LearningEvent]]] = {
    "ANNOTATION_CREATED": _annotated,
    "ANNOTATIONS_CREATED": _annotated,
    "ANNOTATION_UPDATED": _annotated,
    "ANNOTATIONS_DELETED": _deleted,
    "TASKS_CREATED": _tasks_created,
    "TASKS_DELETED": _tasks_deleted,
    "START_TRAINING": _training,
}
