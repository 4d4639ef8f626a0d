"""Write and verify checksums of model files: `<file>.sha256` next to each file, in the format of `sha256sum`."""

import hashlib
import time
from functools import lru_cache
from pathlib import Path

from ml_backend.errors import ModelBroken

# Files changed within this many seconds are always hashed again: a clock tick may hide a second change.
FRESH_S = 2.0


class ModelDamaged(ModelBroken):
    """The bytes of a model file do not match its checksum."""

    code = "model_damaged"


def sidecar_of(file: Path) -> Path:
    """Return the path of a file's checksum file."""
    return file.with_name(f"{file.name}.sha256")


def write_checksum(file: Path, checksum: str = "") -> None:
    """Write the checksum file of a model file; an empty checksum is computed from its current bytes."""
    sidecar_of(file).write_text(f"{checksum or file_checksum(file)}  {file.name}\n", encoding="utf-8")


def file_checksum(file: Path) -> str:
    """Return the SHA-256 of a file in hex, cached by size, times and inode. Raises OSError."""
    stat = file.stat()
    state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if time.time() - max(stat.st_mtime, stat.st_ctime) < FRESH_S:
        return _checksum.__wrapped__(file, state)
    return _checksum(file, state)


def verify_file(file: Path) -> None:
    """Compare a file with its checksum file; does nothing if there is none.

    Raises:
        ModelDamaged: The bytes differ, or the checksum file cannot be read.
    """
    try:
        wanted = sidecar_of(file).read_text(encoding="utf-8").split()[0]
    except FileNotFoundError:
        return
    except (OSError, ValueError, IndexError) as error:
        raise ModelDamaged(
            path=file, reason=f"its checksum file {sidecar_of(file).name} cannot be read ({error})", fix=_FIX
        ) from None
    if file_checksum(file) != wanted.lower():
        raise ModelDamaged(path=file, reason=f"its bytes do not match {sidecar_of(file).name}", fix=_FIX)


_FIX = (
    "Get the file again: `labelloop models pull NAME`, or reinstall labelloop for its own models. If it was replaced "
    "on purpose, remove the .sha256 file."
)


@lru_cache(maxsize=256)
def _checksum(file: Path, state: tuple[int, ...]) -> str:
    del state
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
