"""Dispute card of a task: its conflicts, measured against the best available reference."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from labelloop.labeling.consensus.consensus import AnnotatorView, Consensus
from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.shapes import Interval, KeyPoint
from labelloop.labeling.region import Region
from qc_webhooks.agreement import METRICS, Answers, Conflict, Tolerance, complete_answers
from qc_webhooks.agreement.answers import Span
from qc_webhooks.agreement.compare import find_conflicts
from qc_webhooks.agreement.conflicts import not_named_conflict
from qc_webhooks.verdict.note import describe

# Matched regions with less overlap are listed as a conflict, whether or not the policy lets the pair agree.
LOW_OVERLAP = 0.8


# Kinds of METRICS that a consensus is computed for: regions, and choices about the whole task.
REGIONS, CHOICES = ("regions", "keypoints"), ("choices", "taxonomy")
SPANS, AMOUNTS, TEXTS, RANKINGS = "spans", ("rating", "number"), ("text",), ("ranking",)


@dataclass(frozen=True)
class AttributedConflict:
    """A conflict with the annotators it is attributed to.

    Attributes:
        conflict: What differs.
        annotators: Both of two annotators; else the one who differs from the consensus or the ground truth.
    """

    conflict: Conflict
    annotators: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON for a report: type, control, regions, text and numbers."""
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


def annotator_view(answers: Answers) -> AnnotatorView:
    """Return the answers as an input of the consensus."""
    regions = [region for (_, kind), values in answers.controls.items() if kind in REGIONS for region in values]
    for (name, kind), values in answers.controls.items():
        if kind == SPANS and are_mergeable(values):
            regions += [_span_region(name, span) for span in values]
    choices = {name: tuple(values) for (name, kind), values in answers.controls.items() if kind in CHOICES}
    amounts = {
        name: values[0].value
        for (name, kind), values in answers.controls.items()
        if kind in AMOUNTS and len(values) == 1 and math.isfinite(values[0].value)
    }
    texts = {name: "\n".join(values) for (name, kind), values in answers.controls.items() if kind in TEXTS and values}
    rankings = {name: tuple(values) for (name, kind), values in answers.controls.items() if kind in RANKINGS and values}
    return AnnotatorView(answers.annotator, tuple(regions), choices, answers.annotation, amounts, texts, rankings)


def are_mergeable(spans: Sequence[Span]) -> bool:
    """Whether a consensus merges the spans of a control: each has results of its own, unlike ranges of a timeline."""
    return all(span.results for span in spans)


def _span_region(control: str, span: Span) -> Region:
    """A span as a region, so that the consensus of regions merges it; only spans of one scope can match."""
    return Region(
        Interval(*span.extent), span.labels, span.id, control, span.to_name,
        span.results[0].type, None, _scope_index(span.scope), 0, 0, span.attributes, tuple(span.results),
    )  # fmt: skip


def _scope_index(scope: str) -> int:
    return zlib.crc32(scope.encode()) if scope else 0


def conflicts_of(
    answers: Sequence[Answers], consensus: Consensus, tolerance: Tolerance
) -> tuple[AttributedConflict, ...]:
    """List every conflict of a task.

    With a ground truth, compare each annotator with it. Two annotators are compared with each other, the second with
    the first. With three or more, compare each with the consensus: one slip is then one conflict of one annotator and
    not one with each of the others. Annotators with unreadable answers are left out.

    Args:
        answers: One entry per annotator.
        consensus: Consensus of the complete answers.
        tolerance: Overlap thresholds for the same object.
    """
    ordered = sorted(complete_answers(answers), key=lambda submission: submission.annotation)
    truth = next((submission for submission in ordered if submission.ground_truth), None)
    if len(ordered) < 2:
        return ()
    if truth is None and len(ordered) == 2:
        pair = (ordered[0].annotator, ordered[1].annotator)
        return tuple(AttributedConflict(conflict, pair) for conflict in _find(ordered[0], ordered[1], tolerance))
    try:
        reference = truth or as_answers(consensus, ordered, tolerance)
    except TooLargeToJudge as error:
        return (
            AttributedConflict(
                not_named_conflict("Task", error), tuple(submission.annotator for submission in ordered)
            ),
        )
    return tuple(
        AttributedConflict(conflict, (submission.annotator,))
        for submission in ordered
        if submission is not truth
        for conflict in _find(reference, submission, tolerance)
    )


