"""Jobs: what a program hands in (handlers, periodic jobs) and the one object that submits events and runs workers."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Event, Inbox
from labelloop.service.jobs.wakeup_queue import Queue
from labelloop.service.settings import Settings

# A queue that could not be reached is left alone so long: a webhook has better things to wait for.
REST_S = 5.0
log = structlog.get_logger(__name__)

Handler = Callable[[str, Sequence[Event]], None]
"""Called with (subject, all its events). It may be called again for the same events after a crash: be idempotent.

Raise `Reject` to give the events up at once; anything else that is raised tries them again later.
"""


class Reject(LabelloopError):
    """A handler says that trying its events again would not help; they become dead letters with this reason."""

    code = "rejected"


@dataclass(frozen=True, slots=True)
class Periodic:
    """A job that runs every `every_s` seconds, on one worker at a time; it is told apart by its name."""

    name: str
    every_s: float
    run: Callable[[], None]


class Jobs:
    """The inbox with its workers: `submit` in a web process, `run_worker` in a worker process.

    Making one does no I/O; the queue is opened when first needed.

    Args:
        settings: The queue, and how jobs are run.
        inbox: The events.
        handlers: Topic -> what handles its events.
        periodics: What runs now and then.
        alone: The command of a process that calls `isolated_job.answer`: events that were in a worker's
            hands twice when it was lost are handled there. Empty: they are handled as any other.
    """

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        handlers: Mapping[str, Handler] | None = None,
        periodics: Sequence[Periodic] = (),
        *,
        alone: Sequence[str] = (),
    ) -> None:
        self.alone = tuple(alone)
        self.settings = settings
        self.inbox = inbox
        self.handlers = dict(handlers or {})
        self.periodics = tuple(periodics)
        self._opening = threading.Lock()
        self._queue: Queue | None = None
        self._rest_until = 0.0

    def submit(self, topic: str, subject: str, key: str, payload: Any, *, delay_s: float = 0.0) -> bool:
        """Store an event durably and wake a worker for it (milliseconds).

        Args:
            topic: names the handler.
            subject: what the event is about; its events are handled together, one call at a time.
            key: unique within the topic; an event told twice is stored once.
            payload: anything that is JSON.
            delay_s: seconds before it is due, to gather more events of its subject.

        Returns:
            False when the (topic, key) was there already.
        """
        if not self.inbox.put(topic, subject, key, payload, delay_s=delay_s):
            return False
        if delay_s <= 0:
            self._wake(topic, subject)
        return True

    def run_worker(self, threads: int | None = None, *, stop: threading.Event | None = None) -> None:
        """Handle events and run periodic jobs until SIGINT, SIGTERM or `stop`.

        Running handlers get `job_stop_s` to finish; claims of those that do not are released. A second signal does
        not wait. Signals are only listened to in the main thread of a process.

        Args:
            threads: handlers at a time; by default `job_threads`.
            stop: ends the worker when set, for one that runs inside another program.
        """
        from labelloop.service.jobs.worker import Worker

        Worker(self).run(threads or self.settings.job_threads, stop or threading.Event())

    def close(self) -> None:
        """Let go of the queue's connections; the next `submit` opens it again. The inbox's engine is its opener's."""
        with self._opening:
            if self._queue is not None:
                self._queue.close()
            self._queue = None

    def _wake(self, topic: str, subject: str) -> None:
        """Lower the latency if that can be done at once; the sweep of the workers makes up for it if not."""
        if time.monotonic() < self._rest_until:
            return
        try:
            with self._opening:
                if self._queue is None:
                    self._queue = Queue(self.settings)
                queue = self._queue
            queue.wake(topic, subject)
        except Exception as error:  # noqa: BLE001 - the event is stored: nothing here may fail the caller
            self._rest_until = time.monotonic() + REST_S
            log.warning("queue_unreachable", error=str(error), rest_s=REST_S)
