"""The labelled images of a project as a trainer on another machine gets them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from ml_backend.finetune.protocol import TrainingImage, TrainingSet
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.store.annotations import TrainingDataStore

# Most images of a set; the latest tasks count.
MAX_IMAGES = 50_000


def training_set(store: TrainingDataStore, project: int) -> tuple[TrainingSet, tuple[str, ...]]:
    """Return the data that a project is trained on, without held-out tasks, and its classes in order."""
    images = tuple(
        TrainingImage(f"{task}-{index}", photo.width, photo.height, photo.boxes, photo.labels)
        for task, index, photo in _images(store, project)
    )[-MAX_IMAGES:]
    version = hashlib.sha256(msgspec.json.encode(images)).hexdigest()[:12]
    return TrainingSet(version, images), tuple(sorted({label for image in images for label in image.labels}))


def image_address(store: TrainingDataStore, project: int, name: str) -> tuple[int, str] | None:
    """Return (task, URL) of an image of the set by its name; None if it has none of this name."""
    task, _, index = name.partition("-")
    if not (task.isdecimal() and index.isdecimal() and len(task) < 10 and len(index) < 6):
        return None
    for number, _, photos in store.training_tasks(project, "teaches", only=[int(task)]):
        if int(index) < len(photos):
            return number, photos[int(index)].url
    return None


def _images(store: TrainingDataStore, project: int) -> Iterator[tuple[int, int, LabelledImage]]:
    for task, _, photos in store.training_tasks(project, "teaches"):
        for index, photo in enumerate(photos):
            yield task, index, photo
