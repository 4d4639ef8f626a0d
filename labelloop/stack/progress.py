"""How long steps show themselves: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Step(Protocol):
    """One step under way."""

    def say(self, detail: str = "", *, done: int | None = None, total: int | None = None) -> None:
        """Tell where the step is; call it as often as you like."""
        ...


class Steps:
    """Shows steps on a console, one line each.

    Args:
        console: Where to write; standard error when None, so that standard output stays for results.
        every_s: How often a step that runs long repeats itself where no line can be redrawn.
    """

    def __init__(self, console: Console | None = None, *, every_s: float = 15.0) -> None:
        self.console = console if console is not None else Console(stderr=True, highlight=False)
        self._every_s = every_s

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run one step; its time is shown when it ends, and nothing more when it raises."""
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
        """One line that is no step."""
        self.console.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that should be seen."""
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
        self._said = started

    def say(self, detail: str = "", *, done: int | None = None, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        count = "" if done is None else f" {done}" if total is None else f" {done}/{total}"
        self._console.print(
            f"    {escape(self._title)}:{count} {escape(detail)} ({now - self._started:.0f} s)", soft_wrap=True
        )
