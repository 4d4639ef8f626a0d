"""Run parts as child processes, restart those that exit, and stop all of them at the end."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from labelloop.stack.label_studio_server import describe_exit
from labelloop.stack.process import Child, ServiceSpec

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 8.0

# A part that exits sooner with an exit code is not restarted: it would fail again.
MIN_UPTIME_S = 5.0
# Maximum restarts of a part within `RESTART_WINDOW_S` seconds.
MAX_RESTARTS = 5
RESTART_WINDOW_S = 120.0


class Stopped(BaseException):
    """A signal asked the stack to stop. A BaseException, so that no `except Exception` handles it as a failure."""


class StopSignals:
    """Raise `Stopped` in the main thread on the first of `SIGNALS`; ignore later ones, since the stop is in progress.

    Use as a context manager: leaving it restores the previous handlers.
    """

    def __init__(self) -> None:
        self._deferred = False
        self._received = ""

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals to the end of the block, so that the list of children stays consistent."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._received:
            raise Stopped(self._received)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        for signal_number in SIGNALS:
            signal.signal(signal_number, signal.SIG_IGN)
        self._received = signal.Signals(number).name
        if not self._deferred:
            raise Stopped(self._received)


class Supervisor:
    """The child processes of one stack. Use as a context manager: leaving it stops every child.

    Args:
        records: Folder with a record of each running child, by which a later run finds orphans.
        signals: Deferred while a child is started or stopped.
    """

    def __init__(self, records: Path, signals: StopSignals) -> None:
        self._records, self._signals = records, signals
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, part: ServiceSpec) -> Child:
        """Start a part without waiting for its health, so that several start at the same time."""
        with self._signals.deferred():
            child = Child(part, self._records)
            self.children.append(child)
        return child

    def stop_child(self, child: Child) -> None:
        """Stop one child."""
        child.stop(grace_s=GRACE_S)
        self.children.remove(child)

    def is_essential(self, child: Child) -> bool:
        """Whether every other part depends on this child: the part started first, Label Studio."""
        return child is self.children[0]

    def _restart(self, child: Child) -> None:
        with self._signals.deferred():
            child.stop(grace_s=GRACE_S)  # kills the rest of its process group
            self.children[self.children.index(child)] = Child(child.part, self._records)

    def stop(self) -> None:
        """Stop every child in parallel."""
        with self._signals.deferred():
            for child in self.children:
                child.terminate()
            deadline = time.monotonic() + GRACE_S
            for child in self.children:
                child.stop(grace_s=max(0.1, deadline - time.monotonic()))
            self.children.clear()

    def watch(self, on_exit: Callable[[Child, str, bool], None]) -> Child:
        """Restart parts that exit, until the essential part (Label Studio) cannot be restarted.

        A part killed by a signal is always restarted; one that exits with a code only if it ran for `MIN_UPTIME_S`
        seconds. A part that exits more than `MAX_RESTARTS` times within `RESTART_WINDOW_S` seconds is not restarted.

        Args:
            on_exit: Called with each part that exited, its exit status as text, and whether it is restarted.

        Returns:
            The essential part, which has exited.
        """
        given_up: set[int] = set()
        exits: dict[str, list[float]] = {}
        while True:
            for child in list(self.children):
                code = child.exit_code()
                if child.pid in given_up or (code is None and not child.logged_failure()):
                    continue
                now = time.monotonic()
                recent = [at for at in exits.get(child.part.key, ()) if at > now - RESTART_WINDOW_S]
                exits[child.part.key] = [*recent, now]
                worked = code is None or code < 0 or child.uptime_s >= MIN_UPTIME_S
                restarting = worked and len(recent) < MAX_RESTARTS
                how = "it runs on another port than configured" if code is None else describe_exit(code)
                on_exit(child, how, restarting)
                if restarting:
                    self._restart(child)
                elif self.is_essential(child):
                    return child
                else:
                    given_up.add(child.pid)
            time.sleep(0.3)
