"""Outlines of shapes and their intersection areas, several times as fast as building the intersections.

Every edge of an outline defines a trapezoid down to a common base line. With the sign of the edge's direction, the
trapezoids of a ring sum to its interior, so that

    intersection area = sum over edges i, j of sign_i x sign_j x area of (trapezoid_i and trapezoid_j)

The intersection of two trapezoids is the integral of the lower one of two straight lines. With d0 and d1 the
differences of the lines at both ends of their common interval of width w, it is the integral of the second line minus

    w / 2 x (min(d0, 0) + min(d1, 0))^2 / (|d0| + |d1|)

This is exact for rings that do not intersect themselves. The cost grows with the product of the corner counts, that of
GEOS with their sum: shapes with many corners, holes or several parts are left to GEOS.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from labelloop.labeling.errors import TooLargeToJudge

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

# Product of the corner counts up to which this is faster, the work per batch (limited by the processor's cache), and
# pairs of padded edges in memory at once.
_MAX_CORNER_PRODUCT, _BATCH_WORK, _PADDED_WORK = 10_000, 1 << 15, 1 << 22
# Above this number, pairs are sorted by their corners first.
_SORT_ABOVE = 1024
# Cost of one corner in GEOS, in units of that product; maximum total work in these units; and the number of pairs up
# to which the work is not limited.
_GEOS_COST, MAX_WORK, ALWAYS_MEASURED_PAIRS = 100, 2_000_000_000, 20_000
_TINY = 1e-300
# Edges narrower than this, in pixels, count as vertical: their slope would overflow.
_MIN_EDGE_WIDTH = 1e-12


class Outlines:
    """Outlines of several shapes.

    Attributes:
        shapes: Valid shapely polygons or multipolygons, of shape ``(n,)``.
        areas: Their areas, ``(n,)``.
        bounds: Their bounding boxes, ``(n, 4)``; all zero for empty shapes.
        coordinates: Number of points of each, ``(n,)``.
        corners: Number of corners of each, ``(n,)``; 0 if it is not a single ring.
    """

    def __init__(self, shapes: Sequence[Any] | NDArray[np.object_]) -> None:
        self.shapes: NDArray[np.object_] = np.asarray(shapes, dtype=object)
        self.areas: Floats = shapely.area(self.shapes)
        self.bounds: Floats = shapely.bounds(self.shapes)
        self.bounds[np.isnan(self.bounds)] = 0.0
        one_ring = (shapely.get_type_id(self.shapes) == shapely.GeometryType.POLYGON) & (
            shapely.get_num_interior_rings(self.shapes) == 0
        )
        self.coordinates: NDArray[Any] = shapely.get_num_coordinates(self.shapes)
        self.corners: NDArray[Any] = np.where(one_ring, np.maximum(self.coordinates - 1, 0), 0)

    @cached_property
    def edges(self) -> Floats:
        """(5, points): left and right end, slope, height at x = 0 and sign of every edge, ring after ring.

        Behind each ring lies an edge without a sign, for padding.
        """
        rings = np.flatnonzero(self.corners)
        last = np.cumsum(self.corners[rings] + 1) - 1
        x, y = shapely.get_coordinates(self.shapes[rings]).T
        edges = np.zeros((5, max(len(x), 1)))
        left, right, slope, height, sign = edges
        run = x[1:] - x[:-1]
        run[np.abs(run) < _MIN_EDGE_WIDTH] = 0.0
        run[last[:-1]] = 0.0
        np.minimum(x[:-1], x[1:], out=left[:-1])
        np.maximum(x[:-1], x[1:], out=right[:-1])
        np.divide(y[1:] - y[:-1], run, out=slope[:-1], where=run != 0)
        np.subtract(y[:-1], slope[:-1] * x[:-1], out=height[:-1])
        if len(rings):
            doubled_areas = np.add.reduceat(run * (y[:-1] + y[1:]), last - self.corners[rings])
            np.multiply(np.sign(run), np.repeat(np.sign(doubled_areas), self.corners[rings] + 1)[:-1], out=sign[:-1])
        return edges

    @cached_property
    def starts(self) -> Indices:
        """(n,): index of the first edge of each ring."""
        points = np.where(self.corners > 0, self.corners + 1, 0)
        starts: Indices = np.cumsum(points) - points
        return starts


def intersection_areas(a: Outlines, b: Outlines, rows: Indices, columns: Indices) -> Floats:
    """(n,): intersection areas of the shapes ``rows`` of ``a`` with the shapes ``columns`` of ``b``, pair by pair.

    Raises:
        TooLargeToJudge: They have too many corners to be measured in bounded time.
    """
    areas: Floats = np.zeros(len(rows))
    work = a.corners[rows] * b.corners[columns]
    quick = (work > 0) & (work <= _MAX_CORNER_PRODUCT)
    if len(rows) > ALWAYS_MEASURED_PAIRS:
        sums = a.coordinates[rows[~quick]] + b.coordinates[columns[~quick]]
        if work[quick].sum() + _GEOS_COST * sums.sum() > MAX_WORK:
            raise TooLargeToJudge("its outlines that overlap have too many corners")
    if not quick.all():
        shapes = a.shapes[rows[~quick]], b.shapes[columns[~quick]]
        areas[~quick] = shapely.area(shapely.intersection(*shapes))
    quick_pairs = np.flatnonzero(quick)
    if not quick_pairs.size:
        return areas
    # The base line lies below all shapes: trapezoids must not extend under it.
    base = min(a.bounds[rows[quick_pairs], 1].min(), b.bounds[columns[quick_pairs], 1].min())
    if len(quick_pairs) > _SORT_ABOVE:  # keeps pairs with few corners out of the batches with many
        quick_pairs = quick_pairs[np.argsort(work[quick_pairs], kind="stable")]
    padded = int(a.corners[rows[quick_pairs]].max()) * int(b.corners[columns[quick_pairs]].max())
    step = max(1, min(_BATCH_WORK // int(work[quick_pairs].max()), _PADDED_WORK // padded))
    for start in range(0, len(quick_pairs), step):
        batch = quick_pairs[start : start + step]
        areas[batch] = _intersections_of_rings(a, b, rows[batch], columns[batch], base)
    return areas


def _padded_edges(outlines: Outlines, indices: Indices) -> Indices:
    """(n, most corners): indices of the edges of some rings, -1 behind the last one of each."""
    corners = outlines.corners[indices][:, None]
    step = np.arange(int(corners.max()))
    edges: Indices = outlines.starts[indices][:, None] + step
    edges[step >= corners] = -1
    return edges


def _intersections_of_rings(a: Outlines, b: Outlines, rows: Indices, columns: Indices, base: float) -> Floats:
    """``intersection_areas`` of rings above the height ``base``.

    Only edges whose x ranges overlap share a trapezoid: of two rings of 30 corners, one pair of edges in ten.
    """
    edges_a, edges_b = _padded_edges(a, rows), _padded_edges(b, columns)
    most_a, most_b = edges_a.shape[1], edges_b.shape[1]
    left_a, right_a = a.edges[:2].take(edges_a, axis=1)
    left_b, right_b = b.edges[:2].take(edges_b, axis=1)
    meet = left_a[:, :, None] < right_b[:, None, :]
    meet &= left_b[:, None, :] < right_a[:, :, None]
    index_a, index_b = np.divmod(np.flatnonzero(meet), most_b)
    pairs = index_a // most_a
    index_b += pairs * most_b
    # one row at a time: blocks of more than 128 KB would be new pages each time
    index_a, index_b = edges_a.ravel()[index_a], edges_b.ravel()[index_b]
    left_a, right_a, slope, height, sign = (row.take(index_a) for row in a.edges)
    left_b, right_b, slope_b, height_b, sign_b = (row.take(index_b) for row in b.edges)
    start, end = np.maximum(left_a, left_b), np.minimum(right_a, right_b)
    slope -= slope_b
    height -= height_b
    first, last = slope * start, slope
    last *= end
    first += height
    last += height
    lower = slope_b * (start + end)
    height_b -= base
    height_b *= 2
    lower += height_b
    under = np.minimum(first, 0.0)
    under += np.minimum(last, 0.0)
    under *= under
    apart = np.abs(first, out=first)
    apart += np.abs(last, out=last)
    apart += _TINY  # avoids 0 / 0 where the lines coincide
    under /= apart
    lower -= under
    end -= start
    lower *= end
    lower *= sign
    lower *= sign_b
    areas: Floats = np.bincount(pairs, lower, len(rows)) / 2
    return np.maximum(areas, 0.0)
