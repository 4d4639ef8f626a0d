"""Read Create ML's JSON: a list of images with boxes, each by its centre and size in pixels.

Format: https://developer.apple.com/documentation/createml/building-an-object-detector-data-source. Apple's older keys
``imagefilename`` and ``annotation`` are read too, and ``label`` alone as the class of an image.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from labelloop.labeling.splits import split_of
from labelloop.labeling.studio.sniff import HEAD_BYTES, json_kind
from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import parse_number, rectangle
from labelloop.service.datasets.text import decode_json

_IMAGE_KEYS = ("image", "imagefilename", "filename")
_LIST_KEYS = ("annotations", "annotation")
_FIX = "Export it again, or repeat the download."


def is_createml(data: bytes) -> bool:
    """Whether a JSON file, possibly truncated, has the keys of Create ML."""
    return data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and json_kind(data[:HEAD_BYTES]) == "createml"


def read_createml(files: DatasetFiles, images: ImageFiles, file: str = "") -> DataSet:
    """Read the Create ML files of a folder (Roboflow writes one for each split), or one file.

    Args:
        files: The files of the data set.
        images: Its image files; the format has no image sizes.
        file: The only file to read; empty: all.

    Raises:
        DatasetError: There is no Create ML file, or none of them can be read.
    """
    names = [file] if file else [name for name in files.names if name.lower().endswith(".json")]
    entries: dict[str, list[Any]] = {}
    errors: dict[str, DatasetError] = {}
    for name in names:
        data = files.read(name)
        if file or is_createml(data):
            try:
                entries[name] = _decode(data)
            except MalformedData as error:
                where = f"{files.location}/{name}"
                errors[name] = unreadable_error(data, where, default=f"it is damaged ({error})", fix=_FIX)
    if not entries:
        raise next(iter(errors.values()), DatasetError(files.location, "it has no Create ML file"))
    labels: dict[str, None] = {}
    choices: dict[str, None] = {}
    for name, listed in entries.items():
        for item in _read_file(listed, name, images):
            if isinstance(item, DatasetImage):
                labels.update((obj.label, None) for obj in item.objects)
                choices.update((choice, None) for choice in item.choices)

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        yield from (DatasetProblem(name, f"{error.reason}. {error.fix}") for name, error in errors.items())
        for name, listed in entries.items():
            yield from _read_file(listed, name, images)

    return DataSet("createml", read, tuple(sorted(labels)), choices=tuple(sorted(choices)))


def _decode(data: bytes) -> list[Any]:
    content = decode_json(data)
    if not isinstance(content, list) or not any(isinstance(entry, dict) for entry in content):
        raise MalformedData("it is not a list of images")
    return content


def _read_file(listed: Sequence[Any], file: str, images: ImageFiles) -> Iterator[DatasetImage | DatasetProblem]:
    folder = posixpath.dirname(file)
    for index, entry in enumerate(listed):
        name = _first(entry, _IMAGE_KEYS) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip():
            yield DatasetProblem(f"{file}, [{index}]", "not an object with the name of an image")
            continue
        joined = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/"))).removeprefix("../").lstrip("/")
        file_name = images.find(joined) or images.find(name)
        size = images.size(file_name) if file_name is not None else ""
        annotations = _first(entry, _LIST_KEYS)
        if isinstance(annotations, str) or (annotations is None and isinstance(entry.get("label"), str)):
            choice = annotations or entry["label"]
            yield DatasetImage(file_name or joined, choices=(choice.strip(),) if choice.strip() else ())
            continue
        objects: list[LabelledObject] = []
        unread = 0
        rows = annotations if isinstance(annotations, list) else [] if annotations is None else [annotations]
        for number, row in enumerate(rows):
            try:
                objects.append(_object(row))
            except MalformedData as error:
                unread += 1
                yield DatasetProblem(f"{file}, {name}, annotations[{number}]", str(error))
        width, height = (0, 0) if isinstance(size, str) else size
        yield DatasetImage(
            file_name or joined,
            width,
            height,
            tuple(objects),
            split=split_of(folder.rpartition("/")[2]),
            labelled=annotations is not None,
            unread=unread,
        )


def _first(entry: dict[str, Any], keys: Sequence[str]) -> Any:
    lower = {str(key).lower(): value for key, value in entry.items()}
    return next((lower[key] for key in keys if key in lower), None)


def _object(row: Any) -> LabelledObject:
    label = row.get("label") if isinstance(row, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise MalformedData(f"its label is {label!r:.40}, not text")
    box = row.get("coordinates")
    if not isinstance(box, dict):
        raise MalformedData(f"its coordinates are {box!r:.40}, not x, y, width and height")
    x, y, width, height = (parse_number(box.get(key), key) for key in ("x", "y", "width", "height"))
    return LabelledObject(rectangle(x - width / 2, y - height / 2, width, height), label.strip())
