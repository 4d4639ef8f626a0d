"""Being told to stop: signals that let the work at hand be finished, and a second one that does not wait."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def finishing(what: str) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C lets the work at hand be finished, and says so on standard error; the second ends at once.

    Args:
        what: The work at hand, in words.

    Yields:
        Whether Ctrl-C was pressed: to be asked between one piece of work and the next.
    """
    told = False

    def tell(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        told = True
        signal.signal(signal.SIGINT, before)
        print(f"Finishing {what}; Ctrl-C again ends at once.", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield lambda: told
    finally:
        signal.signal(signal.SIGINT, before)


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
