"""Terminal output of the exporter commands: the option ``--json``, labels, and a progress bar."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from exporters.errors import BadOption

# Where to write a report as JSON; ``-`` is standard output, which then contains nothing else.
JsonPath = Annotated[Path | None, Parameter(allow_leading_hyphen=True)]
_STDOUT = "-"
_LABEL_CHARS = 60


def writable_json_path(json: Path | None) -> Path | None:
    """Check the path of ``--json`` before the work begins, so that an unwritable path fails at once.

    Raises:
        BadOption: The path is a folder, or is not writable.
    """
    if json is None or str(json) == _STDOUT:
        return json
    target = json if json.exists() else json.absolute().parent
    if json.is_dir() or not os.access(target, os.W_OK):
        raise BadOption("--json", str(json), "a file in a writable folder, or - for standard output")
    return json


def write_json(json: Path | None, value: Any) -> bool:
    """Write a value as JSON; returns whether it went to standard output."""
    if json is None:
        return False
    data = msgspec.json.format(msgspec.json.encode(value)) + b"\n"
    if str(json) == _STDOUT:
        sys.stdout.write(data.decode())
        return True
    json.write_bytes(data)
    return False


def terminal_label(label: str) -> str:
    """A label for the terminal: without control characters, at most 60 characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in label)
    return printable if len(printable) <= _LABEL_CHARS else f"{printable[: _LABEL_CHARS - 1]}…"


# Called with (done, total or None).
Update = Callable[[int, int | None], None]


@contextmanager
def progress_bar(what: str) -> Iterator[Update | None]:
    """Progress bar on standard error; yields its update function (done, total or None), or None without a terminal."""
    with progress_bars(what) as (update,):
        yield update


@contextmanager
def progress_bars(*whats: str) -> Iterator[tuple[Update | None, ...]]:
    """Progress bars, one below the other; a bar appears with its first update. See `progress_bar`."""
    if not sys.stderr.isatty():
        yield (None,) * len(whats)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def updater(what: str, *, visible: bool) -> Update:
            row = bar.add_task(what, total=None, visible=visible, start=visible)

            def update(done: int, total: int | None) -> None:
                if done % 50 == 0 or done == total:
                    bar.start_task(row)
                    bar.update(row, completed=done, total=total, visible=True)

            return update

        yield tuple(updater(what, visible=not number) for number, what in enumerate(whats))
