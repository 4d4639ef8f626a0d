"""Select the latest annotation of each annotator, and give annotations unique ids."""

from collections.abc import Iterable

import msgspec

from labelloop.labeling.studio.task import MAX_SYNTHETIC_ID, Annotation, Task


def with_unique_ids(annotations: Iterable[Annotation]) -> tuple[Annotation, ...]:
    """The annotations with unique ids.

    An annotation without an id, or with a repeated one, gets one below ``MAX_SYNTHETIC_ID``, by its position.
    """
    used_ids: set[int] = set()
    unique = []
    for index, annotation in enumerate(annotations, start=1):
        numbered = (
            annotation
            if annotation.id is not None and annotation.id not in used_ids
            else msgspec.structs.replace(annotation, id=MAX_SYNTHETIC_ID - index)
        )
        used_ids.add(numbered.id or 0)
        unique.append(numbered)
    return tuple(unique)


def with_malformed_annotations(task: Task) -> Task:
    """The task with an empty annotation added for each malformed one, because it was submitted as well."""
    lost = [item for item in task.malformed if item.field.startswith("annotations")]
    if not lost:
        return task
    unread = tuple(Annotation(malformed=(item,)) for item in lost)
    return msgspec.structs.replace(task, annotations=(*task.annotations, *unread))


def annotator_id(annotation: Annotation) -> int:
    """The annotator's id; for an unknown annotator the negative id of the annotation."""
    return -abs(annotation.id or 0) if annotation.completed_by is None else annotation.completed_by


def latest_annotations(annotations: Iterable[Annotation]) -> tuple[Annotation, ...]:
    """The last changed annotation of each annotator; skipped annotations are ignored.

    Label Studio lets one user annotate a task several times; only different users are independent opinions. A ground
    truth has priority over later changes by its author.

    Returns:
        Annotations with unique ids, sorted by id, independent of Label Studio's order.
    """
    latest: dict[int, Annotation] = {}
    for annotation in with_unique_ids(annotations):
        if annotation.was_cancelled:
            continue
        annotator = annotator_id(annotation)
        current = latest.get(annotator)
        if current is None or _precedence(annotation) > _precedence(current):
            latest[annotator] = annotation
    return tuple(sorted(latest.values(), key=lambda annotation: annotation.id or 0))


def _precedence(annotation: Annotation) -> tuple[bool, str, int]:
    return annotation.ground_truth, annotation.updated_at, annotation.id or 0
