"""Stage a pull in a temporary sub-folder, then move it into the target folder, replacing an earlier pull.

Mixed labels of two versions would be trained on. A pull is therefore written to a sub-folder of the target and moved
when it is complete; files of an earlier pull of another version are removed. Everything else in the target (a trainer's
runs, a script) stays and is never overwritten.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from exporters.errors import ExportError
from exporters.model.manifest import DROPPED, IMAGES
from exporters.model.records import Image

TABLES = (f"{IMAGES}.jsonl", f"{DROPPED}.jsonl")
_MARK_FILE = ".pulled"
_STAGE = ".pulling"


class _PullMark(msgspec.Struct, frozen=True):
    """What was pulled into a folder: the checksum of its tables, and the entries of the folder that belong to the pull.

    It identifies the state of a data set, not its origin: equal data gives an equal folder, to the byte.
    """

    tables: str
    entries: tuple[str, ...]


class Staging:
    """Stages files below ``to``; nothing else in ``to`` changes before `publish`. Use it as a context manager.

    Args:
        to: The target folder; it is created.

    Attributes:
        root: The folder to write to.

    Raises:
        ExportError: ``to`` is a file.
    """

    def __init__(self, to: Path) -> None:
        if to.exists() and not to.is_dir():
            raise ExportError(f"{to} is a file.", fix="Pass a folder.", code="in_the_way", status=409)
        self.root = to / _STAGE
        self._to = to
        self._previous = _read_mark(to)
        shutil.rmtree(self.root, ignore_errors=True)  # of an interrupted pull
        self.root.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def check(self, *more: str) -> None:
        """Check for conflicts before images are fetched; ``more`` are entries that will be added.

        Raises:
            ExportError: the target has an entry of another origin under one of our names.
        """
        own_entries = set(self._previous.entries) if self._previous else set()
        names = {*(path.name for path in self.root.iterdir() if not path.name.startswith(".")), *more}
        if occupied := sorted(name for name in names - own_entries if (self._to / name).exists()):
            raise ExportError(
                f"{self._to / occupied[0]} exists and was not pulled: it would be overwritten.",
                fix="Pass an empty folder or the folder of an earlier pull, or move it away.",
                code="in_the_way",
                status=409,
            )

    def previous_images(self) -> Iterator[Image]:
        """Yield the images of the earlier pull."""
        path = self._to / TABLES[0]
        if self._previous is None or not path.is_file():
            return
        decode = msgspec.json.Decoder(Image).decode
        with path.open("rb") as lines:
            yield from map(decode, lines)

    def publish(self) -> None:
        """Move the staged files into the target."""
        self.check()
        entries, tables = {path.name for path in self.root.iterdir()}, _checksum(self.root)
        before = set(self._previous.entries) if self._previous else set()
        # from here on an interruption leaves only entries that are listed
        self._write(_PullMark("", tuple(sorted(entries | before))))
        # another format of the same data, or its images after the labels
        if self._previous and self._previous.tables == tables:
            entries |= before
            self._merge()
        else:
            for name in before:
                _remove(self._to / name)
            for path in self.root.iterdir():
                path.replace(self._to / path.name)
        self._write(_PullMark(tables, tuple(sorted(entries))))
        self.discard()

    def discard(self) -> None:
        """Remove the staged files."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _write(self, mark: _PullMark) -> None:
        (self._to / _MARK_FILE).write_bytes(msgspec.json.encode(mark) + b"\n")

    def _merge(self) -> None:
        for path in list(self.root.rglob("*")):
            target = self._to / path.relative_to(self.root)
            if path.is_dir() and not path.is_symlink():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)


def _checksum(root: Path) -> str:
    digest = hashlib.sha256()
    for name in TABLES:
        with (root / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_mark(to: Path) -> _PullMark | None:
    try:
        mark = msgspec.json.decode((to / _MARK_FILE).read_bytes(), type=_PullMark)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return mark if all(name and name not in {".", ".."} and "/" not in name for name in mark.entries) else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
