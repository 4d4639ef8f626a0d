"""A folder on the disk, as the place where a format's files are laid out; no path leads out of it."""

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from exporters.errors import DatasetDamaged


class Folder:
    """A folder on the disk as the place of a format's files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: set[str] = set()
        self.files = 0

    def write(self, path: str, data: bytes) -> None:
        """See `Place.write`."""
        self._path(path).write_bytes(data)

    def open(self, path: str) -> BinaryIO:
        """See `Place.open`."""
        return self._path(path).open("wb")

    def scratch(self) -> AbstractContextManager[BinaryIO]:
        """See `Place.scratch`."""
        self._root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._root)

    def _path(self, path: str) -> Path:
        place = inside(self._root, path)
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        self.files += 1
        return place


def inside(folder: Path, path: str) -> Path:
    """The place of a relative path in a folder.

    Raises:
        DatasetDamaged: the path leads out of the folder.
    """
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\\" in path:
        raise DatasetDamaged(str(folder), path, "the path leads out of the folder")
    return folder.joinpath(*parts)
