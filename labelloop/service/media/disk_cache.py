"""`DiskCache`: files by key in one folder, bounded by bytes, for many readers in many threads and processes.

A file appears whole (written beside, then renamed) and is read through an open handle, so that dropping it meanwhile
does no harm. Of several that miss the same key one fetches and the others wait. The folder is for its owner alone.
"""

import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_STRIPES = 1024
_STALE_S = 3600.0  # a part file this old was left by a process that was killed


class DiskCache:
    """A bounded folder of files.

    Args:
        folder: Where; made when first used. Several processes may share it.
        max_bytes: How much is kept. Checked as files are added: each process may be over by 1/32 of it for a
            moment, and a file that is larger than all of it is kept until the next one comes.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._added = max_bytes  # since the last look at the folder: the first addition looks
        self._lock = threading.Lock()

    def path(self, identity: str, fetch: Callable[[BinaryIO], None]) -> Path:
        """The file for an identity; fetched first if it is not there.

        Args:
            identity: What makes two contents the same; hashed (SHA-256, whole), so it may hold secrets.
            fetch: Writes the content into an open file. What it raises passes through, and nothing is kept.
        """
        path = self._file(identity)
        if self._touched(path):
            return path
        with self._one_at_a_time(path.name):
            if not self._touched(path):
                self._add(path, fetch)
        return path

    @contextmanager
    def opened(self, identity: str, fetch: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
        """The file for an identity, open for reading: it stays whole even if it is dropped meanwhile."""
        while True:
            try:
                file = self.path(identity, fetch).open("rb")
            except FileNotFoundError:  # dropped between the two
                continue
            with file:
                yield file
            return

    def drop(self, identity: str) -> None:
        """Forgets one file."""
        self._file(identity).unlink(missing_ok=True)

    def _file(self, identity: str) -> Path:
        name = hashlib.sha256(identity.encode()).hexdigest()
        return self._folder / name[:2] / name

    @staticmethod
    def _touched(path: Path) -> bool:
        try:
            os.utime(path)  # the oldest use goes first
        except FileNotFoundError:
            return False
        return True

    def _add(self, path: Path, fetch: Callable[[BinaryIO], None]) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        part = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                fetch(file)
                size = file.seek(0, os.SEEK_END)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._count(size, path)

    def _count(self, size: int, kept: Path) -> None:
        with self._lock:
            self._added += size
            if self._added < self._max_bytes / 32:
                return
            self._added = 0
        self._evict(kept)

    def _evict(self, kept: Path) -> None:
        with self._locked("evict", wait=False) as mine:
            if not mine:
                return
            files = []
            for path in self._folder.glob("??/*"):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    if path.suffix != ".part":
                        files.append((stat.st_mtime_ns, stat.st_size, path))
                    elif stat.st_mtime < time.time() - _STALE_S:
                        path.unlink()
            total = sum(size for _, size, _ in files)
            goal = self._max_bytes - self._max_bytes // 8
            if total <= self._max_bytes - self._max_bytes // 32:
                return
            for _, size, path in sorted(files):
                if total <= goal:
                    return
                if path != kept:
                    path.unlink(missing_ok=True)
                    total -= size

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        with self._locked(f"{int(name[:8], 16) % _STRIPES:03x}", wait=True):
            yield

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Holds a lock file against other threads and processes; it is let go when its holder dies."""
        locks = self._folder / "locks"
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (locks / name).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
