"""Match the objects of two annotators by overlap, or where every edge differs by a few pixels only.

IoU is strict with small objects: a box of 12 px that is off by 3 px overlaps a third. Within the tolerance in pixels
two shapes are the same object, drawn as carefully as a person can. Edges of careful drawing scatter: with a standard
deviation of 3 px, one of the four edges of every second pair of boxes differs by more than 6 px. So beyond the
tolerance, two shapes are still alike where the root mean square of the differences of all four edges is small, and
nothing else can be meant: each is the nearest of the other by far, and they lie on each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import ROUNDING, Floats, Indices, Pairs, collect_pairs, intersecting_boxes
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import UNKNOWN_SIZE
from qc_webhooks.agreement.matching import MatchedPair, Matching, match_labelled
from qc_webhooks.agreement.metrics import Tolerance

# Shapes with at least this overlap need no measurement of their outlines.
_ALIKE = 0.9
# An outline whose corners move by p along both axes moves by up to 1.42 p.
_DIAGONAL = 1.42
# Root mean square of the differences of the four edges, as a multiple of the tolerance. Where each annotator's edges
# scatter by half the tolerance, one pair of boxes in 1,000 differs by more.
_SCATTER = 1.5
# Another object may be meant unless its differences are larger by this factor.
_NEXT = 1.25
# Two shapes lie on each other if the gap between them is at most this share of the tolerance.
_MAX_GAP = 1 / 3


@dataclass(frozen=True)
class ObjectMatching(Matching):
    """A matching, and which of its pairs are close.

    Attributes:
        close: (a, b) of the matched pairs that are drawn alike within the tolerance in pixels.
        by_overlap: The matching by overlap alone; None: this one.
    """

    close: frozenset[tuple[int, int]] = frozenset()
    by_overlap: Matching | None = None

    def overlap(self, pair: MatchedPair) -> float:
        """Overlap of a pair that decides: 1 for a close one."""
        return 1.0 if (pair.a, pair.b) in self.close else pair.iou


def match_objects(a: Sequence[Region], b: Sequence[Region], overlaps: Pairs, tolerance: Tolerance) -> ObjectMatching:
    """Match regions one to one; close regions match whatever their overlap.

    Args:
        a: Regions of the first annotator, at least one.
        b: Regions of the second, at least one.
        overlaps: IoU (key points: OKS) of the pairs; those below ``near_iou`` may be omitted.
        tolerance: Overlap thresholds and the tolerance in pixels.
    """
    matching = match_labelled(a, b, overlaps, match=tolerance.match_iou, near=tolerance.near_iou)
    if tolerance.pixels <= 0:
        return ObjectMatching(matching.same, matching.near, matching.only_a, matching.only_b)
    if matching.near or (matching.only_a and matching.only_b):
        return replace(_match_close(a, b, overlaps, tolerance), by_overlap=matching)
    same = matching.same
    rows, columns = (np.array([pair[side] for pair in same], dtype=np.intp) for side in (0, 1))
    ious = np.array([pair.iou for pair in same], dtype=np.float64)
    pairs = _close_pairs(a, b, Pairs(rows, columns, ious), tolerance)
    close = frozenset(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))
    return ObjectMatching(matching.same, matching.near, matching.only_a, matching.only_b, close)


def _match_close(a: Sequence[Region], b: Sequence[Region], overlaps: Pairs, tolerance: Tolerance) -> ObjectMatching:
    """``match_objects`` where some regions match by their closeness alone."""
    match, pixels = tolerance.match_iou, tolerance.pixels
    differences = _close_pairs(a, b, _neighbours(a, b, overlaps, pixels), tolerance)
    keys = np.unique(np.concatenate([pairs.rows * len(b) + pairs.columns for pairs in (overlaps, differences)]))
    rows, columns = keys // len(b), keys % len(b)
    ious = overlaps.values_at(rows, columns, len(b))
    is_close = np.isin(keys, differences.rows * len(b) + differences.columns)
    # Close pairs count as the same object; of several, the closest.
    closeness = 1 - differences.values_at(rows, columns, len(b)) / (_SCATTER * pixels)
    values = np.where(is_close, np.maximum(ious, match + (1 - match) * closeness), ious)
    matching = match_labelled(a, b, Pairs(rows, columns, values), match=match, near=tolerance.near_iou)
    true_ious = dict(zip(keys.tolist(), ious.tolist(), strict=True))
    same, near_pairs = (
        tuple(MatchedPair(pair.a, pair.b, true_ious[pair.a * len(b) + pair.b], pair.labels) for pair in pairs)
        for pairs in (matching.same, matching.near)
    )
    close_keys = set(keys[is_close].tolist())
    close = frozenset((pair.a, pair.b) for pair in same if pair.a * len(b) + pair.b in close_keys)
    return ObjectMatching(same, near_pairs, matching.only_a, matching.only_b, close)


def _neighbours(a: Sequence[Region], b: Sequence[Region], overlaps: Pairs, pixels: float) -> Pairs:
    """The pairs whose bounds are at most ``pixels`` apart, with their IoU (0 where it is not given)."""
    margin = np.array([-pixels, -pixels, pixels, pixels])

    def blocks() -> Iterator[Pairs]:
        for rows, columns in intersecting_boxes(bounds_of_regions(a) + margin, bounds_of_regions(b)):
            yield Pairs(rows, columns, overlaps.values_at(rows, columns, len(b)))

    return collect_pairs(blocks())


def _close_pairs(a: Sequence[Region], b: Sequence[Region], candidates: Pairs, tolerance: Tolerance) -> Pairs:
    """Of candidates with their IoU, those that are drawn alike, with the root mean square of their differences."""
    if not len(candidates.rows):
        return candidates
    bounds = bounds_of_regions(a), bounds_of_regions(b)
    is_close, differences = close_pairs(a, b, bounds, candidates, tolerance)
    return Pairs(candidates.rows, candidates.columns, differences).where(is_close)


def close_pairs(
    a: Sequence[Region],
    b: Sequence[Region],
    bounds: tuple[Floats, Floats],
    candidates: Pairs,
    tolerance: Tolerance,
    *,
    are_upright: bool = False,
) -> tuple[NDArray[np.bool_], Floats]:
    """Which pairs of regions are drawn alike, and the root mean square of the differences of their edges.

    Args:
        a: Regions.
        b: Regions.
        bounds: Their bounds, see ``bounds_of_regions``.
        candidates: Pairs of them with their IoU, at least one: all that are near, or the same object.
        tolerance: Overlap thresholds and the tolerance in pixels.
        are_upright: Whether all regions are known to be upright boxes, whose bounds say everything.

    Returns:
        Two arrays of shape ``(n,)``.
    """
    rows, columns, ious = candidates
    offsets = bounds[0][rows] - bounds[1][columns]
    differences: Floats = np.sqrt(np.einsum("ij,ij->i", offsets, offsets) / 4)
    is_near = differences <= _SCATTER * tolerance.pixels
    # The same object by its overlap, or by every edge.
    is_close: NDArray[np.bool_] = is_near & (ious >= tolerance.match_iou - ROUNDING)
    if not is_close.all():
        is_close |= np.abs(offsets, out=offsets).max(axis=1) <= tolerance.pixels + 1e-6
        unsure = np.flatnonzero(is_near & ~is_close)
        if unsure.size:
            clear = np.zeros(len(rows), dtype=bool)
            near = np.flatnonzero(is_near)
            clear[near] = _stand_out(rows[near], differences[near]) & _stand_out(columns[near], differences[near])
            is_close[unsure] = clear[unsure] & _touch(a, bounds, candidates.where(unsure), tolerance.pixels)
    if are_upright:
        return is_close, differences
    unknown = np.flatnonzero(is_close & (ious < _ALIKE))
    if unknown.size:
        pairs = zip(rows[unknown].tolist(), columns[unknown].tolist(), strict=True)
        unknown = unknown[[not (_is_upright(a[row]) and _is_upright(b[column])) for row, column in pairs]]
    if unknown.size:
        distance = _DIAGONAL * np.where(
            np.abs(bounds[0][rows[unknown]] - bounds[1][columns[unknown]]).max(axis=1) <= tolerance.pixels + 1e-6,
            tolerance.pixels, _SCATTER * tolerance.pixels,
        )  # fmt: skip
        is_close[unknown] = _are_close(a, b, candidates.where(unknown), distance)
    return is_close, differences


def _stand_out(owners: Indices, differences: Floats) -> NDArray[np.bool_]:
    """Whether each pair is the nearest of its region by far, ``(n,)``: no other is meant."""
    order = np.lexsort((differences, owners))
    again = np.diff(owners[order]) == 0
    following = np.full(len(order), np.inf)
    following[:-1][again] = differences[order][1:][again]
    is_first = np.concatenate(([True], ~again))
    found = np.empty(len(order), dtype=bool)
    found[order] = is_first & (following >= _NEXT * differences[order])
    return found


def _touch(a: Sequence[Region], bounds: tuple[Floats, Floats], pairs: Pairs, pixels: float) -> NDArray[np.bool_]:
    """Whether the two of each pair lie on each other, or nearly; points always do, ``(n,)``."""
    first, second = bounds[0][pairs.rows], bounds[1][pairs.columns]
    shift = np.abs(first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]) / 2
    sides = (first[:, 2:] - first[:, :2] + second[:, 2:] - second[:, :2]) / 2
    touch = (shift <= sides + _MAX_GAP * pixels).all(axis=1)
    are_points = np.array([isinstance(a[row].geometry, KeyPoint) for row in pairs.rows.tolist()], dtype=bool)
    either: NDArray[np.bool_] = touch | are_points
    return either


def _are_close(a: Sequence[Region], b: Sequence[Region], pairs: Pairs, distance: Floats) -> NDArray[np.bool_]:
    """Whether the outlines of each pair lie within a distance of each other (Hausdorff distance)."""
    outlines_a = {index: a[index].geometry.polygon() for index in set(pairs.rows.tolist())}
    outlines_b = {index: b[index].geometry.polygon() for index in set(pairs.columns.tolist())}
    first = np.array([outlines_a[row] for row in pairs.rows.tolist()], dtype=object)
    second = np.array([outlines_b[column] for column in pairs.columns.tolist()], dtype=object)
    close: NDArray[np.bool_] = shapely.hausdorff_distance(first, second) <= distance
    close |= shapely.is_empty(first) & shapely.is_empty(second)
    return close


def bounds_of_regions(regions: Sequence[Region], bounds: Floats | None = None) -> Floats:
    """(n, 4): bounds in pixels, computed unless given; NaN, which is close to nothing, where the size is unknown."""
    if bounds is None:
        bounds = np.array([region.geometry.bounds for region in regions], dtype=np.float64)
    unknown = [
        index
        for index, region in enumerate(regions)
        if (region.width, region.height) == UNKNOWN_SIZE and not _has_size(region)
    ]
    if unknown:
        bounds = bounds.copy()
        bounds[unknown] = np.nan
    return bounds


def _has_size(region: Region) -> bool:
    """Whether a result records the image's size, which equals the size that stands for an unknown one."""
    return not region.result or bool(region.result[0].original_width and region.result[0].original_height)


def _is_upright(region: Region) -> bool:
    """Whether the edges of the bounds say everything: an upright box or a point."""
    shape = region.geometry
    return isinstance(shape, KeyPoint) or (hasattr(shape, "height") and not getattr(shape, "rotation", 1.0))
