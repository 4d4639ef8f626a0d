"""Read labelled data sets from disk (VOC, YOLO, COCO) as boxes in pixels, and text files that list images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelloop.labeling.geometry.label_placement import LabelsMisplaced, place_boxes
from labelloop.service.datasets import (
    DatasetError,
    DatasetImage,
    DatasetProblem,
    DatasetSource,
    ImageFiles,
    open_source,
    read_dataset,
)
from labelloop.service.datasets.registry import detect_format
from labelloop.service.settings import Settings
from ml_backend.errors import DatasetUnreadable, TestListUnusable

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LocalImage:
    """A labelled image.

    Attributes:
        path: The image file.
        name: Its path below the image folder, with `/`.
        boxes: x_min, y_min, x_max, y_max in pixels of the image.
        labels: One per box.
    """

    path: Path
    name: str
    boxes: tuple[Box, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LocalDataset:
    """Labelled images.

    Attributes:
        images: Sorted by name.
        problems: The items of the data set that were skipped.
        folder: All images of the folder.
        scaled: Images whose labels are for another size of the same aspect ratio; their boxes are scaled.
    """

    images: tuple[LocalImage, ...]
    problems: tuple[DatasetProblem, ...]
    folder: ImageFiles
    scaled: int = 0

    def listed(self, file: Path) -> tuple[frozenset[str], Sequence[str]]:
        """Resolve a text file with one image name per line.

        Args:
            file: Names with or without folder and extension.

        Returns:
            The names of the images, and the lines that match no image.

        Raises:
            TestListUnusable: The file cannot be read.
        """
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise TestListUnusable(path=file, reason=str(why)) from error
        names = [line.strip() for line in lines if line.strip()]
        matches = {name: self.folder.find(name) for name in names}
        return frozenset(match for match in matches.values() if match), [
            name for name, match in matches.items() if not match
        ]


def read_labelled(images: Path, annotations: Path, *, settings: Settings | None = None) -> LocalDataset:
    """Read all annotated images in any format that `labelloop import` reads; polygons and masks become bounding boxes.

    Args:
        images: Root folder of the images.
        annotations: A folder of Pascal VOC XML or YOLO text files, or a COCO JSON file.
        settings: Read from the environment where None.

    Images whose labels are for other pixels are left out; see `label_placement`.

    Raises:
        DatasetError: No data set is found.
        DatasetUnreadable: It has no image that exists, or no box.
    """
    dataset = open_source(str(annotations), settings or Settings(), images=str(images))
    if not dataset.images.names:
        raise DatasetUnreadable(path=images, reason="it contains no image")
    images_by_name: dict[str, LocalImage] = {}
    problems: list[DatasetProblem] = []
    scaled = 0
    for entry in _read(dataset):
        name = entry.item if isinstance(entry, DatasetProblem) else dataset.images.find(entry.name)
        if isinstance(entry, DatasetProblem):
            problems.append(entry)
        elif name is None:
            problems.append(DatasetProblem(entry.name, f"{images} has no image of this name, or several"))
        elif name in images_by_name:
            problems.append(
                DatasetProblem(entry.name, "the data set describes this image twice; the first entry is used")
            )
        elif not entry.unread or entry.objects:  # an unreadable image is not an empty one
            drawn = [shape for shape in entry.objects if not shape.crowd]
            if entry.objects and not drawn:
                problems.append(DatasetProblem(entry.name, "it has only crowd regions"))
                continue
            size = dataset.images.size(name)
            if isinstance(size, str):
                problems.append(DatasetProblem(entry.name, size))
                continue
            boxes = np.array([shape.geometry.bounds for shape in drawn], np.float32).reshape(-1, 4)
            try:
                placed = place_boxes(boxes, (entry.width, entry.height), size)
            except LabelsMisplaced as error:
                problems.append(DatasetProblem(entry.name, str(error)))
                continue
            if not placed.kept.all():
                problems.append(DatasetProblem(entry.name, f"{(~placed.kept).sum()} of its boxes lie off the image"))
            scaled += placed.scaled_from is not None
            kept = [
                (tuple(box), shape.label)
                for box, shape, keep in zip(placed.boxes.tolist(), drawn, placed.kept, strict=True)
                if keep
            ]
            images_by_name[name] = LocalImage(
                images / name, name, tuple(box for box, _ in kept), tuple(label for _, label in kept)
            )
    if not any(entry.labels for entry in images_by_name.values()):
        reason = "none of its images has a box" if images_by_name else "none of its images can be used"
        raise DatasetUnreadable(path=annotations, reason=f"{reason}{_first(problems)}")
    return LocalDataset(
        tuple(images_by_name[name] for name in sorted(images_by_name)), tuple(problems), dataset.images, scaled
    )


def _read(dataset: DatasetSource) -> Iterator[DatasetImage | DatasetProblem]:
    try:
        return read_dataset(dataset).images()
    except DatasetError:
        if detect_format(dataset) != "yolo":
            raise
        # Rows may be rotated boxes or polygons; their bounding boxes are the same.
        return read_dataset(dataset, "yolo-segment").images()


def _first(problems: Sequence[DatasetProblem]) -> str:
    return f" ({problems[0].item}: {problems[0].reason})" if problems else ""
