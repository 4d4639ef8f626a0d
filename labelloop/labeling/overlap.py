"""How much shapes overlap: intersection over union of their true shapes, and the best one-to-one match.

Upright boxes are compared in numpy, masks by pycocotools, everything else by its outline, exactly, where
their bounds meet. A mask against another shape is compared by its outline along the pixels'
edges. Two shapes that enclose no area need a rule of their own:

- key points are the discs they are drawn as (`KeyPoint.width` is the diameter); without a width, only the same point
  overlaps itself. For a distance in proportion to an object's size, use the points themselves.
- open vectors are compared as bands, 1 % of their diagonal to each side (at least one pixel).

A shape always overlaps itself by 1, even without area.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.geometry import Geometry, KeyPoint, Mask, Polygon, Rectangle, Vector
from labelloop.labeling.outlines import Outlines, shared_areas

Matrix = NDArray[np.float64]

_BAND = 0.01


def iou(a: Geometry, b: Geometry) -> float:
    """Intersection over union of two shapes, from 0 to 1."""
    return float(iou_matrix([a], [b])[0, 0])


def iou_matrix(a: Sequence[Geometry], b: Sequence[Geometry], *, least: float = 0.0) -> Matrix:
    """Intersection over union of every shape of ``a`` with every one of ``b``.

    Args:
        a: Shapes.
        b: Shapes.
        least: Overlaps that cannot reach this may be given as 0: to find that out takes less time than to measure them.

    Returns:
        An array of shape ``(len(a), len(b))``, values from 0 to 1.
    """
    if not a or not b:
        return np.zeros((len(a), len(b)))
    if all(_upright(shape) for shape in (*a, *b)):
        matrix = box_iou(_boxes(a), _boxes(b))
    elif all(isinstance(shape, Mask) for shape in (*a, *b)) and len({(m.width, m.height) for m in (*a, *b)}) == 1:  # type: ignore[union-attr]
        matrix = _mask_iou(a, b)  # type: ignore[arg-type]
    else:
        matrix = _shape_iou(a, b, least)
    return _same(a, b, np.clip(matrix, 0.0, 1.0))


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> Matrix:
    """Intersection over union of upright boxes given by their corners.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.

    Returns:
        An array of shape ``(n, m)``; 0 where both boxes are without area.
    """
    a, b = np.asarray(a, dtype=np.float64).reshape(-1, 4), np.asarray(b, dtype=np.float64).reshape(-1, 4)
    # Areas from the same corners as the overlap: a box in itself is then exactly 1.
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    found: Matrix = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def match(matrix: NDArray[Any], *, threshold: float) -> tuple[tuple[int, int], ...]:
    """The one-to-one pairs of rows and columns with the largest total, none below ``threshold``.

    Optimal among all such pairings (the Hungarian method), where taking the largest pair first is not.

    Args:
        matrix: Overlaps, of shape ``(n, m)``.
        threshold: The least overlap of a pair; pairs of 0 are never matched.

    Returns:
        Pairs ``(row, column)``, in the order of the rows.
    """
    from scipy.optimize import linear_sum_assignment  # SciPy takes 30 MB, and few processes match

    scores = np.asarray(matrix, dtype=np.float64)
    if not scores.size:
        return ()
    allowed = (scores >= threshold) & (scores > 0)
    rows, columns = linear_sum_assignment(np.where(allowed, scores, 0.0), maximize=True)
    return tuple((int(row), int(column)) for row, column in zip(rows, columns, strict=True) if allowed[row, column])


def _upright(shape: Geometry) -> bool:
    return isinstance(shape, Rectangle) and not shape.rotation


def _boxes(shapes: Sequence[Geometry]) -> NDArray[np.float64]:
    return np.array([shape.bounds for shape in shapes], dtype=np.float64)


def _mask_iou(a: Sequence[Mask], b: Sequence[Mask]) -> Matrix:
    found: Matrix = coco.iou([mask.coco for mask in a], [mask.coco for mask in b], [0] * len(b))
    return np.asarray(found, dtype=np.float64).reshape(len(a), len(b))


def _shape_iou(a: Sequence[Geometry], b: Sequence[Geometry], least: float) -> Matrix:
    matrix = np.zeros((len(a), len(b)))
    left, right = _outlines(tuple(a)), _outlines(tuple(b))
    # No two shapes share more than their upright bounds do, nor more than the smaller one.
    shared = _shared_boxes(left.bounds, right.bounds)
    most = np.minimum(shared, np.minimum(left.areas[:, None], right.areas[None]))
    together = left.areas[:, None] + right.areas[None] - most
    rows, columns = np.nonzero((most > 0) & (most >= least * together - 1e-9))
    if rows.size:
        inner = shared_areas(left, right, rows, columns)
        union = left.areas[rows] + right.areas[columns] - inner
        matrix[rows, columns] = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return matrix


def _shared_boxes(a: NDArray[np.float64], b: NDArray[np.float64]) -> Matrix:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    found: Matrix = np.clip(np.nan_to_num(high - low), 0, None).prod(axis=-1)
    return found


# Each of several annotators is compared with every other: the outlines are made once for all.
@lru_cache(maxsize=16)
def _outlines(shapes: tuple[Geometry, ...]) -> Outlines:
    outlines = np.empty(len(shapes), dtype=object)
    rings = [place for place, shape in enumerate(shapes) if isinstance(shape, Polygon) and len(shape.points) > 2]
    if rings:
        outlines[rings] = _rings([shapes[place] for place in rings])  # type: ignore[misc]
    others = sorted(set(range(len(shapes))) - set(rings))
    for place in others:
        shape = shapes[place]
        if isinstance(shape, KeyPoint):
            outlines[place] = shapely.Point(shape.x, shape.y).buffer(shape.width / 2)
        elif isinstance(shape, Vector) and not shape.closed and len(shape.vertices) > 1:
            outlines[place] = shape.line().buffer(max(_diagonal(shape) * _BAND, 1.0))
        else:
            outlines[place] = shape.polygon()
        if not shapely.is_valid(outlines[place]):
            outlines[place] = shapely.Polygon()  # only shapes without area are not valid
    return Outlines(outlines)


def _rings(polygons: Sequence[Polygon]) -> NDArray[np.object_]:
    """The outlines of polygons, made in one go: one at a time they take longer than their overlaps do."""
    points = np.concatenate([np.array(polygon.points, dtype=np.float64) for polygon in polygons])
    owner = np.repeat(np.arange(len(polygons)), [len(polygon.points) for polygon in polygons])
    outlines: NDArray[np.object_] = shapely.polygons(shapely.linearrings(points, indices=owner))
    for place in np.flatnonzero(~shapely.is_valid(outlines)):
        outlines[place] = polygons[place].polygon()  # it crosses itself
    return outlines


def _diagonal(shape: Geometry) -> float:
    x_min, y_min, x_max, y_max = shape.bounds
    return float(np.hypot(x_max - x_min, y_max - y_min))


def _same(a: Sequence[Geometry], b: Sequence[Geometry], matrix: Matrix) -> Matrix:
    """Set to 1 where both are the same shape: float arithmetic, or the lack of an area, may have said less."""
    places: dict[Geometry, list[int]] = {}
    for column, shape in enumerate(b):
        places.setdefault(shape, []).append(column)
    for row, shape in enumerate(a):
        matrix[row, places.get(shape, [])] = 1.0
    return matrix
