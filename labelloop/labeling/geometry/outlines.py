"""Outlines of shapes, and the area that two of them share: several times as fast as building their intersection.

Under every edge of an outline lies a trapezoid, down to a common line. With the sign of the edge's direction the
trapezoids of a ring add up to the ring's inside, so that

    shared area = sum over edges i of one, j of the other of sign_i x sign_j x area of trapezoid_i within trapezoid_j

and the area of two such trapezoids is the integral of the lower one of two straight lines: with d0 and d1 the distances
of the lines at both ends of the stretch w that they share, that of the second line less

    w / 2 x (min(d0, 0) + min(d1, 0))^2 / (|d0| + |d1|)

It is exact for rings that do not cross themselves. Its work grows with the product of the corners, that of GEOS with
their sum, so shapes of many corners, with holes or of several parts are left to GEOS.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from labelloop.labeling.errors import TooLargeToJudge

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

# Corners of one times corners of the other up to which this is faster, and how many of them are worked on at a time
# (more fall out of the processor's cache).
_MOST, _AT_A_TIME = 10_000, 4096
# Edges that are gathered at a time.
_GATHERED = 1 << 14
# More pairs than this are ordered by their corners first.
_MANY = 1024
# What a corner costs GEOS, in corners of one times corners of the other; how much is measured at most, in those; and
# how many pairs are measured in any case.
_GEOS, _MOST_WORK, _MANY_PAIRS = 100, 2_000_000_000, 20_000
_TINY = 1e-300

_UPRIGHT = 1e-12
"""Pixels of width below which an edge has nothing under it: its slope would be beyond any number."""


class Outlines:
    """Outlines of several shapes.

    Attributes:
        shapes: Valid shapely polygons, of several parts too, of shape ``(n,)``.
        areas: Their areas.
        bounds: The upright boxes around them, of shape ``(n, 4)``; all zero where there is nothing.
        coordinates: How many points each has.
        corners: How many corners each has; 0 where it is not one ring.
    """

    def __init__(self, shapes: Sequence[Any] | NDArray[np.object_]) -> None:
        self.shapes: NDArray[np.object_] = np.asarray(shapes, dtype=object)
        self.areas: Floats = shapely.area(self.shapes)
        self.bounds: Floats = np.nan_to_num(shapely.bounds(self.shapes))
        one_ring = (shapely.get_type_id(self.shapes) == shapely.GeometryType.POLYGON) & (
            shapely.get_num_interior_rings(self.shapes) == 0
        )
        self.coordinates: NDArray[Any] = shapely.get_num_coordinates(self.shapes)
        self.corners: NDArray[Any] = np.where(one_ring, np.maximum(self.coordinates - 1, 0), 0)

    @cached_property
    def edges(self) -> Floats:
        """(5, edges): left and right end, slope, height at x = 0 and sign of every edge, ring after ring.

        Behind them stands one without length.
        """
        rings = np.flatnonzero(self.corners)
        x, y = shapely.get_coordinates(self.shapes[rings]).T
        owner = np.repeat(np.arange(len(rings)), self.corners[rings] + 1)
        within = owner[1:] == owner[:-1]
        run = np.diff(x)
        run[np.abs(run) < _UPRIGHT] = 0.0
        slope = np.divide(np.diff(y), run, out=np.zeros_like(run), where=run != 0)
        turn = np.sign(np.bincount(owner[:-1][within], (run * (y[:-1] + y[1:]))[within], len(rings)))
        ends = np.minimum(x[:-1], x[1:]), np.maximum(x[:-1], x[1:])
        edges = np.stack((*ends, slope, y[:-1] - slope * x[:-1], np.sign(run) * turn[owner[:-1]]))[:, within]
        return np.concatenate((edges, np.zeros((5, 1))), axis=1)

    @cached_property
    def starts(self) -> Places:
        """Where each ring's edges start."""
        starts: Places = np.cumsum(self.corners) - self.corners
        return starts


def shared_areas(a: Outlines, b: Outlines, rows: Places, columns: Places) -> Floats:
    """Areas that shapes ``rows`` of ``a`` share with shapes ``columns`` of ``b``, pair by pair.

    Raises:
        TooLargeToJudge: They have too many corners to be measured in bounded time.
    """
    found: Floats = np.zeros(len(rows))
    work = a.corners[rows] * b.corners[columns]
    quick = (work > 0) & (work <= _MOST)
    if len(rows) > _MANY_PAIRS:
        sums = a.coordinates[rows[~quick]] + b.coordinates[columns[~quick]]
        if work[quick].sum() + _GEOS * sums.sum() > _MOST_WORK:
            raise TooLargeToJudge("its outlines that overlap have too many corners")
    if not quick.all():
        shapes = a.shapes[rows[~quick]], b.shapes[columns[~quick]]
        found[~quick] = shapely.area(shapely.intersection(*shapes))
    places = np.flatnonzero(quick)
    if not places.size:
        return found
    # Lines are compared from below all shapes: a trapezoid must not reach under the common line.
    base = min(a.bounds[rows[places], 1].min(), b.bounds[columns[places], 1].min())
    if len(places) > _MANY:  # pairs of few corners do not wait for one of many
        places = places[np.argsort(work[places], kind="stable")]
    for part in np.split(places, range(_MANY, len(places), _MANY)):
        step = max(1, _AT_A_TIME // int(work[part].max()))
        wide = step * max(
            1, _GATHERED // (step * int(max(a.corners[rows[part]].max(), b.corners[columns[part]].max())))
        )
        for block in np.split(part, range(wide, len(part), wide)):
            ours, theirs = a.corners[rows[block]], b.corners[columns[block]]
            left, right = _taken(a, rows[block], base), _taken(b, columns[block], base)
            for start in range(0, len(block), step):
                some = slice(start, start + step)
                one, other = left[:, some, : ours[some].max()], right[:, some, : theirs[some].max()]
                found[block[some]] = _shared(one, other)
    return found


def _taken(outlines: Outlines, places: Places, base: float) -> Floats:
    """(5, n, most corners): the edges of some rings; rings of fewer corners are filled up with edges without length."""
    corners = outlines.corners[places][:, None]
    step = np.arange(int(corners.max()))
    wanted = outlines.starts[places][:, None] + step
    wanted[step >= corners] = -1
    taken: Floats = outlines.edges.take(wanted, axis=1)
    taken[3] -= base
    return taken


def _shared(a: Floats, b: Floats) -> Floats:
    """(n,): the shared areas of rings given by their edges. In place: half of the time went into fresh arrays."""
    left_a, right_a, slope_a, height_a, sign_a = a[:, :, :, None]
    left_b, right_b, slope_b, height_b, sign_b = b[:, :, None, :]
    start, end = np.maximum(left_a, left_b), np.minimum(right_a, right_b)
    slope, height = slope_a - slope_b, height_a - height_b
    first, last = slope * start, slope
    last *= end
    first += height
    last += height
    middle = start + end
    width = np.subtract(end, start, out=end)
    np.maximum(width, 0.0, out=width)
    lower = np.multiply(slope_b, middle, out=middle)
    lower += 2 * height_b
    under = np.minimum(first, 0.0, out=start)
    under += np.minimum(last, 0.0, out=height)
    under *= under
    apart = np.abs(first, out=first)
    apart += np.abs(last, out=last)
    apart += _TINY  # where both lines meet at both ends, nothing is divided by nothing
    under /= apart
    lower -= under
    lower *= width
    found: Floats = (sign_a * (lower @ sign_b.transpose(0, 2, 1))).sum(axis=(1, 2)) / 2
    return np.maximum(found, 0.0)
