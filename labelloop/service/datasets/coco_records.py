"""The entries of a COCO file, with untyped fields: an invalid value affects only its entry.

Format: https://cocodataset.org/#format-data. An entry that is not an object raises `msgspec.ValidationError`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from labelloop.labeling.geometry.shapes import Point

_T = TypeVar("_T")
# Texts with more digits are no numbers: Python refuses to convert 4300 of them.
_MAX_DIGITS = 20


def coco_id(value: Any) -> Any:
    """An id: 7, 7.0 and "7" are the number 7, other texts stay texts; None for anything else."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str:
        is_number = value.isdecimal() and len(value) < _MAX_DIGITS and value == str(int(value))
        return int(value) if is_number else value
    return value if type(value) is int else None


class CocoImage(msgspec.Struct):
    """An entry of ``images``; ``task_id`` is written by labelloop exports."""

    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None
    coco_url: Any = None
    flickr_url: Any = None
    task_id: Any = None

    def __post_init__(self) -> None:
        self.id = coco_id(self.id)


class CocoCategory(msgspec.Struct):
    """An entry of ``categories``."""

    id: Any = None
    name: Any = None
    supercategory: Any = None
    keypoints: Any = None
    skeleton: Any = None

    def __post_init__(self) -> None:
        self.id = coco_id(self.id)


class CocoAnnotation(msgspec.Struct):
    """An entry of ``annotations``, or of a list of results; without ``area`` and ``num_keypoints``, which are derived.

    ``keypoints`` is `msgspec.UNSET` if it is missing, and None if it is null.
    """

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    segmentation: Any = None
    keypoints: Any = msgspec.UNSET
    iscrowd: Any = None
    score: Any = None


def is_ring(values: Sequence[Any]) -> bool:
    """Whether a flat list x1, y1, x2, y2, ... has at least three points."""
    return len(values) >= 6 and len(values) % 2 == 0


def ring_points(values: Sequence[float]) -> list[Point]:
    """The points of a flat list x1, y1, x2, y2, ..."""
    return list(zip(values[::2], values[1::2], strict=True))


def keypoint_triples(values: Sequence[_T]) -> Iterator[tuple[_T, _T, _T]]:
    """Split a flat list of key points into (x, y, visibility)."""
    return zip(values[::3], values[1::3], values[2::3], strict=True)
