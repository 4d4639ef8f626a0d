"""Parse the rows of YOLO label files: a class index, then coordinates as shares of the image's width and height."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from labelloop.labeling.geometry.shapes import Geometry, Point
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.files import DatasetFiles
from labelloop.service.datasets.model import Keypoint, LabelledObject
from labelloop.service.datasets.shapes import rectangle, rectangle_or_polygon
from labelloop.service.datasets.text import decode_text, parse_floats
from labelloop.service.datasets.yolo_config import KeypointShape, YoloConfig

# Larger values are errors.
_MAX_VALUE = 1e6


class LabelRow(NamedTuple):
    """A row of a label file.

    Attributes:
        line: Its line number, from 1.
        text: The line.
        cells: Its values as text: the class index and the coordinates.
    """

    line: int
    text: str
    cells: Sequence[str]


# (values after the class, image width, image height, config) -> the object without its label.
RowParser = Callable[[Sequence[float], int, int, YoloConfig], LabelledObject]


def read_rows(files: DatasetFiles, name: str) -> list[LabelRow]:
    """Read the rows of a label file.

    Raises:
        DatasetError: The file cannot be read.
        MalformedData: It is not text.
    """
    return list(split_rows(decode_text(files.read(name))))


def split_rows(text: str) -> Iterator[LabelRow]:
    """The rows of a text; empty lines are skipped."""
    return (LabelRow(line, row, cells) for line, row in enumerate(text.splitlines(), start=1) if (cells := row.split()))


def parse_row(row: LabelRow, width: int, height: int, config: YoloConfig, parse: RowParser) -> LabelledObject:
    """Parse a row as an object.

    Args:
        row: The row.
        width: Image width in pixels.
        height: Image height in pixels.
        config: Classes and key points of the data set.
        parse: The parser of its task.

    Raises:
        MalformedData: The row does not belong to the task, or a value is invalid.
    """
    cells = row.cells
    if len(cells) in {9, 10} and is_numeric(cells[0]) and is_numeric(cells[7]) and not is_numeric(cells[8]):
        raise MalformedData(
            "a DOTA row (four corners in pixels, then the class name), not YOLO: export YOLOv8 OBB instead"
        )
    class_index, *values = parse_floats(cells, _MAX_VALUE)
    return msgspec.structs.replace(
        parse(values, width, height, config), label=class_name(class_index, config.class_names)
    )


def parse_detect(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse ``x_centre y_centre width height`` and an optional confidence."""
    del config
    if len(values) not in {4, 5}:
        raise MalformedData(f"{len(values)} numbers after the class; a box has 4")
    return LabelledObject(_box(values, width, height), "", values[4] if len(values) == 5 else None)


def parse_segment(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse ``x1 y1 x2 y2 ...`` and an optional confidence. Four values are a box, as in Ultralytics."""
    if len(values) in {4, 5}:
        return parse_detect(values, width, height, config)
    points, score = _points(values, width, height)
    return LabelledObject(rectangle_or_polygon(points), "", score)


def parse_obb(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse four corners and an optional confidence."""
    del config
    if len(values) not in {8, 9}:
        raise MalformedData(f"{len(values)} numbers after the class; four corners have 8")
    points, score = _points(values, width, height)
    return LabelledObject(rectangle_or_polygon(points, upright=False), "", score)


def parse_pose(values: Sequence[float], width: int, height: int, config: YoloConfig) -> LabelledObject:
    """Parse a box, ``x y visibility`` (or ``x y``) per key point, and an optional confidence."""
    dims = config.keypoint_dims
    expected = 4 + dims * len(config.keypoint_names)
    if len(values) not in {expected, expected + 1}:
        raise MalformedData(f"{len(values)} numbers after the class; kpt_shape requires {expected}")
    keypoints = []
    points = keypoint_values(values, KeypointShape(len(config.keypoint_names), dims))
    for name, (x, y, *visibility) in zip(config.keypoint_names, points, strict=True):
        visible = visibility[0] if visibility else (2 if x >= 0 and y >= 0 else 0)
        if visible > 0:  # predictions have a confidence here
            keypoints.append(Keypoint(name, x * width, y * height, hidden=visible == 1))
    score = values[expected] if len(values) > expected else None
    if score is not None:  # predictions: the third value is not an occlusion flag
        keypoints = [Keypoint(keypoint.name, keypoint.x, keypoint.y) for keypoint in keypoints]
    return LabelledObject(_box(values, width, height), "", score, tuple(keypoints))


ROW_PARSERS: Mapping[str, RowParser] = {
    "detect": parse_detect,
    "segment": parse_segment,
    "obb": parse_obb,
    "pose": parse_pose,
}


def is_numeric(cell: str) -> bool:
    """Whether a cell is a number, including NaN and infinity."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_class_index(index: float, count: int | None) -> bool:
    """Whether a class index is an integer from 0 to ``count`` - 1; None: without upper limit."""
    return index >= 0 and index == int(index) and (count is None or index < count)


def class_name(class_index: float, names: Sequence[str]) -> str:
    """The name of a class by its index. Raises `MalformedData` if the index is invalid."""
    if not is_class_index(class_index, len(names) or None):
        raise MalformedData(
            f"class {class_index:g}: the classes are 0 to {len(names) - 1}"
            if names
            else f"class {class_index:g} is invalid"
        )
    name = names[int(class_index)] if names else f"class {int(class_index)}"
    if not name:
        raise MalformedData(f"class {class_index:g} has no name")
    return name


def keypoint_values(values: Sequence[float], shape: KeypointShape) -> list[Sequence[float]]:
    """Split the values of a pose row after its class: (x, y) or (x, y, visibility) per key point."""
    return [values[start : start + shape.dims] for start in range(4, 4 + shape.count * shape.dims, shape.dims)]


def pixel_points(values: Sequence[float], width: int, height: int) -> list[Point]:
    """Scale ``x1 y1 x2 y2 ...`` to points in pixels."""
    return [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]


def _box(values: Sequence[float], width: int, height: int) -> Geometry:
    cx, cy, w, h = values[:4]
    return rectangle((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)


def _points(values: Sequence[float], width: int, height: int) -> tuple[list[Point], float | None]:
    if len(values) < 6:
        raise MalformedData(f"{len(values)} numbers after the class; a polygon has 6 or more")
    score = values[-1] if len(values) % 2 else None
    return pixel_points(values[: len(values) // 2 * 2], width, height), score
