"""Tasks that a reviewer sent back to an annotator: their state, and the keys that show it in Label Studio."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from labelloop.labeling.studio.task import Annotation
from qc_webhooks.events import timestamp

State = Literal["sent back", "redone", "accepted"]

# Keys in a task's data; only a task that was sent back has them.
SEND_BACK_KEYS = ("qc_sent_back", "qc_sent_to", "qc_comment")


@dataclass(frozen=True)
class SendBack:
    """A task sent back to one annotator.

    Attributes:
        annotator: User id.
        version: The annotation's updated_at when it was sent back.
        comment: What to correct.
        sent_at: Seconds since 1970.
        redone_at: When the annotator changed it, seconds since 1970; None: not yet.
        accepted_at: When a reviewer accepted it; None: not yet.
        name: The annotator's name in Label Studio.
    """

    annotator: int
    version: str
    comment: str
    sent_at: float
    redone_at: float | None = None
    accepted_at: float | None = None
    name: str = ""

    @property
    def state(self) -> State:
        """The state: sent back, redone, accepted."""
        if self.accepted_at is not None:
            return "accepted"
        return "sent back" if self.redone_at is None else "redone"


def with_current_state(
    send_backs: Iterable[SendBack],
    annotations: Sequence[Annotation],
    names: Mapping[int, str],
    *,
    is_resolved: bool,
    now: float,
) -> tuple[SendBack, ...]:
    """The send-backs with what happened since: an annotator changed or replaced the annotation, or it was decided.

    Args:
        send_backs: As stored.
        annotations: The task's annotations.
        names: User id -> name.
        is_resolved: Whether the task has a ground truth, which ends every send-back.
        now: Seconds since 1970.
    """
    current = []
    for item in send_backs:
        newest = max(
            (timestamp(annotation.updated_at) for annotation in annotations
             if annotation.completed_by == item.annotator and not annotation.was_cancelled),
            default="",
        )  # fmt: skip
        redone_at = item.redone_at
        if redone_at is None and newest > timestamp(item.version):
            redone_at = _seconds(newest, now)
        accepted_at = now if is_resolved and item.accepted_at is None else item.accepted_at
        name = names.get(item.annotator, f"user {item.annotator}")
        current.append(replace(item, redone_at=redone_at, accepted_at=accepted_at, name=name))
    return tuple(current)


def state_of(send_backs: Sequence[SendBack]) -> State | None:
    """State of a task: that of the annotator who is behind; None if it was never sent back."""
    states = {item.state for item in send_backs}
    return next((state for state in ("sent back", "redone", "accepted") if state in states), None)


def send_back_keys(send_backs: Sequence[SendBack], data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys in the task's data; emptied where the task was sent back before and is not any more."""
    if not send_backs:
        return {key: "" for key in SEND_BACK_KEYS if key in data}
    waiting = [item.name for item in send_backs if item.state == "sent back"]
    return {
        "qc_sent_back": state_of(send_backs),
        "qc_sent_to": ", ".join(waiting),
        "qc_comment": " | ".join(map(_line, send_backs)),
    }


def note_sentences(send_backs: Sequence[SendBack]) -> list[str]:
    """Sentences for the note above the image."""
    lines = [f"Sent back to {item.name}: {item.comment}" for item in send_backs if item.state == "sent back"]
    lines += [
        f"Redone by {item.name} after: {item.comment} Accept it, or send it back again."
        for item in send_backs
        if item.state == "redone"
    ]
    return [line if line.endswith((".", "!", "?")) else f"{line}." for line in lines]


def _line(item: SendBack) -> str:
    since = "" if item.state == "sent back" else f" ({item.state} {_minute(item.accepted_at or item.redone_at or 0.0)})"
    return f"{item.name}: {item.comment}{since}"


def _minute(at: float) -> str:
    return f"{datetime.fromtimestamp(at, tz=UTC):%Y-%m-%d %H:%M}"


def _seconds(text: str, default: float) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return default
