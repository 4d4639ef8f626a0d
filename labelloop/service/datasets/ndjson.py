"""Ultralytics NDJSON: a line for the data set, then one for each photo with its address and its YOLO rows.

Format: ``convert_ndjson_to_yolo`` of https://docs.ultralytics.com/reference/data/converter/.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from labelloop.service.datasets.errors import DatasetError, Flawed, no_data_set
from labelloop.service.datasets.model import DataSet, LabelledObject, LabelledPhoto, Problem
from labelloop.service.datasets.shapes import number, size_of
from labelloop.service.datasets.text import json_of, text_of
from labelloop.service.datasets.yolo import ROWS, Sheet, is_joint_shape, joint_names, label_of

_KEYS = {"boxes": "detect", "segments": "segment", "obb": "obb", "pose": "pose"}
"""The key of a photo's rows -> what they are, as `ROWS` names it."""


def read_ndjson(data: bytes, place: str) -> DataSet:
    """A data set in one file.

    Raises:
        DatasetError: It is no such file.
    """
    try:
        numbered = [(number_, line) for number_, line in enumerate(text_of(data).split("\n"), 1) if line.strip()]
    except Flawed as flaw:
        raise no_data_set(data, place, otherwise=str(flaw)) from None
    head = _object(numbered[0][1]) if numbered else None
    if head is None or head.get("type") != "dataset":
        what, fix = "its first line is not Ultralytics' data set", 'It has "type": "dataset".'
        raise no_data_set(data, place, otherwise=what, fix=fix)
    sheet = _sheet(head, place)
    labels, joints = sheet.names, sheet.joints
    lines = numbered[1:]
    classify = head.get("task") == "classify"

    def photos() -> Iterator[LabelledPhoto | Problem]:
        for line, text in lines:
            yield from _photo(text, line, sheet)

    return DataSet("ndjson", photos, () if classify else labels, joints, labels if classify else ())


def _sheet(head: dict[str, Any], place: str) -> Sheet:
    """The classes and key points that the first line names. Raises `DatasetError`."""
    names = head.get("class_names")
    wanted = 'class_names is not {"0": name, "1": name, ...}'
    if not isinstance(names, dict) or sorted(names) != sorted(str(number_) for number_ in range(len(names))):
        raise DatasetError(place, wanted)
    if not all(isinstance(name, str) for name in names.values()):
        raise DatasetError(place, wanted)
    labels = tuple(names[str(number_)] for number_ in range(len(names)))
    shape = head.get("kpt_shape")
    if shape is None:
        return Sheet(labels)
    if not is_joint_shape(shape):
        raise DatasetError(place, f"kpt_shape {shape!r:.40} is not [number of key points, 2 or 3]")
    return Sheet(labels, joint_names(head.get("kpt_names"), shape[0]), shape[1])


def _photo(text: str, line: int, sheet: Sheet) -> Iterator[LabelledPhoto | Problem]:
    told = _object(text)
    name = told.get("file") if told else None
    if told is None or not isinstance(name, str) or not name:
        yield Problem(f"line {line}", "no object with a file")
        return
    width, height = size_of(told.get("width"), told.get("height"))
    drawn: list[LabelledObject] = []
    choices: list[str] = []
    unread = 0
    given = told.get("annotations")
    if given is not None and not isinstance(given, dict):
        unread = 1
        yield Problem(f"line {line} ({name}), annotations", f"{given!r:.40} is no object of rows")
    for key, rows in given.items() if isinstance(given, dict) else ():
        for row in rows if isinstance(rows, list) else (rows,):
            try:
                if key == "classification":
                    choices.append(label_of(number(row, "the class"), sheet.names))
                else:
                    drawn.append(_drawn(row, key, (width, height), sheet))
            except Flawed as flaw:
                unread += 1
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
        labelled=given is not None,
        unread=unread,
    )


def _drawn(row: Any, key: str, size: tuple[int, int], sheet: Sheet) -> LabelledObject:
    if key not in _KEYS or not isinstance(row, list) or not row:
        raise Flawed(f"{row!r:.40} is no row")
    if not all(size):
        raise Flawed("its photo has no width and height")
    label, *values = (number(cell, "a number of the row") for cell in row)
    return msgspec.structs.replace(ROWS[_KEYS[key]](values, *size, sheet), label=label_of(label, sheet.names))


def _object(text: str) -> dict[str, Any] | None:
    try:
        told = json_of(text.encode())
    except Flawed:
        return None
    return told if isinstance(told, dict) else None
