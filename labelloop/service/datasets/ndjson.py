"""Ultralytics NDJSON: a line for the data set, then one for each photo with its address and its YOLO rows.

Format: ``convert_ndjson_to_yolo`` of https://docs.ultralytics.com/reference/data/converter/.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from labelloop.service.datasets.dataset import DataSet, Drawn, LabelledPhoto, Problem
from labelloop.service.datasets.errors import DatasetError, Flawed
from labelloop.service.datasets.shapes import number
from labelloop.service.datasets.yolo import ROWS, Sheet, joint_names, label_of

_KEYS = {"boxes": "detect", "segments": "segment", "obb": "obb", "pose": "pose"}
"""The key of a photo's rows -> what they are, as `ROWS` names it."""


def read_ndjson(data: bytes, place: str) -> DataSet:
    """A data set in one file.

    Raises:
        DatasetError: It is no such file.
    """
    first, *lines = (line for line in data.splitlines() if line.strip()) if data.strip() else (b"",)
    head = _object(first)
    if head is None or head.get("type") != "dataset":
        raise DatasetError(place, "its first line is not Ultralytics' data set", fix='It has "type": "dataset".')
    names = head.get("class_names") or {}
    if not isinstance(names, dict) or sorted(names) != sorted(str(place) for place in range(len(names))):
        raise DatasetError(place, 'class_names is not {"0": name, "1": name, ...}')
    labels = tuple(str(names[str(place)]) for place in range(len(names)))
    shape = head.get("kpt_shape")
    joints: tuple[str, ...] = ()
    wide = 3
    if isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and shape[1] in {2, 3}:
        joints, wide = joint_names(head.get("kpt_names"), shape[0]), shape[1]
    sheet = Sheet(labels, joints, wide)
    classify = head.get("task") == "classify"

    def photos() -> Iterator[LabelledPhoto | Problem]:
        for line, text in enumerate(lines, start=2):
            yield from _photo(text, line, sheet)

    return DataSet("ndjson", photos, () if classify else labels, joints, labels if classify else ())


def _photo(text: bytes, line: int, sheet: Sheet) -> Iterator[LabelledPhoto | Problem]:
    told = _object(text)
    name = told.get("file") if told else None
    if told is None or not isinstance(name, str) or not name:
        yield Problem(f"line {line}", "no object with a file")
        return
    width, height = (edge if type(edge) is int and edge > 0 else 0 for edge in (told.get("width"), told.get("height")))
    drawn: list[Drawn] = []
    choices: list[str] = []
    given = told.get("annotations") or {}
    for key, rows in given.items() if isinstance(given, dict) else ():
        for row in rows if isinstance(rows, list) else ():
            try:
                if key == "classification":
                    choices.append(label_of(number(row, "the class"), sheet.names))
                else:
                    drawn.append(_drawn(row, key, (width, height), sheet))
            except Flawed as flaw:
                yield Problem(f"line {line} ({name}), {key}", str(flaw))
    address = told.get("url")
    split = told.get("split")
    yield LabelledPhoto(
        f"{split}/{name}" if isinstance(split, str) and split else name,
        width,
        height,
        tuple(drawn),
        tuple(choices),
        address=address if isinstance(address, str) else "",
    )


def _drawn(row: Any, key: str, size: tuple[int, int], sheet: Sheet) -> Drawn:
    if key not in _KEYS or not isinstance(row, list) or not row:
        raise Flawed(f"{row!r:.40} is no row")
    if not all(size):
        raise Flawed("its photo has no width and height")
    label, *values = (number(cell, "a number of the row") for cell in row)
    return msgspec.structs.replace(ROWS[_KEYS[key]](values, *size, sheet), label=label_of(label, sheet.names))


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        told = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    return told if isinstance(told, dict) else None
