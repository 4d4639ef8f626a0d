"""`HostCircuitBreaker`: stop requests to a host that does not answer.

Without it every image of a host that is down would wait for the timeouts of all attempts.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from labelloop.service.media.errors import MediaError, MediaHostSilent

# Consecutive failures, over all threads, that open the circuit of a host.
MAX_FAILURES = 10
# Seconds after the last failure until a request is tried again.
PAUSE_S = 10.0


class HostCircuitBreaker:
    """Consecutive failures per host; thread-safe. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}

    @contextmanager
    def guard(self, host: str, url: str) -> Iterator[None]:
        """Guard a request to a host: `MediaHostSilent` counts as a failure, any other outcome resets the count.

        Raises:
            MediaHostSilent: The circuit is open.
        """
        times, last = self._failures.get(host, (0, 0.0))
        if times >= MAX_FAILURES and self._clock() - last < PAUSE_S:
            reason = f"not requested: {host} did not answer {MAX_FAILURES} times in a row"
            raise MediaHostSilent(url, reason, fix="Check that it runs and is reachable from this machine.")
        try:
            yield
        except MediaHostSilent:
            with self._lock:
                times, _ = self._failures.get(host, (0, 0.0))
                self._failures[host] = times + 1, self._clock()
            raise
        except MediaError:
            self._reset(host)
            raise
        self._reset(host)

    def _reset(self, host: str) -> None:
        with self._lock:
            self._failures.pop(host, None)
