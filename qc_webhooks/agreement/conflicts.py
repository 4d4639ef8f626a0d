"""What two annotators disagree on, one conflict at a time: its type, its place and by how much."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from labelloop.labeling.regions import Region
from qc_webhooks.agreement.matching import Pair, match_regions
from qc_webhooks.agreement.metrics import Tolerance

ConflictType = Literal["missing", "extra", "label", "low_overlap", "choice"]


@dataclass(frozen=True)
class Conflict:
    """One disagreement between two annotators, named from the view of the second.

    Attributes:
        type: ``missing``: only the first has the region; ``extra``: only the second; ``label``: the same region, other
            labels; ``low_overlap``: the same object, drawn differently; ``choice``: another answer.
        control: Name of the control.
        a: Labels or answers of the first annotator.
        b: Labels or answers of the second.
        bounds: The region (of the first annotator where both have one) as (x_min, y_min, x_max, y_max), each 0 to 1 of
            the image; None where there is no region.
        iou: Overlap of the two shapes, 0 to 1; None where only one has the region or there is none.
        regions: Ids of the regions concerned, of the first then of the second annotator.
        item_index: Which image of the task.
    """

    type: ConflictType
    control: str
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    bounds: tuple[float, float, float, float] | None = None
    iou: float | None = None
    regions: tuple[str, ...] = ()
    item_index: int = 0


def region_conflicts(
    control: str, a: Sequence[Region], b: Sequence[Region], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """Every region that the two do not share.

    Args:
        control: Name of the control that the regions were drawn with.
        a: Regions of the first annotator.
        b: Regions of the second.
        tolerance: When two regions are the same object.
        agreement: Matched regions that overlap less than this are a conflict too: they keep the pair from agreeing.
    """
    matching = match_regions(a, b, match_iou=tolerance.match_iou, near_iou=tolerance.near_iou)
    pairs = [
        found for pair in (*matching.same, *matching.near) for found in _pair_conflicts(control, a, b, pair, agreement)
    ]
    missing = [_alone("missing", control, a[index]) for index in matching.only_a]
    extra = [_alone("extra", control, b[index]) for index in matching.only_b]
    return (*missing, *extra, *pairs)


def choice_conflicts(
    control: str, a: Sequence[str], b: Sequence[str], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The one conflict of two different answers to a question about the whole task."""
    del tolerance, agreement
    if set(a) == set(b):
        return ()
    return (Conflict("choice", control, tuple(sorted(set(a))), tuple(sorted(set(b)))),)


def _pair_conflicts(
    control: str, a: Sequence[Region], b: Sequence[Region], pair: Pair, agreement: float
) -> list[Conflict]:
    one, other = a[pair.a], b[pair.b]
    types: list[ConflictType] = []
    if set(one.labels) != set(other.labels):
        types.append("label")
    if pair.iou < agreement:
        types.append("low_overlap")
    return [
        Conflict(type_, control, one.labels, other.labels, _bounds(one), pair.iou, (one.id, other.id), one.item_index)
        for type_ in types
    ]


def _alone(type_: ConflictType, control: str, region: Region) -> Conflict:
    a, b = (region.labels, ()) if type_ == "missing" else ((), region.labels)
    return Conflict(type_, control, a, b, _bounds(region), None, (region.id,), region.item_index)


def _bounds(region: Region) -> tuple[float, float, float, float]:
    left, top, right, bottom = region.geometry.bounds
    return left / region.width, top / region.height, right / region.width, bottom / region.height


Finder = Callable[..., tuple[Conflict, ...]]

# For each kind of METRICS, the function that says what the number means.
CONFLICTS: Mapping[str, Finder] = {
    "regions": region_conflicts,
    "choices": choice_conflicts,
}
