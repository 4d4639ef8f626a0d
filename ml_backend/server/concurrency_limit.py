"""Owns who may predict now: a few at once, a bounded number waiting, and the rest told at once that the worker is busy.

Requests that wait for a slow photo would otherwise take every thread of a worker, and Label Studio, which waits one
second for `/health`, would show the backend as disconnected.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labelloop.service.errors import Busy

WAITING = 2
"""Requests that may wait for each one at work."""

WAIT_S = 60.0
"""How long one waits; Label Studio gives up after 100 s."""

SPARE = 8
"""Threads that predictions never take: for `/health`, `/setup` and everything else that answers at once."""


class ConcurrencyLimiter:
    """Lets so many through at once, and so many wait."""

    def __init__(self, at_once: int, *, wait_s: float = WAIT_S) -> None:
        """All are free.

        Args:
            at_once: How many may be at work; `WAITING` times as many may wait.
            wait_s: Longest wait.
        """
        self._free = threading.Semaphore(at_once)
        self._inside = 0
        self._most = at_once * (1 + WAITING)
        self._lock = threading.Lock()
        self._wait_s = wait_s

    @contextmanager
    def acquire(self) -> Iterator[float]:
        """A turn, as soon as there is one; gives the seconds waited.

        Raises:
            Busy: Too many wait already, or none came up in time.
        """
        with self._lock:
            if self._inside >= self._most:
                raise Busy(f"{self._most} requests for predictions are under way or wait already.")
            self._inside += 1
        try:
            started = time.monotonic()
            if not self._free.acquire(timeout=self._wait_s):
                raise Busy(f"there was no free turn within {self._wait_s:.0f} s.")
            try:
                yield time.monotonic() - started
            finally:
                self._free.release()
        finally:
            with self._lock:
                self._inside -= 1


def threads_for(at_once: int) -> int:
    """Threads of a worker that predicts for so many at once, and answers as many smart tools beside them."""
    return 2 * at_once * (1 + WAITING) + SPARE
