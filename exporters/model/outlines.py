"""Derive the shapes that formats need: one ring for parts and holes, and the minimum-area rotated box."""

import math
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.model.clipping import clamp_points, is_axis_aligned, outline_rings, polygon_parts, visible_outline
from exporters.model.records import Box, Object
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, Mask, Point, Rectangle

Points = NDArray[np.float64]
# Most point pairs compared at once by brute force, in about 6 MB.
_PAIRS = 1 << 18
# Rings from which bridges lead to one of the earlier rings near by, instead of to the nearest point of all of them.
_MANY_RINGS = 128


def single_ring(obj: Object, width: int, height: int) -> tuple[list[Point], int, int]:
    """Return the outline of an object as one ring, with its numbers of parts and holes: (points, parts, holes).

    Parts and holes are joined to the largest part by zero-width bridges, so the area is the same under the even-odd
    rule (OpenCV's ``fillPoly``) and the shoelace formula.

    Args:
        obj: an object with a box.
        width: the image's, in pixels.
        height: the image's, in pixels.
    """
    simple = None if isinstance(obj.geometry, Mask) else outline_rings(obj, width, height)
    if simple is not None and len(simple) == 1:
        return simple[0], 1, 0
    outline = visible_outline(obj)
    if isinstance(obj.geometry, Mask):
        outline = shapely.simplify(outline, 0)  # drop points along straight edges
    polygons = sorted(polygon_parts(outline), key=lambda part: -part.area)
    # holes run in the opposite direction, so that the shoelace formula subtracts their area
    polygons = [shapely.orient_polygons(part) for part in polygons]
    exteriors = [np.array(part.exterior.coords[:-1]) for part in polygons]
    holes = [np.array(hole.coords[:-1]) for part in polygons for hole in part.interiors]
    if len(exteriors) + len(holes) > _MANY_RINGS:
        ring = _joined([*exteriors, *holes])
    else:
        ring = exteriors[0]
        for other in [*exteriors[1:], *holes]:
            ring = _bridged(ring, other)
    return clamp_points(ring, width, height), len(exteriors), len(holes)


def min_area_box(obj: Object) -> list[Point]:
    """Return the corners, in order and in pixels, of the minimum-area rotated box around an object's visible part.

    A rectangle inside its image is its own box, from its first corner; an ellipse has the box along its axes. Corners
    may lie outside the image.

    Args:
        obj: an object with a box.
    """
    if obj.outline is None and (drawn := drawn_box(obj.geometry, obj.box)):
        return drawn
    [corners] = min_area_boxes(np.array([visible_outline(obj)])).tolist()
    return [(x, y) for x, y in corners]


