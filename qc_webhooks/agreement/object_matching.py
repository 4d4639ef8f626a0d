"""Match the objects of two annotators by overlap, or where every edge differs by a few pixels only.

IoU is strict with small objects: a box of 12 px that is off by 3 px overlaps a third. Within the tolerance in pixels
two shapes are the same object, drawn as carefully as a person can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

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
    """

    close: frozenset[tuple[int, int]] = frozenset()

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
    match, near, pixels = tolerance.match_iou, tolerance.near_iou, tolerance.pixels
    differences = _close_pairs(a, b, overlaps, pixels) if pixels > 0 else None
    if differences is None or not len(differences.rows):
        matching = match_labelled(a, b, overlaps, match=match, near=near)
        return ObjectMatching(matching.same, matching.near, matching.only_a, matching.only_b)
    keys, ious = overlaps.rows * len(b) + overlaps.columns, overlaps.values
    close_keys = differences.rows * len(b) + differences.columns
    positions = np.searchsorted(keys, close_keys)
    if len(keys) == 0 or (keys[np.minimum(positions, len(keys) - 1)] != close_keys).any():
        # Close pairs without an overlap.
        keys = np.union1d(keys, close_keys)
        ious = overlaps.values_at(keys // len(b), keys % len(b), len(b))
        positions = np.searchsorted(keys, close_keys)
    rows, columns = keys // len(b), keys % len(b)
    # Close pairs count as the same object; of several, the closest.
    values = ious.copy()
    values[positions] = np.maximum(ious[positions], match + (1 - match) * (1 - differences.values / pixels))
    matching = match_labelled(a, b, Pairs(rows, columns, values), match=match, near=near)
    true_ious = dict(zip(keys.tolist(), ious.tolist(), strict=True))
    same, near_pairs = (
        tuple(MatchedPair(pair.a, pair.b, true_ious[pair.a * len(b) + pair.b], pair.labels) for pair in pairs)
        for pairs in (matching.same, matching.near)
    )
    found = set(close_keys.tolist())
    close = frozenset((pair.a, pair.b) for pair in same if pair.a * len(b) + pair.b in found)
    return ObjectMatching(same, near_pairs, matching.only_a, matching.only_b, close)


def _close_pairs(a: Sequence[Region], b: Sequence[Region], overlaps: Pairs, pixels: float) -> Pairs:
    """The pairs whose edges differ by at most ``pixels``, with the largest difference in pixels."""
    edges_a, edges_b = _bounds(a), _bounds(b)
    margin = np.array([-pixels, -pixels, pixels, pixels])
    upright_a, upright_b = (np.array([_is_upright(region) for region in regions]) for regions in (a, b))

    def close() -> Iterator[Pairs]:
        for rows, columns in intersecting_boxes(edges_a + margin, edges_b):
            differences = np.abs(edges_a[rows] - edges_b[columns]).max(axis=1)
            within = differences <= pixels + 1e-6
            yield Pairs(rows[within], columns[within], differences[within])

    pairs = collect_pairs(close())
    by_edges = upright_a[pairs.rows] & upright_b[pairs.columns]
    alike = overlaps.values_at(pairs.rows, pairs.columns, len(b)) >= _ALIKE
    kept = [
        edges or same or _outlines_are_close(a[row], b[column], _DIAGONAL * pixels)
        for row, column, edges, same in zip(
            pairs.rows.tolist(), pairs.columns.tolist(), by_edges.tolist(), alike.tolist(), strict=True
        )
    ]
    return pairs.where(np.array(kept, dtype=bool))


def _outlines_are_close(a: Region, b: Region, distance: float) -> bool:
    """Whether each shape lies within this distance of the other (Hausdorff distance)."""
    first, second = a.geometry.polygon(), b.geometry.polygon()
    if first.is_empty or second.is_empty:
        return bool(first.is_empty and second.is_empty)
    return bool(
        shapely.buffer(first, distance).covers(second) and shapely.buffer(second, distance).covers(first)
    )  # fmt: skip


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
