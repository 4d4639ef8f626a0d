"""Time limit for ONNX Runtime runs, such as those of an endless Loop."""

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

# Maximum time of one run, seconds. Label Studio waits 100 s for a prediction.
RUN_LIMIT_S = 60.0

_CHECK_S = 0.5


class RunTooLong(Exception):
    """A run exceeded the time limit."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"one run took longer than {limit_s:.0f} s and was ended; has its graph an endless Loop?")


class RunLimit:
    """Runs sessions; a watcher thread terminates late runs. Thread-safe."""

    def __init__(self, limit_s: float | None = None) -> None:
        """Create a limit without running sessions.

        Args:
            limit_s: Maximum time of one run, seconds; by default `RUN_LIMIT_S`.
        """
        self._limit_s = RUN_LIMIT_S if limit_s is None else limit_s
        self._running: dict[int, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._watched = False

    def run(self, session: Any, outputs: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Call `session.run`, computing only what the outputs need.

        Raises:
            RunTooLong: The run was terminated.
            Exception: Whatever ONNX Runtime raises.
        """
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        with self._lock:
            if not self._watched:
                self._watched = True
                threading.Thread(target=_watch, args=(weakref.ref(self),), name="run-limit", daemon=True).start()
            self._running[id(options)] = time.monotonic() + self._limit_s, options
        try:
            arrays: list[Any] = session.run(outputs, dict(feeds), options)
        except Exception as error:
            if options.terminate:
                raise RunTooLong(self._limit_s) from error
            raise
        finally:
            with self._lock:
                del self._running[id(options)]
        return arrays

    def check(self) -> None:
        """Set the terminate flag of every late run."""
        now = time.monotonic()
        with self._lock:
            for deadline, options in self._running.values():
                if now > deadline:
                    options.terminate = True


def _watch(reference: weakref.ref[RunLimit]) -> None:
    while (limit := reference()) is not None:
        limit.check()
        del limit
        time.sleep(_CHECK_S)
