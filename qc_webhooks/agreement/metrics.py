"""METRICS: agreement of two annotators on one control, one function per kind of answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.consensus.rankings import ranking_similarity
from labelloop.labeling.consensus.texts import text_similarity
from labelloop.labeling.geometry.oks import oks_pairs
from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import Amount, Span
from qc_webhooks.agreement.matching import Matching, match_labelled, match_regions
from qc_webhooks.agreement.similarity import (
    amount_similarity,
    attribute_similarity,
    jaccard,
    path_similarity,
    span_similarities,
)


@dataclass(frozen=True)
class Tolerance:
    """Overlap thresholds for the same region; see ``Policy``.

    Attributes:
        match_iou: Minimum IoU of two regions of one object.
        near_iou: Minimum IoU of two regions that may be one object, badly located.
        pixels: Regions whose edges differ by at most this are one object, whatever their IoU; conflicts only, not the
            metrics.
    """

    match_iou: float = 0.5
    near_iou: float = 0.1
    pixels: float = 0.0


def regions(a: Sequence[Region], b: Sequence[Region], tolerance: Tolerance = Tolerance()) -> float:
    """Soft F1 of two sets of regions: twice the matched overlap over the number of regions of both.

    Each pair of a one-to-one matching counts IoU x label agreement x agreement of its per-region answers. An unmatched
    region, a duplicate too, counts 0. This is the F1 score (Dice) with overlaps instead of true positives: exact copies
    give 1, two empty annotations give 1, and one empty against one non-empty gives 0.

    Args:
        a: Regions of the first annotator on this control, in any order.
        b: Regions of the second.
        tolerance: Overlap thresholds for the same object.
    """
    if not a and not b:
        return 1.0
    matching = match_regions(a, b, match_iou=tolerance.match_iou, near_iou=tolerance.near_iou)
    return soft_f1(a, b, matching)


def soft_f1(a: Sequence[Region | Span], b: Sequence[Region | Span], matching: Matching) -> float:
    """Soft F1 of two matched sets (see ``regions``); 1 if both are empty."""
    if not a and not b:
        return 1.0
    shared = sum(pair.iou * pair.labels * attribute_similarity(a[pair.a], b[pair.b]) for pair in matching.same)
    return 2 * shared / (len(a) + len(b))


def keypoints(a: Sequence[Region], b: Sequence[Region], tolerance: Tolerance = Tolerance()) -> float:
    """Soft F1 of two sets of keypoints, with object keypoint similarity (OKS) instead of IoU."""
    if not a and not b:
        return 1.0
    if not a or not b:
        return 0.0
    near = oks_pairs(a, b, least=tolerance.near_iou)
    matching = match_labelled(a, b, near, match=tolerance.match_iou, near=tolerance.near_iou)
    return soft_f1(a, b, matching)


def spans(a: Sequence[Span], b: Sequence[Span], tolerance: Tolerance = Tolerance()) -> float:
    """Soft F1 of two sets of spans of text or time, with the IoU of the intervals."""
    if not a and not b:
        return 1.0
    if not a or not b:
        return 0.0
    matching = match_labelled(a, b, span_similarities(a, b), match=tolerance.match_iou, near=tolerance.near_iou)
    return soft_f1(a, b, matching)


def choices(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """Jaccard index of the chosen answers; 1 if neither chose one."""
    del tolerance
    return jaccard(a, b)


def taxonomy(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """Jaccard index of the chosen nodes with their ancestors: a wrong leaf of the right branch keeps partial credit."""
    del tolerance
    return path_similarity(a, b)


def amount(a: Sequence[Amount], b: Sequence[Amount], tolerance: Tolerance = Tolerance()) -> float:
    """1 minus the difference of two numbers, relative to the scale (stars), or to the larger one if unbounded."""
    del tolerance
    if not a or not b:
        return float(not a and not b)
    return amount_similarity(a[-1], b[-1])


def text(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """1 minus the edit distance of two texts, relative to the longer one."""
    del tolerance
    return text_similarity("\n".join(a), "\n".join(b))


def ranking(a: Sequence[tuple[str, str]], b: Sequence[tuple[str, str]], tolerance: Tolerance = Tolerance()) -> float:
    """Share of the pairs of items in the same buckets and order; 1 if neither ranked, 0 if one did not."""
    del tolerance
    return ranking_similarity(tuple(a), tuple(b)) if a and b else float(not a and not b)


Metric = Callable[[Any, Any, Tolerance], float]

METRICS: Mapping[str, Metric] = {
    "regions": regions,
    "keypoints": keypoints,
    "spans": spans,
    "choices": choices,
    "taxonomy": taxonomy,
    "rating": amount,
    "number": amount,
    "text": text,
    "ranking": ranking,
}
