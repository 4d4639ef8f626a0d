"""Closed rings by the thousand: which of them are simple (never touch themselves), for certain, and their areas."""

from functools import cache

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.model.clipping import ring_areas
from exporters.structures.arrays import offsets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TURN = 1e-3
"""Square pixels: twice the area of the smallest triangle between a side and a point that counts as beside the side."""
_AT_ONCE = 64
"""Rings that are compared so at a time: what is computed of them stays in the processor's cache."""
_FEW = 24
"""Points of a ring whose sides are all compared with each other; of a longer one shapely compares them faster."""


class Rings(msgspec.Struct, frozen=True):
    """The corners of turned rectangles and polygons: ring ``i`` is that of ``rows[i]``.

    ``points`` is (points, 2) in pixels; the ring's are from ``first[i]`` to before ``first[i + 1]``.
    """

    rows: Ints
    first: Ints
    points: Floats

    def some(self, mine: Ints) -> "Rings":
        """Some of the rings, in the order asked for."""
        lengths = np.diff(self.first)[mine]
        first = offsets(lengths)
        places = np.repeat(self.first[:-1][mine] - first[:-1], lengths) + np.arange(first[-1])
        return Rings(self.rows[mine], first, self.points[places])


def simple_areas(rings: Rings) -> tuple[NDArray[np.bool_], Floats]:
    """Which rings are simple for certain, and the areas of all of them: (rings,) each."""
    points, first = rings.points, rings.first
    simple = _star_shaped_about_centroid(points, first)
    # a ring whose last point is its first already may have too few points to be one: not known here
    asked = np.flatnonzero(~simple & (points[first[:-1]] != points[first[1:] - 1]).any(axis=1))
    if len(asked):
        lengths = np.diff(first)
        few = asked[lengths[asked] <= _FEW]
        for begin in range(0, len(few), _AT_ONCE):
            some = few[begin : begin + _AT_ONCE]
            simple[some] = _no_crossing_edges(points, first[some], lengths[some])
        asked = asked[~simple[asked]]
    if len(asked):
        others = rings.some(asked)
        owners = np.repeat(np.arange(len(asked)), np.diff(others.first))
        simple[asked] = shapely.is_valid(shapely.polygons(shapely.linearrings(others.points, indices=owners)))
    return simple, ring_areas(points, first[:-1])


def _star_shaped_about_centroid(points: Floats, first: Ints) -> NDArray[np.bool_]:
    """Which rings go once around the mean of their points, always the same way: those never cross themselves.

    Seen from there each side turns the same way, by a margin far above what rounding could feign, and from below the
    middle to above it the ring comes once.
    """
    lengths = np.diff(first)
    middles = np.add.reduceat(points, first[:-1], axis=0) / lengths[:, None]
    x, y = (points - np.repeat(middles, lengths, axis=0)).T
    after = np.arange(1, len(points) + 1)
    after[first[1:] - 1] = first[:-1]
    turns = x * y[after] - x[after] * y
    least = np.minimum.reduceat(turns, first[:-1]), np.maximum.reduceat(turns, first[:-1])
    rises = np.add.reduceat((y < 0) & (y[after] >= 0), first[:-1], dtype=np.int64)
    simple: NDArray[np.bool_] = ((least[0] > _TURN) | (least[1] < -_TURN)) & (rises == 1)
    return simple


def _no_crossing_edges(points: Floats, first: Ints, lengths: Ints) -> NDArray[np.bool_]:
    """Which rings have no two sides that could meet, but for neighbours in the point that they share.

    Two sides are apart where both ends of one lie on the same side of the line through the other.
    """
    most = int(lengths.max())
    numbers = np.arange(most + 2)
    places = first[:, None] + numbers % lengths[:, None]  # (rings, most + 2): from its end a ring begins again
    x, y = (edge[places] - edge[first][:, None] for edge in np.ascontiguousarray(points.T))
    to_x, to_y = x[:, 1:] - x[:, :-1], y[:, 1:] - y[:, :-1]
    # [ring, side, point]: twice the area of their triangle, by its sign to the left or to the right of the side
    sides = np.stack((to_x, -to_y, to_y * x[:, :-1] - to_x * y[:, :-1]), axis=2)
    beside = sides[:, :most] @ np.stack((y, x, np.ones_like(x)), axis=1)[:, :, :-1]
    left, right = beside > _TURN, beside < -_TURN
    apart = (left[:, :, 1:] & left[:, :, :-1]) | (right[:, :, 1:] & right[:, :, :-1])
    one, other = _pairs(most)
    apart = apart.reshape(len(first), -1)
    met = ~(apart[:, one * most + other] | apart[:, other * most + one])
    met &= (other < lengths[:, None]) & ((one > 0) | (other < lengths[:, None] - 1))
    turned = np.abs(to_x[:, :-1] * to_y[:, 1:] - to_y[:, :-1] * to_x[:, 1:]) > _TURN
    simple: NDArray[np.bool_] = ~met.any(axis=1) & (turned | (numbers[:most] >= lengths[:, None])).all(axis=1)
    return simple


@cache
def _pairs(sides: int) -> tuple[Ints, Ints]:
    """Of so many sides all pairs that do not follow each other."""
    one, other = np.triu_indices(sides, 2)
    return one, other
