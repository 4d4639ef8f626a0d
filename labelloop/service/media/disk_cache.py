"""`DiskCache`: a size-bounded folder of files by key, shared by threads and processes.

Files are written to a temporary name and renamed, and read through an open handle, so that eviction does not affect
readers. On concurrent misses of a key one caller fetches and the others wait. The folder is private to its owner.
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
_STALE_S = 3600.0  # a partial file this old was left by a killed process


class DiskCache:
    """A size-bounded folder of files; least recently used files are evicted.

    Args:
        folder: The folder, created on first use. Several processes may share it.
        max_bytes: Maximum size. Checked when files are added: each process may exceed it by 1/32 temporarily, and by
            what it adds while another one evicts; a file larger than the maximum is kept until the next one is added.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._added_bytes = max_bytes  # bytes since the last check; the first addition triggers one
        self._lock = threading.Lock()

    def path(self, identity: str, fetch: Callable[[BinaryIO], None]) -> Path:
        """The path of a cached file, fetched on a miss.

        Args:
            identity: The cache key; stored as a SHA-256 hash, so it may contain secrets.
            fetch: Writes the content into an open file. If it raises, nothing is cached.
        """
        path = self._file(identity)
        if self._touch(path):
            return path
        with self._key_lock(path.name):
            if not self._touch(path):
                self._add(path, fetch)
        return path

    def has(self, identity: str) -> bool:
        """Whether a file is cached now."""
        return self._file(identity).exists()

    @contextmanager
    def open(self, identity: str, fetch: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
        """The cached file, open for reading; eviction does not affect it."""
        while True:
            try:
                file = self.path(identity, fetch).open("rb")
            except FileNotFoundError:  # evicted in the meantime
                continue
            with file:
                yield file
            return

    def remove(self, identity: str) -> None:
        """Remove a file from the cache."""
        self._file(identity).unlink(missing_ok=True)

    def _file(self, identity: str) -> Path:
        name = hashlib.sha256(identity.encode()).hexdigest()
        return self._folder / name[:2] / name

    @staticmethod
    def _touch(path: Path) -> bool:
        try:
            os.utime(path)  # eviction is by modification time
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
        self._account(size, path)

    def _account(self, size: int, new_file: Path) -> None:
        with self._lock:
            self._added_bytes += size
            added = self._added_bytes
            if added < self._max_bytes / 32:
                return
            self._added_bytes = 0
        if not self._evict(new_file):
            with self._lock:
                self._added_bytes += added  # another process evicts, perhaps without our file: the next addition tries

    def _evict(self, new_file: Path) -> bool:
        """Delete the least recently used files above the maximum; False while another process or thread does."""
        with self._locked("evict", wait=False) as is_locked:
            if not is_locked:
                return False
            files = []
            for path in self._folder.glob("??/*"):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    if path.suffix != ".part":
                        files.append((stat.st_mtime_ns, stat.st_size, path))
                    elif stat.st_mtime < time.time() - _STALE_S:
                        path.unlink()
            total = sum(size for _, size, _ in files)
            target = self._max_bytes - self._max_bytes // 8
            if total <= self._max_bytes - self._max_bytes // 32:
                return True
            for _, size, path in sorted(files):
                if total <= target:
                    break
                if path != new_file:
                    path.unlink(missing_ok=True)
                    total -= size
            return True

    @contextmanager
    def _key_lock(self, name: str) -> Iterator[None]:
        with self._locked(f"{int(name[:8], 16) % _STRIPES:03x}", wait=True):
            yield

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock file against other threads and processes; it is released when its holder dies."""
        locks = self._folder / "locks"
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (locks / name).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
