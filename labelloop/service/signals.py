"""Handle SIGINT and SIGTERM: finish the current work on the first signal, stop at once on the second."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM; like KeyboardInterrupt, with another exit status."""


def exit_status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a command ended by a signal, in the shell's convention: 143 after SIGTERM, else 130."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


class StopFlag:
    """Whether a stop signal has arrived; call it between two units of work."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self) -> bool:
        """True once a signal has arrived."""
        return bool(self._number)

    def set(self, number: int) -> None:
        """Record the signal number."""
        self._number = number

    @property
    def exit_status(self) -> int:
        """128 plus the signal number, as shells report it."""
        return 128 + self._number


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM within the block, unless SIGTERM already has a handler."""
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
def graceful_stop(what: str) -> Iterator[StopFlag]:
    """On the first SIGINT or SIGTERM let the current work finish and print a notice; the second stops at once.

    Args:
        what: The current work, for the notice.

    Yields:
        The flag that tells whether a signal has arrived.
    """
    stop_flag = StopFlag()

    def stop(number: int, _frame: FrameType | None) -> None:
        stop_flag.set(number)
        restore()
        print(f"Finishing {what}; Ctrl-C again ends at once.", file=sys.stderr, flush=True)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_flag
    finally:
        restore()


@contextmanager
def on_stop_signals(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` on each SIGINT and SIGTERM within the block; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: callback()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
