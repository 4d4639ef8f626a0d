"""Conflicts of two annotators: each with its type, position and overlap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from labelloop.labeling.consensus.rankings import items_by_bucket
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.oks import oks_pairs
from labelloop.labeling.geometry.overlap import iou_pairs
from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import Amount, Span
from qc_webhooks.agreement.matching import MatchedPair, Matching, match_labelled
from qc_webhooks.agreement.metrics import Tolerance, amount, ranking, text
from qc_webhooks.agreement.object_matching import ObjectMatching, match_objects
from qc_webhooks.agreement.region_groups import RegionGroup, SimilarityFunction, find_duplicates, find_groups
from qc_webhooks.agreement.region_text import bounds_of
from qc_webhooks.agreement.similarity import span_similarities
from qc_webhooks.agreement.span_text import number_text, span_place

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

# Similarity (OKS) from which two keypoints of one annotator with equal labels are duplicates: a distance of at most 3 %
# of the size of the annotated object.
_SAME_POINT = 0.99

Thing = Region | Span


@dataclass(frozen=True)
class Conflict:
    """One disagreement between two annotators, from the view of the second.

    Attributes:
        type: ``missing``: only the first has the region; ``extra``: only the second; ``label``: same region, other
            labels; ``low_overlap``: same object, different shape; ``duplicate``: one of the two has it twice;
            ``merged``: the second has one region where the first has several; ``split``: the reverse; ``attribute``:
            same region, different per-region answer; ``empty``: one has nothing where the other has several regions;
            ``choice``: different choice about the whole task; ``answer``: different text or number; ``not_named``:
            conflicts that could not be listed, or not all of them.
        control: Name of the control.
        a: Labels or answers of the first annotator.
        b: Labels or answers of the second.
        bounds: Bounds of the region (of the first annotator's, if both have one): (x_min, y_min, x_max, y_max) in
            [0, 1] of the image; None without a region, or with several.
        iou: Overlap of the two shapes in [0, 1]; None if only one has the region or there is none.
        regions: Ids of the regions, of the first, then of the second annotator.
        item_index: Index of the image in the task.
        shape: Shape of the region: ``box``, ``outline``, ``area``, ``ellipse``, ``point``, ``line``; ``span``.
        count: Number of regions of the annotator who has more of them.
        where: The span of a text or recording, in words; empty for a region of an image. For ``not_named``: what is
            missing, and why.
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
    control: str,
    a: Sequence[Region],
    b: Sequence[Region],
    *,
    tolerance: Tolerance,
    agreement: float,
    matching: ObjectMatching | None = None,
) -> tuple[Conflict, ...]:
    """List the regions that the two annotators do not share.

    Args:
        control: Name of the control that drew the regions.
        a: Regions of the first annotator.
        b: Regions of the second.
        tolerance: Overlap thresholds for the same object.
        agreement: Matched regions with less overlap are conflicts too.
        matching: Their matching, if it is known.

    Raises:
        TooLargeToJudge: Too many regions overlap.
    """
    if min(len(a), len(b)) == 0 and max(len(a), len(b)) > 1:
        return (_empty(control, a, b),)
    unnamed: list[Conflict] = []
    merged, split = tuple[RegionGroup, ...](), tuple[RegionGroup, ...]()
    try:
        merged, split = (find_groups(*pair, match_iou=tolerance.match_iou) for pair in ((a, b), (b, a)))
    except TooLargeToJudge as error:
        unnamed = [not_named_conflict(control, error, "merged and split regions are not named")]
    split = tuple(group for group in split if not any(group.whole in merged_group.parts for merged_group in merged))
    grouped_a = {index for group in merged for index in group.parts} | {group.whole for group in split}
    grouped_b = {group.whole for group in merged} | {index for group in split for index in group.parts}
    left_a = [index for index in range(len(a)) if index not in grouped_a]
    left_b = [index for index in range(len(b)) if index not in grouped_b]
    first, second = [a[index] for index in left_a], [b[index] for index in left_b]
    if matching is None or grouped_a or grouped_b:
        matching = find_objects(first, second, tolerance)
    pair_conflicts = [
        conflict
        for pair in (*matching.same, *matching.near)
        for conflict in _pair_conflicts(control, first, second, pair, matching.overlap(pair) < agreement)
    ]
    duplicates_a = find_duplicates(first, matching.only_a)
    duplicates_b = find_duplicates(second, matching.only_b)
    missing = [_unmatched("missing", control, first[index]) for index in matching.only_a if index not in duplicates_a]
    extra = [_unmatched("extra", control, second[index]) for index in matching.only_b if index not in duplicates_b]
    return (
        *missing,
        *extra,
        *(
            _duplicate(control, first[original], first[index], of_first=True)
            for index, original in duplicates_a.items()
        ),
        *(
            _duplicate(control, second[original], second[index], of_first=False)
            for index, original in duplicates_b.items()
        ),
        *(_grouped("merged", control, a, b, group) for group in merged),
        *(_grouped("split", control, b, a, group) for group in split),
        *pair_conflicts,
        *unnamed,
    )


