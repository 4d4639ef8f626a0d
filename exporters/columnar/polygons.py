"""Vectorised tests of closed rings: which are certainly simple (no self-contact), and their areas."""

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
