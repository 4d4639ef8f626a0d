"""Shapes that a format asks for and nobody drew: one ring for parts and holes, the smallest box turned about."""

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.model.clipping import inside, is_upright, parts, rings, visible
from exporters.model.records import Object
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Point, Rectangle

Points = NDArray[np.float64]
_PAIRS = 1 << 18
"""Pairs of points that are all compared at once, in some 6 MB."""


def one_ring(each: Object, width: int, height: int) -> tuple[list[Point], int, int]:
    """The outline of an object as one ring: (points, parts, holes).

    Parts and holes are joined to the largest part by bridges of no width, there and back: the even-odd rule (OpenCV's
    ``fillPoly``, the shoelace formula) sees the same area.

    Args:
        each: an object with a box.
        width: the image's, in pixels.
        height: the image's, in pixels.
    """
    simple = None if isinstance(each.geometry, Mask) else rings(each, width, height)
    if simple is not None and len(simple) == 1:
        return simple[0], 1, 0
    outline = visible(each)
    if isinstance(each.geometry, Mask):
        outline = shapely.simplify(outline, 0)  # the same outline without points along its straight edges
    found = sorted(parts(outline), key=lambda part: -part.area)
    # a hole runs the other way round, so that the shoelace formula takes its area off
    found = [shapely.orient_polygons(part) for part in found]
    loose = [np.array(part.exterior.coords[:-1]) for part in found]
    holes = [np.array(hole.coords[:-1]) for part in found for hole in part.interiors]
    ring = loose[0]
    for other in [*loose[1:], *holes]:
        ring = _bridged(ring, other)
    return [inside((x, y), width, height) for x, y in ring.tolist()], len(loose), len(holes)


def turned_box(each: Object) -> list[Point]:
    """The corners of the smallest box, turned about, around what can be seen of an object; in order, in pixels.

    A rectangle that lies inside its image is that box itself, from its own first corner; an ellipse has its axes' box.
    Corners may lie over the image's edge, as they do for a turned object that the edge cuts.

    Args:
        each: an object with a box.
    """
    shape = each.geometry
    if each.outline is None:
        if isinstance(shape, Ellipse):
            shape = _axes_box(shape)
        if isinstance(shape, Rectangle):
            if is_upright(shape) and each.box is not None:
                x_min, y_min, x_max, y_max = each.box
                return [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
            return list(shape.corners)
    hull = shapely.get_coordinates(shapely.convex_hull(visible(each)))
    return _smallest_box(hull[:-1])


def _bridged(ring: Points, other: Points) -> Points:
    """The two rings as one, joined where their points are nearest."""
    here, there = _nearest(ring, other)
    around = np.roll(other, -there, axis=0)
    return np.vstack((ring[: here + 1], around, around[:1], ring[here:]))


def _nearest(ring: Points, other: Points) -> tuple[int, int]:
    """Which point of each ring is nearest to the other ring."""
    if len(ring) * len(other) <= _PAIRS:
        apart = ((ring[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
        here, there = np.unravel_index(int(apart.argmin()), apart.shape)
        return int(here), int(there)
    from scipy.spatial import KDTree  # SciPy takes 30 MB, and few masks are as large as that

    distances, places = KDTree(ring).query(other)  # a table of all pairs may be gigabytes
    there = distances.argmin()
    return int(places[there]), int(there)


def _smallest_box(hull: Points) -> list[Point]:
    """The box of the least area around a convex ring (n, 2): one side of it lies along a side of the ring.

    Source: Freeman and Shapira, "Determining the minimum-area encasing rectangle", CACM 18 (1975).
    """
    sides = np.roll(hull, -1, axis=0) - hull
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    along = sides[lengths > 0] / lengths[lengths > 0, None]  # (m, 2)
    across = np.column_stack((-along[:, 1], along[:, 0]))
    u, v = hull @ along.T, hull @ across.T  # (n, m)
    areas = np.ptp(u, axis=0) * np.ptp(v, axis=0)
    best = int(areas.argmin())
    a, b = along[best], across[best]
    low_u, high_u, low_v, high_v = u[:, best].min(), u[:, best].max(), v[:, best].min(), v[:, best].max()
    corners = [low_u * a + low_v * b, high_u * a + low_v * b, high_u * a + high_v * b, low_u * a + high_v * b]
    return [(float(x), float(y)) for x, y in corners]


def _axes_box(shape: Ellipse) -> Rectangle:
    turn = math.radians(shape.rotation)
    cos, sin = math.cos(turn), math.sin(turn)
    x = shape.cx - shape.rx * cos + shape.ry * sin
    y = shape.cy - shape.rx * sin - shape.ry * cos
    return Rectangle(x, y, 2 * shape.rx, 2 * shape.ry, shape.rotation)
