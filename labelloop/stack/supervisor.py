"""Runs parts as children, watches them, and ends them all when it ends, whatever the reason."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from labelloop.stack.label_studio_server import how_it_ended
from labelloop.stack.process import Child, Part

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 8.0

LIVED_S = 5.0
"""A part that gave up sooner, with an exit code of its own, would give up again."""

MOST_DEATHS = 5
"""Times that a part is started again without a quiet time in between."""

QUIET_S = 120.0
"""A death that is longer ago is forgotten."""


class Stopped(BaseException):
    """Someone asked the stack to end. Not an Exception, so that no handler on the way takes it for a failure."""


class StopSignals:
    """Turns the first of `SIGNALS` into `Stopped` in the main thread; later ones are ignored: the end is under way.

    Use as a context manager: the handlers from before come back.
    """

    def __init__(self) -> None:
        self._held = False
        self._asked = ""

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put a signal off to the end of the block, so that no child is forgotten or half ended."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked:
            raise Stopped(self._asked)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self._asked = signal.Signals(number).name
        if not self._held:
            raise Stopped(self._asked)


class Supervisor:
    """The children of one stack. Use as a context manager: leaving it ends every child.

    Args:
        records: Folder that keeps a record of each running child, for a later run to find what a kill left.
        signals: Held back while a child is started.
    """

    def __init__(self, records: Path, signals: StopSignals) -> None:
        self._records, self._signals = records, signals
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, part: Part) -> Child:
        """Start a part; its readiness is waited for apart, so that several boot at the same time."""
        with self._signals.held():
            child = Child(part, self._records)
            self.children.append(child)
        return child

    def end(self, child: Child) -> None:
        """End one child, on purpose."""
        child.stop(grace_s=GRACE_S)
        self.children.remove(child)

    def needs(self, child: Child) -> bool:
        """Whether nothing works without this child: the part that was started first, Label Studio."""
        return child is self.children[0]

    def _start_again(self, child: Child) -> None:
        with self._signals.held():
            child.stop(grace_s=GRACE_S)  # what is left of its group
            self.children[self.children.index(child)] = Child(child.part, self._records)

    def stop(self) -> None:
        """End every child, all at the same time."""
        with self._signals.held():
            for child in self.children:
                child.ask_to_stop()
            until = time.monotonic() + GRACE_S
            for child in self.children:
                child.stop(grace_s=max(0.1, until - time.monotonic()))
            self.children.clear()

    def watch(self, tell: Callable[[Child, str, bool], None]) -> Child:
        """Start parts that end again, until the first started part (Label Studio) cannot be kept running.

        A part that ends is started again, as it was: one that is killed at any age, one that gives up if it had
        worked before. One that gives up as soon as it is started, or dies more than `MOST_DEATHS` times within
        `QUIET_S`, is left, for its log says why.

        Args:
            tell: Called with each part that ended, how, and whether it is started again.

        Returns:
            The part that everything else needs, ended.
        """
        left: set[int] = set()
        deaths: dict[str, list[float]] = {}
        while True:
            for child in list(self.children):
                code = child.ended()
                if child.pid in left or (code is None and not child.shows_bad_sign()):
                    continue
                now = time.monotonic()
                recent = [at for at in deaths.get(child.part.key, ()) if at > now - QUIET_S]
                deaths[child.part.key] = [*recent, now]
                would_work = code is None or code < 0 or child.lived_s >= LIVED_S
                again = would_work and len(recent) < MOST_DEATHS
                tell(child, "it runs elsewhere than it was told to" if code is None else how_it_ended(code), again)
                if again:
                    self._start_again(child)
                elif self.needs(child):
                    return child
                else:
                    left.add(child.pid)
            time.sleep(0.3)
