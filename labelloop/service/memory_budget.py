"""`MemoryBudget`: how many bytes of large, short-lived values one process holds at the same time."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labelloop.service.errors import Busy, LabelloopError

QUEUE = 8
"""A bounded budget refuses once the leases that wait weigh this many times its limit."""

_POLL_S = 0.25


class Abandoned(LabelloopError):
    """The client closed its connection, or its request has been answered: nobody waits for this work any more."""

    code = "abandoned"
    status = 499  # nginx's "client closed request"; only the log sees it

    def __init__(self) -> None:
        super().__init__("The client closed the connection before the answer was ready.")


def never() -> bool:
    """For work that somebody always waits for."""
    return False


class Lease:
    """Bytes taken from a budget; `keep_for` holds some of them longer than the block that took them."""

    def __init__(self, budget: MemoryBudget, weight: int) -> None:
        self._budget, self._weight = budget, weight

    def keep_for(self, value: Any, weight: int) -> None:
        """Hold `weight` bytes until `value` is garbage collected; values under 1/32 of the limit are not counted."""
        if weight > self._budget.limit // 32:
            kept = min(weight, self._weight)
            self._weight -= kept
            weakref.finalize(value, self._budget.give_back, kept).atexit = False

    def end(self) -> None:
        """Give back what is not kept."""
        self._budget.give_back(self._weight)


class MemoryBudget:
    """A weighted semaphore: leases are granted in the order in which they were asked for. Thread-safe."""

    def __init__(self, limit: int, *, wait_s: float | None = None) -> None:
        """Nothing is taken.

        Args:
            limit: Bytes that all leases together may weigh.
            wait_s: Longest wait for a lease, after which `Busy` is raised; None: as long as it takes.
        """
        self.limit = limit
        self._wait_s = wait_s
        self._taken = 0
        self._queue: dict[object, int] = {}  # weights by ticket, in the order of arrival
        # Reentrant: the garbage collector may end a kept lease while this thread holds the lock.
        self._changed = threading.Condition(threading.RLock())

    @contextmanager
    def lease(self, weight: int, *, abandoned: Callable[[], bool] = never) -> Iterator[Lease]:
        """Hold `weight` bytes during the block.

        Args:
            weight: Bytes, at most `limit`.
            abandoned: Asked while waiting; True ends the wait.

        Raises:
            Busy: Too much waits already, or the wait was too long.
            Abandoned: Nobody waits for the work any more.
        """
        self._take(weight, abandoned)
        lease = Lease(self, weight)
        try:
            yield lease
        finally:
            lease.end()

    def give_back(self, weight: int) -> None:
        """Return bytes to the budget."""
        with self._changed:
            self._taken -= weight
            self._changed.notify_all()

    def _take(self, weight: int, abandoned: Callable[[], bool]) -> None:
        deadline = None if self._wait_s is None else time.monotonic() + self._wait_s
        with self._changed:
            if deadline is not None and self._queue and sum(self._queue.values()) + weight > QUEUE * self.limit:
                raise Busy(f"{len(self._queue)} pieces of work wait for memory already.")
            ticket = object()
            self._queue[ticket] = weight
            try:
                while next(iter(self._queue)) is not ticket or self._taken + weight > self.limit:
                    if abandoned():
                        raise Abandoned
                    if deadline is not None and time.monotonic() >= deadline:
                        raise Busy(f"There was no memory for this work within {self._wait_s:.0f} s.")
                    self._changed.wait(_POLL_S)
                self._taken += weight
            finally:
                del self._queue[ticket]
                self._changed.notify_all()
