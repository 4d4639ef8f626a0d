"""Owns what learning makes of Label Studio's webhooks: rows of the inbox, one subject a project. An event is a hint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.service.errors import BadRequest
from labelloop.service.jobs.inbox import Event

LEARN = "learn"
"""Topic of what may change what a project learns from; its subject is the project's id."""

QUEUE = "learn.queue"
"""Topic of giving open tasks fresh pre-labels and an order; its subject is the project's id."""

OPINION = "learn.opinion"
"""Topic of the model's second opinion on what was drawn; its subject is the project's id."""

MOST_TASKS = 200
"""Tasks that one event names; of more, the whole project is looked through."""


@dataclass(frozen=True)
class LearningEvent:
    """One row for the inbox.

    Attributes:
        topic: `LEARN`, `QUEUE` or `OPINION`.
        project: Its subject.
        key: The same change gives the same key, whoever reports it.
        payload: `source`, and one of `tasks`, `annotations` (ids), `sweep` and `now`; see `Asked`.
    """

    topic: str
    project: int
    key: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingRequest:
    """What a number of events ask for together.

    Attributes:
        tasks: To be read again.
        annotations: Deleted ones; what they belonged to is to be read again.
        sweep: Whether the whole project is to be compared.
        now: Whether somebody wants a fit at once, whatever has changed.
        source: Who asks, joined by +.
        asked_at: The first of them, seconds since 1970.
        newest_at: The last of them.
    """

    tasks: frozenset[int]
    annotations: frozenset[int]
    sweep: bool
    now: bool
    source: str
    asked_at: float
    newest_at: float

    @classmethod
    def of(cls, events: Sequence[Event]) -> TrainingRequest:
        """At least one event."""
        told = [event.payload for event in events]
        return cls(
            tasks=frozenset(task for one in told for task in one.get("tasks", ())),
            annotations=frozenset(number for one in told for number in one.get("annotations", ())),
            sweep=any(one.get("sweep") for one in told),
            now=any(one.get("now") for one in told),
            source="+".join(dict.fromkeys(str(one.get("source", "?")) for one in told)),
            asked_at=min(event.created_at for event in events),
            newest_at=max(event.created_at for event in events),
        )


def read_event(body: Mapping[str, Any]) -> tuple[LearningEvent, ...]:
    """What a webhook body asks for; nothing where it changes no lesson, or is of no kind that we know.

    Raises:
        BadRequest: The part that names project and items is malformed.
    """
    action = body.get("action")
    read = ACTIONS.get(action) if isinstance(action, str) else None
    if read is None:
        return ()
    try:
        return tuple(read(str(action), body, project_of(body)))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadRequest(f"The event {action} is malformed ({type(error).__name__}: {error}).") from None


def tasks_hint(project: int, tasks: Iterable[int], *, key: str, source: str) -> LearningEvent:
    """These tasks changed."""
    numbers = sorted(set(tasks))
    if len(numbers) > MOST_TASKS:
        return LearningEvent(LEARN, project, key, {"sweep": True, "source": source})
    return LearningEvent(LEARN, project, key, {"tasks": numbers, "source": source})


def now_hint(project: int, *, source: str) -> LearningEvent:
    """Somebody wants a fit now; every call makes a new key."""
    return LearningEvent(LEARN, project, f"now:{project}:{time.time_ns()}", {"now": True, "source": source})


def sweep_hint(project: int, *, source: str) -> LearningEvent:
    """The whole project is to be compared; every call makes a new key."""
    return LearningEvent(LEARN, project, f"sweep:{project}:{time.time_ns()}", {"sweep": True, "source": source})


def queue_hint(project: int, *, source: str) -> LearningEvent:
    """The open tasks are to be looked at; every call makes a new key."""
    return LearningEvent(QUEUE, project, f"queue:{project}:{time.time_ns()}", {"source": source})


def activated_hints(project: int, *, base: bool) -> tuple[LearningEvent, ...]:
    """Somebody made another version active: the open tasks get pre-labels of it; what is a new base is learned on."""
    learning = LearningEvent(
        LEARN, project, f"activated:{project}:{time.time_ns()}", {"tasks": [], "source": "activation"}
    )
    return (*([learning] if base else []), queue_hint(project, source="activation"))


def opinion_hint(project: int, *, since: float) -> LearningEvent:
    """What was drawn is to be judged; every call makes a new key.

    Args:
        project: Its number.
        since: When the first change came that was not judged since, seconds since 1970.
    """
    return LearningEvent(OPINION, project, f"opinion:{project}:{time.time_ns()}", {"since": since})


def _annotated(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    if "annotation" not in body:  # a hook with send_payload off
        return (sweep_hint(project, source=action),)
    items = _listed(body["annotation"])
    first = items[0]
    key = f"annotation:{int(first['id'])}:{first['updated_at']}"
    return (tasks_hint(project, [int(one["task"]) for one in items], key=key, source=action),)


def _deleted(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    if "annotations" not in body:
        return (sweep_hint(project, source=action),)
    numbers = [int(one["id"]) for one in _listed(body["annotations"])]
    key = f"annotations:{numbers[0] if numbers else 0}:deleted:{time.time_ns()}"
    return (LearningEvent(LEARN, project, key, {"annotations": numbers[: 10 * MOST_TASKS], "source": action}),)


def _tasks_created(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    items = _listed(body.get("tasks", []))
    annotated = [int(one["id"]) for one in items if one.get("total_annotations")]
    if annotated:
        yield tasks_hint(project, annotated, key=f"tasks:{annotated[0]}:created:{time.time_ns()}", source=action)
    yield queue_hint(project, source=action)


def _tasks_deleted(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    if "tasks" not in body:
        return (sweep_hint(project, source=action),)
    numbers = [int(one["id"]) for one in _listed(body["tasks"])]
    return (tasks_hint(project, numbers, key=f"tasks:{project}:deleted:{time.time_ns()}", source=action),)


def _training(action: str, body: Mapping[str, Any], project: int) -> Iterable[LearningEvent]:
    del body
    return (now_hint(project, source=action),)


def _listed(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) for item in items):
        raise ValueError("a list of objects was expected")
    return items


def project_of(body: Mapping[str, Any]) -> int:
    """The project's id: in an object, plain, or as `<id>.<creation time>`.

    Raises:
        BadRequest: The body names none.
    """
    project = body.get("project")
    number = project.get("id") if isinstance(project, Mapping) else project
    text = str(number).partition(".")[0]
    if not text.isdecimal():
        raise BadRequest("The event names no project.", fix='Send {"project": {"id": NUMBER}} with it.')
    return int(text)


ACTIONS: Mapping[str, Callable[[str, Mapping[str, Any], int], Iterable[LearningEvent]]] = {
    "ANNOTATION_CREATED": _annotated,
    "ANNOTATIONS_CREATED": _annotated,
    "ANNOTATION_UPDATED": _annotated,
    "ANNOTATIONS_DELETED": _deleted,
    "TASKS_CREATED": _tasks_created,
    "TASKS_DELETED": _tasks_deleted,
    "START_TRAINING": _training,
}
"""Every action of Label Studio that changes what is learned, and "Start training"; the others change nothing."""
