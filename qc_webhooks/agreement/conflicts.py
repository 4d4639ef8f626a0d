"""What two annotators disagree on, one conflict at a time: its type, its place and by how much."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.oks import alike_points
from labelloop.labeling.studio.regions import Region
from qc_webhooks.agreement.answers import Amount, Span
from qc_webhooks.agreement.matching import Pair, match_regions, match_things
from qc_webhooks.agreement.metrics import Tolerance, amount, text
from qc_webhooks.agreement.region_groups import Group, find_duplicates, find_groups
from qc_webhooks.agreement.similarity import alike_spans

ConflictType = Literal[
    "missing",
    "extra",
    "label",
    "low_overlap",
    "duplicate",
    "merged",
    "split",
    "attribute",
    "empty",
    "choice",
    "answer",
    "not_named",
]

# Similarity of two points of one annotator, with the same labels, that are one point set twice: within three hundredths
# of the size of what they lie on.
_SAME_POINT = 0.99


@dataclass(frozen=True)
class Conflict:
    """One disagreement between two annotators, named from the view of the second.

    Attributes:
        type: ``missing``: only the first has the region; ``extra``: only the second; ``label``: the same region, other
            labels; ``low_overlap``: the same object, drawn differently; ``duplicate``: one of the two has it twice;
            ``merged``: the second has one region where the first has several; ``split``: the other way round;
            ``attribute``: the same region, another answer about it; ``empty``: one has nothing where the other has
            several regions; ``choice``: another choice about the whole task; ``answer``: another text or number;
            ``not_named``: what the two disagree on cannot be told, or not all of it.
        control: Name of the control.
        a: Labels or answers of the first annotator.
        b: Labels or answers of the second.
        bounds: The region (of the first annotator where both have one) as (x_min, y_min, x_max, y_max), each 0 to 1 of
            the image; None where there is no region, or more than one place.
        iou: Overlap of the two shapes, 0 to 1; None where only one has the region or there is none.
        regions: Ids of the regions concerned, of the first then of the second annotator.
        item_index: Which image of the task.
        shape: What the region is drawn as: ``box``, ``outline``, ``area``, ``ellipse``, ``point``, ``line``; ``span``.
        count: How many regions the fuller of the two has there.
        where: The stretch of a text or recording, in words; empty for a region of an image. Of ``not_named``: what is
            not named, and why.
    """

    type: ConflictType
    control: str
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    bounds: tuple[float, float, float, float] | None = None
    iou: float | None = None
    regions: tuple[str, ...] = ()
    item_index: int = 0
    shape: str = "box"
    count: int = 1
    where: str = ""


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

    Raises:
        TooLargeToJudge: Too many overlap.
    """
    if min(len(a), len(b)) == 0 and max(len(a), len(b)) > 1:
        return (_empty(control, a, b),)
    unnamed: list[Conflict] = []
    merged, split = tuple[Group, ...](), tuple[Group, ...]()
    try:
        merged, split = (find_groups(*each, match_iou=tolerance.match_iou) for each in ((a, b), (b, a)))
    except TooLargeToJudge as error:
        unnamed = [not_named(control, error, "merged and split regions are not named")]
    split = tuple(group for group in split if not any(group.one in other.several for other in merged))
    grouped_a = {place for group in merged for place in group.several} | {group.one for group in split}
    grouped_b = {group.one for group in merged} | {place for group in split for place in group.several}
    left_a = [place for place in range(len(a)) if place not in grouped_a]
    left_b = [place for place in range(len(b)) if place not in grouped_b]
    one, other = [a[place] for place in left_a], [b[place] for place in left_b]
    matching = match_regions(one, other, match_iou=tolerance.match_iou, near_iou=tolerance.near_iou)
    pairs = [
        found
        for pair in (*matching.same, *matching.near)
        for found in _pair_conflicts(control, one, other, pair, agreement)
    ]
    twice_a = find_duplicates(one, matching.only_a)
    twice_b = find_duplicates(other, matching.only_b)
    missing = [_alone("missing", control, one[index]) for index in matching.only_a if index not in twice_a]
    extra = [_alone("extra", control, other[index]) for index in matching.only_b if index not in twice_b]
    return (
        *missing,
        *extra,
        *(_twice(control, one[first], one[index], of_first=True) for index, first in twice_a.items()),
        *(_twice(control, other[first], other[index], of_first=False) for index, first in twice_b.items()),
        *(_grouped("merged", control, a, b, group) for group in merged),
        *(_grouped("split", control, b, a, group) for group in split),
        *pairs,
        *unnamed,
    )


