"""Read semantic masks as `labelloop export --format semantic-png` writes them: ``masks/**.png`` and ``classes.json``.

All pixels of a class are one object of the image: a mask of classes does not say where one object ends.
"""

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import msgspec
import numpy as np

from labelloop.labeling.splits import split_of
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.mask_files import SEMANTIC_CLASSES, SEMANTIC_FOLDER, read_png
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import mask_from_array
from labelloop.service.datasets.text import decode_json

_ONE_OBJECT = "the pixels of a class of an image are one object"


class _Class(msgspec.Struct):
    id: int
    name: str


class _Classes(msgspec.Struct):
    classes: list[_Class]
    ignore_index: int = 255
    ignored_labels: list[str] = []
    background: int = 0


def has_semantic_masks(files: DatasetFiles) -> bool:
    """Whether a folder has masks and the list of their classes."""
    return SEMANTIC_CLASSES in files.names and any(_is_mask(name) for name in files.names)


def read_semantic_masks(files: DatasetFiles, images: ImageFiles) -> DataSet:
    """Read the masks of a folder.

    Args:
        files: The files of the data set.
        images: Its image files, of the same names in ``images/``.

    Raises:
        DatasetError: There are no masks, or their classes cannot be read.
    """
    masks = [name for name in files.names if _is_mask(name)]
    if not masks or SEMANTIC_CLASSES not in files.names:
        raise DatasetError(files.location, f"it has no {SEMANTIC_FOLDER}/ next to a {SEMANTIC_CLASSES}")
    try:
        sheet = decode_json(files.read(SEMANTIC_CLASSES), _Classes)
    except MalformedData as error:
        fix = 'It has {"classes": [{"id": 1, "name": "car"}], "ignore_index": 255}.'
        raise DatasetError(f"{files.location}/{SEMANTIC_CLASSES}", str(error), fix=fix) from None
    names = {entry.id: entry.name for entry in sheet.classes if entry.id != sheet.background}
    if sheet.ignored_labels:
        names[sheet.ignore_index] = sheet.ignored_labels[0]

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name in masks:
            yield from _read_mask(name, files, images, names, sheet)

    return DataSet("semantic-png", read, tuple(dict.fromkeys(names.values())), notes=(_ONE_OBJECT,))


def _is_mask(name: str) -> bool:
    return name.startswith(f"{SEMANTIC_FOLDER}/") and name.lower().endswith(".png")


def _read_mask(
    file: str, files: DatasetFiles, images: ImageFiles, names: Mapping[int, str], sheet: _Classes
) -> Iterator[DatasetImage | DatasetProblem]:
    stem = posixpath.splitext(file.removeprefix(f"{SEMANTIC_FOLDER}/"))[0]
    file_name = images.find(f"images/{stem}") or images.find(stem)
    split = next(filter(None, map(split_of, PurePosixPath(stem).parts[:-1])), "")
    measured = images.size(file_name) if file_name is not None else (0, 0)
    size = (0, 0) if isinstance(measured, str) else measured
    image, where = DatasetImage(file_name or stem, *size, split=split), f"{file}, a mask"
    try:
        pixels = read_png(files.read(file), size)
    except MalformedData as error:
        yield DatasetProblem(where, str(error))
        yield msgspec.structs.replace(image, unread=1)
        return
    if pixels.ndim != 2:
        yield DatasetProblem(
            where, "a PNG of colours, not of class numbers; write it with a palette (mode P) or in grey"
        )
        yield msgspec.structs.replace(image, unread=1)
        return
    objects, unread = [], 0
    for number in np.unique(pixels).tolist():
        if number in names:
            objects.append(LabelledObject(mask_from_array(pixels == number), names[number]))
        elif number not in {sheet.background, sheet.ignore_index}:
            unread += 1
            yield DatasetProblem(where, f"its pixels of the number {number} are of no class in {SEMANTIC_CLASSES}")
    height, width = pixels.shape
    yield msgspec.structs.replace(image, width=width, height=height, objects=tuple(objects), unread=unread)
