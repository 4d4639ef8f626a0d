"""Limit concurrent predictions per worker: a few run, a bounded number waits, the rest is rejected as busy.

Otherwise requests that wait for a slow image would take every thread of a worker, and Label Studio, which waits one
second for `/health`, would show the backend as disconnected.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labelloop.service.errors import Busy

# Waiting requests per running one.
QUEUED_PER_SLOT = 2

# Longest wait, seconds; Label Studio gives up after 100 s.
MAX_WAIT_S = 60.0

# Threads that predictions never take: for `/health`, `/setup` and other fast endpoints.
RESERVED_THREADS = 8


class ConcurrencyLimiter:
    """A semaphore with a bounded queue and a timeout."""

    def __init__(self, slots: int, *, wait_s: float = MAX_WAIT_S) -> None:
        """Create the limiter.

        Args:
            slots: Requests that may run; `QUEUED_PER_SLOT` times as many may wait.
            wait_s: Longest wait, seconds.
        """
        self._free = threading.Semaphore(slots)
        self._inside = 0
        self._most = slots * (1 + QUEUED_PER_SLOT)
        self._lock = threading.Lock()
        self._wait_s = wait_s

    @contextmanager
    def acquire(self) -> Iterator[float]:
        """Hold one slot; yields the seconds waited for it.

        Raises:
            Busy: The queue is full, or no slot became free in time.
        """
        with self._lock:
            if self._inside >= self._most:
                raise Busy(reason=f"{self._most} prediction requests are running or waiting.")
            self._inside += 1
        try:
            started = time.monotonic()
            if not self._free.acquire(timeout=self._wait_s):
                raise Busy(reason=f"no slot for a prediction became free within {self._wait_s:.0f} s.")
            try:
                yield time.monotonic() - started
            finally:
                self._free.release()
        finally:
            with self._lock:
                self._inside -= 1


def threads_for(at_once: int) -> int:
    """Threads of a worker that runs `at_once` predictions and as many smart-tool requests."""
    return 2 * at_once * (1 + QUEUED_PER_SLOT) + RESERVED_THREADS
