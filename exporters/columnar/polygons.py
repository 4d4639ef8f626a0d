"""Vectorised tests of closed rings: which are certainly simple (no self-contact), and their areas."""

from functools import cache

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.model.clipping import ring_areas
from exporters.structures.arrays import offsets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Square pixels: smallest cross product (twice a triangle's area) that puts a point clearly on one side of an edge.
_MIN_CROSS_PRODUCT = 1e-3
# Rings compared at a time, so that the intermediate arrays stay in the processor's cache.
_BATCH = 64
# Longest ring, in points, whose edges are compared pairwise; shapely is faster for longer ones.
_MAX_BRUTE_FORCE = 24


class Rings(msgspec.Struct, frozen=True):
    """The corners of rotated rectangles and polygons.

    Attributes:
        rows: (rings,), the row of `Shapes` that each ring belongs to.
        first: (rings + 1,): the points of ring ``i`` are ``points[first[i] : first[i + 1]]``.
        points: (points, 2), in pixels.
    """

    rows: Ints
    first: Ints
    points: Floats

    def take(self, indices: Ints) -> "Rings":
        """Return the rings at ``indices``, in that order."""
        lengths = np.diff(self.first)[indices]
        first = offsets(lengths)
        source = np.repeat(self.first[:-1][indices] - first[:-1], lengths) + np.arange(first[-1])
        return Rings(self.rows[indices], first, self.points[source])

    def replaced(self, indices: Ints, lengths: Ints, points: Floats) -> "Rings":
        """Return the rings with other points for those at ``indices``, which ascend.

        Args:
            indices: (replaced,).
            lengths: (replaced,), the number of points of each.
            points: (points, 2), ring after ring.
        """
        new_lengths, is_new = np.diff(self.first), np.zeros(len(self.rows), np.bool_)
        is_new[indices] = True
        kept = self.points[~np.repeat(is_new, new_lengths)]
        new_lengths[indices] = lengths
        first = offsets(new_lengths)
        result = np.empty((first[-1], 2))
        at = np.repeat(is_new, new_lengths)
        result[at], result[~at] = points, kept
        return Rings(self.rows, first, result)


def simple_areas(rings: Rings) -> tuple[NDArray[np.bool_], Floats]:
    """Return which rings are certainly simple, and the areas of all rings: (rings,) each."""
    points, first = rings.points, rings.first
    simple = star_shaped_about_centroid(points, first)
    # a ring that repeats its first point at the end may have too few points: left undecided here
    undecided = np.flatnonzero(~simple & (points[first[:-1]] != points[first[1:] - 1]).any(axis=1))
    if len(undecided):
        lengths = np.diff(first)
        small = undecided[lengths[undecided] <= _MAX_BRUTE_FORCE]
        for begin in range(0, len(small), _BATCH):
            batch = small[begin : begin + _BATCH]
            simple[batch] = no_crossing_edges(points, first[batch], lengths[batch])
        undecided = undecided[~simple[undecided]]
    if len(undecided):
        others = rings.take(undecided)
        owners = np.repeat(np.arange(len(undecided)), np.diff(others.first))
        simple[undecided] = shapely.is_valid(shapely.polygons(shapely.linearrings(others.points, indices=owners)))
    return simple, ring_areas(points, first[:-1])


def star_shaped_about_centroid(points: Floats, first: Ints) -> NDArray[np.bool_]:
    """Return which rings are star-shaped about the mean of their points, so that they never cross themselves.

    All cross products of consecutive points about the mean have one sign, by a margin far above rounding errors, and
    the winding number is one: the ring crosses the positive y direction once. (points, 2), (rings + 1,) -> (rings,)
    """
    lengths = np.diff(first)
    middles = np.add.reduceat(points, first[:-1], axis=0) / lengths[:, None]
    x, y = (points - np.repeat(middles, lengths, axis=0)).T
    after = np.arange(1, len(points) + 1)
    after[first[1:] - 1] = first[:-1]
    turns = x * y[after] - x[after] * y
    extremes = np.minimum.reduceat(turns, first[:-1]), np.maximum.reduceat(turns, first[:-1])
    rises = np.add.reduceat((y < 0) & (y[after] >= 0), first[:-1], dtype=np.int64)
    simple: NDArray[np.bool_] = ((extremes[0] > _MIN_CROSS_PRODUCT) | (extremes[1] < -_MIN_CROSS_PRODUCT)) & (
        rises == 1
    )
    return simple


def no_crossing_edges(points: Floats, first: Ints, lengths: Ints) -> NDArray[np.bool_]:
    """Return which rings have no two edges that could meet, other than neighbours in their shared point.

    Two edges are apart if both ends of one lie on the same side of the line through the other.

    Args:
        points: (points, 2), in pixels.
        first: (rings,), the first point of each ring.
        lengths: (rings,), the number of its points.
    """
    longest = int(lengths.max())
    numbers = np.arange(longest + 2)
    corners = first[:, None] + numbers % lengths[:, None]  # (rings, longest + 2), wrapped around
    x, y = (edge[corners] - edge[first][:, None] for edge in np.ascontiguousarray(points.T))
    to_x, to_y = x[:, 1:] - x[:, :-1], y[:, 1:] - y[:, :-1]
    # [ring, edge, point]: twice the signed area of their triangle, positive left of the edge
    sides = np.stack((to_x, -to_y, to_y * x[:, :-1] - to_x * y[:, :-1]), axis=2)
    signed = sides[:, :longest] @ np.stack((y, x, np.ones_like(x)), axis=1)[:, :, :-1]
    left, right = signed > _MIN_CROSS_PRODUCT, signed < -_MIN_CROSS_PRODUCT
    apart = (left[:, :, 1:] & left[:, :, :-1]) | (right[:, :, 1:] & right[:, :, :-1])
    a, b = _pairs(longest)
    apart = apart.reshape(len(first), -1)
    touching = ~(apart[:, a * longest + b] | apart[:, b * longest + a])
    touching &= (b < lengths[:, None]) & ((a > 0) | (b < lengths[:, None] - 1))
    bent = np.abs(to_x[:, :-1] * to_y[:, 1:] - to_y[:, :-1] * to_x[:, 1:]) > _MIN_CROSS_PRODUCT
    simple: NDArray[np.bool_] = ~touching.any(axis=1) & (bent | (numbers[:longest] >= lengths[:, None])).all(axis=1)
    return simple


@cache
def _pairs(sides: int) -> tuple[Ints, Ints]:
    """Return the index pairs of edges that are not consecutive: (pairs,) each."""
    a, b = np.triu_indices(sides, 2)
    return a, b
