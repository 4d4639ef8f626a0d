"""Read the CPU count, and handle file permissions and full-disk errors of the operating system."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def available_cores() -> int:
    """The number of CPU cores that this process may use: its CPU affinity where the system has one, else all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def annotate_enospc(folder: Path) -> Iterator[None]:
    """Add `folder` to a disk-full error (ENOSPC, EDQUOT, EFBIG) that names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def restrict_to_owner(home: Path) -> None:
    """Make the home folder and its content accessible to the owner only, and set the umask for new files.

    New files get mode 0600 and new folders 0700, also those of child processes. The content of a folder that was
    already private is not touched.
    """
    os.umask(0o077)
    home.mkdir(parents=True, exist_ok=True)
    was_open = _drop_group_and_other_access(home)
    for path in home.iterdir():
        if (_drop_group_and_other_access(path) or was_open) and path.is_dir():
            restrict_tree_to_owner(path)


def restrict_tree_to_owner(folder: Path) -> None:
    """Make a folder and everything below it accessible to the owner only; virtual environments are skipped."""
    for path, folders, files in os.walk(folder):
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        for name in (".", *folders, *files):
            _drop_group_and_other_access(Path(path, name))


def _drop_group_and_other_access(path: Path) -> bool:
    """Remove the group and other permission bits; returns whether any were set."""
    with suppress(OSError):  # the file belongs to another user, or the file system has no modes
        file_stat = path.lstat()
        if file_stat.st_uid == os.getuid() and file_stat.st_mode & 0o077 and not stat.S_ISLNK(file_stat.st_mode):
            path.chmod(file_stat.st_mode & 0o700)
            return True
    return False
