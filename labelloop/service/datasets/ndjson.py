"""Read Ultralytics NDJSON: one line for the data set, then one per image with its URL and YOLO rows.

Format: ``convert_ndjson_to_yolo`` of https://docs.ultralytics.com/reference/data/converter/.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import image_size_or_zero, parse_number
from labelloop.service.datasets.text import decode_json, decode_text
from labelloop.service.datasets.yolo_config import YoloConfig, with_keypoints
from labelloop.service.datasets.yolo_rows import ROW_PARSERS, class_name

# Key of the rows in a record -> key of `ROW_PARSERS`.
ROW_KEYS = {"boxes": "detect", "segments": "segment", "obb": "obb", "pose": "pose"}


@dataclass(frozen=True, slots=True)
class NdjsonFile:
    """The lines of an NDJSON file.

    Attributes:
        lines: The lines with their numbers from 1; empty lines are left out.
    """

    lines: Sequence[tuple[int, str]]

    @property
    def header(self) -> dict[str, Any] | None:
        """The object of the first line if it is the header of a data set."""
        header = _decode_object(self.lines[0][1]) if self.lines else None
        return header if header is not None and header.get("type") == "dataset" else None

    @property
    def starts_on_first_line(self) -> bool:
        """Whether no empty line precedes the header."""
        return bool(self.lines) and self.lines[0][0] == 1

    def records(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """The objects of the other lines with their line numbers; None for a line that is not an object."""
        return ((line, _decode_object(text)) for line, text in self.lines[1:])


def parse_ndjson(data: bytes) -> NdjsonFile:
    """Split a file into its lines. Raises `MalformedData` if it is not text."""
    lines = enumerate(decode_text(data).split("\n"), start=1)
    return NdjsonFile([(line, text) for line, text in lines if text.strip()])


def read_ndjson(data: bytes, location: str) -> DataSet:
    """Read an NDJSON data set.

    Raises:
        DatasetError: The file is not Ultralytics NDJSON.
    """
    try:
        file = parse_ndjson(data)
    except MalformedData as error:
        raise unreadable_error(data, location, default=str(error)) from None
    head = file.header
    if head is None:
        what, fix = "its first line is not the header of an Ultralytics data set", 'It has "type": "dataset".'
        raise unreadable_error(data, location, default=what, fix=fix)
    config = _read_header(head, location)
    labels, keypoints = config.class_names, config.keypoint_names
    classify = head.get("task") == "classify"

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for line, record in file.records():
            yield from _read_image(record, line, config)

    return DataSet("ndjson", read, () if classify else labels, keypoints, labels if classify else ())


def _read_header(head: dict[str, Any], location: str) -> YoloConfig:
    """The classes and key points in the first line. Raises `DatasetError`."""
    names = head.get("class_names")
    reason = 'class_names is not {"0": name, "1": name, ...}'
    if not isinstance(names, dict) or sorted(names) != sorted(str(number_) for number_ in range(len(names))):
        raise DatasetError(location, reason, fix='List the names by number, from "0" on.')
    if not all(isinstance(name, str) for name in names.values()):
        raise DatasetError(location, reason, fix='List the names by number, from "0" on.')
    labels = tuple(names[str(number_)] for number_ in range(len(names)))
    return with_keypoints(YoloConfig(labels, document=head), location)


def _read_image(
    record: dict[str, Any] | None, line: int, config: YoloConfig
) -> Iterator[DatasetImage | DatasetProblem]:
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
    if key not in ROW_KEYS or not isinstance(row, list) or not row:
        raise MalformedData(f"{row!r:.40} is not a row")
    if not all(size):
        raise MalformedData("its image has no width and height")
    label, *values = (parse_number(cell, "a number of the row") for cell in row)
    return msgspec.structs.replace(
        ROW_PARSERS[ROW_KEYS[key]](values, *size, config), label=class_name(label, config.class_names)
    )


def _decode_object(text: str) -> dict[str, Any] | None:
    try:
        value = decode_json(text.encode())
    except MalformedData:
        return None
    return value if isinstance(value, dict) else None
