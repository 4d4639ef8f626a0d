"""Owns what an annotated task teaches: whose annotation counts, which boxes are on which photo, or why it teaches none.

Whose counts: the ground truth where there is one; else, of several annotators, their consensus; else the latest. A task
that quality control holds for disputed, or could not judge, teaches nothing until that is settled, nor does one that
was only skipped.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from labelloop.labeling.consensus.consensus import consensus
from labelloop.labeling.consensus.crowd import AnnotatorView
from labelloop.labeling.errors import LabelingError
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Reading, Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Annotation, Prediction, Task

State = Literal["teaches", "held_out", "left_out", "gone"]
Size = tuple[int, int]
TRUTH = "ground truth"
"""The rule by which an annotation counts that somebody marked so: nobody's second opinion is asked for."""

SizeOf = Callable[[str, int | None], Size | None]
"""(photo's address, task) -> its (width, height) in pixels, for results that do not say; None: it cannot be had."""


class LabelledImage(msgspec.Struct, frozen=True):
    """What was drawn on one photo.

    Attributes:
        url: The photo's address, as it stands in the task's data.
        width: Of the photo, pixels; 0: nothing was drawn, so it is not known. `height` the same.
        boxes: x_min, y_min, x_max, y_max of each object, pixels of the photo.
        labels: The class of each.
        complete: Whether all that was drawn could be read; where not, what is unmarked tells nothing.
        scores: Of each box, on pre-labels; empty on annotations.
    """

    url: str
    width: int = 0
    height: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    complete: bool = True
    scores: tuple[float, ...] = ()


class TaskTrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """What a task teaches; the fields are those of the table `learn_tasks`."""

    task: int
    seen: str
    state: State
    reason: str
    annotations: tuple[int, ...] = ()
    photos: tuple[LabelledImage, ...] = ()
    shown: tuple[LabelledImage, ...] | None = None
    shown_version: str = ""
    annotator: int | None = None
    lead_time: float | None = None
    drawn_at: str = ""

    @property
    def boxes(self) -> int:
        """How many boxes were drawn."""
        return sum(len(photo.boxes) for photo in self.photos)


def is_held_out(project: int, task: int, share: float) -> bool:
    """Whether a task is kept for judging: by a hash of its number, so always the same ones, whoever labels when."""
    digest = hashlib.sha256(f"labelloop held-out {project} {task}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def with_boxes(lessons: Iterable[tuple[int, str, tuple[LabelledImage, ...]]]) -> int:
    """How many tasks have a box: those count for the first fit. Each is a task, its checksum and its photos."""
    return sum(any(photo.labels for photo in photos) for _, _, photos in lessons)


def config_of(config: LabelConfig) -> str:
    """A checksum of all in a label config that decides what tasks teach; colours and hints do not."""
    controls = [
        (name, one.tag, one.to_names, [(label.value, label.alias, label.predicted_values) for label in one.labels])
        for name, one in sorted(config.controls.items())
    ]
    told = repr((controls, [(image.name, image.value) for image in config.images]))
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def task_checksum(task: Task, sign: str) -> str:
    """A checksum of all that decides what a task teaches: beside a ground truth nothing else of the task does.

    Args:
        task: As Label Studio has it.
        sign: `config_of` the project's label config.
    """
    truths = [one for one in task.annotations if one.ground_truth and not one.was_cancelled]
    parts = [f"{one.id} {one.updated_at} {one.was_cancelled} {one.ground_truth}" for one in truths or task.annotations]
    status = task.data.get("qc_status")
    open_ = status if status == "not_judged" else str(status == "disputed")
    told = [*sorted(parts), open_, repr(_plain(task)), sign]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:24]


def training_data_of(
    task: Task,
    config: LabelConfig,
    *,
    project: int,
    held_out: float,
    size: SizeOf = lambda _url, _task: None,
    sign: str = "",
) -> TaskTrainingData | None:
    """What a task teaches.

    Args:
        task: As Label Studio has it now.
        config: The project's label config.
        project: Its id.
        held_out: Share of the tasks that are kept for judging.
        size: Asked where results do not say how large their photo is.
        sign: `config_of` the label config, where it is known already.

    Returns:
        None where the task has no annotation at all.
    """
    if task.id is None or not task.annotations:
        return None
    ids = tuple(sorted(one.id for one in task.annotations if one.id is not None))
    base = TaskTrainingData(
        task=task.id, seen=task_checksum(task, sign or config_of(config)), state="left_out", reason="", annotations=ids
    )
    live = [one for one in task.annotations if not one.was_cancelled]
    if not live:
        return msgspec.structs.replace(base, reason="it was only skipped")
    truths = [one for one in live if one.ground_truth]
    if not truths and (reason := _unsettled(task)):
        return msgspec.structs.replace(base, reason=reason)
    latest = _newest_of_each(truths or live)
    chosen = _newest(truths) if truths else _newest(live)
    reader = _Reader(task, config, size)
    if truths or len(latest) == 1:
        rule = TRUTH if truths else "latest"
        regions, complete = reader.read(chosen)
    else:
        rule = f"consensus of {len(latest)}"
        regions, complete = reader.agreed(latest)
    photos = reader.lessons(regions, complete=complete)
    if not photos:
        return msgspec.structs.replace(base, reason="it has no photo that the label config shows")
    state: State = "held_out" if is_held_out(project, task.id, held_out) else "teaches"
    began = next((one for one in task.predictions if one.id == chosen.parent_prediction is not None), None)
    shown = reader.lessons(reader.read(began)[0], complete=True) if began is not None else None
    return msgspec.structs.replace(
        base, state=state, reason=rule, photos=photos, shown=shown,
        shown_version=began.model_version if began else "",
        annotator=chosen.completed_by if truths or len(latest) == 1 else None,
        lead_time=chosen.lead_time, drawn_at=chosen.updated_at,
    )  # fmt: skip


