"""Turn the annotations of a task into training data: everything drawn or answered, or the reason to leave it out.

The ground truth counts if there is one; otherwise the consensus of several annotators; otherwise the latest annotation.
Tasks that quality control marks as disputed or not judged are left out until they are resolved, and so are tasks that
were only skipped.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from labelloop.labeling.consensus.consensus import consensus
from labelloop.labeling.consensus.crowd import AnnotatorView
from labelloop.labeling.errors import LabelingError
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Rectangle
from labelloop.labeling.region import ParsedAnnotation, Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import Control, LabelConfig, data_value
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Annotation, ModelPrediction, Task
from labelloop.labeling.studio.values import parse_answer
from ml_backend.training.mask_codec import encode_geometry

State = Literal["teaches", "held_out", "left_out", "gone"]
Size = tuple[int, int]
# `reason` of a task whose ground truth counts; it is not checked for label errors.
GROUND_TRUTH = "ground truth"

# Increased when more is read from the same annotations, so that every task is read again.
REVISION = 2

# Answers that are learned from, by result type.
ANSWER_TYPES = ("choices", "taxonomy", "rating")

# Characters of all masks of an image; the masks of further objects are left out.
MAX_MASK_TEXT = 200_000

Answers = Mapping[str, tuple[str, ...]]

# (image URL, task) -> (width, height) in pixels, for results without a size; None if the image cannot be loaded.
SizeOf = Callable[[str, int | None], Size | None]


class LabelledImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is drawn and answered on one image. Coordinates are in pixels.

    Attributes:
        url: Address of the image, as in the task's data.
        width: Width of the image in pixels; 0: unknown, because nothing was drawn.
        height: Height of the image in pixels; 0: unknown.
        boxes: (x_min, y_min, x_max, y_max) of each object; of polygons and masks, the box around them.
        labels: Class of each box.
        complete: Whether every region could be read; if not, unlabelled areas are no negatives.
        scores: Score of each box of a pre-label; empty for annotations.
        masks: Mask of each object, see `training.mask_codec`, "" without one; empty: no object has one.
        rotated: (cx, cy, w, h, degrees clockwise) of each object, () where it is upright; empty: all are upright.
        keypoints: (label, x, y, index of the object that it belongs to) of each point; -1: it belongs to none.
        choices: Answers about the image by control: choices, paths of a taxonomy joined with "/", a rating as text.
        region_choices: Answers about each object by control; empty: there are none.
    """

    url: str
    width: int = 0
    height: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    complete: bool = True
    scores: tuple[float, ...] = ()
    masks: tuple[str, ...] = ()
    rotated: tuple[tuple[float, ...], ...] = ()
    keypoints: tuple[tuple[str, float, float, int], ...] = ()
    choices: Answers = {}
    region_choices: tuple[Answers, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether there is anything to learn from."""
        return bool(self.labels or self.keypoints or self.choices)


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


def count_labelled(tasks: Iterable[tuple[int, str, tuple[LabelledImage, ...]]]) -> int:
    """Count the tasks with at least one box, point or answer; the first training run needs `first` of them."""
    return sum(any(photo.is_labelled for photo in photos) for _, _, photos in tasks)


def config_hash_of(config: LabelConfig) -> str:
    """Return a checksum of the parts of a label config that determine training data; colours and hints do not."""
    controls = [
        (
            name,
            control.tag,
            control.to_names,
            [(label.value, label.alias, label.predicted_values) for label in control.labels],
            control.per_region,
            control.multiple,
            control.attributes.get("perItem", "").lower() == "true",
        )
        for name, control in sorted(config.controls.items())
    ]
    text = repr((REVISION, controls, [(image.name, image.value) for image in config.images]))
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
        drawn = reader.read(chosen)
    else:
        drawn = reader.agreed(latest)
        rule = f"consensus of {len(latest)}"
        if drawn.disputed:
            rule += f", without answers on which they disagree ({', '.join(drawn.disputed)})"
    photos = reader.labelled_images(drawn)
    if not photos:
        return msgspec.structs.replace(base, reason="it has no image that the label config shows")
    state: State = "held_out" if is_held_out(project, task.id, held_out) else "teaches"
    predictions = {prediction.id: prediction for prediction in task.predictions if prediction.id is not None}
    # Of several annotators, the newest who started from a pre-label.
    newest_first = sorted(latest, key=lambda annotation: annotation is not chosen)
    started_from = (predictions.get(annotation.parent_prediction or 0) for annotation in newest_first)
    prelabel = next((prediction for prediction in started_from if prediction is not None), None)
    prelabels = None
    if prelabel is not None:
        complete_prelabel = msgspec.structs.replace(reader.read(prelabel), complete=True)
        prelabels = reader.labelled_images(complete_prelabel, with_masks=False)
    return msgspec.structs.replace(
        base, state=state, reason=rule, photos=photos, prelabels=prelabels,
        prelabel_version=prelabel.model_version if prelabel else "",
        annotator=chosen.completed_by if ground_truths or len(latest) == 1 else None,
        lead_time=chosen.lead_time, drawn_at=chosen.updated_at,
    )  # fmt: skip


def addresses(task: Task, config: LabelConfig) -> tuple[str, ...]:
    """Return the URLs of a task's images, in the order of the label config."""
    return tuple(_image_urls(task, config).values())


class _Drawn(msgspec.Struct, frozen=True):
    """What counts of a task's annotations.

    Attributes:
        regions: The regions.
        answers: Answers about images: (image object, item) -> control -> values.
        complete: Whether everything could be read, and several annotators agree on every region.
        disputed: Controls with answers on which several annotators disagree; these are left out.
    """

    regions: tuple[Region, ...]
    answers: Mapping[tuple[str, int], Answers]
    complete: bool
    disputed: tuple[str, ...] = ()


class _Reader:
    """Read the annotations of one task as objects, points and answers on its images."""

    def __init__(self, task: Task, config: LabelConfig, size: SizeOf) -> None:
        self._task, self._config, self._size = task, config, size
        self._urls = _image_urls(task, config)

    def read(self, source: Annotation | ModelPrediction) -> _Drawn:
        """Return the content of one annotation."""
        reading = self._read_regions(source)
        return _Drawn(reading.regions, self._answers(reading), not reading.errors)

    def agreed(self, annotations: Sequence[Annotation]) -> _Drawn:
        """Return the consensus of several annotators: of regions, and of answers on which all of them agree."""
        readings = [self._read_regions(annotation) for annotation in annotations]
        views = [
            AnnotatorView(
                annotator=annotation.completed_by or -(index + 1), regions=reading.regions, annotation=annotation.id
            )
            for index, (annotation, reading) in enumerate(zip(annotations, readings, strict=True))
        ]
        agreement = consensus(views)
        complete = not agreement.rejected and not any(reading.errors for reading in readings)
        answers, disputed = _agreed_answers([self._answers(reading) for reading in readings])
        return _Drawn(tuple(agreed.region for agreed in agreement.regions), answers, complete, disputed)

    def labelled_images(self, drawn: _Drawn, *, with_masks: bool = True) -> tuple[LabelledImage, ...]:
        """Return each image of the task with what is drawn and answered on it."""
        return tuple(
            self._labelled_image(
                url,
                [region for region in drawn.regions if region.to_name == name and region.item_index == item],
                drawn.answers.get((name, item), {}),
                complete=drawn.complete,
                with_masks=with_masks,
            )
            for (name, item), url in self._urls.items()
        )

    def _labelled_image(
        self, url: str, regions: Sequence[Region], answers: Answers, *, complete: bool, with_masks: bool
    ) -> LabelledImage:
        shapes = [region for region in regions if _is_box(region)]
        labelled = [(region, label) for region in shapes for label in self._current_labels(region.labels)]
        boxes = tuple(_rounded(region.geometry.bounds) for region, _ in labelled)
        rotated = tuple(_rotated(region) for region, _ in labelled)
        masks = _masks([region for region, _ in labelled], boxes) if with_masks else ()
        region_choices = tuple(self._region_answers(region) for region, _ in labelled)
        return LabelledImage(
            url=url,
            width=regions[0].width if regions else 0,
            height=regions[0].height if regions else 0,
            boxes=boxes,
            labels=tuple(name for _, name in labelled),
            complete=complete and all(region.labels for region in shapes),
            scores=tuple(region.score for region, _ in labelled if region.score is not None),
            masks=masks if any(masks) else (),
            rotated=rotated if any(rotated) else (),
            keypoints=self._keypoints(regions, [region.id for region, _ in labelled], boxes),
            choices=answers,
            region_choices=region_choices if any(region_choices) else (),
        )

    def _keypoints(
        self, regions: Sequence[Region], ids: Sequence[str], boxes: Sequence[tuple[float, float, float, float]]
    ) -> tuple[tuple[str, float, float, int], ...]:
        points = []
        for region in regions:
            if isinstance(region.geometry, KeyPoint):
                x, y = round(float(region.geometry.x), 2), round(float(region.geometry.y), 2)
                parent = next((result.parent_id for result in region.result if result.parent_id), "")
                index = ids.index(parent) if parent in ids else _smallest_around(x, y, boxes)
                points += [(label, x, y, index) for label in self._current_labels(region.labels)]
        return tuple(points)

    def _answers(self, reading: ParsedAnnotation) -> dict[tuple[str, int], dict[str, tuple[str, ...]]]:
        """Return the answers about each image. An answer about a task of several images at once belongs to none."""
        answers: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {}
        for result in (*reading.choice_results, *reading.other_results):
            control = self._config.controls.get(result.from_name)
            if control is None or control.per_region or result.type not in ANSWER_TYPES:
                continue
            if len(control.to_names) > 1:  # it compares or sums up several images
                continue
            items = [item for name, item in self._urls if name == result.to_name]
            if (result.item_index is None and len(items) > 1) or (result.item_index or 0) not in items:
                continue
            if values := self._current_values(control, result):
                item_answers = answers.setdefault((result.to_name, result.item_index or 0), {})
                item_answers[control.name] = tuple(dict.fromkeys((*item_answers.get(control.name, ()), *values)))
        return answers

    def _region_answers(self, region: Region) -> dict[str, tuple[str, ...]]:
        answers = {}
        for name, values in region.attributes.items():
            control = self._config.controls.get(name)
            if control is not None and control.type in ANSWER_TYPES:
                answers[name] = _known(control, values)
        return {name: values for name, values in answers.items() if values}

    def _current_values(self, control: Control, result: Result) -> tuple[str, ...]:
        try:
            return _known(control, parse_answer(result.value, result.type))
        except LabelingError:
            return ()

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
        value: Any = data_value(task.data, image.value)
        for item, url in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(url, str) and url.strip():
                urls[image.name, item] = url
    return urls


def _is_box(region: Region) -> bool:
    if isinstance(region.geometry, KeyPoint):
        return False
    x_min, y_min, x_max, y_max = region.geometry.bounds
    return x_max - x_min >= 1 and y_max - y_min >= 1


def _known(control: Control, values: Iterable[Any]) -> tuple[str, ...]:
    """Return answers as text, under their current names; those that the control no longer offers are dropped."""
    texts = [f"{value:g}" if isinstance(value, int | float) else str(value) for value in values]
    if not control.labels:
        return tuple(texts)
    offered = {label.stored for label in control.labels}
    stored_labels = (text if text in offered else control.label_for(text) for text in texts)
    return tuple(dict.fromkeys(text for text in stored_labels if text))


def _agreed_answers(
    readings: Sequence[Mapping[tuple[str, int], Answers]],
) -> tuple[dict[tuple[str, int], Answers], tuple[str, ...]]:
    """Return the answers that all annotators gave, and the controls with other answers."""
    agreed: dict[tuple[str, int], Answers] = {}
    disputed: dict[str, None] = {}
    for item in dict.fromkeys(item for reading in readings for item in reading):
        answers = [reading.get(item, {}) for reading in readings]
        same: dict[str, tuple[str, ...]] = {}
        for control in dict.fromkeys(control for answer in answers for control in answer):
            distinct = {tuple(sorted(answer.get(control, ()))) for answer in answers}
            if len(distinct) == 1:
                same[control] = answers[0][control]
            else:
                disputed[control] = None
        if same:
            agreed[item] = same
    return agreed, tuple(disputed)


def _masks(regions: Sequence[Region], boxes: Sequence[tuple[float, float, float, float]]) -> tuple[str, ...]:
    """Return the encoded mask of each region, as many as fit into `MAX_MASK_TEXT`."""
    masks: list[str] = []
    room = MAX_MASK_TEXT
    for region, box in zip(regions, boxes, strict=True):
        text = encode_geometry(region.geometry, box, region.width, region.height) if room > 0 else ""
        masks.append(text if len(text) <= room else "")
        room -= len(text)
    return tuple(masks)


def _rotated(region: Region) -> tuple[float, ...]:
    """Return the turned box of a rectangle or an ellipse; empty where it is upright."""
    shape = region.geometry
    if not isinstance(shape, Rectangle | Ellipse) or not shape.rotation % 360:
        return ()
    if isinstance(shape, Ellipse):
        values = (shape.cx, shape.cy, 2 * shape.rx, 2 * shape.ry, shape.rotation)
    else:
        corners = shape.corners
        values = (
            (corners[0][0] + corners[2][0]) / 2, (corners[0][1] + corners[2][1]) / 2,
            shape.width, shape.height, shape.rotation,
        )  # fmt: skip
    return tuple(round(float(value), 2) for value in values)


def _smallest_around(x: float, y: float, boxes: Sequence[tuple[float, float, float, float]]) -> int:
    """Return the index of the smallest box around a point; -1 without one."""
    around = [
        ((box[2] - box[0]) * (box[3] - box[1]), index)
        for index, box in enumerate(boxes)
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]
    ]
    return min(around)[1] if around else -1


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
