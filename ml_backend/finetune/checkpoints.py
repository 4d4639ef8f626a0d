"""Checkpoint files of trainings: one per model, data and recipe, few in all."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from ml_backend.finetune.recipe import Recipe

# Checkpoints of stopped trainings that are kept.
MAX_CHECKPOINTS = 3


def checkpoint_file(home: Path, model: Path, data_version: str, recipe: Recipe, *, fresh: bool = False) -> Path:
    """Path of the checkpoint of a training; the oldest of others are deleted.

    Args:
        home: labelloop's data folder.
        model: The model that is trained.
        data_version: Version of its data.
        recipe: Its options; the budget does not count, so that a training can go on for longer.
        fresh: Whether to delete the checkpoint itself.
    """
    folder = home / "train" / "checkpoints"
    digest = hashlib.sha256(model.read_bytes() if model.is_file() else str(model).encode())
    digest.update(f"{data_version} {replace(recipe, minutes=0.0)!r}".encode())
    file = folder / f"{digest.hexdigest()[:16]}.pt"
    if fresh:
        file.unlink(missing_ok=True)
    others = sorted((other for other in folder.glob("*.pt") if other != file), key=lambda other: other.stat().st_mtime)
    for other in others[: max(len(others) - MAX_CHECKPOINTS + 1, 0)]:
        other.unlink(missing_ok=True)
    return file
