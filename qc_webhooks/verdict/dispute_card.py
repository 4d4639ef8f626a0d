"""The dispute card of a task: what its annotators disagree on, measured by the best that is known to be right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from labelloop.labeling.consensus.consensus import AnnotatorView, Consensus
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.studio.regions import Region
from qc_webhooks.agreement import METRICS, Answers, Conflict, Tolerance, whole_answers
from qc_webhooks.agreement.compare import find_conflicts
from qc_webhooks.agreement.conflicts import not_named
from qc_webhooks.verdict.note import describe

# A matched pair of regions that overlap less than this is named, whether or not the policy lets the pair agree.
LOW_OVERLAP = 0.8


# Kinds of METRICS that a consensus is formed of: regions, and choices about the whole task.
REGIONS, CHOICES = ("regions", "keypoints"), ("choices", "taxonomy")


@dataclass(frozen=True)
class AttributedConflict:
    """A conflict and whose it is.

    Attributes:
        conflict: What differs.
        annotators: Of two annotators both; else the one who differs from the others, or from the ground truth.
    """

    conflict: Conflict
    annotators: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """For a report: type, control, regions, text and the numbers behind it."""
        conflict = self.conflict
        return {
            "type": conflict.type,
            "control": conflict.control,
            "annotators": list(self.annotators),
            "regions": list(conflict.regions),
            "a": list(conflict.a),
            "b": list(conflict.b),
            "bounds": None if conflict.bounds is None else [round(edge, 4) for edge in conflict.bounds],
            "iou": None if conflict.iou is None else round(conflict.iou, 4),
            "item_index": conflict.item_index,
            "text": describe(conflict),
        }


def stance_of(answers: Answers) -> AnnotatorView:
    """Answers as the consensus takes them."""
    regions = [region for (_, kind), held in answers.controls.items() if kind in REGIONS for region in held]
    choices = {name: tuple(held) for (name, kind), held in answers.controls.items() if kind in CHOICES}
    return AnnotatorView(answers.annotator, tuple(regions), choices, answers.annotation)


def conflicts_of(
    answers: Sequence[Answers], consensus: Consensus, tolerance: Tolerance
) -> tuple[AttributedConflict, ...]:
    """Every conflict of a task.

    With a ground truth everybody is held against it. Of two annotators the second is held against the first: nobody
    knows who is right. Of more, each is held against what they say together, so that one slip is one conflict of one
    person and not one with each of the others. Who cannot be read whole has no part in it.

    Args:
        answers: One entry an annotator.
        consensus: What they say together.
        tolerance: When two regions are the same object.
    """
    ordered = sorted(whole_answers(answers), key=lambda each: each.annotation)
    truth = next((each for each in ordered if each.ground_truth), None)
    if len(ordered) < 2:
        return ()
    if truth is None and len(ordered) == 2:
        pair = (ordered[0].annotator, ordered[1].annotator)
        return tuple(AttributedConflict(each, pair) for each in _find(ordered[0], ordered[1], tolerance))
    try:
        held_against = truth or _as_answers(consensus, ordered, tolerance)
    except TooLargeToJudge as error:
        return (AttributedConflict(not_named("Task", error), tuple(each.annotator for each in ordered)),)
    return tuple(
        AttributedConflict(each, (other.annotator,))
        for other in ordered
        if other is not truth
        for each in _find(held_against, other, tolerance)
    )


def _find(a: Answers, b: Answers, tolerance: Tolerance) -> tuple[Conflict, ...]:
    return find_conflicts(a, b, tolerance=tolerance, agreement=LOW_OVERLAP)


def _as_answers(consensus: Consensus, ordered: Sequence[Answers], tolerance: Tolerance) -> Answers:
    regions: dict[tuple[str, str], list[Region]] = {}
    for agreed in consensus.regions:
        kind = "keypoints" if isinstance(agreed.region.geometry, KeyPoint) else "regions"
        regions.setdefault((agreed.region.control, kind), []).append(agreed.region)
    kinds = {name: kind for each in ordered for name, kind in each.controls if kind in CHOICES}
    choices = {(name, kinds[name]): list(answer.chosen) for name, answer in consensus.choices.items()}
    others = _middle_answers(ordered, tolerance)
    return replace(
        ordered[0],
        annotator=0,
        annotation=0,
        ground_truth=False,
        controls=MappingProxyType({**regions, **choices, **others}),
    )


def _middle_answers(ordered: Sequence[Answers], tolerance: Tolerance) -> dict[tuple[str, str], Sequence[Any]]:
    """Of what no consensus is formed of (text, numbers, spans): the answer that is most like all the others."""
    found: dict[tuple[str, str], Sequence[Any]] = {}
    for key in sorted({key for each in ordered for key in each.controls if key[1] not in (*REGIONS, *CHOICES)}):
        said = [each.controls.get(key, ()) for each in ordered]
        alike = [sum(METRICS[key[1]](one, other, tolerance) for other in said) for one in said]
        found[key] = said[max(range(len(said)), key=lambda place: (round(alike[place], 9), -place))]
    return found
