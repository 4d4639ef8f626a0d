"""How much shapes overlap: intersection over union of their true shapes, and the best one-to-one match.

Upright boxes are compared in numpy, masks by pycocotools, everything else by its outline, exactly, where
their bounds meet. A mask against another shape is compared by its outline along the pixels'
edges. Two shapes that enclose no area need a rule of their own:

- key points are the discs they are drawn as (`KeyPoint.width` is the diameter); without a width, only the same point
  overlaps itself. For a distance in proportion to an object's size, use the points themselves.
- open vectors are compared as bands, 1 % of their diagonal to each side (at least one pixel).

A shape always overlaps itself by 1, even without area.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.outlines import Outlines, shared_areas
from labelloop.labeling.geometry.shapes import Geometry, KeyPoint, Mask, Polygon, Rectangle, Vector

Matrix = NDArray[np.float64]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]

MOST_PAIRS = 2_000_000
"""Overlapping pairs that are held at once, some 50 MB: more are a task too large to judge."""

_BAND = 0.01
# Up to so many pairs all are looked at; of more, a tree finds those whose bounds meet, a block of them at a time.
_FEW, _BLOCK = 1 << 14, 1 << 19
# Up to so many pairs the assignment is solved in a matrix; of more, on the pairs that overlap alone.
_MATRIX = 1 << 18
# Bytes of run lengths that are decoded at once.
_RUNS = 1 << 24
# Sums of overlaps are floats: a least overlap must not leave out what reaches it but for the last bit.
ROUNDING = 1e-9


class Pairs(NamedTuple):
    """Pairs of a row and a column that are alike, in the order of rows, then of columns; all others are alike by 0."""

    rows: Places
    columns: Places
    values: Floats

    def where(self, kept: NDArray[np.bool_] | Places) -> "Pairs":
        """Some of them, by a mask or by their places."""
        return Pairs(self.rows[kept], self.columns[kept], self.values[kept])

    def at(self, rows: Places, columns: Places, m: int) -> Floats:
        """The values of some pairs, of ``m`` columns in all; 0 where there is none."""
        keys, wanted = self.rows * m + self.columns, rows * m + columns
        places = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found: Floats = (
            np.where(keys[places] == wanted, self.values[places], 0.0) if len(keys) else np.zeros(len(wanted))
        )
        return found

    def matrix(self, n: int, m: int) -> Matrix:
        """All pairs of ``n`` rows and ``m`` columns."""
        found = np.zeros((n, m))
        found[self.rows, self.columns] = self.values
        return found


def iou(a: Geometry, b: Geometry) -> float:
    """Intersection over union of two shapes, from 0 to 1."""
    return float(iou_matrix([a], [b])[0, 0])


def iou_matrix(a: Sequence[Geometry], b: Sequence[Geometry]) -> Matrix:
    """Intersection over union of every shape of ``a`` with every one of ``b``: of few, see ``overlaps``.

    Returns:
        An array of shape ``(len(a), len(b))``, values from 0 to 1.
    """
    return overlaps(a, b).matrix(len(a), len(b))


def overlaps(a: Sequence[Geometry], b: Sequence[Geometry], *, least: float = 0.0, once: bool = False) -> Pairs:
    """Which shapes of ``a`` overlap which of ``b``, and by how much: intersection over union, above 0 to 1.

    Time and memory grow with the shapes and with the pairs that overlap, not with all pairs.

    Args:
        a: Shapes.
        b: Shapes.
        least: Overlaps below this are left out: to find that out takes less time than to measure them.
        once: Of shapes among themselves, each two only once, the first first.

    Raises:
        TooLargeToJudge: More than ``MOST_PAIRS`` overlap.
    """
    if not a or not b:
        return gather([])
    bounds, measure = _measure(a, b, least)
    numbers: dict[Geometry, int] = {}
    theirs = np.array([numbers.setdefault(shape, len(numbers)) for shape in b])
    ours = np.array([numbers.get(shape, -1) for shape in a])

    def measured() -> Iterator[Pairs]:
        for rows, columns in meeting(*bounds):
            if once:
                rows, columns = rows[rows < columns], columns[rows < columns]  # noqa: PLW2901 - a block of them
            values = np.clip(measure(rows, columns), 0.0, 1.0)
            # The same shape: float arithmetic, or the lack of an area, may have said less.
            values[ours[rows] == theirs[columns]] = 1.0
            found = Pairs(rows, columns, values)
            yield found.where((values > 0) & (values >= least - ROUNDING))

    return gather(measured())


def areas_of(shapes: Sequence[Geometry]) -> Floats:
    """The areas of shapes, as ``overlaps`` takes them."""
    return _outlines(tuple(shapes)).areas


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> Matrix:
    """Intersection over union of upright boxes given by their corners: of few, see ``box_pairs``.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.

    Returns:
        An array of shape ``(n, m)``; 0 where both boxes are without area.
    """
    return box_pairs(a, b).matrix(len(a), len(b))


def box_blocks(a: NDArray[Any], b: NDArray[Any]) -> Iterator[tuple[slice, Matrix]]:
    """The matrix of ``box_iou`` some columns at a time, so that it is never held whole: (columns, their part of it).

    Args:
        a: Boxes of shape ``(n, 4)``; a few thousand.
        b: Boxes of shape ``(m, 4)``; any number.
    """
    step = max(1, _BLOCK // max(len(a), 1))
    for start in range(0, len(b), step):
        yield slice(start, start + step), box_iou(a, b[start : start + step])


def box_pairs(a: NDArray[Any], b: NDArray[Any], *, least: float = 0.0) -> Pairs:
    """Which upright boxes overlap, and by how much.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.
        least: Overlaps below this are left out.

    Raises:
        TooLargeToJudge: More than ``MOST_PAIRS`` overlap.
    """
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (a, b))
    measure = _boxes(a, b)
    found = (Pairs(rows, columns, measure(rows, columns)) for rows, columns in meeting(a, b))
    return gather(pairs.where((pairs.values > 0) & (pairs.values >= least - ROUNDING)) for pairs in found)


def meeting(a: Floats, b: Floats) -> Iterator[tuple[Places, Places]]:
    """Rows of ``a`` and of ``b`` whose boxes meet, be it at their borders; in order, a block of rows at a time.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.
    """
    if len(a) * len(b) <= _FEW:
        meet = (a[:, None, 0] <= b[:, 2]) & (a[:, None, 2] >= b[:, 0])
        meet &= (a[:, None, 1] <= b[:, 3]) & (a[:, None, 3] >= b[:, 1])
        rows, columns = np.nonzero(meet)
        yield rows, columns
        return
    tree = shapely.STRtree(shapely.box(*b.T))
    step = max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        rows, columns = tree.query(shapely.box(*a[start : start + step].T))
        order = np.lexsort((columns, rows))
        yield rows[order] + start, columns[order]


def gather(parts: Iterable[Pairs]) -> Pairs:
    """Pairs found in parts as one.

    Raises:
        TooLargeToJudge: They are more than ``MOST_PAIRS``.
    """
    held: list[Pairs] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part.rows)
        if count > MOST_PAIRS:
            raise TooLargeToJudge(f"more than {MOST_PAIRS:,} pairs of its regions overlap")
    return joined(held)


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Pairs that are held already, as one."""
    if len(parts) == 1:
        return parts[0]
    none = np.empty(0, np.intp)
    if not parts:
        return Pairs(none, none, np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def match(matrix: NDArray[Any], *, threshold: float) -> tuple[tuple[int, int], ...]:
    """As ``match_pairs``, of every pair of a few rows and columns.

    Args:
        matrix: Overlaps, of shape ``(n, m)``.
        threshold: The least overlap of a pair; pairs of 0 are never matched.
    """
    scores = np.asarray(matrix, dtype=np.float64)
    rows, columns = np.nonzero(scores)
    return match_pairs(Pairs(rows, columns, scores[rows, columns]), scores.shape, threshold=threshold)


def match_pairs(pairs: Pairs, shape: tuple[int, ...], *, threshold: float) -> tuple[tuple[int, int], ...]:
    """The one-to-one pairs with the largest total, none below ``threshold``.

    Optimal among all such pairings (the Hungarian method), where taking the largest pair first is not.

    Args:
        pairs: Overlaps.
        shape: How many rows and columns there are.
        threshold: The least overlap of a pair.

    Returns:
        Pairs ``(row, column)``, in the order of the rows.
    """
    allowed = pairs.where((pairs.values >= threshold) & (pairs.values > 0))
    if not allowed.rows.size:
        return ()
    if shape[0] * shape[1] > _MATRIX:
        return _match_sparse(allowed)
    from scipy.optimize import linear_sum_assignment  # SciPy takes 30 MB, and few processes match

    scores = allowed.matrix(*shape)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    kept = scores[rows, columns] > 0
    return tuple(zip(rows[kept].tolist(), columns[kept].tolist(), strict=True))


def _match_sparse(pairs: Pairs) -> tuple[tuple[int, int], ...]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    ours, rows = np.unique(pairs.rows, return_inverse=True)
    theirs, columns = np.unique(pairs.columns, return_inverse=True)
    # Every row may stay alone: then it is matched with a column of its own, at the price of no overlap.
    alone = np.arange(len(ours))
    costs = 2 - np.concatenate((pairs.values, np.zeros(len(ours))))
    places = np.concatenate((rows, alone)), np.concatenate((columns, len(theirs) + alone))
    found = min_weight_full_bipartite_matching(csr_array((costs, places), (len(ours), len(theirs) + len(ours))))
    kept = found[1] < len(theirs)
    return tuple(zip(ours[found[0][kept]].tolist(), theirs[found[1][kept]].tolist(), strict=True))


# Overlaps of rows of ``a`` with columns of ``b``, pair by pair.
_Measured = Callable[[Places, Places], Floats]


def _measure(a: Sequence[Geometry], b: Sequence[Geometry], least: float) -> tuple[tuple[Floats, Floats], _Measured]:
    """The bounds by which to tell what may overlap, and how to measure it."""
    if all(_upright(shape) for shape in (*a, *b)):
        corners = _corners(a), _corners(b)
        return corners, _boxes(*corners)
    if all(isinstance(shape, Mask) for shape in (*a, *b)) and len({(m.width, m.height) for m in (*a, *b)}) == 1:  # type: ignore[union-attr]
        ours, theirs = ([mask.coco for mask in masks] for masks in (a, b))  # type: ignore[union-attr]
        return (_mask_bounds(ours), _mask_bounds(theirs)), _masks(ours, theirs)
    left, right = _outlines(tuple(a)), _outlines(tuple(b))
    return (left.bounds, right.bounds), _shapes(left, right, least)


def _upright(shape: Geometry) -> bool:
    return isinstance(shape, Rectangle) and not shape.rotation


def _corners(shapes: Sequence[Geometry]) -> Floats:
    return np.array([shape.bounds for shape in shapes], dtype=np.float64)


def _boxes(a: Floats, b: Floats) -> _Measured:
    # Areas from the same corners as the overlap: a box in itself is then exactly 1.
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (a, b)]

    def measure(rows: Places, columns: Places) -> Floats:
        shared = _shared_bounds(a[rows], b[columns])
        union = areas[0][rows] + areas[1][columns] - shared
        found: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        return found

    return measure


