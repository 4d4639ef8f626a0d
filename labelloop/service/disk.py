"""Files of the home folder: readable by their owner alone, and a full disk named by its place."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def annotate_enospc(folder: Path) -> Iterator[None]:
    """Name `folder` in the error of a write below it that found no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def keep_private(home: Path) -> None:
    """Make the home folder and what is in it readable by its owner alone, now and whatever this process writes.

    New files get 0600 and new folders 0700, also those of programs that this one starts. What lies in folders that
    are closed already is left as it is.
    """
    os.umask(0o077)
    home.mkdir(parents=True, exist_ok=True)
    was_open = _close(home)
    for path in home.iterdir():
        if (_close(path) or was_open) and path.is_dir():
            close_to_others(path)


def close_to_others(folder: Path) -> None:
    """Make a folder and all below it readable by its owner alone, but for virtual environments, which are programs."""
    for path, folders, files in os.walk(folder):
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        for name in (".", *folders, *files):
            _close(Path(path, name))


def _close(path: Path) -> bool:
    """Take its mode from others; returns whether it had any for them."""
    with suppress(OSError):  # another user's, or a file system without modes
        state = path.lstat()
        if state.st_uid == os.getuid() and state.st_mode & 0o077 and not stat.S_ISLNK(state.st_mode):
            path.chmod(state.st_mode & 0o700)
            return True
    return False
