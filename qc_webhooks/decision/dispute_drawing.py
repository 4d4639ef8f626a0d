"""Drawing of a dispute for the dashboard: outlines of each group in relative coordinates, with their conflicts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import shapely

from labelloop.labeling.consensus.clustering import Cluster
from labelloop.labeling.consensus.consensus import Consensus, ConsensusRegion, consensus
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.shapes import Geometry, Interval, KeyPoint, Vector
from labelloop.labeling.region import Region
from qc_webhooks.agreement import Answers, Conflict, complete_answers
from qc_webhooks.agreement.conflicts import ranking_text
from qc_webhooks.agreement.span_text import cut, number_text, one_line, span_place
from qc_webhooks.decision.proposal import agreeing_groups
from qc_webhooks.decision.truth_doubts import TruthDoubt
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.dispute_card import SPANS, AttributedConflict, annotator_view, as_answers, conflicts_of
from qc_webhooks.verdict.note import describe
from qc_webhooks.verdict.verdict import TaskVerdict

CONSENSUS = "consensus"
# Type of the text about a ground truth in doubt, in addition to the types of conflicts.
GROUND_TRUTH = "ground_truth"
# Outlines are drawn a few hundred pixels wide: tolerance of their simplification, as a share of their size.
_FINE = 0.002
_MOST_RINGS = 40
# Maximum outlines per view and conflicts per task: more would make the page slow.
MOST_OUTLINES, MOST_CONFLICTS = 500, 500
# Spans of a control that are listed; images of a task that are drawn.
_MOST_SPANS, _MOST_IMAGES = 8, 1000

Points = tuple[tuple[float, float], ...]


class RegionOutline(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The outline of one region.

    Attributes:
        rings: Rings of (x, y) in [0, 1] of the image, holes included; a single point for keypoints.
        open: Whether they are lines instead of areas.
        label: Its labels, joined.
        item_index: Index of the image in the task.
        disputed: Indices of the conflicts about it.
    """

    rings: tuple[Points, ...]
    open: bool
    label: str
    item_index: int
    disputed: tuple[int, ...]


