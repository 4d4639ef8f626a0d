"""Turn the annotations of a task into training data: boxes and labels per image, or the reason to leave it out.

The ground truth counts if there is one; otherwise the consensus of several annotators; otherwise the latest annotation.
Tasks that quality control marks as disputed or not judged are left out until they are resolved, and so are tasks that
were only skipped.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from labelloop.labeling.consensus.consensus import consensus
from labelloop.labeling.consensus.crowd import AnnotatorView
from labelloop.labeling.errors import LabelingError
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import ParsedAnnotation, Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Annotation, ModelPrediction, Task

State = Literal["teaches", "held_out", "left_out", "gone"]
Size = tuple[int, int]
# `reason` of a task whose ground truth counts; it is not checked for label errors.
GROUND_TRUTH = "ground truth"

# (image URL, task) -> (width, height) in pixels, for results without a size; None if the image cannot be loaded.
SizeOf = Callable[[str, int | None], Size | None]


class LabelledImage(msgspec.Struct, frozen=True):
    """The boxes and labels of one image.

    Attributes:
        url: Address of the image, as in the task's data.
        width: Width of the image in pixels; 0: unknown, because nothing was drawn.
        height: Height of the image in pixels; 0: unknown.
        boxes: (x_min, y_min, x_max, y_max) of each object, in pixels.
        labels: Class of each box.
        complete: Whether every region could be read; if not, unlabelled areas are no negatives.
        scores: Score of each box of a pre-label; empty for annotations.
    """

    url: str
    width: int = 0
    height: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    complete: bool = True
    scores: tuple[float, ...] = ()


class TaskTrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """Training data of a task; the fields are columns of the table `learn_tasks`."""

    task: int
    checksum: str
    state: State
    reason: str
    annotations: tuple[int, ...] = ()
    photos: tuple[LabelledImage, ...] = ()
    prelabels: tuple[LabelledImage, ...] | None = None
    prelabel_version: str = ""
    annotator: int | None = None
    lead_time: float | None = None
    drawn_at: str = ""

    @property
    def boxes(self) -> int:
        """Number of boxes."""
        return sum(len(photo.boxes) for photo in self.photos)


def is_held_out(project: int, task: int, share: float) -> bool:
    """Whether a task is held out for evaluation. Decided by a hash of its number, so the choice never changes."""
    digest = hashlib.sha256(f"labelloop held-out {project} {task}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def count_with_boxes(tasks: Iterable[tuple[int, str, tuple[LabelledImage, ...]]]) -> int:
    """Count the tasks with at least one box; the first training run needs `first` of them."""
    return sum(any(photo.labels for photo in photos) for _, _, photos in tasks)


def config_hash_of(config: LabelConfig) -> str:
    """Return a checksum of the parts of a label config that determine training data; colours and hints do not."""
    controls = [
        (
            name,
            control.tag,
            control.to_names,
            [(label.value, label.alias, label.predicted_values) for label in control.labels],
        )
        for name, control in sorted(config.controls.items())
    ]
    text = repr((controls, [(image.name, image.value) for image in config.images]))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def task_checksum(task: Task, config_hash: str) -> str:
    """Return a checksum of everything that determines a task's training data.

    Args:
        task: The task as read from Label Studio.
        config_hash: `config_hash_of` the project's label config.
    """
    ground_truths = [
        annotation for annotation in task.annotations if annotation.ground_truth and not annotation.was_cancelled
    ]
    parts = [
        f"{annotation.id} {annotation.updated_at} {annotation.was_cancelled} {annotation.ground_truth}"
        for annotation in ground_truths or task.annotations
    ]
    status = task.data.get("qc_status")
    review_status = status if status == "not_judged" else str(status == "disputed")
    lines = [*sorted(parts), review_status, repr(_data_without_qc(task)), config_hash]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def training_data_of(
    task: Task,
    config: LabelConfig,
    *,
    project: int,
    held_out: float,
    size: SizeOf = lambda _url, _task: None,
    config_hash: str = "",
) -> TaskTrainingData | None:
    """Return the training data of a task.

    Args:
        task: The task as read from Label Studio.
        config: The project's label config.
        project: Its id.
        held_out: Share of tasks held out for evaluation, 0 to 0.5.
        size: Called for results without an image size.
        config_hash: `config_hash_of` the label config, if already computed.

    Returns:
        None if the task has no annotation.
    """
    if task.id is None or not task.annotations:
        return None
    ids = tuple(sorted(annotation.id for annotation in task.annotations if annotation.id is not None))
    base = TaskTrainingData(
        task=task.id,
        checksum=task_checksum(task, config_hash or config_hash_of(config)),
        state="left_out",
        reason="",
        annotations=ids,
    )
    live = [annotation for annotation in task.annotations if not annotation.was_cancelled]
    if not live:
        return msgspec.structs.replace(base, reason="it was only skipped")
    ground_truths = [annotation for annotation in live if annotation.ground_truth]
    if not ground_truths and (reason := _unsettled_reason(task)):
        return msgspec.structs.replace(base, reason=reason)
    latest = _newest_of_each(ground_truths or live)
    chosen = _newest(ground_truths) if ground_truths else _newest(live)
    reader = _Reader(task, config, size)
    if ground_truths or len(latest) == 1:
        rule = GROUND_TRUTH if ground_truths else "latest"
        regions, complete = reader.read(chosen)
    else:
        rule = f"consensus of {len(latest)}"
        regions, complete = reader.agreed(latest)
    photos = reader.labelled_images(regions, complete=complete)
    if not photos:
        return msgspec.structs.replace(base, reason="it has no image that the label config shows")
    state: State = "held_out" if is_held_out(project, task.id, held_out) else "teaches"
    prelabel = next(
        (prediction for prediction in task.predictions if prediction.id == chosen.parent_prediction is not None), None
    )
    prelabels = reader.labelled_images(reader.read(prelabel)[0], complete=True) if prelabel is not None else None
    return msgspec.structs.replace(
        base, state=state, reason=rule, photos=photos, prelabels=prelabels,
        prelabel_version=prelabel.model_version if prelabel else "",
        annotator=chosen.completed_by if ground_truths or len(latest) == 1 else None,
        lead_time=chosen.lead_time, drawn_at=chosen.updated_at,
    )  # fmt: skip


def addresses(task: Task, config: LabelConfig) -> tuple[str, ...]:
    """Return the URLs of a task's images, in the order of the label config."""
    return tuple(_image_urls(task, config).values())


