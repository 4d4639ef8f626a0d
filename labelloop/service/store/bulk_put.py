"""Many files into a folder at once: each whole or not there, all of them on the disk when the call returns."""

import ctypes
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_parts(items: Sequence[tuple[str, bytes | Path]], folder: str, *, taken_from: str) -> list[str]:
    """Write each item to a file of its own in ``folder``, then all of them down to the disk with one call.

    Args:
        items: by their keys; files that lie below ``taken_from``, on the same disk, are moved, others are copied.
        folder: where to.
        taken_from: see ``items``.

    Returns:
        The paths written, in the order of the items.
    """
    paths = []
    for number, (_, data) in enumerate(items):
        path = f"{folder}/{number}"
        if isinstance(data, bytes):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            finally:
                os.close(handle)
        elif str(data).startswith(f"{taken_from}/"):
            os.replace(data, path)  # noqa: PTH105 - this runs once a file: no objects for paths
        else:
            shutil.copyfile(data, path)
        paths.append(path)
    if paths:
        _sync_disk(folder)
    return paths


def place_parts(parts: Sequence[str], places: Sequence[str]) -> None:
    """Move each part to its place, making folders where there are none, and make the moves last."""
    folders: dict[str, None] = {}
    for part, place in zip(parts, places, strict=True):
        parent = place.rpartition("/")[0]
        for last in (False, False, False, True):
            if parent not in folders:
                os.makedirs(parent, exist_ok=True)  # noqa: PTH103 - this runs once a file: no objects for paths
                folders[parent] = None
            try:
                os.replace(part, place)  # noqa: PTH105
                break
            except FileNotFoundError:  # somebody removed the emptied folder in between
                if last:
                    raise
                del folders[parent]
    for folder in folders:
        sync_folder(folder)


def sync_folder(folder: str | Path) -> None:
    """Make renames in a folder last: its own entry must reach the disk too."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:  # not every file system lets a folder be synced; the rename is atomic all the same
        return


def _sync_disk(folder: str) -> None:
    """Bring everything written to the folder's file system down to the disk: one call for any number of files."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):  # not Linux
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(handle):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)
