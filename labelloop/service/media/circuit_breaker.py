"""`Hosts`: a host that is silent again and again is left alone for a while.

Else each of a thousand images of a host that is down waits for it, and is tried again.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from labelloop.service.media.errors import MediaError, NoAnswer

SILENT = 10
"""Times in a row, on all threads, after which a host is left alone."""
PAUSE_S = 10.0
"""For so long after it was last silent; then one image tries it again."""


class HostCircuitBreaker:
    """Which hosts were silent of late; thread-safe. ``clock`` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._silent: dict[str, tuple[int, float]] = {}

    @contextmanager
    def guard(self, host: str, url: str) -> Iterator[None]:
        """Ask a host for an image inside; `NoAnswer` there counts, any other answer begins the count anew.

        Raises:
            NoAnswer: It is left alone.
        """
        times, last = self._silent.get(host, (0, 0.0))
        if times >= SILENT and self._clock() - last < PAUSE_S:
            told = f"not asked for: {host} was silent {SILENT} times in a row"
            raise NoAnswer(url, told, fix="See that it runs and can be reached from this machine.")
        try:
            yield
        except NoAnswer:
            with self._lock:
                times, _ = self._silent.get(host, (0, 0.0))
                self._silent[host] = times + 1, self._clock()
            raise
        except MediaError:
            self._answered(host)
            raise
        self._answered(host)

    def _answered(self, host: str) -> None:
        with self._lock:
            self._silent.pop(host, None)
