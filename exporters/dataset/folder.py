"""Write a format's files to a folder on the disk; paths that lead out of it are refused."""

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from exporters.errors import DatasetDamaged
from labelloop.service.store import Store


class DiskTree:
    """An `exporters.formats.base.OutputTree` in a folder on the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._created: set[str] = set()
        self.files = 0

    def write(self, path: str, data: bytes) -> None:
        """See `OutputTree.write`."""
        self._path(path).write_bytes(data)

    def open(self, path: str) -> BinaryIO:
        """See `OutputTree.open`."""
        return self._path(path).open("wb")

    def scratch(self) -> AbstractContextManager[BinaryIO]:
        """See `OutputTree.scratch`."""
        self._root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._root)

    def _path(self, path: str) -> Path:
        file = safe_join(self._root, path)
        folder = path.rpartition("/")[0]
        if folder not in self._created:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._created.add(folder)
        self.files += 1
        return file


def safe_join(folder: Path, path: str) -> Path:
    """Join a folder and a relative path.

    Raises:
        DatasetDamaged: the path leads out of the folder.
    """
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\\" in path:
        raise DatasetDamaged(url=str(folder), key=path, reason="the path leads out of the folder")
    return folder.joinpath(*parts)


def local_folder(store: Store) -> Path | None:
    """Return the folder of a store on this machine's disk; None for a bucket."""
    return Path(unquote(urlsplit(store.url).path)) if store.url.startswith("file://") else None