def addresses(task: Task, config: LabelConfig) -> tuple[str, ...]:
    """The addresses of a task's photos, in the order of the label config."""
    return tuple(_photos(task, config).values())


class _Reader:
    """Reads the annotations of one task as boxes on its photos."""

    def __init__(self, task: Task, config: LabelConfig, size: SizeOf) -> None:
        self._task, self._config, self._size = task, config, size
        self._places = _photos(task, config)

    def read(self, source: Annotation | Prediction) -> tuple[tuple[Region, ...], bool]:
        """Its regions, and whether all could be read."""
        reading = self._reading(source)
        return reading.regions, not reading.errors

    def agreed(self, annotations: Sequence[Annotation]) -> tuple[tuple[Region, ...], bool]:
        """The consensus of several annotators; what they do not agree on makes it incomplete."""
        readings = [self._reading(one) for one in annotations]
        stances = [
            AnnotatorView(annotator=one.completed_by or -(place + 1), regions=reading.regions, annotation=one.id)
            for place, (one, reading) in enumerate(zip(annotations, readings, strict=True))
        ]
        found = consensus(stances)
        whole = not found.rejected and not any(reading.errors for reading in readings)
        return tuple(each.region for each in found.regions), whole

    def lessons(self, regions: Sequence[Region], *, complete: bool) -> tuple[LabelledImage, ...]:
        """One for each photo of the task, with what was drawn on it."""
        found = []
        for (name, item), url in self._places.items():
            mine = [one for one in regions if one.to_name == name and one.item_index == item and _has_area(one)]
            labelled = [(one, label) for one in mine for label in self._meant(one.labels)]
            found.append(
                LabelledImage(
                    url=url,
                    width=mine[0].width if mine else 0,
                    height=mine[0].height if mine else 0,
                    boxes=tuple(_rounded(one.geometry.bounds) for one, _ in labelled),
                    labels=tuple(label for _, label in labelled),
                    complete=complete and all(one.labels for one in mine),
                    scores=tuple(one.score for one, _ in labelled if one.score is not None),
                )
            )
        return tuple(found)

    def _meant(self, labels: Sequence[str]) -> list[str]:
        """What labels are called in the label config now; those that it has no longer are nothing to be found.

        A label that was renamed is known by `predicted_values`, where its old name stands there.
        """
        controls = [one for one in self._config.controls.values() if one.type.endswith("labels")]
        named = {label.stored for control in controls for label in control.labels}
        if not all(control.labels for control in controls):  # its labels come from the task
            return list(labels)
        meant = (
            label if label in named else next((found for one in controls if (found := one.label_for(label))), None)
            for label in labels
        )
        return [label for label in meant if label]

    def _reading(self, source: Annotation | Prediction) -> Reading:
        def size(item: int) -> Size | None:
            url = next((url for (_, place), url in self._places.items() if place == item), "")
            return self._size(url, self._task.id) if url else None

        try:
            return read_annotation(source, task=self._task, config=self._config, size=size)
        except LabelingError:  # a result so broken that it cannot even be told as an error of its own
            return Reading()


def _photos(task: Task, config: LabelConfig) -> dict[tuple[str, int], str]:
    """(image object, item) -> address."""
    found: dict[tuple[str, int], str] = {}
    for image in config.images:
        value: Any = task.data.get(image.value)
        for item, url in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(url, str) and url.strip():
                found[image.name, item] = url
    return found


def _has_area(region: Region) -> bool:
    if isinstance(region.geometry, KeyPoint):
        return False
    x_min, y_min, x_max, y_max = region.geometry.bounds
    return x_max - x_min >= 1 and y_max - y_min >= 1


def _rounded(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x_min, y_min, x_max, y_max = (round(float(one), 2) for one in bounds)
    return x_min, y_min, x_max, y_max


_UNSETTLED = {
    "disputed": "its annotators disagree, and nobody has settled that yet",
    "not_judged": "its annotators' answers could not be compared, and nobody has reviewed it yet",
}


def _unsettled(task: Task) -> str:
    """Why its annotators are not known to agree, as quality control says in the task's data; it takes it back there."""
    status = task.data.get("qc_status")
    return _UNSETTLED.get(status, "") if isinstance(status, str) else ""


def _plain(task: Task) -> list[tuple[str, Any]]:
    """The task's data without what quality control notes there."""
    return sorted((key, value) for key, value in task.data.items() if not key.startswith("qc_"))


def _newest(annotations: Sequence[Annotation]) -> Annotation:
    # Label Studio writes its times in one ISO form in UTC, so text order is time order; the id breaks ties.
    return max(annotations, key=lambda one: (one.updated_at or one.created_at, one.id or 0))


def _newest_of_each(annotations: Sequence[Annotation]) -> list[Annotation]:
    """The newest annotation of each annotator; those of nobody known count each."""
    by_annotator: dict[object, list[Annotation]] = {}
    for one in annotations:
        by_annotator.setdefault(one.completed_by if one.completed_by is not None else ("?", one.id), []).append(one)
    return [_newest(some) for some in by_annotator.values()]
