"""Owns what `labelloop models pull` does with an entry of the catalogue: all its files, a bar, and how to use them."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import httpx

from labelloop.service.errors import LabelloopError
from ml_backend.catalogue.download import TIMEOUT_S, Progress, download
from ml_backend.catalogue.entries import CATALOGUE, Entry
from ml_backend.checksums import keep_checksum


class UnknownModel(LabelloopError):
    """The catalogue has no such model."""

    code: ClassVar[str] = "catalogue_unknown"
    status: ClassVar[int] = 404

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The catalogue has no model {name!r}.",
            fix=f"It has: {', '.join(CATALOGUE)}. A file of your own needs none: `labelloop models add FILE.onnx`.",
        )


def entry_of(name: str) -> Entry:
    """The entry of a name. Raises UnknownModel."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownModel(name) from None


def listed() -> Iterator[str]:
    """The catalogue, a line a model."""
    width = max(map(len, CATALOGUE))
    for name, entry in CATALOGUE.items():
        yield f"{name:<{width}}  {entry.purpose}; {entry.licence}"


def pull(entry: Entry, folder: Path, *, source: str = "", client: httpx.Client | None = None) -> tuple[Path, ...]:
    """Every file of an entry, whole and checked.

    Args:
        entry: The model.
        folder: Where they lie then; class names that a detector lacks are written beside it.
        source: Address of a folder with the same files; empty: their publisher's.
        client: Default one that follows redirects and the environment's proxies.

    Raises:
        NotPulled, OtherBytes: One cannot be had, or is another file.
    """
    if client is None:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as own:
            return pull(entry, folder, source=source, client=own)
    files = []
    for release in entry.files:
        file = folder / release.name
        url = f"{source.rstrip('/')}/{release.name}" if source else ""
        with _bar(release.name) as progress:
            download(release, file, url=url, client=client, progress=progress)
        keep_checksum(file, release.sha256)
        files.append(file)
    if entry.names:
        names = files[0].with_name(f"{files[0].name}.names")
        names.write_text("".join(f"{name}\n" for name in entry.names), encoding="utf-8")
    return tuple(files)


def used(entry: Entry, files: Sequence[Path]) -> Iterator[str]:
    """How it is served, as commands to copy."""
    if entry.kind == "detector":
        yield f"Look at it:  labelloop models inspect {files[0]} --image PHOTO"
        yield f"Serve it:    labelloop models add {files[0]} --activate"
        return
    yield "Serve it to smart tools, with these in the environment or in settings.env, then start the ML backend again:"
    yield f"  LABELLOOP_SMART_ENCODER={files[0]}"
    yield f"  LABELLOOP_SMART_DECODER={files[1]}"


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A progress bar on a terminal's standard error; a line now and then elsewhere."""
    if not sys.stderr.isatty():
        said = time.monotonic()

        def say(done: int, whole: int | None) -> None:
            nonlocal said
            if time.monotonic() - said > 10:
                said = time.monotonic()
                of = f" of {whole / 1e6:.1f}" if whole else ""
                print(f"  {name}: {done / 1e6:.1f}{of} MB", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(name, total=None)
        yield lambda done, whole: bar.update(row, completed=done, total=whole)
