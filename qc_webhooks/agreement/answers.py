"""One annotator's answers to a task, sorted by control: what METRICS compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from labelloop.labeling.annotators import annotator_of, latest_annotations
from labelloop.labeling.config import LabelConfig
from labelloop.labeling.regions import read_annotation
from labelloop.labeling.task import Annotation, Task

# Where nobody recorded the size of an image, percent are read on a square: the overlap of upright shapes is the same.
_UNKNOWN_SIZE = (1000, 1000)


@dataclass(frozen=True)
class Answers:
    """The latest annotation of one annotator.

    Attributes:
        annotator: The annotator's id (``completed_by``); unknown annotators are told apart by negative annotation ids.
        annotation: The annotation's id.
        updated_at: When it was changed last, as Label Studio spells it.
        ground_truth: Whether it was marked as the truth.
        controls: (control name, kind of answer) -> the answer. The kind is a key of METRICS.
        unread: What could not be read, in words.
        uncompared: Names of controls whose answers no metric compares (text, ratings, per-region answers, links).
    """

    annotator: int
    annotation: int
    updated_at: str
    ground_truth: bool = False
    controls: Mapping[tuple[str, str], Sequence[Any]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()


def read_answers(task: Task, *, config: LabelConfig | None = None) -> tuple[Answers, ...]:
    """The answers of everybody who annotated the task: their latest annotation, skipped ones left out.

    Returns:
        One entry an annotator, ordered by annotation id, so that the result does not depend on Label Studio's order.
    """
    sizes = _sizes(task)
    return tuple(_read(annotation, task, config, sizes) for annotation in latest_annotations(task.annotations))


def _read(
    annotation: Annotation, task: Task, config: LabelConfig | None, sizes: Mapping[int, tuple[int, int]]
) -> Answers:
    reading = read_annotation(
        annotation, task=task, config=config, size=lambda index: sizes.get(index, sizes.get(0, _UNKNOWN_SIZE))
    )
    controls: dict[tuple[str, str], list[Any]] = {}
    for region in reading.regions:
        controls.setdefault((region.control, "regions"), []).append(region)
    for name, chosen in reading.choices.items():
        if chosen:
            controls.setdefault((name, "choices"), []).extend(chosen)
    others = {result.from_name or result.type for result in (*reading.carried, *reading.relations)}
    others.update(name for region in reading.regions for name in region.attributes)
    id_ = annotation.id or 0
    return Answers(
        annotator=annotator_of(annotation),
        annotation=id_,
        updated_at=annotation.updated_at,
        ground_truth=annotation.ground_truth,
        controls=MappingProxyType(controls),
        unread=tuple(str(error) for error in reading.errors),
        uncompared=tuple(sorted(others)),
    )


def _sizes(task: Task) -> dict[int, tuple[int, int]]:
    """Image sizes that any result of the task recorded: an annotator's tool may have left out what another's wrote."""
    sizes: dict[int, tuple[int, int]] = {}
    told = [item.results for item in task.annotations] + [item.results for item in task.predictions]
    for result in (result for results in told for result in results):
        if result.original_width and result.original_height:
            sizes.setdefault(result.item_index or 0, (result.original_width, result.original_height))
    return sizes
