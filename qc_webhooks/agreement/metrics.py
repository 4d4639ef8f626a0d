"""METRICS: agreement of two annotators on one control, one function a kind of answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.regions import Region
from qc_webhooks.agreement.matching import match_regions


@dataclass(frozen=True)
class Tolerance:
    """What counts as the same region; see ``Policy``."""

    match_iou: float = 0.5
    near_iou: float = 0.1


def regions(a: Sequence[Region], b: Sequence[Region], tolerance: Tolerance = Tolerance()) -> float:
    """Soft F1 of two sets of regions: twice the matched overlap over the number of regions of both.

    Each pair of a one-to-one matching counts IoU times label agreement; a region that nobody matches, a duplicate
    too, counts 0. This is the F1 score (Dice) with the overlap in place of a hit, so exact copies of any number of
    regions give 1, two empty annotations give 1, and one empty against one full gives 0.

    Args:
        a: Regions of the first annotator on this control, in any order.
        b: Regions of the second.
        tolerance: When two regions are the same object.
    """
    if not a and not b:
        return 1.0
    matching = match_regions(a, b, match_iou=tolerance.match_iou, near_iou=tolerance.near_iou)
    return 2 * sum(pair.iou * pair.labels for pair in matching.same) / (len(a) + len(b))


def choices(a: Sequence[str], b: Sequence[str], tolerance: Tolerance = Tolerance()) -> float:
    """Share of the chosen answers that both chose (Jaccard index); 1 where neither chose one."""
    del tolerance
    one, other = set(a), set(b)
    return len(one & other) / len(one | other) if one or other else 1.0


Metric = Callable[[Any, Any, Tolerance], float]

METRICS: Mapping[str, Metric] = {
    "regions": regions,
    "choices": choices,
}
