"""Match the objects of two annotators by overlap, or where every edge differs by a few pixels only.

IoU is strict with small objects: a box of 12 px that is off by 3 px overlaps a third. Within the tolerance in pixels
two shapes are the same object, drawn as carefully as a person can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from labelloop.labeling.geometry.overlap import Floats, Pairs, collect_pairs, intersecting_boxes
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import UNKNOWN_SIZE
from qc_webhooks.agreement.matching import MatchedPair, Matching, match_labelled
from qc_webhooks.agreement.metrics import Tolerance

# Shapes with at least this overlap need no measurement of their outlines.
_ALIKE = 0.9
# An outline whose corners move by p along both axes moves by up to 1.42 p.
_DIAGONAL = 1.42


@dataclass(frozen=True)
class ObjectMatching(Matching):
    """A matching, and which of its pairs are close.

    Attributes:
        close: (a, b) of the matched pairs whose edges differ by at most the tolerance in pixels.
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
    pairs = _close_pairs(a, b, Pairs(rows, columns, ious), tolerance.pixels)
    close = frozenset(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))
    return ObjectMatching(matching.same, matching.near, matching.only_a, matching.only_b, close)


def _match_close(a: Sequence[Region], b: Sequence[Region], overlaps: Pairs, tolerance: Tolerance) -> ObjectMatching:
    """``match_objects`` where some regions match by their closeness alone."""
    match, pixels = tolerance.match_iou, tolerance.pixels
    differences = _close_pairs(a, b, _neighbours(a, b, overlaps, pixels), pixels)
    keys = np.unique(np.concatenate([pairs.rows * len(b) + pairs.columns for pairs in (overlaps, differences)]))
    rows, columns = keys // len(b), keys % len(b)
    ious = overlaps.values_at(rows, columns, len(b))
    is_close = np.isin(keys, differences.rows * len(b) + differences.columns)
    # Close pairs count as the same object; of several, the closest.
    closeness = 1 - differences.values_at(rows, columns, len(b)) / pixels
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
        for rows, columns in intersecting_boxes(_bounds(a) + margin, _bounds(b)):
            yield Pairs(rows, columns, overlaps.values_at(rows, columns, len(b)))

    return collect_pairs(blocks())


def _close_pairs(a: Sequence[Region], b: Sequence[Region], candidates: Pairs, pixels: float) -> Pairs:
    """Of candidates with their IoU, those whose edges differ by at most ``pixels``, with the largest difference."""
    if not len(candidates.rows):
        return candidates
    differences = np.abs(_bounds(a)[candidates.rows] - _bounds(b)[candidates.columns]).max(axis=1)
    within = differences <= pixels + 1e-6
    pairs, ious = Pairs(candidates.rows, candidates.columns, differences).where(within), candidates.values[within]
    upright_a, upright_b = (np.array([_is_upright(region) for region in regions]) for regions in (a, b))
    kept = (upright_a[pairs.rows] & upright_b[pairs.columns]) | (ious >= _ALIKE)
    if not kept.all():
        kept[~kept] = _are_close(a, b, pairs.where(~kept), _DIAGONAL * pixels)
    return pairs.where(kept)


def _are_close(a: Sequence[Region], b: Sequence[Region], pairs: Pairs, distance: float) -> NDArray[np.bool_]:
    """Whether the outlines of each pair lie within this distance of each other (Hausdorff distance)."""
    outlines_a = {index: a[index].geometry.polygon() for index in set(pairs.rows.tolist())}
    outlines_b = {index: b[index].geometry.polygon() for index in set(pairs.columns.tolist())}
    first = np.array([outlines_a[row] for row in pairs.rows.tolist()], dtype=object)
    second = np.array([outlines_b[column] for column in pairs.columns.tolist()], dtype=object)
    close: NDArray[np.bool_] = shapely.hausdorff_distance(first, second) <= distance
    close |= shapely.is_empty(first) & shapely.is_empty(second)
    return close


def _bounds(regions: Sequence[Region]) -> Floats:
    """(n, 4): bounds in pixels; NaN, which is close to nothing, where the image's size is unknown."""
    bounds = np.array([region.geometry.bounds for region in regions], dtype=np.float64)
    bounds[[not _has_size(region) for region in regions]] = np.nan
    return bounds


def _has_size(region: Region) -> bool:
    is_stored = not region.result or bool(region.result[0].original_width and region.result[0].original_height)
    return is_stored or (region.width, region.height) != UNKNOWN_SIZE


def _is_upright(region: Region) -> bool:
    """Whether the edges of the bounds say everything: an upright box or a point."""
    shape = region.geometry
    return isinstance(shape, KeyPoint) or (hasattr(shape, "height") and not getattr(shape, "rotation", 1.0))