def not_named(control: str, error: TooLargeToJudge, what: str = "its conflicts are not named") -> Conflict:
    """In the place of conflicts that cannot be told."""
    return Conflict("not_named", control, where=f"{what}: {error.reason}")


def keypoint_conflicts(
    control: str, a: Sequence[Region], b: Sequence[Region], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """Every point that the two do not share."""
    if min(len(a), len(b)) == 0 and max(len(a), len(b)) > 1:
        return (_empty(control, a, b),)
    if not (a and b):
        return tuple(_alone("missing" if a else "extra", control, point) for point in a or b)
    near = alike_points(a, b, least=tolerance.near_iou)
    matching = match_things(a, b, near, match=tolerance.match_iou, near=tolerance.near_iou)
    twice_a = find_duplicates(a, matching.only_a, alike=alike_points, least=_SAME_POINT)
    twice_b = find_duplicates(b, matching.only_b, alike=alike_points, least=_SAME_POINT)
    return (
        *(_alone("missing", control, a[index]) for index in matching.only_a if index not in twice_a),
        *(_alone("extra", control, b[index]) for index in matching.only_b if index not in twice_b),
        *(_twice(control, a[first], a[index], of_first=True) for index, first in twice_a.items()),
        *(_twice(control, b[first], b[index], of_first=False) for index, first in twice_b.items()),
        *(
            found
            for pair in (*matching.same, *matching.near)
            for found in _pair_conflicts(control, a, b, pair, agreement)
        ),
    )


def span_conflicts(
    control: str, a: Sequence[Span], b: Sequence[Span], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """Every span of text or time that the two do not share."""
    if not (a and b):
        alone: ConflictType = "missing" if a else "extra"
        return tuple(_span(alone, control, span, a=bool(a)) for span in a or b)
    matching = match_things(a, b, alike_spans(a, b), match=tolerance.match_iou, near=tolerance.near_iou)
    found = [_span("missing", control, a[index], a=True) for index in matching.only_a]
    found += [_span("extra", control, b[index], a=False) for index in matching.only_b]
    for pair in (*matching.same, *matching.near):
        one, other = a[pair.a], b[pair.b]
        types: list[ConflictType] = ["label"] if set(one.labels) != set(other.labels) else []
        types += ["low_overlap"] if pair.iou < agreement else []
        found += [
            Conflict(
                type_, control, one.labels, other.labels, None, pair.iou, (one.id, other.id), 0, "span",
                where=_stretch(one),
            )
            for type_ in types
        ]  # fmt: skip
        found += [
            Conflict(
                "attribute", name, _said(one, name), _said(other, name), None, pair.iou, (one.id, other.id), 0, "span",
                where=_stretch(one),
            )
            for name in sorted({*one.attributes, *other.attributes})
            if _said(one, name) != _said(other, name)
        ]  # fmt: skip
    return tuple(found)


def choice_conflicts(
    control: str, a: Sequence[str], b: Sequence[str], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The one conflict of two different answers to a question about the whole task."""
    del tolerance, agreement
    if set(a) == set(b):
        return ()
    return (Conflict("choice", control, tuple(sorted(set(a))), tuple(sorted(set(b)))),)


def amount_conflicts(
    control: str, a: Sequence[Amount], b: Sequence[Amount], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The one conflict of two numbers that lie too far apart."""
    one, other = ((f"{each[-1].value:g}",) if each else () for each in (a, b))
    if amount(a, b, tolerance) >= agreement:
        return ()
    return (Conflict("answer", control, one, other),)


def text_conflicts(
    control: str, a: Sequence[str], b: Sequence[str], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The one conflict of two texts that are too far from each other."""
    alike = text(a, b, tolerance)
    if alike >= agreement:
        return ()
    return (Conflict("answer", control, tuple(a), tuple(b), iou=alike),)


def _pair_conflicts(
    control: str, a: Sequence[Region], b: Sequence[Region], pair: Pair, agreement: float
) -> list[Conflict]:
    one, other = a[pair.a], b[pair.b]
    types: list[ConflictType] = []
    if set(one.labels) != set(other.labels):
        types.append("label")
    if pair.iou < agreement:
        types.append("low_overlap")
    regions, where, shape = (one.id, other.id), _bounds(one), shape_word(one)
    differing = [
        Conflict(
            "attribute", name, _said(one, name), _said(other, name), where, pair.iou, regions, one.item_index, shape
        )
        for name in sorted({*one.attributes, *other.attributes})
        if _said(one, name) != _said(other, name)
    ]
    named = [
        Conflict(type_, control, one.labels, other.labels, where, pair.iou, regions, one.item_index, shape)
        for type_ in types
    ]
    return named + differing


def _said(region: Region | Span, name: str) -> tuple[str, ...]:
    return tuple(sorted(str(answer) for answer in region.attributes.get(name, ())))


def _alone(type_: ConflictType, control: str, region: Region) -> Conflict:
    a, b = (region.labels, ()) if type_ == "missing" else ((), region.labels)
    return Conflict(type_, control, a, b, _bounds(region), None, (region.id,), region.item_index, shape_word(region))


def _twice(control: str, first: Region, second: Region, *, of_first: bool) -> Conflict:
    a, b = (first.labels, ()) if of_first else ((), first.labels)
    ids = (first.id, second.id)
    return Conflict(
        "duplicate", control, a, b, _bounds(second), None, ids, second.item_index, shape_word(second), count=2
    )


def _grouped(
    type_: ConflictType, control: str, parts: Sequence[Region], wholes: Sequence[Region], group: Group
) -> Conflict:
    whole, several = wholes[group.one], [parts[place] for place in group.several]
    inner = tuple(dict.fromkeys(label for part in several for label in part.labels))
    ids = tuple(part.id for part in several)
    a, b = (inner, whole.labels) if type_ == "merged" else (whole.labels, inner)
    regions = (*ids, whole.id) if type_ == "merged" else (whole.id, *ids)
    return Conflict(
        type_, control, a, b, _bounds(whole), group.iou, regions, whole.item_index, shape_word(whole), len(several)
    )


def _empty(control: str, a: Sequence[Region], b: Sequence[Region]) -> Conflict:
    full = a or b
    labels = tuple(label for region in full for label in region.labels)
    one, other = (labels, ()) if a else ((), labels)
    ids = tuple(region.id for region in full)
    return Conflict("empty", control, one, other, regions=ids, shape=shape_word(full[0]), count=len(full))


def _span(type_: ConflictType, control: str, span: Span, *, a: bool) -> Conflict:
    one, other = (span.labels, ()) if a else ((), span.labels)
    return Conflict(type_, control, one, other, regions=(span.id,), shape="span", where=_stretch(span))


def _stretch(span: Span) -> str:
    return f"from {span.start:g} to {span.end:g}"


# Shape -> the word for it that an annotator uses.
SHAPE_WORDS: Mapping[str, str] = {
    "Rectangle": "box",
    "Polygon": "outline",
    "Mask": "area",
    "Ellipse": "ellipse",
    "KeyPoint": "point",
    "Vector": "line",
}


def shape_word(region: Region) -> str:
    """What an annotator calls the shape of a region."""
    return SHAPE_WORDS[type(region.geometry).__name__]


def _bounds(region: Region) -> tuple[float, float, float, float]:
    left, top, right, bottom = region.geometry.bounds
    return left / region.width, top / region.height, right / region.width, bottom / region.height


Finder = Callable[..., tuple[Conflict, ...]]

# For each kind of METRICS, the function that says what the number means.
CONFLICTS: Mapping[str, Finder] = {
    "regions": region_conflicts,
    "keypoints": keypoint_conflicts,
    "spans": span_conflicts,
    "choices": choice_conflicts,
    "taxonomy": choice_conflicts,
    "rating": amount_conflicts,
    "number": amount_conflicts,
    "text": text_conflicts,
}