def drawn_box(shape: Geometry, box: Box | None) -> list[Point]:
    """Return the corners of a rectangle, or of the box along the axes of an ellipse; none of another shape.

    Args:
        shape: the shape, inside its image.
        box: its bounding box, which an upright one has.
    """
    if isinstance(shape, Ellipse):
        shape = _axes_box(shape)
    if not isinstance(shape, Rectangle):
        return []
    if is_axis_aligned(shape) and box is not None:
        x_min, y_min, x_max, y_max = box
        return [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
    return list(shape.corners)


def min_area_boxes(outlines: NDArray[Any]) -> Points:
    """Return the corners of the minimum-area rotated box of each outline, in order and in pixels: (n, 4, 2).

    Args:
        outlines: (n,) shapely polygons with an area.
    """
    points, owners = shapely.get_coordinates(shapely.convex_hull(outlines), return_index=True)
    lengths = np.bincount(owners, minlength=len(outlines))
    first = np.cumsum(lengths) - lengths
    corners = np.empty((len(outlines), 4, 2))
    for length in np.unique(lengths).tolist():
        same = np.flatnonzero(lengths == length)
        step = max(1, _PAIRS // length**2)  # every side is compared with every corner
        for start in range(0, len(same), step):
            part = same[start : start + step]
            corners[part] = _smallest_boxes(points[first[part][:, None] + np.arange(length - 1)])
    return corners


def _bridged(ring: Points, other: Points) -> Points:
    """Join two rings, (n, 2) and (m, 2), by a zero-width bridge between their nearest points: (n + m + 2, 2)."""
    index, other_index = _nearest(ring, other)
    around = np.roll(other, -other_index, axis=0)
    return np.vstack((ring[: index + 1], around, around[:1], ring[index:]))


def _joined(rings: list[Points]) -> Points:
    """Join many rings by zero-width bridges in one ring, in O(n log n): a mask may have thousands of specks.

    Each ring is joined to one of those before it: the nearest by its centre among the first half of them at least.
    """
    from scipy.spatial import KDTree  # imported here: SciPy takes 30 MB

    centres = np.array([ring.mean(axis=0) for ring in rings])
    children: list[list[tuple[int, int, int]]] = [[] for _ in rings]  # (point, ring, its point)
    known = 1
    while known < len(rings):
        parents = KDTree(centres[:known]).query(centres[known : 2 * known])[1].tolist()
        for ring, parent in enumerate(parents, known):
            point, own_point = _nearest(rings[parent], rings[ring])
            children[parent].append((point, ring, own_point))
        known += len(parents)
    # Walk the tree: around each ring from the point where it is entered, through its children on the way.
    pieces: list[Points] = []
    stack = [(rings[0], 0, iter(sorted(children[0])))]
    while stack:
        around, at, following = stack.pop()
        child = next(following, None)
        if child is None:
            pieces.append(around[at:])
            continue
        point, ring, own_point = child
        pieces.append(around[at : point + 1])
        stack.append((around, point, following))  # the bridge returns to the same point
        own = np.roll(rings[ring], -own_point, axis=0)
        length = len(own)
        inner = sorted(((at - own_point) % length, other, other_point) for at, other, other_point in children[ring])
        stack.append((np.concatenate((own, own[:1])), 0, iter(inner)))
    return np.concatenate(pieces)


def _nearest(ring: Points, other: Points) -> tuple[int, int]:
    """Return the indices of the nearest pair of points of two rings."""
    if len(ring) * len(other) <= _PAIRS:
        distances = ((ring[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
        index, other_index = np.unravel_index(int(distances.argmin()), distances.shape)
        return int(index), int(other_index)
    from scipy.spatial import KDTree  # imported here: SciPy takes 30 MB, and few masks are that large

    distances, nearest = KDTree(ring).query(other)  # a table of all pairs may be gigabytes
    other_index = distances.argmin()
    return int(nearest[other_index]), int(other_index)


def _smallest_boxes(hulls: Points) -> Points:
    """Return the minimum-area boxes of convex rings, (k, n, 2) -> (k, 4, 2): one side lies along an edge of the ring.

    Source: Freeman and Shapira, "Determining the minimum-area encasing rectangle", CACM 18 (1975).
    """
    sides = np.roll(hulls, -1, axis=1) - hulls
    along = sides / np.hypot(sides[..., 0], sides[..., 1])[..., None]  # (k, n, 2)
    across = np.stack((-along[..., 1], along[..., 0]), axis=2)
    u, v = hulls @ along.transpose(0, 2, 1), hulls @ across.transpose(0, 2, 1)  # (k, n, n)
    each = np.arange(len(hulls))
    best = (np.ptp(u, axis=1) * np.ptp(v, axis=1)).argmin(axis=1)
    u, v, a, b = u[each, :, best], v[each, :, best], along[each, best], across[each, best]
    low_u, high_u = (side[:, None] * a for side in (u.min(axis=1), u.max(axis=1)))
    low_v, high_v = (side[:, None] * b for side in (v.min(axis=1), v.max(axis=1)))
    return np.stack((low_u + low_v, high_u + low_v, high_u + high_v, low_u + high_v), axis=1)


def _axes_box(shape: Ellipse) -> Rectangle:
    turn = math.radians(shape.rotation)
    cos, sin = math.cos(turn), math.sin(turn)
    x = shape.cx - shape.rx * cos + shape.ry * sin
    y = shape.cy - shape.rx * sin - shape.ry * cos
    return Rectangle(x, y, 2 * shape.rx, 2 * shape.ry, shape.rotation)
