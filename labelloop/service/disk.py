"""`full_disk_named`: the place of a disk that is full, which a failed write does not say by itself."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
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
