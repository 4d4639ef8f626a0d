"""METRICS: agreement of two annotators on one control, one function a kind of answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.geometry.oks import alike_points
from labelloop.labeling.studio.regions import Region
from qc_webhooks.agreement.answers import Amount, Span
from qc_webhooks.agreement.matching import match_regions, match_things
from qc_webhooks.agreement.similarity import (
    alike_spans,
    amounts_alike,
    attributes_alike,
    paths_alike,
    sets_alike,
    texts_alike,
)


@dataclass(frozen=True)
class Tolerance:
    """What counts as the same region; see ``Policy``."""

    match_iou: float = 0.5
    near_iou: float = 0.1


def regions(a: Sequence[Region], b: Sequence[Region], tolerance: Tolerance = Tolerance()) -> float:
    """Soft F1 of two sets of regions: twice the matched overlap over the number of regions of both.

    Each pair of a one-to-one matching counts IoU times label agreement times the agreement of the answers about it; a
    region that nobody matches, a duplicate too, counts 0. This is the F1 score (Dice) with the overlap in place of a
    hit, so exact copies of any number of regions give 1, two empty annotations give 1, and one empty against one full
    gives 0.

    Args:
        a: Regions of the first annotator on this control, in any order.
        b: Regions of the second.
        tolerance: When two regions are the same object.
    """
    if not a and not b:
        return 1.0
    matching = match_regions(a, b, match_iou=tolerance.match_iou, near_iou=tolerance.near_iou)
    shared = sum(pair.iou * pair.labels * attributes_alike(a[pair.a], b[pair.b]) for pair in matching.same)
    return 2 * shared / (len(a) + len(b))


def keypoints(a: Sequence[Region], b: Sequence[Region], tolerance: Tolerance = Tolerance()) -> float:
    """The same for points: in place of the overlap, how near they are (object keypoint similarity)."""
    if not a and not b:
        return 1.0
    if not a or not b:
        return 0.0
    near = alike_points(a, b, least=tolerance.near_iou)
    matching = match_things(a, b, near, match=tolerance.match_iou, near=tolerance.near_iou)
    shared = sum(pair.iou * pair.labels * attributes_alike(a[pair.a], b[pair.b]) for pair in matching.same)
    return 2 * shared / (len(a) + len(b))


def spans(a: Sequence[Span], b: Sequence[Span], tolerance: Tolerance = Tolerance()) -> float:
    """The same for spans of text or time: the overlap is that of the stretches."""
    if not a and not b:
        return 1.0
    if not a or not b:
        return 0.0
    matching = match_things(a, b, alike_spans(a, b), match=tolerance.match_iou, near=tolerance.near_iou)
    shared = sum(pair.iou * pair.labels * attributes_alike(a[pair.a], b[pair.b]) for pair in matching.same)
    return 2 * shared / (len(a) + len(b))


def choices(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """Share of the chosen answers that both chose (Jaccard index); 1 where neither chose one."""
    del tolerance
    return sets_alike(a, b)


def taxonomy(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """Share of the nodes that both chose, ancestors included: the wrong leaf of the right branch is not all wrong."""
    del tolerance
    return paths_alike(a, b)


def amount(a: Sequence[Amount], b: Sequence[Amount], tolerance: Tolerance = Tolerance()) -> float:
    """1 less the distance of two numbers, in parts of the scale (stars), or of the larger one where there is none."""
    del tolerance
    if not a or not b:
        return float(not a and not b)
    return amounts_alike(a[-1], b[-1])


def text(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """1 less the edits from one text to the other, in parts of the longer."""
    del tolerance
    return texts_alike("\n".join(a), "\n".join(b))


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
}
