"""Checkpoint files of trainings: one per model, data and recipe, few in all."""

from __future__ import annotations

import hashlib
from contextlib import suppress
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
        fresh: Whether to delete the checkpoint itself, and what belongs to it.
    """
    folder = home / "train" / "checkpoints"
    digest = hashlib.sha256(model.read_bytes() if model.is_file() else str(model).encode())
    digest.update(f"{data_version} {replace(recipe, minutes=0.0)!r}".encode())
    file = folder / f"{digest.hexdigest()[:16]}.pt"
    trainings = _trainings(folder)
    own = trainings.pop(file.stem, [])
    oldest = list(trainings.values())[: max(len(trainings) - MAX_CHECKPOINTS + 1, 0)]
    for gone in (*oldest, *([own] if fresh else [])):
        for part in gone:
            part.unlink(missing_ok=True)
    return file


def _trainings(folder: Path) -> dict[str, list[Path]]:
    """The files of each training by its name, oldest training first: checkpoint, half a one, and figures of its trial.

    A kill leaves them in any combination.
    """
    dated = []
    for file in folder.glob("*.*"):
        with suppress(FileNotFoundError):  # another training has ended
            dated.append((file.stat().st_mtime, file))
    trainings: dict[str, list[Path]] = {}
    for _, file in sorted(dated, reverse=True):
        trainings.setdefault(file.name.partition(".")[0], []).append(file)
    return dict(reversed(trainings.items()))