def not_named_conflict(control: str, error: TooLargeToJudge, what: str = "its conflicts are not named") -> Conflict:
    """A placeholder for conflicts that could not be listed."""
    return Conflict("not_named", control, where=f"{what}: {error.reason}")


def keypoint_conflicts(
    control: str,
    a: Sequence[Region],
    b: Sequence[Region],
    *,
    tolerance: Tolerance,
    agreement: float,
    matching: ObjectMatching | None = None,
) -> tuple[Conflict, ...]:
    """List the keypoints that the two annotators do not share; arguments as in ``region_conflicts``."""
    if min(len(a), len(b)) == 0 and max(len(a), len(b)) > 1:
        return (_empty(control, a, b),)
    if not (a and b):
        return tuple(_unmatched("missing" if a else "extra", control, point) for point in a or b)
    matching = matching or find_objects(a, b, tolerance, similarity=oks_pairs)
    duplicates_a = find_duplicates(a, matching.only_a, similarity=oks_pairs, least=_SAME_POINT)
    duplicates_b = find_duplicates(b, matching.only_b, similarity=oks_pairs, least=_SAME_POINT)
    return (
        *(_unmatched("missing", control, a[index]) for index in matching.only_a if index not in duplicates_a),
        *(_unmatched("extra", control, b[index]) for index in matching.only_b if index not in duplicates_b),
        *(_duplicate(control, a[first], a[index], of_first=True) for index, first in duplicates_a.items()),
        *(_duplicate(control, b[first], b[index], of_first=False) for index, first in duplicates_b.items()),
        *(
            conflict
            for pair in (*matching.same, *matching.near)
            for conflict in _pair_conflicts(control, a, b, pair, matching.overlap(pair) < agreement)
        ),
    )


def span_conflicts(
    control: str,
    a: Sequence[Span],
    b: Sequence[Span],
    *,
    tolerance: Tolerance,
    agreement: float,
    matching: Matching | None = None,
) -> tuple[Conflict, ...]:
    """List the spans of text or time that the two annotators do not share."""
    if min(len(a), len(b)) == 0 and max(len(a), len(b)) > 1:
        return (_empty(control, a, b),)
    if not (a and b):
        return tuple(_unmatched("missing" if a else "extra", control, span) for span in a or b)
    matching = matching or match_labelled(
        a, b, span_similarities(a, b), match=tolerance.match_iou, near=tolerance.near_iou
    )
    return (
        *(_unmatched("missing", control, a[index]) for index in matching.only_a),
        *(_unmatched("extra", control, b[index]) for index in matching.only_b),
        *(
            conflict
            for pair in (*matching.same, *matching.near)
            for conflict in _pair_conflicts(control, a, b, pair, pair.iou < agreement)
        ),
    )


