"""Intersection over union (IoU) of shapes, and optimal one-to-one matching.

Upright boxes are compared with numpy, masks with pycocotools, all other shapes by their exact outlines where their
bounds intersect. A mask and another shape are compared by the mask's outline along its pixel edges. Shapes without
area have their own rules:

- key points are discs (`KeyPoint.width` is the diameter); without a width, a point only overlaps an equal point. For
  a distance relative to the object's size see `oks`.
- open vectors are buffered by 1 % of their diagonal (at least one pixel).

Equal shapes have IoU 1, even without area.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.outlines import Outlines, intersection_areas
from labelloop.labeling.geometry.shapes import Geometry, Interval, KeyPoint, Mask, Polygon, Rectangle, Vector

Matrix = NDArray[np.float64]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

# Overlapping pairs in memory at once, about 50 MB; a task with more is too large to judge.
MAX_PAIRS = 2_000_000

_VECTOR_BUFFER = 0.01
# Up to this number all pairs are tested; above it a spatial index finds those whose bounds intersect, in blocks.
DENSE_PAIRS, BLOCK_PAIRS = 1 << 14, 1 << 19
# Number of shapes whose pairs are all tested at once.
MAX_DENSE_SHAPES = 1 << 7
# Up to this number of pairs the assignment is solved on a dense matrix; above it on the overlapping pairs alone.
DENSE_ASSIGNMENT = 1 << 18
# Bytes of run lengths decoded at once.
DECODED_BYTES = 1 << 24
# Tolerance of thresholds on IoU, for rounding in the last bits.
ROUNDING = 1e-9
# Up to this number of pairs of upright boxes, an array takes longer than Python.
_FEW = 64
# From this IoU on, shapes may be equal but for rounding.
_NEARLY_EQUAL = 1 - 1e-6


class Pairs(NamedTuple):
    """Sparse matrix of similarities, (n,) each: rows, columns and values, sorted by row, then column."""

    rows: Indices
    columns: Indices
    values: Floats

    def where(self, selection: NDArray[np.bool_] | Indices) -> "Pairs":
        """A subset, by a mask or by indices."""
        return Pairs(self.rows[selection], self.columns[selection], self.values[selection])

    def values_at(self, rows: Indices, columns: Indices, m: int) -> Floats:
        """The values of given pairs, 0 for missing ones; ``m`` is the number of columns of the matrix."""
        keys, requested = self.rows * m + self.columns, rows * m + columns
        positions = np.minimum(np.searchsorted(keys, requested), max(len(keys) - 1, 0))
        values: Floats = (
            np.where(keys[positions] == requested, self.values[positions], 0.0)
            if len(keys)
            else np.zeros(len(requested))
        )
        return values

    def to_matrix(self, n: int, m: int) -> Matrix:
        """The dense (n, m) matrix."""
        matrix = np.zeros((n, m))
        matrix[self.rows, self.columns] = self.values
        return matrix


def iou(a: Geometry, b: Geometry) -> float:
    """IoU of two shapes, 0 to 1."""
    return float(iou_matrix([a], [b])[0, 0])


def iou_matrix(a: Sequence[Geometry], b: Sequence[Geometry]) -> Matrix:
    """IoU of every shape of ``a`` with every shape of ``b``, for few shapes; for many see ``iou_pairs``.

    Returns:
        An array of shape ``(len(a), len(b))``, values 0 to 1.
    """
    if len(a) * len(b) <= _FEW and all(map(_upright, (*a, *b))):
        return np.array([[_upright_iou(left, right) for right in b] for left in a]).reshape(len(a), len(b))
    return iou_pairs(a, b).to_matrix(len(a), len(b))


def _upright_iou(a: Geometry, b: Geometry) -> float:
    """IoU of two upright boxes, to the bit as `iou_pairs` has it."""
    if a == b:
        left, top, right, bottom = a.bounds
        return float(right >= left and bottom >= top)
    (a_left, a_top, a_right, a_bottom), (b_left, b_top, b_right, b_bottom) = a.bounds, b.bounds
    width, height = min(a_right, b_right) - max(a_left, b_left), min(a_bottom, b_bottom) - max(a_top, b_top)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = (a_right - a_left) * (a_bottom - a_top) + (b_right - b_left) * (b_bottom - b_top) - shared
    return min(shared / union, 1.0) if union > 0 else 0.0


def iou_pairs(
    a: Sequence[Geometry], b: Sequence[Geometry], *, min_iou: float = 0.0, upper_triangle: bool = False
) -> Pairs:
    """The overlapping pairs of shapes of ``a`` and ``b``, with their IoU (above 0, up to 1).

    Time and memory grow with the number of shapes and of overlapping pairs, not of all pairs.

    Args:
        a: Shapes.
        b: Shapes.
        min_iou: Pairs with a lower IoU are left out, most of them without measuring.
        upper_triangle: Only pairs with row < column, for shapes compared with themselves.

    Raises:
        TooLargeToJudge: More than ``MAX_PAIRS`` overlap.
    """
    if not a or not b:
        return collect_pairs([])
    if len(a) * len(b) > DENSE_PAIRS:
        return _iou_pairs(a, b, min_iou, upper_triangle)
    return _few_iou_pairs(tuple(a), tuple(b), min_iou, upper_triangle)


# The same two annotators are compared for their agreement, their conflicts and the verdict on each object.
@lru_cache(maxsize=64)
def _few_iou_pairs(a: tuple[Geometry, ...], b: tuple[Geometry, ...], min_iou: float, upper_triangle: bool) -> Pairs:
    pairs = _iou_pairs(a, b, min_iou, upper_triangle)
    for column in pairs:
        column.flags.writeable = False  # it is shared
    return pairs


def _iou_pairs(a: Sequence[Geometry], b: Sequence[Geometry], min_iou: float, upper_triangle: bool) -> Pairs:
    bounds, measure = _measure(a, b, min_iou)
    numbers: dict[Geometry, int] = {}
    b_ids = np.array([numbers.setdefault(shape, len(numbers)) for shape in b])
    a_ids = np.array([numbers.get(shape, -1) for shape in a])

    def measured() -> Iterator[Pairs]:
        for rows, columns in intersecting_boxes(*bounds):
            if upper_triangle:
                rows, columns = rows[rows < columns], columns[rows < columns]  # noqa: PLW2901 - a block of them
            values = np.clip(measure(rows, columns), 0.0, 1.0)
            # Equal shapes: rounding, or a missing area, may give less than 1.
            values[a_ids[rows] == b_ids[columns]] = 1.0
            pairs = Pairs(rows, columns, values)
            yield pairs.where((values > 0) & (values >= min_iou - ROUNDING))

    return collect_pairs(measured())


class Overlaps(NamedTuple):
    """Overlapping pairs of shapes, the bounds of all shapes, (n, 4), and whether all are upright boxes."""

    pairs: Pairs
    bounds: Floats
    are_upright: bool


def iou_between(shapes: Sequence[Geometry], owners: Sequence[int], *, min_iou: float) -> Overlaps:
    """The overlapping pairs of few shapes of different owners, with their IoU; each pair once, row < column.

    Measured in one pass: of all annotators of a task together, not two by two.

    Args:
        shapes: Shapes, those of one owner after those of another; at most ``MAX_DENSE_SHAPES``.
        owners: The owner of each.
        min_iou: Pairs with a lower IoU are left out, above 0.
    """
    if not shapes:
        return Overlaps(collect_pairs([]), np.empty((0, 4)), are_upright=True)
    are_upright = set(map(type, shapes)) == {Rectangle} and not any(shape.rotation for shape in shapes)  # type: ignore[union-attr]
    bounds, measure = _measure_between(shapes, min_iou, are_upright=are_upright)
    left, top, right, bottom = bounds.T
    meet = left[:, None] <= right
    meet &= top[:, None] <= bottom
    meet = meet & meet.T
    meet &= _are_between(tuple(owners))
    rows, columns = np.divmod(np.flatnonzero(meet), len(shapes))
    values = np.minimum(measure(rows, columns), 1.0)
    # Equal shapes: rounding, or a missing area, may give less than 1.
    for index in np.flatnonzero((values == 0) | ((values >= _NEARLY_EQUAL) & (values < 1))).tolist():
        if shapes[rows[index]] == shapes[columns[index]]:
            values[index] = 1.0
    pairs = Pairs(rows, columns, values).where((values > 0) & (values >= min_iou - ROUNDING))
    return Overlaps(pairs, bounds, are_upright)


# Many tasks have as many regions of each annotator.
@lru_cache(maxsize=256)
def _are_between(owners: tuple[int, ...]) -> NDArray[np.bool_]:
    """(n, n): whether two of n are of different owners, row < column."""
    owner = np.array(owners)
    between: NDArray[np.bool_] = np.triu(owner[:, None] != owner, 1)
    return between


def shape_areas(shapes: Sequence[Geometry]) -> Floats:
    """(n,): the areas of shapes in square pixels, by the rules of ``iou_pairs``."""
    return _outlines(tuple(shapes)).areas


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> Matrix:
    """IoU of every upright box of ``a`` with every one of ``b``, for few boxes; for many see ``box_iou_pairs``.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.

    Returns:
        An array of shape ``(n, m)``; 0 where both boxes have no area.
    """
    return box_iou_pairs(a, b).to_matrix(len(a), len(b))


def iter_box_iou(a: NDArray[Any], b: NDArray[Any]) -> Iterator[tuple[slice, Matrix]]:
    """Yield the matrix of ``box_iou`` in blocks of columns, as (columns, block): it is never in memory as a whole.

    Args:
        a: Boxes of shape ``(n, 4)``; a few thousand.
        b: Boxes of shape ``(m, 4)``; any number.
    """
    step = max(1, BLOCK_PAIRS // max(len(a), 1))
    for start in range(0, len(b), step):
        yield slice(start, start + step), box_iou(a, b[start : start + step])


def box_iou_pairs(a: NDArray[Any], b: NDArray[Any], *, min_iou: float = 0.0) -> Pairs:
    """The overlapping pairs of upright boxes, with their IoU.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.
        min_iou: Pairs with a lower IoU are left out.

    Raises:
        TooLargeToJudge: More than ``MAX_PAIRS`` overlap.
    """
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (a, b))
    measure = _boxes(a, b)
    blocks = (Pairs(rows, columns, measure(rows, columns)) for rows, columns in intersecting_boxes(a, b))
    return collect_pairs(pairs.where((pairs.values > 0) & (pairs.values >= min_iou - ROUNDING)) for pairs in blocks)


def intersecting_boxes(a: Floats, b: Floats) -> Iterator[tuple[Indices, Indices]]:
    """Yield the indices of boxes of ``a`` and ``b`` that intersect or touch, sorted, in blocks of rows.

    Args:
        a: Boxes ``(x_min, y_min, x_max, y_max)``, of shape ``(n, 4)``.
        b: The same, of shape ``(m, 4)``.
    """
    if len(a) * len(b) <= DENSE_PAIRS:
        meet = (a[:, None, 0] <= b[:, 2]) & (a[:, None, 2] >= b[:, 0])
        meet &= (a[:, None, 1] <= b[:, 3]) & (a[:, None, 3] >= b[:, 1])
        rows, columns = np.nonzero(meet)
        yield rows, columns
        return
    tree = shapely.STRtree(shapely.box(*b.T))
    step = max(1, BLOCK_PAIRS // len(b))
    for start in range(0, len(a), step):
        rows, columns = tree.query(shapely.box(*a[start : start + step].T))
        order = np.lexsort((columns, rows))
        yield rows[order] + start, columns[order]


def collect_pairs(parts: Iterable[Pairs]) -> Pairs:
    """Concatenate blocks of pairs.

    Raises:
        TooLargeToJudge: There are more than ``MAX_PAIRS``.
    """
    held: list[Pairs] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part.rows)
        if count > MAX_PAIRS:
            raise TooLargeToJudge(f"more than {MAX_PAIRS:,} pairs of its regions overlap")
    return concat_pairs(held)


def concat_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Concatenate blocks of pairs without a limit."""
    if len(parts) == 1:
        return parts[0]
    empty = np.empty(0, np.intp)
    if not parts:
        return Pairs(empty, empty, np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def match(matrix: NDArray[Any], *, threshold: float) -> tuple[tuple[int, int], ...]:
    """``match_pairs`` on a dense matrix.

    Args:
        matrix: Overlaps, of shape ``(n, m)``.
        threshold: Minimum overlap of a pair; pairs of 0 are never matched.
    """
    scores = np.asarray(matrix, dtype=np.float64)
    rows, columns = np.nonzero(scores)
    return match_pairs(Pairs(rows, columns, scores[rows, columns]), scores.shape, threshold=threshold)


def match_pairs(pairs: Pairs, shape: tuple[int, ...], *, threshold: float) -> tuple[tuple[int, int], ...]:
    """The one-to-one matching with the largest total overlap, no pair below ``threshold``.

    Optimal (Hungarian algorithm); greedy matching by the largest pair is not.

    Args:
        pairs: Overlaps.
        shape: The number of rows and columns.
        threshold: Minimum overlap of a pair.

    Returns:
        Pairs ``(row, column)``, in the order of the rows.
    """
    allowed = pairs.where((pairs.values >= threshold) & (pairs.values > 0))
    if not allowed.rows.size:
        return ()
    if is_one_to_one(allowed):
        return tuple(zip(allowed.rows.tolist(), allowed.columns.tolist(), strict=True))
    if shape[0] * shape[1] > DENSE_ASSIGNMENT:
        return _match_sparse(allowed)
    from scipy.optimize import linear_sum_assignment  # SciPy needs 30 MB, and few processes match

    scores = allowed.to_matrix(*shape)
    chosen = linear_sum_assignment(scores, maximize=True)
    is_match = scores[chosen] > 0
    return tuple(zip(*(indices[is_match].tolist() for indices in chosen), strict=True))


def is_one_to_one(pairs: Pairs) -> bool:
    """Whether no row and no column is in two pairs, so that a matching has nothing to choose from."""
    count = len(pairs.rows)
    return len(set(pairs.rows.tolist())) == count == len(set(pairs.columns.tolist()))


def _match_sparse(pairs: Pairs) -> tuple[tuple[int, int], ...]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    row_ids, rows = np.unique(pairs.rows, return_inverse=True)
    column_ids, columns = np.unique(pairs.columns, return_inverse=True)
    # A row may stay unmatched: it has a dummy column with overlap 0.
    unmatched = np.arange(len(row_ids))
    costs = 2 - np.concatenate((pairs.values, np.zeros(len(row_ids))))
    indices = np.concatenate((rows, unmatched)), np.concatenate((columns, len(column_ids) + unmatched))
    assignment = min_weight_full_bipartite_matching(
        csr_array((costs, indices), (len(row_ids), len(column_ids) + len(row_ids)))
    )
    is_match = assignment[1] < len(column_ids)
    return tuple(
        zip(row_ids[assignment[0][is_match]].tolist(), column_ids[assignment[1][is_match]].tolist(), strict=True)
    )


# (rows, columns) -> IoU of each pair, (n,).
_IouOfPairs = Callable[[Indices, Indices], Floats]


def _measure(a: Sequence[Geometry], b: Sequence[Geometry], least: float) -> tuple[tuple[Floats, Floats], _IouOfPairs]:
    """The bounds of the shapes, and the function that measures their IoU."""
    if all(_upright(shape) for shape in (*a, *b)):
        corners = _corners(a), _corners(b)
        return corners, _boxes(*corners)
    mask_sizes = {(shape.width, shape.height) if isinstance(shape, Mask) else None for shape in (*a, *b)}
    if len(mask_sizes) == 1 and None not in mask_sizes:
        left_masks, right_masks = ([mask.coco for mask in masks] for masks in (a, b))  # type: ignore[union-attr]
        return (_mask_bounds(left_masks), _mask_bounds(right_masks)), _masks(left_masks, right_masks)
    left, right = _outlines(tuple(a)), _outlines(tuple(b))
    return (left.bounds, right.bounds), _shapes(left, right, least)


def _measure_between(shapes: Sequence[Geometry], least: float, *, are_upright: bool) -> tuple[Floats, _IouOfPairs]:
    """The bounds of shapes, and the function that measures the IoU of two of them."""
    if are_upright:
        bounds = np.array([(box.x, box.y, box.x + box.width, box.y + box.height) for box in shapes])  # type: ignore[union-attr]
        return bounds, _boxes(bounds, bounds)
    if any(isinstance(shape, Mask) for shape in shapes):
        (bounds, _), measure = _measure(shapes, shapes, least)
        return bounds, measure
    outlines = _outlines_of(shapes)
    return outlines.bounds, _shapes(outlines, outlines, least)


def _upright(shape: Geometry) -> bool:
    return isinstance(shape, Interval) or (isinstance(shape, Rectangle) and not shape.rotation)


def _corners(shapes: Sequence[Geometry]) -> Floats:
    return np.array([shape.bounds for shape in shapes], dtype=np.float64)


def _boxes(a: Floats, b: Floats) -> _IouOfPairs:
    # Areas from the same corners as the intersection: equal boxes have exactly IoU 1.
    left_areas = _box_areas(a)
    right_areas = left_areas if a is b else _box_areas(b)

    def measure(rows: Indices, columns: Indices) -> Floats:
        shared = _shared_bounds(a[rows], b[columns])
        union = left_areas[rows] + right_areas[columns] - shared
        ious: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        return ious

    return measure


def _shared_bounds(a: Floats, b: Floats) -> Floats:
    sides = np.minimum(a[:, 2:], b[:, 2:])
    sides -= np.maximum(a[:, :2], b[:, :2])
    return _product(sides)


def _box_areas(boxes: Floats) -> Floats:
    return _product(boxes[:, 2:] - boxes[:, :2])


def _product(sides: Floats) -> Floats:
    """(n,): product of two sides, (n, 2), 0 where one is negative; in place."""
    np.maximum(sides, 0.0, out=sides)
    area: Floats = sides[:, 0] * sides[:, 1]
    return area


def _mask_bounds(masks: Sequence[Mapping[str, Any]]) -> Floats:
    bounds = np.asarray(coco.toBbox(masks), dtype=np.float64)
    bounds[:, 2:] += bounds[:, :2]
    return bounds


def _masks(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> _IouOfPairs:
    def measure(rows: Indices, columns: Indices) -> Floats:
        ious: Floats = np.zeros(len(rows))
        for block in _blocks(rows, columns):
            left_ids, row = np.unique(rows[block], return_inverse=True)
            right_ids, column = np.unique(columns[block], return_inverse=True)
            matrix = coco.iou([a[index] for index in left_ids], [b[index] for index in right_ids], [0] * len(right_ids))
            ious[block] = np.asarray(matrix).reshape(len(left_ids), len(right_ids))[row, column]
        return ious

    def _blocks(rows: Indices, columns: Indices) -> list[slice]:
        """Slices of the pairs whose run lengths fit into memory together; one slice for few masks."""
        sizes = [len(mask["counts"]) for mask in (*a, *b)]
        if sum(sizes) <= DECODED_BYTES or not len(rows):
            return [slice(0, len(rows))] if len(rows) else []
        bytes_ = np.cumsum(np.array(sizes)[len(a) + columns] + np.array(sizes)[rows])
        cuts = [
            0,
            *np.unique(np.searchsorted(bytes_, np.arange(DECODED_BYTES, bytes_[-1], DECODED_BYTES))).tolist(),
            len(rows),
        ]
        return [slice(start, end) for start, end in pairwise(cuts) if end > start]

    return measure


def _shapes(left: Outlines, right: Outlines, least: float) -> _IouOfPairs:
    def measure(rows: Indices, columns: Indices) -> Floats:
        # The intersection is at most that of the bounds, and at most the smaller area.
        shared = _shared_bounds(left.bounds[rows], right.bounds[columns])
        left_areas, right_areas = left.areas[rows], right.areas[columns]
        upper_bound = np.minimum(shared, np.minimum(left_areas, right_areas))
        selected = np.flatnonzero(
            (upper_bound > 0) & (upper_bound >= least * (left_areas + right_areas - upper_bound) - ROUNDING)
        )
        ious: Floats = np.zeros(len(rows))
        if selected.size:
            inner = intersection_areas(left, right, rows[selected], columns[selected])
            union = left_areas[selected] + right_areas[selected] - inner
            ious[selected] = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
        return ious

    return measure


# Annotators are compared pairwise: the outlines of each are computed once.
@lru_cache(maxsize=16)
def _outlines(shapes: tuple[Geometry, ...]) -> Outlines:
    return _outlines_of(shapes)


def _outlines_of(shapes: Sequence[Geometry]) -> Outlines:
    outlines = np.empty(len(shapes), dtype=object)
    polygon_indices = [
        index for index, shape in enumerate(shapes) if isinstance(shape, Polygon) and len(shape.points) > 2
    ]
    if polygon_indices:
        outlines[polygon_indices] = _rings([shapes[index] for index in polygon_indices])  # type: ignore[misc]
        if len(polygon_indices) == len(shapes):
            return Outlines(outlines)
    others = sorted(set(range(len(shapes))) - set(polygon_indices))
    for index in others:
        shape = shapes[index]
        if isinstance(shape, KeyPoint):
            outlines[index] = shapely.Point(shape.x, shape.y).buffer(shape.width / 2)
        elif isinstance(shape, Vector) and not shape.closed and len(shape.vertices) > 1:
            outlines[index] = shape.line().buffer(max(_diagonal(shape) * _VECTOR_BUFFER, 1.0))
        else:
            outlines[index] = shape.polygon()
        if not shapely.is_valid(outlines[index]):
            outlines[index] = shapely.Polygon()  # only shapes without area are invalid
    return Outlines(outlines)


def _rings(polygons: Sequence[Polygon]) -> NDArray[np.object_]:
    """The outlines of polygons, computed together: one at a time would take longer than their overlaps."""
    counts = [len(polygon.points) for polygon in polygons]
    numbers = chain.from_iterable(chain.from_iterable(polygon.points for polygon in polygons))
    points = np.fromiter(numbers, np.float64, 2 * sum(counts)).reshape(-1, 2)
    owner = np.repeat(np.arange(len(polygons)), counts)
    outlines: NDArray[np.object_] = shapely.polygons(shapely.linearrings(points, indices=owner))
    for index in np.flatnonzero(~shapely.is_valid(outlines)):
        outlines[index] = polygons[index].polygon()  # it crosses itself
    return outlines


def _diagonal(shape: Geometry) -> float:
    x_min, y_min, x_max, y_max = shape.bounds
    return float(np.hypot(x_max - x_min, y_max - y_min))
