"""Merge several annotators' shapes of one object into one.

Boxes, intervals and points: median of each edge or parameter, robust to one careless annotator of three. Masks,
ellipses and polygons: a weighted mean, in which a shape counts the less, the less it is like the median one. Vectors:
the medoid.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.outline_merge import merge_outlines
from labelloop.labeling.geometry.overlap import iou_matrix
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, Interval, KeyPoint, Mask, Polygon, Rectangle, Vector

Floats = NDArray[np.float64]

# Weight of a shape: the inverse square of this minus its IoU with the median shape.
_WEIGHT_OFFSET = 1.05
# Pixels from the edge of a mask up to which its distance counts, and pixels up to which distances are measured.
_EDGE, _MAX_PIXELS = 8.0, 1 << 24


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
    if len(set(shapes)) == 1:
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
    """The log-Euclidean mean of the shape matrices R diag(rx^2, ry^2) R^T (Arsigny and others 2006).

    Matrices are the same for exchanged axes, and change little with the rotation of a circle.
    """
    centres = np.array([(shape.cx, shape.cy) for shape in shapes])
    logs = np.array([_log_matrix(shape) for shape in shapes])
    rotation = shapes[medoid(shapes)].rotation
    middle = _ellipse(np.median(centres, axis=0), np.median(logs, axis=0), rotation)
    weights = _weights(shapes, middle)
    return _ellipse(np.average(centres, axis=0, weights=weights), np.average(logs, axis=0, weights=weights), rotation)


def _log_matrix(shape: Ellipse) -> Floats:
    angle = math.radians(shape.rotation)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    logs: Floats = rotation @ np.diag([2 * math.log(shape.rx), 2 * math.log(shape.ry)]) @ rotation.T
    return logs


def _ellipse(centre: Floats, logs: Floats, near: float) -> Ellipse:
    """The ellipse of a logarithm of a matrix; of its four rotations the one nearest to ``near``."""
    values, axes = np.linalg.eigh(logs)
    radii = np.exp(values / 2).tolist()
    rotation = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))  # of the longer axis
    quarters = round((near - rotation) / 90)
    rx, ry = radii if quarters % 2 else radii[::-1]
    cx, cy = centre.tolist()
    return Ellipse(cx, cy, rx, ry, round(rotation + 90 * quarters, 6) % 360)


def _weights(shapes: Sequence[Any], middle: Geometry) -> Floats:
    """(n,): the weight of each shape; equal ones for two, of which none is in the middle."""
    if len(shapes) < 3:
        return np.ones(len(shapes))
    return np.asarray((_WEIGHT_OFFSET - iou_matrix(shapes, [middle])[:, 0]) ** -2.0, np.float64)


def _points(shapes: Sequence[Any]) -> Geometry:
    x, y, width = np.median([(shape.x, shape.y, shape.width) for shape in shapes], axis=0).tolist()
    return KeyPoint(x, y, width)


def _masks(shapes: Sequence[Any]) -> Geometry:
    """The pixels whose weighted mean of the signed distances to the masks' edges is positive."""
    if len({(shape.width, shape.height) for shape in shapes}) > 1 or not all(shape.area for shape in shapes):
        return _medoid_shape(shapes)
    bounds = np.array([shape.bounds for shape in shapes]).astype(int)
    rows = slice(max(bounds[:, 1].min() - 1, 0), bounds[:, 3].max() + 1)
    columns = slice(max(bounds[:, 0].min() - 1, 0), bounds[:, 2].max() + 1)
    layers = [shape.array()[rows, columns] for shape in shapes]
    votes: NDArray[np.int32] = np.sum(layers, axis=0, dtype=np.int32)
    middle = _placed(np.asarray(2 * votes > len(shapes)), shapes[0], rows, columns)
    if votes.size > _MAX_PIXELS:  # of two, the majority is their intersection: always too small
        return middle if len(shapes) > 2 else _medoid_shape(shapes)
    weights = _weights(shapes, middle)
    distance = np.zeros(votes.shape, dtype=np.float32)
    for layer, weight in zip(layers, weights.tolist(), strict=True):
        distance += np.float32(weight) * _signed_distance(layer)
    return _placed(distance > 0, shapes[0], rows, columns)


def _signed_distance(pixels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of each pixel from the edge, positive inside, at most `_EDGE`."""
    import cv2

    inside, outside = (
        cv2.distanceTransform(np.ascontiguousarray(side, np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (pixels, ~pixels)
    )
    return np.clip(np.asarray(inside - outside, np.float32), -_EDGE, _EDGE)


def _placed(pixels: NDArray[np.bool_], like: Mask, rows: slice, columns: slice) -> Mask:
    whole = np.zeros((like.height, like.width), dtype=np.bool_)
    whole[rows, columns] = pixels
    return Mask.from_array(whole)


def _polygons(shapes: Sequence[Any]) -> Geometry:
    return merge_outlines(shapes, medoid(shapes))


def _medoid_shape(shapes: Sequence[Any]) -> Geometry:
    shape: Geometry = shapes[medoid(shapes)]
    return shape


# Geometry class -> merge function.
MERGES: Mapping[type, Callable[[Sequence[Any]], Geometry]] = {
    Rectangle: _rectangles,
    Ellipse: _ellipses,
    KeyPoint: _points,
    Mask: _masks,
    Polygon: _polygons,
    Interval: _intervals,
    Vector: _medoid_shape,
}
