"""Progress of long steps: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Step(Protocol):
    """A running step."""

    def say(self, detail: str = "", *, done: int | None = None, total: int | None = None) -> None:
        """Show the state of the step; cheap enough to call often."""
        ...


class Steps:
    """Shows steps on a console, one line each.

    Args:
        console: Output; None: standard error, so that standard output has only results.
        every_s: Seconds between the lines of a running step where no line can be redrawn.
    """

    def __init__(self, console: Console | None = None, *, every_s: float = 15.0) -> None:
        self.console = console if console is not None else Console(stderr=True, highlight=False)
        self._every_s = every_s

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show one step; prints its duration when the block ends without an exception."""
        started = time.monotonic()
        if self.console.is_terminal:
            with Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("[dim]{task.fields[detail]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            ) as progress:
                yield _LiveStep(progress, title)
        else:
            self.console.print(f"... {escape(title)}", soft_wrap=True)
            yield _PlainStep(self.console, title, started, self._every_s)
        seconds = time.monotonic() - started
        self.console.print(f"[green]ok[/]  {escape(title)} [dim]({seconds:.1f} s)[/]", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a highlighted line."""
        self.console.print(f"[bold yellow]{escape(text)}[/]", soft_wrap=True)


class _LiveStep:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(title), total=None, detail="")

    def say(self, detail: str = "", *, done: int | None = None, total: int | None = None) -> None:
        self._progress.update(self._task, detail=escape(detail[-60:]), completed=done, total=total)


class _PlainStep:
    def __init__(self, console: Console, title: str, started: float, every_s: float) -> None:
        self._console, self._title, self._started, self._every_s = console, title, started, every_s
        self._last_shown = started

    def say(self, detail: str = "", *, done: int | None = None, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._last_shown < self._every_s:
            return
        self._last_shown = now
        count = "" if done is None else f" {done}" if total is None else f" {done}/{total}"
        self._console.print(
            f"    {escape(self._title)}:{count} {escape(detail)} ({now - self._started:.0f} s)", soft_wrap=True
        )
