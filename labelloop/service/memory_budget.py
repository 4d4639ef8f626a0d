"""Limit the bytes of large, short-lived values that one process holds at a time (`MemoryBudget`)."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labelloop.service.errors import Busy, LabelloopError

# With `wait_s`, a lease is refused while the queued leases exceed this multiple of the limit.
MAX_QUEUE_FACTOR = 8

_POLL_S = 0.25


class Abandoned(LabelloopError):
    """The client closed its connection, or its request was answered: the result is no longer needed."""

    code = "abandoned"
    status = 499  # nginx's "client closed request"; only the log sees it
    message = "The client closed the connection before the answer was ready."


def never_abandoned() -> bool:
    """False: the default for work whose client cannot disconnect."""
    return False


class MemoryLease:
    """Bytes acquired from a budget; `retain_for` keeps some of them beyond the `with` block."""

    def __init__(self, budget: MemoryBudget, weight: int) -> None:
        self._budget, self._weight = budget, weight

    def retain_for(self, value: Any, weight: int) -> None:
        """Keep `weight` bytes until `value` is garbage collected; values below 1/32 of the limit are not counted."""
        if weight > self._budget.limit // 32:
            retained = min(weight, self._weight)
            self._weight -= retained
            weakref.finalize(value, self._budget.release, retained).atexit = False

    def release(self) -> None:
        """Release the bytes that are not retained."""
        self._budget.release(self._weight)


class MemoryBudget:
    """A weighted, first-in-first-out semaphore. Thread-safe."""

    def __init__(self, limit: int, *, wait_s: float | None = None) -> None:
        """Create an unused budget.

        Args:
            limit: Maximum sum of all leases, in bytes.
            wait_s: Maximum wait for a lease, in seconds, before `Busy` is raised; None: no limit.
        """
        self.limit = limit
        self._wait_s = wait_s
        self._used = 0
        self._queue: dict[object, int] = {}  # weight by ticket, in order of arrival
        # Reentrant: the garbage collector may release a retained lease while this thread holds the lock.
        self._released = threading.Condition(threading.RLock())

    @property
    def waiting(self) -> int:
        """The number of leases that wait."""
        return len(self._queue)

    @contextmanager
    def lease(self, weight: int, *, abandoned: Callable[[], bool] = never_abandoned) -> Iterator[MemoryLease]:
        """Hold `weight` bytes for the duration of the block.

        Args:
            weight: Bytes, at most `limit`.
            abandoned: Polled while waiting; True ends the wait.

        Raises:
            Busy: The queue is full, or the wait timed out.
            Abandoned: `abandoned` returned True.
        """
        self._acquire(weight, abandoned)
        lease = MemoryLease(self, weight)
        try:
            yield lease
        finally:
            lease.release()

    def release(self, weight: int) -> None:
        """Return bytes to the budget."""
        with self._released:
            self._used -= weight
            self._released.notify_all()

    def _acquire(self, weight: int, abandoned: Callable[[], bool]) -> None:
        deadline = None if self._wait_s is None else time.monotonic() + self._wait_s
        with self._released:
            queued = sum(self._queue.values())
            if deadline is not None and self._queue and queued + weight > MAX_QUEUE_FACTOR * self.limit:
                raise Busy(reason=f"{self.waiting} jobs already wait for memory.")
            ticket = object()
            self._queue[ticket] = weight
            try:
                while next(iter(self._queue)) is not ticket or self._used + weight > self.limit:
                    if abandoned():
                        raise Abandoned
                    if deadline is not None and time.monotonic() >= deadline:
                        raise Busy(reason=f"No memory became free within {self._wait_s:.0f} s.")
                    self._released.wait(_POLL_S)
                self._used += weight
            finally:
                del self._queue[ticket]
                self._released.notify_all()