class GroupView(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answers of one group of annotators.

    Attributes:
        name: ``A``, ``B``, ... as in the overlays in Label Studio; ``consensus``.
        annotators: User ids.
        outlines: Regions of the group's most central annotator.
        answers: (control, answer) about the whole task, and (control, its spans).
        hidden_regions: Number of regions that are not drawn.
    """

    name: str
    annotators: tuple[int, ...]
    outlines: tuple[RegionOutline, ...]
    answers: tuple[tuple[str, str], ...] = ()
    hidden_regions: int = 0


class ConflictText(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One conflict with its text.

    Attributes:
        type: See ``Conflict``.
        control: Name of the control.
        annotators: User ids of those who differ.
        text: The conflict in one sentence.
        a: Labels or answers of one side.
        b: Labels or answers of the other.
        item_index: Index of the image in the task.
        area: Mean area of its regions in square pixels; 0 without a region.
    """

    type: str
    control: str
    annotators: tuple[int, ...]
    text: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    item_index: int
    area: float = 0.0


class DisputeDrawing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The drawing of a dispute.

    Attributes:
        conflicts: Its conflicts.
        views: The groups, the largest first, and last the consensus.
        sizes: (width, height) of each image, (0, 0) if unknown.
        hidden_conflicts: Number of conflicts that are not listed; at least one of each type is.
        has_image: Whether the task has an image to draw on.
    """

    conflicts: tuple[ConflictText, ...]
    views: tuple[GroupView, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    hidden_conflicts: int = 0
    has_image: bool = True

    @property
    def busiest_image(self) -> int:
        """Index of the image with the most conflicts."""
        images = [conflict.item_index for conflict in self.conflicts]
        return max(sorted(set(images)), key=images.count, default=0)


def draw_dispute(
    answers: Sequence[Answers],
    verdict: TaskVerdict,
    policy: Policy,
    *,
    clusters: Sequence[Cluster] | None = None,
    truth_doubts: Sequence[TruthDoubt] = (),
    has_image: bool = True,
) -> DisputeDrawing:
    """Create the drawing of a dispute.

    Args:
        answers: One entry per annotator.
        verdict: Verdict on the task.
        policy: The project's policy.
        clusters: Clusters of the regions as ``consensus`` takes them, if already computed.
        truth_doubts: Doubts about the task's ground truths, listed last.
        has_image: Whether the task has an image of a known address; outlines are drawn in any case.
    """
    agreed_consensus = consensus([annotator_view(answer) for answer in complete_answers(answers)], clusters=clusters)
    all_conflicts = conflicts_of(answers, agreed_consensus, policy.tolerance)
    selected = _selected(all_conflicts)
    regions = {answer.annotator: _drawn(annotator_view(answer).regions) for answer in answers}
    agreed_regions = [agreed for agreed in agreed_consensus.regions if not isinstance(agreed.region.geometry, Interval)]
    conflicts_by_region, conflicts_by_annotator = _conflict_indices(selected)
    views = [
        GroupView(
            chr(ord("A") + index % 26),
            tuple(answer.annotator for answer in group),
            _outlines(
                (region, tuple(conflicts_by_annotator.get((group[0].annotator, region.id), ())))
                for region in regions[group[0].annotator]
            ),
            _answer_texts(group[0]),
            max(0, len(regions[group[0].annotator]) - MOST_OUTLINES),
        )
        for index, group in enumerate(agreeing_groups(answers, verdict, policy))
    ]
    agreed = GroupView(
        CONSENSUS,
        (),
        _outlines(
            (agreed_region.region, _disputed_together(conflicts_by_region, agreed_region))
            for agreed_region in agreed_regions
        ),
        _consensus_texts(answers, agreed_consensus, policy),
        max(0, len(agreed_regions) - MOST_OUTLINES),
    )
    areas = conflict_areas((attributed.conflict for attributed in selected), regions.values())
    conflicts = tuple(
        ConflictText(
            attributed.conflict.type,
            attributed.conflict.control,
            attributed.annotators,
            describe(attributed.conflict),
            attributed.conflict.a,
            attributed.conflict.b,
            attributed.conflict.item_index,
            area,
        )
        for attributed, area in zip(selected, areas, strict=True)
    )
    # At the end: regions refer to conflicts by their index.
    conflicts += tuple(
        ConflictText(
            GROUND_TRUTH,
            "",
            tuple(dict.fromkeys((*doubt.authors, *doubt.annotators))),
            doubt.text,
            (doubt.kind, *map(str, doubt.annotations)),
            (),
            0,
        )
        for doubt in truth_doubts
    )
    sizes = _sizes(region for annotator_regions in regions.values() for region in annotator_regions)
    has_image = has_image or any(view.outlines for view in views)
    return DisputeDrawing(conflicts, (*views, agreed), sizes, len(all_conflicts) - len(selected), has_image)


def _drawn(regions: Iterable[Region]) -> list[Region]:
    """The regions that are drawn on an image; spans of a text or a recording are listed."""
    return [region for region in regions if not isinstance(region.geometry, Interval)]


def conflict_areas(conflicts: Iterable[Conflict], regions: Iterable[Iterable[Region]]) -> list[float]:
    """Mean area in square pixels of the regions that each conflict is about; 0 without one."""
    conflicts = tuple(conflicts)
    disputed = {region for conflict in conflicts for region in conflict.regions}
    areas_by_id: dict[str, list[float]] = {}
    for region in _drawn(region for own in regions for region in own):
        if region.id and region.id in disputed:
            areas_by_id.setdefault(region.id, []).append(region.geometry.area)
    all_areas = [
        [area for region in dict.fromkeys(conflict.regions) for area in areas_by_id.get(region, ())]
        for conflict in conflicts
    ]
    return [round(sum(areas) / len(areas), 1) if areas else 0.0 for areas in all_areas]


def _selected(named: Sequence[AttributedConflict]) -> list[AttributedConflict]:
    """The first conflicts, and the first of each type."""
    first_of_type = {attributed.conflict.type: index for index, attributed in reversed(list(enumerate(named)))}
    return [named[index] for index in sorted({*range(min(len(named), MOST_CONFLICTS)), *first_of_type.values()})]


def _outlines(regions: Iterable[tuple[Region, tuple[int, ...]]]) -> tuple[RegionOutline, ...]:
    """Outlines of regions with their conflicts; if there are too many, disputed ones first."""
    candidates = list(regions)
    selected = sorted(range(len(candidates)), key=lambda index: not candidates[index][1])[:MOST_OUTLINES]
    return tuple(_outline(*candidates[index]) for index in sorted(selected))


def _answer_texts(answer: Answers) -> tuple[tuple[str, str], ...]:
    """The short answers about the whole task, and the spans."""
    texts = (
        (name, _IN_WORDS[kind](name, values)) for (name, kind), values in answer.controls.items() if kind in _IN_WORDS
    )
    return tuple((name, text) for name, text in texts if text)


def _consensus_texts(answers: Sequence[Answers], agreed: Consensus, policy: Policy) -> tuple[tuple[str, str], ...]:
    """The merged choices, and the spans that conflicts are measured against."""
    choices = tuple((control, " + ".join(answer.chosen) or "no answer") for control, answer in agreed.choices.items())
    complete = complete_answers(answers)
    if not any(isinstance(region.region.geometry, Interval) for region in agreed.regions):
        return choices
    try:
        merged = as_answers(agreed, complete, policy.tolerance).controls
    except TooLargeToJudge:  # said by the conflicts
        return choices
    spans = replace(complete[0], controls={key: merged[key] for key in merged if key[1] == SPANS})
    return (*choices, *_answer_texts(spans))


def _plain_texts(_: str, values: Sequence[Any]) -> str:
    return " + ".join(cut(one_line(str(value)), most=80) for value in values)


def _span_texts(_: str, spans: Sequence[Any]) -> str:
    listed = [f"{' + '.join(span.labels)} {span_place(span)}".strip() for span in spans[:_MOST_SPANS]]
    more = [f"{len(spans) - _MOST_SPANS} more"] if len(spans) > _MOST_SPANS else []
    return "; ".join((*listed, *more))


# Kind of METRICS -> its answers in words; shapes are drawn.
_IN_WORDS: Mapping[str, Callable[[str, Sequence[Any]], str]] = {
    **dict.fromkeys(("choices", "taxonomy", "text"), _plain_texts),
    **dict.fromkeys(("rating", "number"), lambda _, amounts: number_text(amounts[-1].value) if amounts else ""),
    "ranking": lambda name, ranked: "".join(ranking_text(name, ranked)),
    SPANS: _span_texts,
}


def _conflict_indices(
    named: Sequence[AttributedConflict],
) -> tuple[Mapping[str, list[int]], Mapping[tuple[int, str], list[int]]]:
    """Indices of the conflicts by region id, and by (annotator, region id)."""
    of_region: dict[str, list[int]] = {}
    of_annotator: dict[tuple[int, str], list[int]] = {}
    for index, attributed in enumerate(named):
        for region in dict.fromkeys(attributed.conflict.regions):
            if region:  # results that a script submitted may have no ids
                of_region.setdefault(region, []).append(index)
                for annotator in dict.fromkeys(attributed.annotators):
                    of_annotator.setdefault((annotator, region), []).append(index)
    return of_region, of_annotator


def _disputed_together(disputed: Mapping[str, list[int]], agreed: ConsensusRegion) -> tuple[int, ...]:
    ids = {agreed.region.id, *(source.region for source in agreed.sources)}
    return tuple(sorted({index for region in ids for index in disputed.get(region, ())}))


def _outline(region: Region, disputed: tuple[int, ...]) -> RegionOutline:
    rings, open_ = _rings(region.geometry)
    width, height = max(region.width, 1), max(region.height, 1)
    shares = tuple(tuple((round(x / width, 4), round(y / height, 4)) for x, y in ring) for ring in rings)
    return RegionOutline(shares, open_, " + ".join(region.labels), region.item_index, disputed)


def _rings(shape: Geometry) -> tuple[list[list[tuple[float, float]]], bool]:
    if isinstance(shape, KeyPoint):
        return [[(shape.x, shape.y)]], True
    if isinstance(shape, Vector) and shape.polygon().is_empty:
        return [[(x, y) for x, y in line.coords] for line in shape.line().geoms], True
    left, top, right, bottom = shape.bounds
    area = shapely.simplify(shape.polygon(), _FINE * max(right - left, bottom - top), preserve_topology=True)
    parts = sorted(shapely.get_parts(area), key=lambda part: -part.area)
    rings = [ring for part in parts if part.geom_type == "Polygon" for ring in (part.exterior, *part.interiors)]
    return [[(x, y) for x, y in ring.coords[:-1]] for ring in rings[:_MOST_RINGS]], False


def _sizes(regions: Iterable[Region]) -> tuple[tuple[int, int], ...]:
    sizes = {region.item_index: (region.width, region.height) for region in regions}
    count = min(max(sizes, default=-1) + 1, _MOST_IMAGES)
    return tuple(sizes.get(index, (0, 0)) for index in range(count))
