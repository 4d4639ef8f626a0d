"""`Jobs`: register handlers and periodic jobs, submit events."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event, Inbox
from labelloop.service.jobs.wakeup_queue import WakeupQueue
from labelloop.service.settings import Settings

# After a failed wake-up the queue is not contacted for this long, so that webhooks are not delayed.
QUEUE_RETRY_S = 5.0
log = structlog.get_logger(__name__)

# Called with (subject, all its events). It must be idempotent: after a crash it is called again for the same events.
# It raises `Reject` to turn the events into dead letters at once; any other exception retries them later.
Handler = Callable[[str, Sequence[Event]], None]


class Reject(LabelloopError):
    """Raised by a handler if a retry would not help; the events become dead letters with this reason."""

    code = "rejected"


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A job that runs every `every_s` seconds, on one worker at a time; the name identifies it."""

    name: str
    every_s: float
    run: Callable[[], None]


class Jobs:
    """The inbox with its handlers: `submit` in a web process, `run_worker` in a worker process.

    The constructor does no I/O; the queue is opened on first use.

    Args:
        settings: The queue URL, and the limits of workers and jobs.
        inbox: The event store.
        handlers: Handler by topic.
        periodic_jobs: Jobs that run at an interval.
        isolated_command: Command of a process that calls `isolated_job.run_child`; it handles events whose handler
            calls `lanes.require_own_process`, or that were claimed when two workers were lost. Empty: such events are
            handled like any other.
        short_topics: Topics whose jobs take milliseconds otherwise; they never wait for those of other topics.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        handlers: Mapping[str, Handler] | None = None,
        periodic_jobs: Sequence[PeriodicJob] = (),
        *,
        isolated_command: Sequence[str] = (),
        short_topics: Collection[str] = (),
    ) -> None:
        self.isolated_command, self.short_topics = tuple(isolated_command), frozenset(short_topics)
        self.settings = settings
        self.inbox = inbox
        self.handlers = dict(handlers or {})
        self.periodic_jobs = tuple(periodic_jobs)
        self._opening = threading.Lock()
        self._queue: WakeupQueue | None = None
        self._retry_queue_at = 0.0

    def submit(self, topic: str, subject: str, key: str, payload: Any, *, delay_s: float = 0.0) -> bool:
        """Store an event durably and wake a worker (takes milliseconds).

        Args:
            topic: Selects the handler.
            subject: What the event is about; its events are handled together, one call at a time.
            key: Deduplication key, unique within the topic.
            payload: Any JSON value.
            delay_s: Seconds before it is due, to batch more events of its subject.

        Returns:
            False if (topic, key) already exists.
        """
        if not self.inbox.put(topic, subject, key, payload, delay_s=delay_s):
            return False
        if delay_s <= 0:
            self._wake(topic, subject)
        return True

    def close(self) -> None:
        """Close the queue's connections; the next `submit` reopens it. The inbox's engine stays open."""
        with self._opening:
            if self._queue is not None:
                self._queue.close()
            self._queue = None

    def _wake(self, topic: str, subject: str) -> None:
        """Wake a worker to reduce latency; if the queue is unreachable, the workers' sweep finds the event."""
        if time.monotonic() < self._retry_queue_at:
            return
        try:
            with self._opening:
                if self._queue is None:
                    self._queue = WakeupQueue(self.settings)
                queue = self._queue
            queue.wake(topic, subject)
        except Exception as error:  # noqa: BLE001 - the event is stored: the caller must not fail
            self._retry_queue_at = time.monotonic() + QUEUE_RETRY_S
            log.warning("queue_unreachable", error=str(error), rest_s=QUEUE_RETRY_S)
