"""One shape from several annotators' shapes of the same object, none of them trusted more than the others.

Boxes and ellipses: the median of each edge or measure, which one careless annotator of three cannot move far. Masks:
the pixels that more than half painted. Points: the median. Polygons and vectors: the shape that agrees best with all
the others, since the mean of two outlines is nobody's outline.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from labelloop.labeling.geometry.overlap import iou_matrix
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Mask, Polygon, Rectangle, Vector


def medoid(shapes: Sequence[Geometry]) -> int:
    """Place of the shape that overlaps all the others most; the first of equals."""
    return 0 if len(shapes) < 3 else _medoid(tuple(shapes))


@lru_cache(maxsize=1)
def _medoid(shapes: tuple[Geometry, ...]) -> int:
    """Asked for twice of the same shapes: for the region in the middle, and for its shape."""
    return int(iou_matrix(shapes, shapes).mean(axis=1).argmax())


def merge_shapes(shapes: Sequence[Geometry]) -> Geometry:
    """The shape in the middle of one or more shapes of one object.

    Shapes of several kinds (a polygon and a mask) are not mixed: the one that fits all best is taken as it is.
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
    turn = shapes[medoid(shapes)].rotation
    rows = [_upright_form(shape, turn) for shape in shapes]
    cx, cy, width, height, shift = np.median(rows, axis=0).tolist()
    angle = math.radians(turn + shift)
    x = cx - (width * math.cos(angle) - height * math.sin(angle)) / 2
    y = cy - (width * math.sin(angle) + height * math.cos(angle)) / 2
    return Rectangle(x, y, width, height, (turn + shift) % 360)


def _upright_form(shape: Rectangle, turn: float) -> tuple[float, float, float, float, float]:
    """Centre, sides and turn from ``turn`` within 45 degrees: the same box can be written with its sides exchanged."""
    quarters = round((turn - shape.rotation) / 90)
    width, height = (shape.height, shape.width) if quarters % 2 else (shape.width, shape.height)
    (x0, y0), _, (x2, y2), _ = shape.corners
    return (x0 + x2) / 2, (y0 + y2) / 2, width, height, shape.rotation + 90 * quarters - turn


def _ellipses(shapes: Sequence[Any]) -> Geometry:
    turn = shapes[medoid(shapes)].rotation
    rows = []
    for shape in shapes:
        quarters = round((turn - shape.rotation) / 90)
        rx, ry = (shape.ry, shape.rx) if quarters % 2 else (shape.rx, shape.ry)
        rows.append((shape.cx, shape.cy, rx, ry, shape.rotation + 90 * quarters - turn))
    cx, cy, rx, ry, shift = np.median(rows, axis=0).tolist()
    return Ellipse(cx, cy, rx, ry, (turn + shift) % 360)


def _points(shapes: Sequence[Any]) -> Geometry:
    x, y, width = np.median([(shape.x, shape.y, shape.width) for shape in shapes], axis=0).tolist()
    return KeyPoint(x, y, width)


def _masks(shapes: Sequence[Any]) -> Geometry:
    if len({(shape.width, shape.height) for shape in shapes}) > 1 or len(shapes) == 2:
        return _middle(shapes)  # of two, more than half is only what both painted: always too small
    votes = np.zeros((shapes[0].height, shapes[0].width), dtype=np.int32)
    for shape in shapes:
        votes += shape.array()
    return Mask.of(2 * votes > len(shapes))


def _middle(shapes: Sequence[Any]) -> Geometry:
    found: Geometry = shapes[medoid(shapes)]
    return found


# Kind of geometry -> how several become one.
MERGES: Mapping[type, Callable[[Sequence[Any]], Geometry]] = {
    Rectangle: _rectangles,
    Ellipse: _ellipses,
    KeyPoint: _points,
    Mask: _masks,
    Polygon: _middle,
    Vector: _middle,
}