def choice_conflicts(
    control: str, a: Sequence[str], b: Sequence[str], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The conflict of two different answers to a question about the whole task."""
    del tolerance, agreement
    if set(a) == set(b):
        return ()
    return (Conflict("choice", control, tuple(sorted(set(a))), tuple(sorted(set(b)))),)


def amount_conflicts(
    control: str, a: Sequence[Amount], b: Sequence[Amount], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The conflict of two numbers that differ too much."""
    first, second = ((number_text(amounts[-1].value),) if amounts else () for amounts in (a, b))
    if amount(a, b, tolerance) >= agreement:
        return ()
    return (Conflict("answer", control, first, second),)


def text_conflicts(
    control: str, a: Sequence[str], b: Sequence[str], *, tolerance: Tolerance, agreement: float
) -> tuple[Conflict, ...]:
    """The conflict of two texts that differ too much."""
    similarity = text(a, b, tolerance)
    if similarity >= agreement:
        return ()
    return (Conflict("answer", control, tuple(a), tuple(b), iou=similarity),)


def find_objects(
    a: Sequence[Region],
    b: Sequence[Region],
    tolerance: Tolerance,
    *,
    similarity: SimilarityFunction | None = None,
) -> ObjectMatching:
    """Match the objects of two annotators, by IoU unless another similarity is given."""
    if not (a and b):
        return ObjectMatching((), (), tuple(range(len(a))), tuple(range(len(b))))
    if similarity is None:
        overlaps = iou_pairs(
            [region.geometry for region in a], [region.geometry for region in b], min_iou=tolerance.near_iou
        )
    else:
        overlaps = similarity(a, b, least=tolerance.near_iou)
    return match_objects(a, b, overlaps, tolerance)


def ranking_conflicts(
    control: str,
    a: Sequence[tuple[str, str]],
    b: Sequence[tuple[str, str]],
    *,
    tolerance: Tolerance,
    agreement: float,
) -> tuple[Conflict, ...]:
    """The conflict of two rankings that differ too much."""
    similarity = ranking(a, b, tolerance)
    if similarity >= agreement:
        return ()
    return (Conflict("answer", control, ranking_text(control, a), ranking_text(control, b), iou=similarity),)


def ranking_text(control: str, ranked: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """A ranking in words: "first > second", with buckets "good: first > second; bad: third"."""
    lines = {bucket: " > ".join(items) for bucket, items in items_by_bucket(ranked).items()}
    # without buckets, Label Studio stores the ranking under the name of the control
    text = "; ".join(line if bucket == control else f"{bucket}: {line}" for bucket, line in lines.items())
    return (text,) if text else ()


def _pair_conflicts(
    control: str, a: Sequence[Thing], b: Sequence[Thing], pair: MatchedPair, is_low: bool
) -> list[Conflict]:
    first, second = a[pair.a], b[pair.b]
    said: list[tuple[ConflictType, str, tuple[str, ...], tuple[str, ...]]] = []
    if set(first.labels) != set(second.labels):
        said.append(("label", control, first.labels, second.labels))
    if is_low:
        said.append(("low_overlap", control, first.labels, second.labels))
    said += [
        ("attribute", name, of_first, of_second)
        for name in sorted({*first.attributes, *second.attributes})
        for of_first, of_second in [(_attribute_values(first, name), _attribute_values(second, name))]
        if of_first != of_second
    ]
    shared = {"iou": pair.iou, "regions": (first.id, second.id), **_place(first)}
    conflicts = [Conflict(*one, **shared) for one in said]
    if not (isinstance(first, Span) and isinstance(second, Span)):
        return conflicts
    both = f"{span_place(first)} and {span_place(second)}"
    return [replace(one, where=both) if one.type == "low_overlap" else one for one in conflicts]


def _attribute_values(thing: Thing, name: str) -> tuple[str, ...]:
    return tuple(sorted(str(answer) for answer in thing.attributes.get(name, ())))


def _place(thing: Thing) -> dict[str, Any]:
    """The fields of a conflict that say where a region or a span is, and what it looks like."""
    if isinstance(thing, Span):
        return {"shape": "span", "where": span_place(thing)}
    return {"bounds": bounds_of(thing), "item_index": thing.item_index, "shape": shape_word(thing)}


def _unmatched(type_: ConflictType, control: str, thing: Thing) -> Conflict:
    a, b = (thing.labels, ()) if type_ == "missing" else ((), thing.labels)
    return Conflict(type_, control, a, b, regions=(thing.id,), **_place(thing))


def _duplicate(control: str, first: Region, second: Region, *, of_first: bool) -> Conflict:
    a, b = (first.labels, ()) if of_first else ((), first.labels)
    ids = (first.id, second.id)
    return Conflict(
        "duplicate", control, a, b, bounds_of(second), None, ids, second.item_index, shape_word(second), count=2
    )


def _grouped(
    type_: ConflictType, control: str, parts: Sequence[Region], wholes: Sequence[Region], group: RegionGroup
) -> Conflict:
    whole, group_parts = wholes[group.whole], [parts[index] for index in group.parts]
    part_labels = tuple(dict.fromkeys(label for part in group_parts for label in part.labels))
    ids = tuple(part.id for part in group_parts)
    a, b = (part_labels, whole.labels) if type_ == "merged" else (whole.labels, part_labels)
    regions = (*ids, whole.id) if type_ == "merged" else (whole.id, *ids)
    return Conflict(
        type_,
        control,
        a,
        b,
        bounds_of(whole),
        group.iou,
        regions,
        whole.item_index,
        shape_word(whole),
        len(group_parts),
    )


def _empty(control: str, a: Sequence[Thing], b: Sequence[Thing]) -> Conflict:
    things = a or b
    labels = tuple(label for thing in things for label in thing.labels)
    labels_a, labels_b = (labels, ()) if a else ((), labels)
    ids, shape = tuple(thing.id for thing in things), _place(things[0])["shape"]
    return Conflict("empty", control, labels_a, labels_b, regions=ids, shape=shape, count=len(things))


# Word for a shape in texts for annotators, by class name.
SHAPE_WORDS: Mapping[str, str] = {
    "Rectangle": "box",
    "Polygon": "outline",
    "Mask": "area",
    "Ellipse": "ellipse",
    "KeyPoint": "point",
    "Vector": "line",
}


def shape_word(region: Region) -> str:
    """The word for the shape of a region in texts for annotators."""
    return SHAPE_WORDS[type(region.geometry).__name__]


Finder = Callable[..., tuple[Conflict, ...]]

# Conflict finder for each kind of METRICS.
CONFLICTS: Mapping[str, Finder] = {
    "regions": region_conflicts,
    "keypoints": keypoint_conflicts,
    "spans": span_conflicts,
    "choices": choice_conflicts,
    "taxonomy": choice_conflicts,
    "rating": amount_conflicts,
    "number": amount_conflicts,
    "text": text_conflicts,
    "ranking": ranking_conflicts,
}
