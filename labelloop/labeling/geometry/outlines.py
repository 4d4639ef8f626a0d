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
        self.bounds: Floats = np.nan_to_num(shapely.bounds(self.shapes))
        one_ring = (shapely.get_type_id(self.shapes) == shapely.GeometryType.POLYGON) & (
            shapely.get_num_interior_rings(self.shapes) == 0
        )
        self.coordinates: NDArray[Any] = shapely.get_num_coordinates(self.shapes)
        self.corners: NDArray[Any] = np.where(one_ring, np.maximum(self.coordinates - 1, 0), 0)

    @cached_property
    def edges(self) -> Floats:
        """(5, edges): left and right end, slope, height at x = 0 and sign of every edge, ring after ring.

        The last one is a padding edge without length.
        """
        rings = np.flatnonzero(self.corners)
        x, y = shapely.get_coordinates(self.shapes[rings]).T
        owner = np.repeat(np.arange(len(rings)), self.corners[rings] + 1)
        within = owner[1:] == owner[:-1]
        run = np.diff(x)
        run[np.abs(run) < _MIN_EDGE_WIDTH] = 0.0
        slope = np.divide(np.diff(y), run, out=np.zeros_like(run), where=run != 0)
        orientation = np.sign(np.bincount(owner[:-1][within], (run * (y[:-1] + y[1:]))[within], len(rings)))
        ends = np.minimum(x[:-1], x[1:]), np.maximum(x[:-1], x[1:])
        edges = np.stack((*ends, slope, y[:-1] - slope * x[:-1], np.sign(run) * orientation[owner[:-1]]))[:, within]
        return np.concatenate((edges, np.zeros((5, 1))), axis=1)

    @cached_property
    def starts(self) -> Indices:
        """(n,): index of the first edge of each ring."""
        starts: Indices = np.cumsum(self.corners) - self.corners
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
        edges = _padded_edges(a, rows[batch], base), _padded_edges(b, columns[batch], base)
        areas[batch] = _intersection_of_rings(*edges)
    return areas


def _padded_edges(outlines: Outlines, indices: Indices, base: float) -> Floats:
    """(5, n, max corners): the edges of some rings, padded with edges without length."""
    corners = outlines.corners[indices][:, None]
    step = np.arange(int(corners.max()))
    edge_indices = outlines.starts[indices][:, None] + step
    edge_indices[step >= corners] = -1
    edges: Floats = outlines.edges.take(edge_indices, axis=1)
    edges[3] -= base
    return edges


def _intersection_of_rings(a: Floats, b: Floats) -> Floats:
    """(n,): intersection areas of rings given by their edges, (5, n, corners) each.

    Only edges whose x ranges overlap share a trapezoid: of two rings of 30 corners, one pair of edges in seven.
    """
    corners = b.shape[2]
    meet = a[0][:, :, None] < b[1][:, None, :]
    meet &= b[0][:, None, :] < a[1][:, :, None]
    edges, others = np.divmod(np.flatnonzero(meet), corners)
    pairs = edges // a.shape[2]
    others += pairs * corners
    left_a, right_a, slope, height, sign = a.reshape(5, -1).take(edges, axis=1)
    left_b, right_b, slope_b, height_b, sign_b = b.reshape(5, -1).take(others, axis=1)
    start, end = np.maximum(left_a, left_b), np.minimum(right_a, right_b)
    slope -= slope_b
    height -= height_b
    first, last = slope * start, slope
    last *= end
    first += height
    last += height
    lower = slope_b * (start + end)
    lower += 2 * height_b
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
    areas: Floats = np.bincount(pairs, lower, a.shape[1]) / 2
    return np.maximum(areas, 0.0)
