"""Merge several annotators' shapes of one object into one, with equal weights.

Boxes, intervals and ellipses: median of each edge or parameter, robust to one careless annotator of three. Masks:
majority vote per pixel. Points: median. Polygons and vectors: the medoid, because the mean of two outlines matches
neither.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from labelloop.labeling.geometry.overlap import iou_matrix
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, Interval, KeyPoint, Mask, Polygon, Rectangle, Vector


def medoid(shapes: Sequence[Geometry]) -> int:
    """Index of the shape with the highest mean IoU with the others; ties go to the first."""
    return 0 if len(shapes) < 3 else _medoid(tuple(shapes))


@lru_cache(maxsize=1)
def _medoid(shapes: tuple[Geometry, ...]) -> int:
    """Cached: the same shapes are used twice, for the template region and for its shape."""
    return int(iou_matrix(shapes, shapes).mean(axis=1).argmax())


def merge_shapes(shapes: Sequence[Geometry]) -> Geometry:
    """Merge one or more shapes of one object.

    Shapes of different kinds (a polygon and a mask) are not mixed: the medoid is returned unchanged.
    """
    if len(shapes) == 1:
        return shapes[0]
    kinds = {type(shape) for shape in shapes}
    if len(kinds) > 1:
        return shapes[medoid(shapes)]
    return MERGES[kinds.pop()](shapes)


def _rectangles(shapes: Sequence[Any]) -> Geometry:
    if not any(shape.rotation for shape in shapes):
        left, top, right, bottom = np.median([shape.bounds for shape in shapes], axis=0).tolist()
        return Rectangle(left, top, right - left, bottom - top)
    rotation = shapes[medoid(shapes)].rotation
    rows = [_aligned(shape, rotation) for shape in shapes]
    cx, cy, width, height, shift = np.median(rows, axis=0).tolist()
    angle = math.radians(rotation + shift)
    x = cx - (width * math.cos(angle) - height * math.sin(angle)) / 2
    y = cy - (width * math.sin(angle) + height * math.cos(angle)) / 2
    return Rectangle(x, y, width, height, (rotation + shift) % 360)


def _intervals(shapes: Sequence[Any]) -> Geometry:
    return Interval(*np.median([(shape.start, shape.end) for shape in shapes], axis=0).tolist())


def _aligned(shape: Rectangle, rotation: float) -> tuple[float, float, float, float, float]:
    """Centre, sides and rotation relative to ``rotation``, within 45 degrees: exchanged sides describe the same box."""
    quarters = round((rotation - shape.rotation) / 90)
    width, height = (shape.height, shape.width) if quarters % 2 else (shape.width, shape.height)
    (x0, y0), _, (x2, y2), _ = shape.corners
    return (x0 + x2) / 2, (y0 + y2) / 2, width, height, shape.rotation + 90 * quarters - rotation


def _ellipses(shapes: Sequence[Any]) -> Geometry:
    rotation = shapes[medoid(shapes)].rotation
    rows = []
    for shape in shapes:
        quarters = round((rotation - shape.rotation) / 90)
        rx, ry = (shape.ry, shape.rx) if quarters % 2 else (shape.rx, shape.ry)
        rows.append((shape.cx, shape.cy, rx, ry, shape.rotation + 90 * quarters - rotation))
    cx, cy, rx, ry, shift = np.median(rows, axis=0).tolist()
    return Ellipse(cx, cy, rx, ry, (rotation + shift) % 360)


def _points(shapes: Sequence[Any]) -> Geometry:
    x, y, width = np.median([(shape.x, shape.y, shape.width) for shape in shapes], axis=0).tolist()
    return KeyPoint(x, y, width)


def _masks(shapes: Sequence[Any]) -> Geometry:
    if len({(shape.width, shape.height) for shape in shapes}) > 1 or len(shapes) == 2:
        return _medoid_shape(shapes)  # with two masks, the majority is their intersection: always too small
    votes = np.zeros((shapes[0].height, shapes[0].width), dtype=np.int32)
    for shape in shapes:
        votes += shape.array()
    return Mask.from_array(2 * votes > len(shapes))


def _medoid_shape(shapes: Sequence[Any]) -> Geometry:
    shape: Geometry = shapes[medoid(shapes)]
    return shape


# Geometry class -> merge function.
MERGES: Mapping[type, Callable[[Sequence[Any]], Geometry]] = {
    Rectangle: _rectangles,
    Ellipse: _ellipses,
    KeyPoint: _points,
    Mask: _masks,
    Polygon: _medoid_shape,
    Interval: _intervals,
    Vector: _medoid_shape,
}
