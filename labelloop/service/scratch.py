"""Temporary folders that are removed at the end, or by the next process if their own was killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelloop.service.system import annotate_enospc

PREFIX = "labelloop-"
LOCK_NAME = ".lock"
# A younger folder without a lock may be about to get one, in seconds.
_NEW_S = 60.0


@contextmanager
def scratch_folder(inside: Path | None = None) -> Iterator[Path]:
    """Create a folder and remove it at the end; by default in the system's temporary folder.

    Its lock is held as long as this process lives. Folders of killed processes are removed first.
    """
    parent = inside or Path(tempfile.gettempdir())
    for leftover in leftover_folders(parent):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with annotate_enospc(parent), (folder / f"{LOCK_NAME}-new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Rename after locking: other processes must never see an unlocked lock file, or they remove the folder.
            (folder / f"{LOCK_NAME}-new").rename(folder / LOCK_NAME)
            yield folder


def leftover_folders(parent: Path) -> list[Path]:
    """Scratch folders below `parent` whose process ended without removing them."""
    return [folder for folder in parent.glob(f"{PREFIX}*") if folder.is_dir() and not is_in_use(folder)]


def is_in_use(folder: Path) -> bool:
    """Whether a running process holds a folder's lock. A folder without one is foreign or just being created: True.

    Args:
        folder: A folder that `scratch_folder` may have made.
    """
    try:
        with (folder / LOCK_NAME).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, owned by another user, or without a lock
        return True
    return False


def disk_usage(path: Path) -> int:
    """The size in bytes of a file, or of all files below a folder; files that are removed meanwhile count as 0."""
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    total = 0
    for file in files if path.is_dir() else (path,):
        with suppress(OSError):
            total += file.stat().st_size
    return total


def is_older(path: Path, before: float) -> bool:
    """Whether a path was last modified before a time (Unix timestamp); False if missing or under 60 s old."""
    try:
        return path.stat().st_mtime < min(before, time.time() - _NEW_S)
    except OSError:
        return False
