"""Fuse the annotations of several annotators into one, with quality control's consensus, weighted by reliability.

The weights come from a first pass over all tasks (`estimate_annotators`): recall, false regions and label confusion of
each annotator, estimated without ground truth, as `labelloop qc consensus` does for a file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from exporters.convert.annotation_policy import CONSENSUS, consensus
from exporters.convert.image_placer import Reading, at_common_sizes
from labelloop.labeling.consensus.consensus import (
    AnnotatorModel,
    AnnotatorView,
    Consensus,
    Evidence,
    collect_evidence,
    fit_annotator_model,
)
from labelloop.labeling.consensus.consensus import consensus as agree
from labelloop.labeling.consensus.results import attach_results, rank_annotations
from labelloop.labeling.errors import MalformedTask, TooLargeToJudge
from labelloop.labeling.region import ParsedAnnotation
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import annotator_id
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Annotation, Task

# Canvas for images of unknown size: percent on a square give upright shapes the same overlap.
_UNKNOWN_SIZE = (1000, 1000)


class ConsensusResult(msgspec.Struct, frozen=True):
    """The consensus of the annotators of a task. Every input region is in exactly one of the fields.

    Attributes:
        reading: The regions of the consensus; ``score`` is the probability that the object exists.
        merged: The number of regions merged into another one.
        annotators: Region id -> the annotators who drew it.
        outvoted: Regions that more likely do not exist: (annotation, region id, probability).
        left_out: Regions of annotations that are not fully readable: (annotation, region id).
    """

    reading: ParsedAnnotation
    merged: int
    annotators: Mapping[str, tuple[int, ...]]
    outvoted: tuple[tuple[Annotation, str, float], ...]
    left_out: tuple[tuple[Annotation, str], ...] = ()


def estimate_annotators(tasks: Iterable[Task | MalformedTask], config: LabelConfig | None) -> AnnotatorModel:
    """Estimate the reliability of all annotators from all tasks; each task is released after it was read."""
    return fit_annotator_model(_all_evidence(tasks, config))


def task_evidence(task: Task, config: LabelConfig | None) -> Evidence | None:
    """Return a task's evidence about its annotators; None without a consensus, or if it is too large for one."""
    chosen, rule = consensus(task.annotations)
    if rule != CONSENSUS:
        return None
    sizes = cache(lambda: _sizes(task))  # hardly ever needed: regions state the size
    readings = [
        (
            annotation,
            read_annotation(annotation, task=task, config=config, size=lambda index: sizes().get(index, _UNKNOWN_SIZE)),
        )
        for annotation in chosen
    ]
    try:
        return collect_evidence(
            [
                _annotator_view(annotation, reading)
                for annotation, reading in _fully_readable(at_common_sizes(readings, task))
            ]
        )
    except TooLargeToJudge:
        return None


def consensus_reading(readings: Sequence[Reading], crowd: AnnotatorModel) -> ConsensusResult:
    """Fuse the readings of several annotators; their order does not matter.

    Shapes are averaged, labels are the most likely ones. A key point stays the child of the region that its parent
    became.

    Raises:
        TooLargeToJudge: there are too many regions, or too many of them overlap.
    """
    read = _fully_readable(readings)
    views = [_annotator_view(annotation, reading) for annotation, reading in read]
    fused = agree(views, crowd)
    sources = {annotation.id: reading.regions for annotation, reading in read}
    joined = attach_results(fused, views, old_id=lambda region: region.result[0].id if region.result else region.id)
    annotations = {annotation.id: annotation for annotation, _ in readings}
    order = rank_annotations(_overlap_shares(fused), [annotation for annotation, _ in read])
    answers = min(read, key=lambda pair: order[pair[0].id])[1].choice_results
    names = [region.id for region in joined.regions]
    return ConsensusResult(
        ParsedAnnotation(
            joined.regions,
            {name: answer.chosen for name, answer in fused.choices.items()},
            answers,
        ),
        sum(len(agreed.sources) - 1 for agreed in fused.regions),
        {
            name: tuple(source.annotator for source in agreed.sources)
            for agreed, name in zip(fused.regions, names, strict=True)
        },
        tuple(
            (annotations[source.annotation], sources[source.annotation][int(source.region)].id, agreed.probability)
            for agreed in fused.rejected
            for source in agreed.sources
        ),
        tuple(
            (annotation, region.id)
            for annotation, reading in readings
            if annotation.id not in sources
            for region in reading.regions
        ),
    )


def _fully_readable(readings: Sequence[Reading]) -> Sequence[Reading]:
    """Return the annotations that are fully readable; if there are none, the latest one alone.

    An unreadable part of an annotation is no evidence that objects are absent.
    """
    order = rank_annotations({}, [annotation for annotation, _ in readings])
    return [pair for pair in readings if not pair[1].errors] or [min(readings, key=lambda pair: order[pair[0].id])]


def _overlap_shares(fused: Consensus) -> dict[int, float]:
    """Annotation id -> the sum of the IoUs of its regions with those of the consensus."""
    shares: dict[int, float] = {}
    for source in (source for agreed in fused.regions for source in agreed.sources):
        shares[source.annotation or 0] = shares.get(source.annotation or 0, 0.0) + source.iou
    return shares


def reliability(crowd: AnnotatorModel) -> dict[str, dict[str, Any]]:
    """Return the estimated recall, false regions per image and label accuracy of each annotator, for the manifest."""
    by_annotator: dict[str, dict[str, Any]] = {
        str(annotator): {
            "recall": round(crowd.detection.recall(annotator), 4),
            "false_regions": round(crowd.detection.false_regions.get(annotator, 0.0), 4),
        }
        for annotator in sorted(crowd.detection.logits)
    }
    for control, labels in sorted({**crowd.labels, **crowd.choices}.items()):
        for annotator, index in sorted(labels.raters.items()):
            right = float((labels.marginals * labels.confusion[index].diagonal()).sum())
            by_annotator.setdefault(str(annotator), {})[f"{control} right"] = round(right, 4)
    for control, tags in sorted(crowd.tags.items()):
        for annotator, index in sorted(tags.raters.items()):
            rated = by_annotator.setdefault(str(annotator), {})
            share = tags.frequencies / tags.frequencies.sum()
            rated[f"{control} true tags given"] = round(float((share * tags.sensitivity[index]).sum()), 4)
            rated[f"{control} absent tags given"] = round(float(tags.false_rate[index].mean()), 4)
    return by_annotator


def _all_evidence(tasks: Iterable[Task | MalformedTask], config: LabelConfig | None) -> Iterator[Evidence]:
    for task in tasks:
        item = task_evidence(task, config) if isinstance(task, Task) else None
        if item is not None:
            yield item


def _annotator_view(annotation: Annotation, reading: ParsedAnnotation) -> AnnotatorView:
    """Return the input of the consensus; region ids are replaced by indices, as ids may be missing or repeated."""
    regions = tuple(msgspec.structs.replace(region, id=str(index)) for index, region in enumerate(reading.regions))
    return AnnotatorView(annotator_id(annotation), regions, reading.choices, annotation.id)


def _sizes(task: Task) -> dict[int, tuple[int, int]]:
    sizes: dict[int, tuple[int, int]] = {}
    for results in [source.results for source in task.annotations] + [source.results for source in task.predictions]:
        for result in results:
            if result.original_width and result.original_height:
                sizes.setdefault(result.item_index or 0, (result.original_width, result.original_height))
    return sizes
