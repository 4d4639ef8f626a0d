"""Checksums of model files: `<file>.sha256` beside a file says what its bytes must be, as `sha256sum` writes it."""

import hashlib
import time
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ml_backend.errors import ModelBroken

FRESH_S = 2.0
"""A file that changed so lately is read again in any case: a clock tick may hide a second change."""


class ModelDamaged(ModelBroken):
    """The bytes of a model file are not those that it is known by."""

    code: ClassVar[str] = "model_damaged"


def sidecar_of(file: Path) -> Path:
    """Where the checksum of a file is kept."""
    return file.with_name(f"{file.name}.sha256")


def keep_checksum(file: Path, checksum: str = "") -> None:
    """Writes the checksum of a file beside it; empty: that of the bytes that are there now."""
    sidecar_of(file).write_text(f"{checksum or checksum_now(file)}  {file.name}\n", encoding="utf-8")


def checksum_now(file: Path) -> str:
    """SHA-256 of a file in hex; read again only where its size, times or inode changed. Raises OSError."""
    stat = file.stat()
    state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if time.time() - max(stat.st_mtime, stat.st_ctime) < FRESH_S:
        return _checksum.__wrapped__(file, state)
    return _checksum(file, state)


def check_file(file: Path, *, fix: str = "") -> None:
    """Compares a file with the checksum beside it; without one nothing is known.

    Raises:
        ModelDamaged: It has other bytes.
    """
    try:
        wanted = sidecar_of(file).read_text(encoding="utf-8").split()[0]
    except FileNotFoundError:
        return
    except (OSError, ValueError, IndexError) as error:
        raise ModelDamaged(
            file, f"{sidecar_of(file).name} beside it cannot be read ({error})", fix=fix or _FIX
        ) from None
    if checksum_now(file) != wanted.lower():
        raise ModelDamaged(file, f"its bytes are not those of {sidecar_of(file).name} beside it", fix=fix or _FIX)


_FIX = (
    "Get the file again (`labelloop models pull NAME`, or install labelloop again for its own models). Where it was "
    "replaced on purpose, remove the .sha256 file."
)


@lru_cache(maxsize=256)
def _checksum(file: Path, state: tuple[int, ...]) -> str:
    del state
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
