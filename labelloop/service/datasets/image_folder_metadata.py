"""Read Hugging Face ImageFolder: images with a ``metadata.jsonl`` or ``.csv`` in their folder, a row for each image.

Format: https://huggingface.co/docs/datasets/image_dataset#imagefolder. ``objects`` has ``bbox`` (x, y, width, height in
pixels) and ``category`` or ``categories``; ``label`` is the class of the image, ``text`` its captions, a line each.
"""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.sniff import HEAD_BYTES
from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import image_size_or_zero, parse_number, rectangle
from labelloop.service.datasets.text import decode_json, decode_text

METADATA = "metadata.jsonl"
_TABLE = "metadata.csv"
# Written by `labelloop export`: the class names by number.
_CLASSES = "classes.json"
_KNOWN = frozenset({"file_name", "image_id", "width", "height", "objects", "label", "text", "caption"})


def metadata_files(files: DatasetFiles) -> list[str]:
    """The metadata files of a folder and its subfolders."""
    lines = [name for name in files.names if PurePosixPath(name).name == METADATA]
    tables = [name for name in files.names if PurePosixPath(name).name == _TABLE]
    folders = set(map(posixpath.dirname, lines))
    return lines + [
        name for name in tables if posixpath.dirname(name) not in folders and is_table(files.start(name, HEAD_BYTES))
    ]


def is_table(data: bytes) -> bool:
    """Whether a CSV file has a row for each image, by its header."""
    header = data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].strip()
    return b"file_name" in [column.strip(b' "') for column in header.split(b",")]


def read_image_folder_metadata(files: DatasetFiles, images: ImageFiles, file: str = "") -> DataSet:
    """Read the metadata files of a folder, or one file.

    Args:
        files: The files of the data set.
        images: Its image files.
        file: The only file to read; empty: all.

    Raises:
        DatasetError: There is no metadata file, or one is not text.
    """
    names = [file] if file else metadata_files(files)
    if not names:
        raise DatasetError(files.location, f"it has no {METADATA}")
    try:
        texts = {name: decode_text(files.read(name)) for name in names}
        classes = _class_names(files)
    except MalformedData as error:
        raise DatasetError(files.location, f"its metadata cannot be read: {error}") from None
    labels, choices = dict.fromkeys(classes), dict[str, None]()
    unread: Counter[str] = Counter()
    for name, text in texts.items():
        for item in _read_file(text, name, images, classes, unread):
            if isinstance(item, DatasetImage):
                labels.update((obj.label, None) for obj in item.objects)
                choices.update((choice, None) for choice in item.choices)

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, text in texts.items():
            yield from _read_file(text, name, images, classes, Counter())

    counts = {f"column {column!r:.40}: not read": number for column, number in sorted(unread.items())}
    tables = [name for name in files.names if not file and PurePosixPath(name).name == _TABLE and name not in names]
    notes = [f"{name} is not read: its folder has a {METADATA}, or it has no column file_name" for name in tables]
    return DataSet(
        "imagefolder", read, tuple(labels), choices=tuple(sorted(choices)), notes=tuple(notes), counts=counts
    )


def _class_names(files: DatasetFiles) -> list[str]:
    if _CLASSES not in files.names:
        return []
    names = decode_json(files.read(_CLASSES))
    return [str(name).strip() for name in names] if isinstance(names, list) else []


def _rows(text: str, file: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a metadata file; `MalformedData` instead of a row that cannot be read."""
    if file.lower().endswith(".csv"):
        table = csv.DictReader(io.StringIO(text, newline=None), skipinitialspace=True, strict=True)
        last = 1
        try:
            for row in table:
                last = table.line_num
                if None in row:
                    yield last, MalformedData("more cells than columns: quote a text with commas")
                else:
                    yield last, {key: value for key, value in row.items() if value}
        except csv.Error as error:
            yield last + 1, MalformedData(f"this row and those after it are not read ({error})")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, decode_json(line.encode())
            except MalformedData as error:
                yield number, error


def _read_file(
    text: str, file: str, images: ImageFiles, classes: Sequence[str], unread: Counter[str]
) -> Iterator[DatasetImage | DatasetProblem]:
    folder = posixpath.dirname(file)
    for number, row in _rows(text, file):
        where = f"{file}, line {number}"
        if isinstance(row, MalformedData):
            yield DatasetProblem(where, str(row))
            continue
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name.strip():
            yield DatasetProblem(where, "not an object with a file_name")
            continue
        unread.update(str(key) for key in row.keys() - _KNOWN)
        joined = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/"))).lstrip("/")
        if joined.startswith("../"):
            yield DatasetProblem(where, f"its file_name {name!r:.60} is outside the folder")
            continue
        file_name = images.find(joined)
        size = image_size_or_zero(row.get("width"), row.get("height"))
        if not size[0] and file_name is not None and not isinstance(measured := images.size(file_name), str):
            size = measured
        objects: list[LabelledObject] = []
        failed = 0
        for item in _read_objects(row.get("objects"), where, classes):
            if isinstance(item, DatasetProblem):
                failed += 1
                yield item
            else:
                objects.append(item)
        captions = row.get("text", row.get("caption"))
        yield DatasetImage(
            file_name or joined,
            *size,
            tuple(objects),
            _choices(row.get("label"), classes),
            texts=tuple(dict.fromkeys(part.strip() for part in captions.split("\n") if part.strip()))
            if isinstance(captions, str)
            else (),
            split=split_of(folder.rpartition("/")[2]),
            labelled=any(key in row for key in ("objects", "label", "text", "caption")),
            unread=failed,
        )


def _choices(label: Any, classes: Sequence[str]) -> tuple[str, ...]:
    if type(label) is int:
        return (classes[label] if 0 <= label < len(classes) else f"class {label}",)
    return (label.strip(),) if isinstance(label, str) and label.strip() else ()


def _read_objects(objects: Any, where: str, classes: Sequence[str]) -> Iterator[LabelledObject | DatasetProblem]:
    if objects is None or objects == []:
        return
    columns = objects if isinstance(objects, dict) else _columns(objects)
    boxes = columns.get("bbox", columns.get("bboxes"))
    kinds = next(
        (columns[key] for key in ("category_name", "category", "categories", "label", "labels") if key in columns), None
    )
    if not isinstance(boxes, list) or not isinstance(kinds, list) or len(boxes) != len(kinds):
        yield DatasetProblem(where, "its objects are not lists bbox and category of one length")
        return
    crowds = columns.get("iscrowd")
    crowds = crowds if isinstance(crowds, list) else []
    for index, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        try:
            shape, label = _box(box), _category(kind, classes)
        except MalformedData as error:
            yield DatasetProblem(f"{where}, objects[{index}]", str(error))
        else:
            yield LabelledObject(shape, label, crowd=index < len(crowds) and crowds[index] == 1)


def _columns(objects: Any) -> dict[str, list[Any]]:
    """Objects that are listed one by one, as ``datasets`` 4 writes them, as columns; empty if they are not."""
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        return {}
    return {key: [entry.get(key) for entry in objects] for key in dict.fromkeys(chain.from_iterable(objects))}


def _box(box: Any) -> Rectangle:
    if not isinstance(box, list) or len(box) != 4:
        raise MalformedData(f"its bbox is {box!r:.60}, not [x, y, width, height]")
    return rectangle(*(parse_number(value, "bbox") for value in box))


def _category(kind: Any, classes: Sequence[str]) -> str:
    label = _choices(kind, classes)
    if not label:
        raise MalformedData(f"its category is {kind!r:.40}, neither a name nor a number")
    return label[0]
