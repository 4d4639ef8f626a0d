"""Merge the outlines that several annotators drew of one object into one polygon with few vertices.

1. Area vote: the largest part of the area that more than half of the outlines cover; of two outlines, the first.
2. Every point of that ring moves to the weighted mean of the nearest points of all outlines, twice: the mean of several
   careful outlines is nearer to the edge than any of them. An outline weighs ``1 / (1.05 - IoU with the vote)^2``, so
   that a careless one hardly counts.
3. Douglas-Peucker with the largest tolerance that keeps the ring, so that it is quick to edit.

The medoid (the outline most similar to the others) stays where the result is less similar to them: outlines that agree
to the pixel keep their vertices. Figures: ``python -m bench outline_consensus``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from labelloop.labeling.geometry.shapes import Polygon

Floats = NDArray[np.float64]

# Points of the ring that move: one every 25th of the square root of the area, and at most this many.
_STEPS, _MAX_POINTS = 25, 600
_MOVES = 2
# Points of an outline above which it is simplified first, by this share of the square root of its area; and points of
# all outlines above which the medoid is taken: time grows with the square of their number.
_MANY_POINTS, _FIRST_TOLERANCE, _MAX_TOTAL = 200, 0.002, 3000
_WEIGHT_OFFSET = 1.05
# Tolerances of Douglas-Peucker, coarse to fine, as shares of the square root of the area.
_TOLERANCES = (0.06, 0.045, 0.033, 0.025, 0.018, 0.013, 0.009, 0.006, 0.004, 0.0027, 0.0018)
# Least IoU of the simplified ring; where the outlines agree well, its distance (1 - IoU) is this share of theirs.
_MIN_IOU, _SHARE = 0.98, 0.3


def merge_outlines(shapes: Sequence[Polygon], medoid: int) -> Polygon:
    """Merge at least two outlines.

    Args:
        shapes: The outlines.
        medoid: Index of the one most similar to the others.
    """
    with np.errstate(all="ignore"):  # GEOS measures edges that are shorter than numbers can tell
        return _merged(shapes, medoid)


def _merged(shapes: Sequence[Polygon], medoid: int) -> Polygon:
    outlines = np.array([_outline(shape) for shape in shapes], dtype=object)
    if any(outline is None for outline in outlines) or len(set(shapes)) == 1:
        return shapes[medoid]
    if shapely.get_num_coordinates(outlines).sum() > _MAX_TOTAL:
        return shapes[medoid]
    voted = _vote(outlines) if len(outlines) > 2 else outlines[medoid]
    if voted is None:
        return shapes[medoid]
    similar = _ious(outlines, voted)
    weights = np.ones(len(outlines)) if len(outlines) == 2 else 1 / (_WEIGHT_OFFSET - similar) ** 2
    ring = _moved(voted, outlines, weights / weights.sum())
    merged = _simplified(ring, outlines, weights)
    others = np.arange(len(outlines)) != medoid
    own = float(np.average(_ious(outlines[others], outlines[medoid]), weights=weights[others]))
    if float(np.average(_ious(outlines, merged), weights=weights)) <= own:
        return shapes[medoid]
    points = shapely.get_coordinates(merged.exterior)[:-1]
    return Polygon(tuple((float(x), float(y)) for x, y in points.tolist()))


def _outline(shape: Polygon) -> Any:
    outline = _largest(shape.polygon())
    if outline is None or shapely.get_num_coordinates(outline) <= _MANY_POINTS:
        return outline
    return _largest(shapely.simplify(outline, _FIRST_TOLERANCE * float(np.sqrt(outline.area))))


def _vote(outlines: NDArray[np.object_]) -> Any:
    """The largest part of the area that more than half of the outlines cover; None if there is none."""
    edges = shapely.node(shapely.union_all(shapely.boundary(outlines)))
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(edges)))
    if not len(faces):
        return None
    inside = shapely.point_on_surface(faces)
    votes = np.sum([shapely.contains_properly(outline, inside) for outline in outlines], axis=0)
    return _largest(shapely.union_all(faces[2 * votes > len(outlines)]))


def _moved(ring: Any, outlines: NDArray[np.object_], weights: Floats) -> Any:
    """A ring whose points are moved to the weighted mean of the nearest points of all outlines."""
    for _ in range(_MOVES):
        step = max(np.sqrt(ring.area) / _STEPS, ring.length / _MAX_POINTS)
        points = shapely.get_coordinates(shapely.segmentize(ring.exterior, step))[:-1]
        at = shapely.points(points)
        mean = np.zeros_like(points)
        for outline, weight in zip(outlines, weights.tolist(), strict=True):
            line = outline.exterior
            nearest = shapely.line_interpolate_point(line, shapely.line_locate_point(line, at))
            mean += weight * shapely.get_coordinates(nearest)
        if not np.isfinite(mean).all():
            return ring
        ring = _largest(shapely.Polygon(mean)) or ring
    return ring


def _simplified(ring: Any, outlines: NDArray[np.object_], weights: Floats) -> Any:
    floor = max(_MIN_IOU, 1 - _SHARE * float(1 - np.average(_ious(outlines, ring), weights=weights)))
    scale = float(np.sqrt(ring.area))
    for tolerance in _TOLERANCES:
        simple = shapely.simplify(ring, tolerance * scale)
        if _largest(simple) is simple and float(_ious(np.array([simple]), ring)[0]) >= floor:
            return simple
    return ring


def _ious(outlines: NDArray[np.object_], other: Any) -> Floats:
    shared = shapely.area(shapely.intersection(outlines, other))
    union = shapely.area(outlines) + other.area - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(len(outlines)), where=union > 0), np.float64)


def _largest(outline: Any) -> Any:
    """The largest valid part, without holes; the outline itself if it is that; None if it has no area."""
    if outline.geom_type == "Polygon" and not outline.interiors and outline.area > 0 and outline.is_valid:
        return outline
    parts = [part for part in shapely.get_parts(shapely.make_valid(outline)) if part.geom_type == "Polygon"]
    largest = max(parts, key=lambda part: part.area, default=None)
    return shapely.Polygon(largest.exterior) if largest is not None and largest.area > 0 else None
