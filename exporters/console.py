"""What the exporters' commands have in common: the option ``--json``, and a progress bar where somebody looks."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from exporters.errors import BadOption

Json = Annotated[Path | None, Parameter(allow_leading_hyphen=True)]
"""Where a report goes as JSON; ``-`` is the standard output, where nothing else is printed then."""
_STDOUT = "-"
_LABEL = 60


def checked(json: Path | None) -> Path | None:
    """The place of ``--json``, looked at before the work begins: a report that cannot be written is told at once.

    Raises:
        BadOption: it is a folder itself, or may not be written.
    """
    if json is None or str(json) == _STDOUT:
        return json
    place = json if json.exists() else json.absolute().parent
    if json.is_dir() or not os.access(place, os.W_OK):
        raise BadOption("--json", str(json), "a file in a folder that can be written, or - for the standard output")
    return json


def write_json(json: Path | None, value: Any) -> bool:
    """Write a value as JSON where it was asked for; whether it went to the standard output."""
    if json is None:
        return False
    data = msgspec.json.format(msgspec.json.encode(value)) + b"\n"
    if str(json) == _STDOUT:
        sys.stdout.write(data.decode())
        return True
    json.write_bytes(data)
    return False


def shown(label: str) -> str:
    """A label in a line of a terminal: without control characters, and not longer than one reads."""
    plain = "".join(letter if letter.isprintable() else " " for letter in label)
    return plain if len(plain) <= _LABEL else f"{plain[: _LABEL - 1]}…"


def counted(number: int, noun: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar on the standard error stream, to be told (done, in all or ``None``); none where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(what, total=None)

        def show(done: int, total: int | None) -> None:
            if done % 50 == 0 or done == total:
                bar.update(row, completed=done, total=total)

        yield show
