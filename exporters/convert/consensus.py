"""Several annotators' annotations of a task as one: quality control's consensus, weighed by who is reliable.

The weights come from a first look at all tasks (`survey`): each annotator's recall, false regions and confusion of
labels, estimated without any truth. It is what `labelloop qc consensus` does with a file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from exporters.convert.annotation_policy import TOGETHER, consensus
from labelloop.labeling.consensus.consensus import (
    AnnotatorModel,
    AnnotatorView,
    Consensus,
    Evidence,
    estimate_crowd,
    evidence,
)
from labelloop.labeling.consensus.consensus import consensus as agree
from labelloop.labeling.consensus.results import annotation_order, join
from labelloop.labeling.errors import MalformedTask, TooLargeToJudge
from labelloop.labeling.region import Reading
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import annotator_of
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Annotation, Task

JOINED = "joined with the same object of another annotator"
OUTVOTED = "not in the consensus"
NOT_WHOLE = "of an annotation that cannot be read whole"
TOO_LARGE = "too many regions for a consensus"

# Where nobody recorded the size of an image, percent are read on a square: the overlap of upright shapes is the same.
_UNKNOWN_SIZE = (1000, 1000)


class Together(msgspec.Struct, frozen=True):
    """What the annotators of a task say as one.

    ``reading`` holds the regions of the consensus, their ``score`` being how likely each is there; ``joined`` counts
    the regions that became part of another one; ``saw`` tells who marked each, by its id; ``outvoted`` names those that
    are more likely not there, each with its annotation and that likelihood; ``left_out`` those of annotations that
    cannot be read whole. Every region that went in is in one of them.
    """

    reading: Reading
    joined: int
    saw: Mapping[str, tuple[int, ...]]
    outvoted: tuple[tuple[Annotation, str, float], ...]
    left_out: tuple[tuple[Annotation, str], ...] = ()


def survey(tasks: Iterable[Task | MalformedTask], config: LabelConfig | None) -> AnnotatorModel:
    """The annotators, from everything that they annotated; each task is let go once it was looked at."""
    return estimate_crowd(_all_evidence(tasks, config))


def task_evidence(task: Task, config: LabelConfig | None) -> Evidence | None:
    """What a task tells about its annotators; None where they did not form a consensus, or it is too large for one."""
    chosen, rule = consensus(task.annotations)
    if rule != TOGETHER:
        return None
    sizes = _sizes(task)
    readings = [
        (each, read_annotation(each, task=task, config=config, size=lambda index: sizes.get(index, _UNKNOWN_SIZE)))
        for each in chosen
    ]
    try:
        return evidence([_stance(annotation, reading) for annotation, reading in _read_whole(readings)])
    except TooLargeToJudge:
        return None


def consensus_reading(readings: Sequence[tuple[Annotation, Reading]], crowd: AnnotatorModel) -> Together:
    """One reading from those of several annotators, the order of which decides nothing.

    Shapes are the middle of the annotators' shapes, labels the most likely ones; a key point that is the child of a
    region stays the child of what that region became.

    Raises:
        TooLargeToJudge: There are too many regions, or too many of them overlap.
    """
    read = _read_whole(readings)
    stances = [_stance(annotation, reading) for annotation, reading in read]
    found = agree(stances, crowd)
    sources = {annotation.id: reading.regions for annotation, reading in read}
    joined = join(found, stances, old_id=lambda region: region.result[0].id if region.result else region.id)
    annotations = {annotation.id: annotation for annotation, _ in readings}
    order = annotation_order(_shares(found), [annotation for annotation, _ in read])
    answers = min(read, key=lambda each: order[each[0].id])[1].answers
    names = [region.id for region in joined.regions]
    return Together(
        Reading(
            joined.regions,
            {name: answer.chosen for name, answer in found.choices.items()},
            answers,
        ),
        sum(len(agreed.sources) - 1 for agreed in found.regions),
        {
            name: tuple(source.annotator for source in agreed.sources)
            for agreed, name in zip(found.regions, names, strict=True)
        },
        tuple(
            (annotations[each.annotation], sources[each.annotation][int(each.region)].id, agreed.probability)
            for agreed in found.rejected
            for each in agreed.sources
        ),
        tuple(
            (annotation, region.id)
            for annotation, reading in readings
            if annotation.id not in sources
            for region in reading.regions
        ),
    )


def _read_whole(readings: Sequence[tuple[Annotation, Reading]]) -> Sequence[tuple[Annotation, Reading]]:
    """The annotations that could be read whole; where none could, the latest one alone.

    What an annotation does not hold because it cannot be read is no evidence that it is not there.
    """
    order = annotation_order({}, [annotation for annotation, _ in readings])
    return [each for each in readings if not each[1].errors] or [min(readings, key=lambda each: order[each[0].id])]


def _shares(found: Consensus) -> dict[int, float]:
    """Annotation id -> how much of the consensus it holds: overlaps with its regions, summed."""
    shares: dict[int, float] = {}
    for source in (source for agreed in found.regions for source in agreed.sources):
        shares[source.annotation or 0] = shares.get(source.annotation or 0, 0.0) + source.iou
    return shares


def reliability(crowd: AnnotatorModel) -> dict[str, dict[str, Any]]:
    """What the consensus held each annotator for, for the manifest: recall, false regions an image, right labels."""
    told: dict[str, dict[str, Any]] = {
        str(who): {
            "recall": round(crowd.presence.recall(who), 4),
            "false_regions": round(crowd.presence.false_regions.get(who, 0.0), 4),
        }
        for who in sorted(crowd.presence.logits)
    }
    for control, labels in sorted({**crowd.labels, **crowd.choices}.items()):
        for who, place in sorted(labels.raters.items()):
            right = float((labels.marginals * labels.confusion[place].diagonal()).sum())
            told.setdefault(str(who), {})[f"{control} right"] = round(right, 4)
    return told


def _all_evidence(tasks: Iterable[Task | MalformedTask], config: LabelConfig | None) -> Iterator[Evidence]:
    for task in tasks:
        found = task_evidence(task, config) if isinstance(task, Task) else None
        if found is not None:
            yield found


def _stance(annotation: Annotation, reading: Reading) -> AnnotatorView:
    """What the consensus takes; regions go by their place, as an id may be missing or be there twice."""
    regions = tuple(msgspec.structs.replace(each, id=str(place)) for place, each in enumerate(reading.regions))
    return AnnotatorView(annotator_of(annotation), regions, reading.choices, annotation.id)


def _sizes(task: Task) -> dict[int, tuple[int, int]]:
    sizes: dict[int, tuple[int, int]] = {}
    for results in [each.results for each in task.annotations] + [each.results for each in task.predictions]:
        for result in results:
            if result.original_width and result.original_height:
                sizes.setdefault(result.item_index or 0, (result.original_width, result.original_height))
    return sizes
