"""Read Ultralytics NDJSON: one line for the data set, then one per image with its URL and YOLO rows.

Format: ``convert_ndjson_to_yolo`` of https://docs.ultralytics.com/reference/data/converter/.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import image_size_or_zero, parse_number
from labelloop.service.datasets.text import decode_json, decode_text
from labelloop.service.datasets.yolo_config import YoloConfig, with_keypoints
from labelloop.service.datasets.yolo_rows import ROW_PARSERS, class_name

# Key of the rows in a record -> key of `ROW_PARSERS`.
_KEYS = {"boxes": "detect", "segments": "segment", "obb": "obb", "pose": "pose"}


def read_ndjson(data: bytes, location: str) -> DataSet:
    """Read an NDJSON data set.

    Raises:
        DatasetError: The file is not Ultralytics NDJSON.
    """
    try:
        numbered = [(number_, line) for number_, line in enumerate(decode_text(data).split("\n"), 1) if line.strip()]
    except MalformedData as error:
        raise unreadable_error(data, location, default=str(error)) from None
    head = _decode_object(numbered[0][1]) if numbered else None
    if head is None or head.get("type") != "dataset":
        what, fix = "its first line is not the header of an Ultralytics data set", 'It has "type": "dataset".'
        raise unreadable_error(data, location, default=what, fix=fix)
    config = _read_header(head, location)
    labels, keypoints = config.class_names, config.keypoint_names
    lines = numbered[1:]
    classify = head.get("task") == "classify"

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for line, text in lines:
            yield from _read_image(text, line, config)

    return DataSet("ndjson", read, () if classify else labels, keypoints, labels if classify else ())


def _read_header(head: dict[str, Any], location: str) -> YoloConfig:
    """The classes and key points in the first line. Raises `DatasetError`."""
    names = head.get("class_names")
    reason = 'class_names is not {"0": name, "1": name, ...}'
    if not isinstance(names, dict) or sorted(names) != sorted(str(number_) for number_ in range(len(names))):
        raise DatasetError(location, reason)
    if not all(isinstance(name, str) for name in names.values()):
        raise DatasetError(location, reason)
    labels = tuple(names[str(number_)] for number_ in range(len(names)))
    return with_keypoints(YoloConfig(labels, document=head), location)


def _read_image(text: str, line: int, config: YoloConfig) -> Iterator[DatasetImage | DatasetProblem]:
    record = _decode_object(text)
    name = record.get("file") if record else None
    if record is None or not isinstance(name, str) or not name:
        yield DatasetProblem(f"line {line}", "not an object with a file")
        return
    width, height = image_size_or_zero(record.get("width"), record.get("height"))
    objects: list[LabelledObject] = []
    choices: list[str] = []
    unread = 0
    annotations = record.get("annotations")
    if annotations is not None and not isinstance(annotations, dict):
        unread = 1
        yield DatasetProblem(f"line {line} ({name}), annotations", f"{annotations!r:.40} is not an object of rows")
    for key, rows in annotations.items() if isinstance(annotations, dict) else ():
        for row in rows if isinstance(rows, list) else (rows,):
            try:
                if key == "classification":
                    choices.append(class_name(parse_number(row, "the class"), config.class_names))
                else:
                    objects.append(_read_row(row, key, (width, height), config))
            except MalformedData as error:
                unread += 1
                yield DatasetProblem(f"line {line} ({name}), {key}", str(error))
    url = record.get("url")
    split = record.get("split")
    yield DatasetImage(
        f"{split}/{name}" if isinstance(split, str) and split else name,
        width,
        height,
        tuple(objects),
        tuple(choices),
        url=url if isinstance(url, str) else "",
        labelled=annotations is not None,
        unread=unread,
    )


def _read_row(row: Any, key: str, size: tuple[int, int], config: YoloConfig) -> LabelledObject:
    if key not in _KEYS or not isinstance(row, list) or not row:
        raise MalformedData(f"{row!r:.40} is not a row")
    if not all(size):
        raise MalformedData("its image has no width and height")
    label, *values = (parse_number(cell, "a number of the row") for cell in row)
    return msgspec.structs.replace(
        ROW_PARSERS[_KEYS[key]](values, *size, config), label=class_name(label, config.class_names)
    )


def _decode_object(text: str) -> dict[str, Any] | None:
    try:
        value = decode_json(text.encode())
    except MalformedData:
        return None
    return value if isinstance(value, dict) else None
