"""Which annotation stands for each annotator, where one person annotated a task several times."""

from collections.abc import Iterable

import msgspec

from labelloop.labeling.studio.task import UNNUMBERED, Annotation, Task


def numbered(annotations: Iterable[Annotation]) -> tuple[Annotation, ...]:
    """The annotations, each with a number of its own.

    One that has none, or another's, gets one below ``UNNUMBERED``, by its place.
    """
    taken: set[int] = set()
    found = []
    for place, each in enumerate(annotations, start=1):
        own = (
            each
            if each.id is not None and each.id not in taken
            else msgspec.structs.replace(each, id=UNNUMBERED - place)
        )
        taken.add(own.id or 0)
        found.append(own)
    return tuple(found)


def with_unread(task: Task) -> Task:
    """The task with an annotation, of which nothing can be read, for each that is no object: it was submitted too."""
    lost = [each for each in task.malformed if each.field.startswith("annotations")]
    if not lost:
        return task
    unread = tuple(Annotation(malformed=(each,)) for each in lost)
    return msgspec.structs.replace(task, annotations=(*task.annotations, *unread))


def annotator_of(annotation: Annotation) -> int:
    """The annotator's id; an unknown one is told apart by the negative id of the annotation."""
    return -abs(annotation.id or 0) if annotation.completed_by is None else annotation.completed_by


def latest_annotations(annotations: Iterable[Annotation]) -> tuple[Annotation, ...]:
    """For each annotator the annotation that was changed last; a skipped one counts as none, and hides no older one.

    Label Studio lets one user annotate a task several times; only distinct users are second opinions. One that is
    marked as ground truth counts whatever its author changed since.

    Returns:
        Numbered, in the order of their ids, so that the result does not depend on Label Studio's order.
    """
    latest: dict[int, Annotation] = {}
    for annotation in numbered(annotations):
        if annotation.was_cancelled:
            continue
        who = annotator_of(annotation)
        held = latest.get(who)
        if held is None or _weight(annotation) > _weight(held):
            latest[who] = annotation
    return tuple(sorted(latest.values(), key=lambda annotation: annotation.id or 0))


def _weight(annotation: Annotation) -> tuple[bool, str, int]:
    return annotation.ground_truth, annotation.updated_at, annotation.id or 0