def _find(a: Answers, b: Answers, tolerance: Tolerance) -> tuple[Conflict, ...]:
    return find_conflicts(a, b, tolerance=tolerance, agreement=LOW_OVERLAP)


def as_answers(consensus: Consensus, ordered: Sequence[Answers], tolerance: Tolerance) -> Answers:
    """The consensus as the answers of an annotator with id 0, to compare others with.

    Args:
        consensus: Consensus of the answers.
        ordered: The complete answers.
        tolerance: Overlap thresholds for the same object.
    """
    regions: dict[tuple[str, str], list[Any]] = {}
    spans = [
        span
        for submission in ordered
        for (_, kind), values in submission.controls.items()
        if kind == SPANS
        for span in values
    ]
    by_id: dict[tuple[int, str], list[Span]] = {}
    for span in spans:
        by_id.setdefault((_scope_index(span.scope), span.id), []).append(span)
    types = {result.from_name: result.type for span in spans for result in span.results}
    for agreed in consensus.regions:
        region, shape = agreed.region, agreed.region.geometry
        if isinstance(shape, Interval):
            answers = {name: (types.get(name, ""), values) for name, values in region.attributes.items()}
            # annotators who began with one pre-label have its id in common; so have the ranges of a timeline
            like = min(
                by_id[region.item_index, region.id],
                key=lambda span: math.dist(span.extent, (shape.start, shape.end)),
            )
            span = _agreed_span(like, shape, region.labels, answers)
            regions.setdefault((region.control, SPANS), []).append(span)
            continue
        kind = "keypoints" if isinstance(shape, KeyPoint) else "regions"
        regions.setdefault((region.control, kind), []).append(region)
    kinds = {name: kind for submission in ordered for name, kind in submission.controls if kind in CHOICES}
    choices = {(name, kinds[name]): list(answer.chosen) for name, answer in consensus.choices.items()}
    others = {key: values for key, values in _middle_answers(ordered, tolerance).items() if key not in regions}
    return replace(
        ordered[0],
        annotator=0,
        annotation=0,
        ground_truth=False,
        controls=MappingProxyType({**regions, **choices, **others}),
    )


def _agreed_span(
    like: Span, shape: Interval, labels: tuple[str, ...], answers: dict[str, tuple[str, tuple[Any, ...]]]
) -> Span:
    """The most central span of an agreed one, with its labels and answers and, except in a text, its ends."""
    if like.unit == "character":
        ends = like.start, like.end
    elif like.start == like.end:
        ends = ((shape.start + shape.end) / 2,) * 2
    else:
        ends = shape.start, shape.end
    return replace(like, start=ends[0], end=ends[1], labels=labels, answers=answers)


def _middle_answers(ordered: Sequence[Answers], tolerance: Tolerance) -> dict[tuple[str, str], Sequence[Any]]:
    """For kinds without a consensus (text, numbers, spans): the medoid, the answer most similar to all others."""
    chosen: dict[tuple[str, str], Sequence[Any]] = {}
    for key in sorted(
        {key for submission in ordered for key in submission.controls if key[1] not in (*REGIONS, *CHOICES)}
    ):
        candidates = [submission.controls.get(key, ()) for submission in ordered]
        similarity = [
            sum(METRICS[key[1]](candidate, other, tolerance) for other in candidates) for candidate in candidates
        ]
        chosen[key] = candidates[max(range(len(candidates)), key=lambda index: (round(similarity[index], 9), -index))]
    return chosen
