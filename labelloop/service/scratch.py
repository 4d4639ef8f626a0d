"""Folders for files on their way: removed at the end, or by the next process where their own was killed."""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelloop.service.disk import annotate_enospc

PREFIX = "labelloop-"
LOCK_NAME = ".lock"
_NEW_S = 60.0
"""A folder without a lock this young may be about to get one."""


@contextmanager
def scratch_folder(inside: Path | None = None) -> Iterator[Path]:
    """A new folder, removed at the end; by default where temporary files are.

    Its lock is held as long as this process lives: what a killed one left is removed first.
    """
    parent = inside or Path(tempfile.gettempdir())
    for left in leftover_folders(parent):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with annotate_enospc(parent), (folder / f"{LOCK_NAME}-new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Under the name that others look at it is never seen unlocked: they would take the folder for a dead one's.
            (folder / f"{LOCK_NAME}-new").rename(folder / LOCK_NAME)
            yield folder


def leftover_folders(parent: Path) -> list[Path]:
    """Scratch folders below `parent` whose process has ended without removing them."""
    return [folder for folder in parent.glob(f"{PREFIX}*") if folder.is_dir() and not is_in_use(folder, unlocked=True)]


def is_in_use(folder: Path, *, unlocked: bool = False) -> bool:
    """Whether a living process holds a folder's lock.

    Args:
        folder: A folder that `scratch_folder` may have made.
        unlocked: What is said of a folder without a lock file: it is not of ours, or just being made.
    """
    try:
        with (folder / LOCK_NAME).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return unlocked
    except OSError:  # held, or another user's
        return True
    return False


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    total = 0
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with suppress(OSError):
            total += each.stat().st_size if each.is_file() else 0
    return total


def is_older(path: Path, before: float) -> bool:
    """Whether a path was last changed before a time (seconds since the epoch); False where it has gone."""
    try:
        return path.stat().st_mtime < min(before, time.time() - _NEW_S)
    except OSError:
        return False