def _shared_bounds(a: Floats, b: Floats) -> Floats:
    shared: Floats = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(axis=-1)
    return shared


def _mask_bounds(masks: Sequence[Mapping[str, Any]]) -> Floats:
    bounds = np.asarray(coco.toBbox(masks), dtype=np.float64)
    bounds[:, 2:] += bounds[:, :2]
    return bounds


def _masks(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> _Measured:
    def measure(rows: Places, columns: Places) -> Floats:
        found: Floats = np.zeros(len(rows))
        for some in _decoded_at_once(rows, columns):
            ours, row = np.unique(rows[some], return_inverse=True)
            theirs, column = np.unique(columns[some], return_inverse=True)
            matrix = coco.iou([a[place] for place in ours], [b[place] for place in theirs], [0] * len(theirs))
            found[some] = np.asarray(matrix).reshape(len(ours), len(theirs))[row, column]
        return found

    def _decoded_at_once(rows: Places, columns: Places) -> list[slice]:
        """Stretches of the pairs of which all run lengths are held at once; of few masks that is one."""
        sizes = [len(each["counts"]) for each in (*a, *b)]
        if sum(sizes) <= _RUNS or not len(rows):
            return [slice(0, len(rows))] if len(rows) else []
        bytes_ = np.cumsum(np.array(sizes)[len(a) + columns] + np.array(sizes)[rows])
        cuts = [0, *np.unique(np.searchsorted(bytes_, np.arange(_RUNS, bytes_[-1], _RUNS))).tolist(), len(rows)]
        return [slice(start, end) for start, end in pairwise(cuts) if end > start]

    return measure


def _shapes(left: Outlines, right: Outlines, least: float) -> _Measured:
    def measure(rows: Places, columns: Places) -> Floats:
        # No two shapes share more than their upright bounds do, nor more than the smaller one.
        shared = _shared_bounds(left.bounds[rows], right.bounds[columns])
        one, other = left.areas[rows], right.areas[columns]
        most = np.minimum(shared, np.minimum(one, other))
        some = np.flatnonzero((most > 0) & (most >= least * (one + other - most) - ROUNDING))
        found: Floats = np.zeros(len(rows))
        if some.size:
            inner = shared_areas(left, right, rows[some], columns[some])
            union = one[some] + other[some] - inner
            found[some] = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
        return found

    return measure


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
