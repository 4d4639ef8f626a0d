"""`labelloop models pull`: download all files of a catalogue entry and print how to use them."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from labelloop.service.errors import LabelloopError
from ml_backend.catalogue.download import TIMEOUT_S, Progress, download
from ml_backend.catalogue.entries import CATALOGUE, CatalogueEntry
from ml_backend.checksums import write_checksum


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return the entry of a name. Raises LabelloopError."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise LabelloopError(
            f"The catalogue has no model {name!r}.",
            fix=f"It has: {', '.join(CATALOGUE)}. Add a model file of your own with `labelloop models add FILE.onnx`.",
            code="catalogue_unknown",
            status=404,
        ) from None


def catalogue_lines() -> Iterator[str]:
    """Yield the catalogue, one model per line."""
    width = max(map(len, CATALOGUE))
    for name, entry in CATALOGUE.items():
        yield f"{name:<{width}}  {entry.purpose}; {entry.licence}"


def pull(
    entry: CatalogueEntry, folder: Path, *, source: str = "", client: httpx.Client | None = None
) -> tuple[Path, ...]:
    """Download every file of an entry and check it.

    Args:
        entry: The model.
        folder: Destination; class names that a detector lacks are written next to it as `<file>.names`.
        source: URL of a folder that mirrors the files; empty: their publisher's.
        client: Default: one that follows redirects and uses the environment's proxies.

    Raises:
        NotPulled, OtherBytes: A download failed, or a checksum differs.
    """
    if client is None:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as own:
            return pull(entry, folder, source=source, client=own)
    files = []
    for release in entry.files:
        file = folder / release.name
        url = f"{source.rstrip('/')}/{release.name}" if source else ""
        with _progress_bar(release.name) as progress:
            download(release, file, url=url, client=client, progress=progress)
        write_checksum(file, release.sha256)
        files.append(file)
    if entry.names:
        names = files[0].with_name(f"{files[0].name}.names")
        names.write_text("".join(f"{name}\n" for name in entry.names), encoding="utf-8")
    return tuple(files)


def usage_lines(entry: CatalogueEntry, files: Sequence[Path]) -> Iterator[str]:
    """Yield how to serve it, as commands to copy."""
    if entry.kind == "detector":
        yield f"Look at it:  labelloop models inspect {files[0]} --image IMAGE"
        yield f"Serve it:    labelloop models add {files[0]} --activate"
        return
    yield "Serve it to smart tools: set these in the environment or in settings.env, then restart the ML backend:"
    yield f"  LABELLOOP_SMART_ENCODER={files[0]}"
    yield f"  LABELLOOP_SMART_DECODER={files[1]}"


@contextmanager
def _progress_bar(name: str) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere a line on standard error every 10 seconds."""
    if not sys.stderr.isatty():
        last_printed = time.monotonic()

        def print_progress(done: int, total: int | None) -> None:
            nonlocal last_printed
            if time.monotonic() - last_printed > 10:
                last_printed = time.monotonic()
                of = f" of {total / 1e6:.1f}" if total else ""
                print(f"  {name}: {done / 1e6:.1f}{of} MB", file=sys.stderr, flush=True)

        yield print_progress
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
