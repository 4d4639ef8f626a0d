"""Read what a training is given: a labelled folder, or a version of a data set that `labelloop export` published."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelloop.labeling.splits import split_of
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, is_bucket_url, open_store
from ml_backend.errors import DatasetUnreadable
from ml_backend.training.datasets import LocalImage, read_labelled

# Formats in which a version of a data set is pulled, the richest first.
PULLED_AS = ("coco", "voc", "yolo-detect")


@dataclass(frozen=True)
class TrainingData:
    """Labelled images with their origin.

    Attributes:
        images: Sorted by name.
        source: Where they come from, as given.
        version: The version of a published data set, else a checksum of names and labels.
        notes: Items that were left out, in words.
    """

    images: tuple[LocalImage, ...]
    source: str
    version: str
    notes: tuple[str, ...]

    @property
    def boxes(self) -> int:
        """Number of boxes."""
        return sum(len(image.labels) for image in self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return tuple(sorted({label for image in self.images for label in image.labels}))

    def by_split(self) -> tuple[list[LocalImage], list[LocalImage]]:
        """(trained on, tested on) images by the data set's own folders: those of `val` and `test` are tested on.

        All are trained on where it has no such folders, or none but them.
        """
        tested = {
            image.name for image in self.images if {split_of(part) for part in image.name.split("/")} & {"val", "test"}
        }
        trained = [image for image in self.images if image.name not in tested]
        if not any(image.labels for image in trained):
            return list(self.images), []
        return trained, [image for image in self.images if image.name in tested]


def read_training_data(source: str, *, images: Path | None = None, settings: Settings) -> TrainingData:
    """Read a folder in any format that `labelloop learn simulate` reads, or a published data set by its address.

    Args:
        source: A folder, a COCO JSON file, or a data set of `labelloop export` (a folder, file://, s3://, gs:// or az://).
        images: Folder of the images where they are not below `source`.
        settings: Locate the home folder and the store.

    Raises:
        DatasetUnreadable: There is no labelled image.
        DatasetError: The annotations cannot be read.
    """
    if _is_published(source, settings):
        return _pulled(source, images, settings)
    if is_bucket_url(source):
        raise DatasetUnreadable(
            path=Path(source),
            reason="it is not a data set of `labelloop export`",
            fix="Download it, and give its folder.",
        )
    path = Path(source.removeprefix("file://")).expanduser().absolute()
    if path.suffix.lower() == ".zip":
        raise DatasetUnreadable(path=path, reason="it is packed", fix="Unpack it, and give its folder.")
    folder = images or (path if path.is_dir() else path.parent)
    data = read_labelled(folder.expanduser().absolute(), path, settings=settings)
    notes = tuple(f"{problem.item}: {problem.reason}" for problem in data.problems)
    return TrainingData(data.images, source, _checksum(data.images), notes)


def _is_published(source: str, settings: Settings) -> bool:
    try:
        return open_store(_address(source), settings).exists("HEAD.json")
    except (StoreError, ValueError, OSError):
        return False


def _address(source: str) -> str:
    return source if "://" in source else f"file://{Path(source).expanduser().absolute()}"


def _pulled(source: str, images: Path | None, settings: Settings) -> TrainingData:
    """Pull the latest version into the home folder by `labelloop dataset pull`, and read it there."""
    key = hashlib.sha256(_address(source).encode()).hexdigest()[:12]
    messages: list[str] = []
    for name in PULLED_AS:
        folder = settings.home / "train" / "data" / f"{key}-{name}"
        command = [sys.executable, "-m", "labelloop.cli.main", "dataset", "pull", _address(source), "--format", name]
        done = subprocess.run([*command, "--to", str(folder)], capture_output=True, text=True, check=False)
        messages = [line.strip() for line in done.stderr.strip().splitlines()]
        version = done.stdout.split(maxsplit=1)[0] if done.stdout.strip() else ""
        if not version:
            continue  # the version has no such format
        try:
            data = read_labelled(images or folder, folder, settings=settings)
        except DatasetUnreadable as error:
            reason = f"{error.reason}; `labelloop dataset pull` says: {' '.join(messages)[:400]}"
            raise DatasetUnreadable(path=Path(source), reason=reason if done.returncode else error.reason) from error
        notes = [f"{problem.item}: {problem.reason}" for problem in data.problems]
        return TrainingData(data.images, source, version, (*notes, *(messages if done.returncode else [])))
    raise DatasetUnreadable(path=Path(source), reason=f"`labelloop dataset pull` says: {' '.join(messages[-2:])[:300]}")


def _checksum(images: Sequence[LocalImage]) -> str:
    """12 hex digits over names, boxes and labels."""
    digest = hashlib.sha256()
    for line in _lines(images):
        digest.update(line.encode())
    return digest.hexdigest()[:12]


def _lines(images: Sequence[LocalImage]) -> Iterator[str]:
    for image in images:
        yield json.dumps([image.name, [list(map(float, box)) for box in image.boxes], list(image.labels)])
