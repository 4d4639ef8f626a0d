"""The folder that a version is pulled into: what is laid out takes its place whole, and an older pull goes with it.

Labels of one version among those of another would be trained on. So a pull is laid out in a folder of its own beneath
the target, and moved when it is whole; what an earlier pull of another version had put there goes. Everything else in
the folder (a trainer's runs, a script) stays, and is never written over.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from exporters.errors import InTheWay
from exporters.model.manifest import DROPPED, IMAGES
from exporters.model.records import Image

TABLES = (f"{IMAGES}.jsonl", f"{DROPPED}.jsonl")
_MARK = ".pulled"
_STAGE = ".pulling"


class _Mark(msgspec.Struct, frozen=True):
    """What was pulled into a folder: the checksum of its tables, and the entries of the folder that are its own.

    It tells one state of a data set from another, and nothing of where it came from: the same data gives the same
    folder, to the byte.
    """

    tables: str
    entries: tuple[str, ...]


class Staging:
    """Lays out beneath ``to``; nothing of ``to`` changes before `put`. Use it as a context: what is not put goes.

    Args:
        to: The folder; it is made.

    Attributes:
        root: Where to lay out.
    """

    def __init__(self, to: Path) -> None:
        self.root = to / _STAGE
        self._to = to
        self._before = _mark(to)
        shutil.rmtree(self.root, ignore_errors=True)  # of a pull that was killed
        self.root.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def check(self, *more: str) -> None:
        """Tell what is in the way, before photos are fetched; ``more`` are entries that are still to be laid out.

        Raises:
            InTheWay: the folder holds something of somebody else under a name that is ours.
        """
        ours = set(self._before.entries) if self._before else set()
        names = {*(path.name for path in self.root.iterdir() if not path.name.startswith(".")), *more}
        if taken := sorted(name for name in names - ours if (self._to / name).exists()):
            raise InTheWay(str(self._to / taken[0]))

    def earlier(self) -> Iterator[Image]:
        """The images of the earlier pull, as they lie there."""
        path = self._to / TABLES[0]
        if self._before is None or not path.is_file():
            return
        decode = msgspec.json.Decoder(Image).decode
        with path.open("rb") as lines:
            yield from map(decode, lines)

    def put(self) -> None:
        """Move what was laid out to its place."""
        self.check()
        entries, tables = {path.name for path in self.root.iterdir()}, _checksum(self.root)
        before = set(self._before.entries) if self._before else set()
        self._write(_Mark("", tuple(sorted(entries | before))))  # a kill from here on leaves nothing that is nobody's
        if self._before and self._before.tables == tables:  # another format of it, or the photos after the labels
            entries |= before
            self._merge()
        else:
            for name in before:
                _remove(self._to / name)
            for path in self.root.iterdir():
                path.replace(self._to / path.name)
        self._write(_Mark(tables, tuple(sorted(entries))))
        self.discard()

    def discard(self) -> None:
        """Remove what was not put in place."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _write(self, mark: _Mark) -> None:
        (self._to / _MARK).write_bytes(msgspec.json.encode(mark) + b"\n")

    def _merge(self) -> None:
        for path in list(self.root.rglob("*")):
            place = self._to / path.relative_to(self.root)
            if path.is_dir() and not path.is_symlink():
                place.mkdir(exist_ok=True)
            else:
                path.replace(place)


def _checksum(root: Path) -> str:
    digest = hashlib.sha256()
    for name in TABLES:
        with (root / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _mark(to: Path) -> _Mark | None:
    try:
        mark = msgspec.json.decode((to / _MARK).read_bytes(), type=_Mark)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return mark if all(name and name not in {".", ".."} and "/" not in name for name in mark.entries) else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
