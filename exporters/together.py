"""Several annotators' annotations of a task as one: quality control's consensus, weighed by who is reliable.

The weights come from a first look at all tasks (`survey`): each annotator's recall, false regions and confusion of
labels, estimated without any truth. It is what `labelloop qc consensus` does with a file.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from exporters.choose import TOGETHER, consensus
from labelloop.labeling.annotators import annotator_of
from labelloop.labeling.config import LabelConfig
from labelloop.labeling.consensus import Agreed, Crowd, Evidence, Stance, estimate_crowd, evidence
from labelloop.labeling.consensus import consensus as agree
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.reading import read_annotation
from labelloop.labeling.region import Reading, Region
from labelloop.labeling.task import Annotation, Result, Task

JOINED = "joined with the same object of another annotator"
OUTVOTED = "not in the consensus"

# Where nobody recorded the size of an image, percent are read on a square: the overlap of upright shapes is the same.
_UNKNOWN_SIZE = (1000, 1000)


class Together(msgspec.Struct, frozen=True):
    """What the annotators of a task say as one.

    ``reading`` holds the regions of the consensus, their ``score`` being how likely each is there; ``joined`` counts
    the regions that became part of another one; ``saw`` tells who marked each, by its id; ``outvoted`` names those that
    are more likely not there, each with its annotation and that likelihood. Every region that went in is in one of
    them.
    """

    reading: Reading
    joined: int
    saw: Mapping[str, tuple[int, ...]]
    outvoted: tuple[tuple[Annotation, str, float], ...]


def survey(tasks: Iterable[Task | MalformedTask], config: LabelConfig | None) -> Crowd:
    """The annotators, from everything that they annotated; each task is let go once it was looked at."""
    return estimate_crowd(_all_evidence(tasks, config))


def task_evidence(task: Task, config: LabelConfig | None) -> Evidence | None:
    """What a task tells about its annotators; None where they did not form a consensus."""
    chosen, rule = consensus(task.annotations)
    if rule != TOGETHER:
        return None
    sizes = _sizes(task)
    readings = [
        (each, read_annotation(each, task=task, config=config, size=lambda index: sizes.get(index, _UNKNOWN_SIZE)))
        for each in chosen
    ]
    return evidence([_stance(annotation, reading) for annotation, reading in readings])


def together(readings: Sequence[tuple[Annotation, Reading]], crowd: Crowd) -> Together:
    """One reading from those of several annotators, the order of which decides nothing.

    Shapes are the middle of the annotators' shapes, labels the most likely ones; a key point that is the child of a
    region stays the child of what that region became.
    """
    found = agree([_stance(annotation, reading) for annotation, reading in readings], crowd)
    sources = {annotation.id: reading.regions for annotation, reading in readings}
    origins = [[sources[each.annotation][int(each.region)] for each in agreed.sources] for agreed in found.regions]
    names = _names([_closest(agreed, regions).id for agreed, regions in zip(found.regions, origins, strict=True)])
    became = {
        (source.annotation, region.id): name
        for agreed, regions, name in zip(found.regions, origins, names, strict=True)
        for source, region in zip(agreed.sources, regions, strict=True)
    }
    annotations = {annotation.id: annotation for annotation, _ in readings}
    return Together(
        Reading(
            tuple(
                _region(agreed, name, regions, became)
                for agreed, regions, name in zip(found.regions, origins, names, strict=True)
            ),
            {name: answer.chosen for name, answer in found.choices.items()},
            readings[0][1].answers,
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
    )


def reliability(crowd: Crowd) -> dict[str, dict[str, Any]]:
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


def _stance(annotation: Annotation, reading: Reading) -> Stance:
    """What the consensus takes; regions go by their place, as an id may be missing or be there twice."""
    regions = tuple(msgspec.structs.replace(each, id=str(place)) for place, each in enumerate(reading.regions))
    return Stance(annotator_of(annotation), regions, reading.choices, annotation.id)


def _closest(agreed: Agreed, regions: Sequence[Region]) -> Region:
    """Of the regions behind one of the consensus the one that is most like it."""
    return regions[max(range(len(regions)), key=lambda place: agreed.sources[place].iou)]


def _region(
    agreed: Agreed, name: str, regions: Sequence[Region], became: Mapping[tuple[int | None, str], str]
) -> Region:
    """The region of the consensus with the results of the source that is most like it, its parent renamed."""
    parents = Counter(
        became[source.annotation, parent]
        for source, region in zip(agreed.sources, regions, strict=True)
        if region.result and (parent := region.result[0].parent_id) and (source.annotation, parent) in became
    )
    results = _closest(agreed, regions).result
    if results:
        raw = {key: value for key, value in results[0].raw.items() if key != "parentID"}
        if parents:
            raw["parentID"] = parents.most_common(1)[0][0]
        results = (Result(raw), *results[1:])
    return msgspec.structs.replace(agreed.region, id=name, score=round(agreed.probability, 4), result=results)


def _names(wanted: Sequence[str]) -> list[str]:
    """An id for each region, its source's where that is free: two annotators' regions may share one."""
    taken: set[str] = set()
    names = []
    for first in wanted:
        name, number = first, 1
        while name in taken:
            number += 1
            name = f"{first}-{number}"
        taken.add(name)
        names.append(name)
    return names


def _sizes(task: Task) -> dict[int, tuple[int, int]]:
    sizes: dict[int, tuple[int, int]] = {}
    for results in [each.results for each in task.annotations] + [each.results for each in task.predictions]:
        for result in results:
            if result.original_width and result.original_height:
                sizes.setdefault(result.item_index or 0, (result.original_width, result.original_height))
    return sizes
