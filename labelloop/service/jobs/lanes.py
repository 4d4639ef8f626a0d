"""Which jobs a worker may start: short ones at any time, others in its threads, long ones in a process of their own."""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_MAY_LEAVE: ContextVar[bool] = ContextVar("labelloop_job_may_leave_its_thread", default=False)

# Maximum number of subjects that wait for the process of long jobs.
MAX_LONG_JOBS = 5000

Subject = tuple[str, str]
"""Topic and subject."""


class LongJob(Exception):
    """The running handler takes long: its events are to run in the process of long jobs."""


def require_own_process() -> None:
    """Called by a handler that finds its work to take more than a few seconds, before it changes anything.

    Returns where it may go on: in the process of long jobs, in a worker without one, or outside a worker.

    Raises:
        LongJob: For the worker, which moves the events to the process of long jobs.
    """
    if _MAY_LEAVE.get():
        raise LongJob


@contextmanager
def may_leave_thread() -> Iterator[None]:
    """Within the block, `require_own_process` raises."""
    token = _MAY_LEAVE.set(True)
    try:
        yield
    finally:
        _MAY_LEAVE.reset(token)


class ThreadSlots:
    """Which jobs run in a worker's threads: at most `threads`, plus one short job where others hold them all.

    Args:
        threads: Jobs that run at once.
        short_topics: Topics whose jobs take milliseconds.
        on_free: Called when a job may start that found all slots held.
    """

    def __init__(self, threads: int, short_topics: Collection[str], on_free: Callable[[], None]) -> None:
        self._threads, self._short_topics, self._on_free = threads, frozenset(short_topics), on_free
        self._changed = threading.Condition()
        self._short = self._other = 0
        self._has_refused = False

    @property
    def consumers(self) -> int:
        """Threads that take wake-ups: one more than jobs, so that a short job always finds one."""
        return self._threads + bool(self._short_topics)

    def open_topics(self) -> Collection[str] | None:
        """The topics whose jobs may start now; None: all."""
        with self._changed:
            return self._short_topics if self._other >= self._threads else None

    @contextmanager
    def hold(self, topic: str) -> Iterator[bool]:
        """Hold a slot during the block; yields False if all are held by other jobs. A short job waits for its turn."""
        is_short, may_run = topic in self._short_topics, True
        with self._changed:
            if is_short:
                self._changed.wait_for(lambda: not self._short or self._short + self._other < self._threads)
                self._short += 1
            elif self._other < self._threads:
                self._other += 1
            else:
                self._has_refused = True
                may_run = False
        if not may_run:
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                if is_short:
                    self._short -= 1
                else:
                    self._other -= 1
                self._changed.notify_all()
                is_awaited = self._has_refused and not is_short
                if is_awaited:
                    self._has_refused = False
            if is_awaited:
                self._on_free()


class LongJobs:
    """The subjects that wait for the process of long jobs, or run there. Thread-safe.

    Not stored: their events stay in the inbox, and another worker finds out by itself that they take long.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._subjects: dict[Subject, bool] = {}
        self._closed = False

    def __contains__(self, subject: Subject) -> bool:
        return subject in self._subjects

    @property
    def is_full(self) -> bool:
        """Whether no other should be added."""
        return len(self._subjects) >= MAX_LONG_JOBS

    def subjects(self) -> list[Subject]:
        """All of them."""
        with self._changed:
            return list(self._subjects)

    def add(self, subject: Subject, *, is_last: bool = False) -> None:
        """Add a subject.

        Args:
            subject: The subject.
            is_last: Whether it comes after those without this mark.
        """
        with self._changed:
            self._subjects.setdefault(subject, is_last)
            self._changed.notify()

    def next(self) -> Subject | None:
        """Wait for a subject and return it; it stays contained until `remove`. None: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._subjects)
            return None if self._closed else min(self._subjects, key=self._subjects.__getitem__)

    def remove(self, subject: Subject) -> None:
        """Remove a subject whose events ran, or are no longer there."""
        with self._changed:
            del self._subjects[subject]

    def close(self) -> None:
        """Let `next` return None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
