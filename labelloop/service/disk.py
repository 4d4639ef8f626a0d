"""Files of the home folder: readable by their owner alone, and a full disk named by its place."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Name `folder` in the error of a write below it that found no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def keep_private(home: Path) -> None:
    """Make the home folder and what is in it readable by its owner alone, now and whatever this process writes.

    New files get 0600 and new folders 0700, also those of programs that this one starts. Folders of programs (the
    virtual environment of Label Studio) hold no secrets and are left as they are, below a closed folder.
    """
    os.umask(0o077)
    home.mkdir(parents=True, exist_ok=True)
    for path in (home, *home.iterdir()):
        with suppress(OSError):  # another user's, or a file system without modes
            mode = path.stat().st_mode
            if path.stat().st_uid == os.getuid() and mode & 0o077 and not path.is_symlink():
                path.chmod(mode & 0o700)
