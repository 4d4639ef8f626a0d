"""Write many files to a folder in one batch: each atomically, all of them synced to disk on return."""

import ctypes
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_parts(items: Sequence[tuple[str, bytes | Path]], folder: str, *, move_from: str) -> list[str]:
    """Write each item to a numbered file in ``folder``, then sync all of them to disk with one call.

    Args:
        items: (key, content or file) pairs; files below ``move_from`` are moved, others are copied.
        folder: Output folder.
        move_from: Scratch folder on the same disk.

    Returns:
        The paths written, in the order of the items.
    """
    parts = []
    for index, (_, data) in enumerate(items):
        path = f"{folder}/{index}"
        if isinstance(data, bytes):
            write_new_file(path, data)
        elif str(data).startswith(f"{move_from}/"):
            os.replace(data, path)  # noqa: PTH105 - called for each file: strings are faster than Path
        else:
            shutil.copyfile(data, path)
        parts.append(path)
    if parts:
        sync_disk(folder)
    return parts


def write_new_file(path: str, data: bytes) -> None:
    """Write a file that does not exist yet.

    Raises:
        FileExistsError: It exists.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(handle, remaining) :]
    finally:
        os.close(handle)


def move_parts(parts: Sequence[str], targets: Sequence[str]) -> None:
    """Move each part to its target, create missing folders, and sync the folders to disk."""
    folders: dict[str, None] = {}
    for part, target in zip(parts, targets, strict=True):
        parent = target.rpartition("/")[0]
        for last in (False, False, False, True):
            if parent not in folders:
                os.makedirs(parent, exist_ok=True)  # noqa: PTH103 - called for each file
                folders[parent] = None
            try:
                os.replace(part, target)  # noqa: PTH105
                break
            except FileNotFoundError:  # the empty folder was removed in the meantime
                if last:
                    raise
                del folders[parent]
    for folder in folders:
        sync_folder(folder)


def sync_folder(folder: str | Path) -> None:
    """Sync a folder to disk, so that renames in it are durable."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:  # some file systems cannot sync a folder; the rename is atomic anyway
        return


def sync_disk(folder: str) -> None:
    """Sync the file system of the folder to disk: one call for any number of files."""
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
