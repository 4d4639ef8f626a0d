"""Being told to stop: signals that let the work at hand be finished, and a second one that does not wait."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: what Ctrl-C does to a command, under another exit status."""


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that a signal ended, as shells know it: 143 after SIGTERM, else 130."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


class StopAsked:
    """Whether a signal asked to stop: called between one piece of work and the next."""

    def __init__(self) -> None:
        """Nothing was asked."""
        self._number = 0

    def __call__(self) -> bool:
        """True once a signal came."""
        return bool(self._number)

    def ask(self, number: int) -> None:
        """Note the signal that came."""
        self._number = number

    @property
    def status(self) -> int:
        """The exit status that tells of the signal."""
        return 128 + self._number


@contextmanager
def terminating() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`, unless something else handles it already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def finishing(what: str) -> Iterator[StopAsked]:
    """The first Ctrl-C or SIGTERM lets the work at hand be finished, and says so; the second ends at once.

    Args:
        what: The work at hand, in words.

    Yields:
        Whether one of them came, and the exit status then.
    """
    asked = StopAsked()

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.ask(number)
        restore()
        print(f"Finishing {what}; Ctrl-C again ends at once.", file=sys.stderr, flush=True)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        restore()


@contextmanager
def on_stop_signals(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` at each SIGINT and SIGTERM within the block; only the main thread of a process hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: act()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