class _Reader:
    """Read the annotations of one task as boxes on its images."""

    def __init__(self, task: Task, config: LabelConfig, size: SizeOf) -> None:
        self._task, self._config, self._size = task, config, size
        self._urls = _image_urls(task, config)

    def read(self, source: Annotation | ModelPrediction) -> tuple[tuple[Region, ...], bool]:
        """Return its regions, and whether all of them could be read."""
        reading = self._read_regions(source)
        return reading.regions, not reading.errors

    def agreed(self, annotations: Sequence[Annotation]) -> tuple[tuple[Region, ...], bool]:
        """Return the consensus of several annotators, and whether they agree on everything."""
        readings = [self._read_regions(annotation) for annotation in annotations]
        views = [
            AnnotatorView(
                annotator=annotation.completed_by or -(index + 1), regions=reading.regions, annotation=annotation.id
            )
            for index, (annotation, reading) in enumerate(zip(annotations, readings, strict=True))
        ]
        agreement = consensus(views)
        complete = not agreement.rejected and not any(reading.errors for reading in readings)
        return tuple(agreed.region for agreed in agreement.regions), complete

    def labelled_images(self, regions: Sequence[Region], *, complete: bool) -> tuple[LabelledImage, ...]:
        """Return each image of the task with the regions on it."""
        images = []
        for (name, item), url in self._urls.items():
            drawn = [
                region for region in regions if region.to_name == name and region.item_index == item and _is_box(region)
            ]
            labelled = [(region, label) for region in drawn for label in self._current_labels(region.labels)]
            images.append(
                LabelledImage(
                    url=url,
                    width=drawn[0].width if drawn else 0,
                    height=drawn[0].height if drawn else 0,
                    boxes=tuple(_rounded(region.geometry.bounds) for region, _ in labelled),
                    labels=tuple(name for _, name in labelled),
                    complete=complete and all(region.labels for region in drawn),
                    scores=tuple(region.score for region, _ in labelled if region.score is not None),
                )
            )
        return tuple(images)

    def _current_labels(self, labels: Sequence[str]) -> list[str]:
        """Map labels to the current label config; labels that it no longer has are dropped.

        A renamed label is found by its old name in `predicted_values`.
        """
        controls = [control for control in self._config.controls.values() if control.type.endswith("labels")]
        named = {label.stored for control in controls for label in control.labels}
        if not all(control.labels for control in controls):  # labels come from the task's data
            return list(labels)
        current = (
            label
            if label in named
            else next((renamed for control in controls if (renamed := control.label_for(label))), None)
            for label in labels
        )
        return [label for label in current if label]

    def _read_regions(self, source: Annotation | ModelPrediction) -> ParsedAnnotation:
        def size(item: int) -> Size | None:
            url = next((url for (_, index), url in self._urls.items() if index == item), "")
            return self._size(url, self._task.id) if url else None

        try:
            return read_annotation(source, task=self._task, config=self._config, size=size)
        except LabelingError:  # a result too malformed for an error of its own
            return ParsedAnnotation()


def _image_urls(task: Task, config: LabelConfig) -> dict[tuple[str, int], str]:
    """(image object, item) -> address."""
    urls: dict[tuple[str, int], str] = {}
    for image in config.images:
        value: Any = task.data.get(image.value)
        for item, url in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(url, str) and url.strip():
                urls[image.name, item] = url
    return urls


def _is_box(region: Region) -> bool:
    if isinstance(region.geometry, KeyPoint):
        return False
    x_min, y_min, x_max, y_max = region.geometry.bounds
    return x_max - x_min >= 1 and y_max - y_min >= 1


def _rounded(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x_min, y_min, x_max, y_max = (round(float(value), 2) for value in bounds)
    return x_min, y_min, x_max, y_max


_UNSETTLED_REASONS = {
    "disputed": "its annotators disagree, and the dispute is open",
    "not_judged": "its annotations could not be compared, and it is not reviewed yet",
}


def _unsettled_reason(task: Task) -> str:
    """Return why quality control left the task unresolved (`qc_status` in its data); empty if it did not."""
    status = task.data.get("qc_status")
    return _UNSETTLED_REASONS.get(status, "") if isinstance(status, str) else ""


def _data_without_qc(task: Task) -> list[tuple[str, Any]]:
    """Return the task's data without the keys of quality control."""
    return sorted((key, value) for key, value in task.data.items() if not key.startswith("qc_"))


def _newest(annotations: Sequence[Annotation]) -> Annotation:
    # Label Studio writes its times in one ISO form in UTC, so text order is time order; the id breaks ties.
    return max(annotations, key=lambda annotation: (annotation.updated_at or annotation.created_at, annotation.id or 0))


def _newest_of_each(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return the newest annotation of each annotator; every annotation without an annotator counts."""
    by_annotator: dict[object, list[Annotation]] = {}
    for annotation in annotations:
        by_annotator.setdefault(
            annotation.completed_by if annotation.completed_by is not None else ("?", annotation.id), []
        ).append(annotation)
    return [_newest(group) for group in by_annotator.values()]
