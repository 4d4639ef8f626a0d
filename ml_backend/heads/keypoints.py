"""Learn key points: where the points of an object are, and which of them are labelled.

Points belong to objects (by `parentID`, or the smallest box around them), or, in a project without boxes for them, to
the whole image. Each class of objects has a model of its own, see `point_model`.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from labelloop.labeling.studio.config import Control, LabelConfig
from ml_backend.checksums import file_checksum
from ml_backend.heads.base import FitInput, HeadExample, HeadKind, HeadResult, ImagePrediction, Pixels
from ml_backend.heads.crop_features import CHANNELS, CropFrame, crop_backbone
from ml_backend.heads.example_cache import ExampleCache
from ml_backend.heads.point_model import (
    FittedPoints,
    PointEstimates,
    PointExamples,
    PointModel,
    correct_points,
    fit_points,
)
from ml_backend.inference.detector import embedded_model

FORMAT = 1

# Side in pixels of the crop of an object, and of a whole image: points on it are small.
OBJECT_SIDE, IMAGE_SIDE = 160, 256

# Objects with points from which a class is learned, and objects with a label from which the label is.
MIN_OBJECTS = 3

# Objects that a class is fitted on, the newest; each costs about 10 ms of features.
MAX_OBJECTS = 150

# Share of objects with several points of one label above which the label has no single position to learn.
MAX_REPEATED = 0.1

# A point is filled in where it is labelled with at least this probability, and correct with at least that one: a point
# in the wrong place is dragged, which takes as long as drawing it.
MIN_PRESENT, MIN_CORRECT = 0.5, 0.3

# Objects of an image that points are located on, the most certain first, and their minimum score.
MAX_LOCATED, MIN_SCORE = 50, 0.1

# Labelled points on held-out images from which these decide; with fewer, cross-validation does.
MIN_JUDGED = 20

# Memory for features: 0.6 MB per object, 1.6 MB per whole image.
CACHE_BYTES = 128 * 2**20

# Size of an object on a whole image with one point, relative to the image's longer side.
LONE_POINT_SIZE = 0.25


# Features of labelled objects, so that a run computes those of new images alone.
_CACHE: ExampleCache[npt.NDArray[np.float16]] = ExampleCache(CACHE_BYTES, size_of=lambda features: features.nbytes)


@dataclass(frozen=True, eq=False)
class ObjectPoints:
    """The model of one class of objects.

    Attributes:
        owner: Label of the class; empty: the whole image.
        names: Classes of a detector that are this class, case-folded.
        model: Locates the points.
        pck: PCK@.1 in the cross-validation.
    """

    owner: str
    names: tuple[str, ...]
    model: PointModel
    pck: float


@dataclass(frozen=True, eq=False)
class KeyPointsHead:
    """Learned key points of a project.

    Attributes:
        objects: One model per class of objects.
        controls: Names of the controls of its labels.
        tasks: Tasks that it was fitted on, ascending.
        backbone: Checksum of the model whose first blocks give the features.
    """

    objects: tuple[ObjectPoints, ...]
    controls: tuple[str, ...]
    tasks: tuple[int, ...]
    backbone: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all points."""
        return tuple(dict.fromkeys(label for object_points in self.objects for label in object_points.model.labels))

    def to_bytes(self) -> bytes:
        """Serialize as .npz."""
        meta: dict[str, Any] = {
            "format": FORMAT, "controls": self.controls, "tasks": self.tasks, "backbone": self.backbone, "objects": [],
        }  # fmt: skip
        arrays: dict[str, npt.NDArray[Any]] = {}
        for number, object_points in enumerate(self.objects):
            model = object_points.model
            meta["objects"].append(
                {
                    "owner": object_points.owner,
                    "names": object_points.names,
                    "labels": model.labels,
                    "side": model.side,
                    "pck": object_points.pck,
                }
            )
            arrays |= {f"{number}.{name}": np.asarray(getattr(model, name)) for name in _ARRAYS}
        buffer = io.BytesIO()
        np.savez(buffer, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyPointsHead:
        """Restore a head.

        Raises:
            ValueError: The bytes are damaged, of another format, or made with another backbone.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                meta = json.loads(stored["meta"].tobytes())
                number = int(meta["format"])
                objects = _objects_from(meta, stored) if number == FORMAT else ()
                controls = tuple(str(name) for name in meta["controls"])
                head = cls(objects, controls, tuple(int(task) for task in meta["tasks"]), str(meta["backbone"]))
        except Exception as error:  # zipfile, json and numpy raise errors of many kinds
            raise ValueError(f"key points cannot be read: {error or type(error).__name__}") from error
        if number != FORMAT:
            raise ValueError(f"key points of format {number}; this release reads {FORMAT}")
        if head.backbone != backbone_checksum():
            raise ValueError("key points were learned on features of another release")
        return head


# Shape of each array of a model with k points; -1: any length.
_ARRAYS: Mapping[str, str] = {
    "mean": "k2", "covariance": "cc", "weights": "wk", "present": "k", "presence": "4", "correctness": "4",
    "accuracy": "k",
}  # fmt: skip


def _objects_from(meta: Mapping[str, Any], stored: Mapping[str, npt.NDArray[Any]]) -> tuple[ObjectPoints, ...]:
    return tuple(
        ObjectPoints(str(entry["owner"]), tuple(entry["names"]), _model(entry, stored, number), float(entry["pck"]))
        for number, entry in enumerate(meta["objects"])
    )


def _model(meta: Mapping[str, Any], stored: Mapping[str, npt.NDArray[Any]], number: int) -> PointModel:
    labels, side = tuple(str(label) for label in meta["labels"]), int(meta["side"])
    arrays = {name: stored[f"{number}.{name}"] for name in _ARRAYS}
    points = len(labels)
    sizes = {"k": points, "2": 2, "c": 2 * points, "w": CHANNELS + 1, "4": 4}
    for name, shape in _ARRAYS.items():
        if name == "weights" and not arrays[name].size:
            continue
        if arrays[name].shape != tuple(sizes[axis] for axis in shape) or not np.isfinite(arrays[name]).all():
            raise ValueError(f"key points have a damaged array {name}")
    if side % 32 or not 32 <= side <= 1024:
        raise ValueError(f"key points have crops of {side} pixels")
    return PointModel(labels, side, **arrays)


@lru_cache(maxsize=1)
def backbone_checksum() -> str:
    """Checksum of the embedded model, the first 16 hex digits."""
    return file_checksum(embedded_model())[:16]


def fit_keypoints(inputs: FitInput) -> HeadResult | None:
    """Fit the points of every class that has enough of them, and judge them by PCK@.1; None without key points."""
    if not any(example.keypoints for example in inputs.examples):
        return None
    layout = point_layout(inputs.examples)
    fitted: list[tuple[ObjectPoints, FittedPoints, _Objects]] = []
    for owner, labels in layout.labels.items():
        objects = _objects_of(inputs.examples, owner, labels, limit=MAX_OBJECTS)
        if len(objects.examples) < MIN_OBJECTS or len(set(objects.tasks.tolist())) < 2:
            continue
        result = fit_points(objects.examples, labels, objects.side)
        pck = max(result.pck.values())
        object_points = ObjectPoints(owner, _detector_names(inputs.config, owner), result.model, pck)
        fitted.append((object_points, result, objects))
    if not fitted:
        few = f"fewer than {MIN_OBJECTS} objects have points on at least two tasks"
        reason = "; ".join([*layout.reasons, few] if layout.labels or not layout.reasons else layout.reasons)
        return HeadResult(None, "PCK@.1", None, None, False, f"No key points were learned: {reason}.", "nothing")
    tasks = sorted({int(task) for _, _, objects in fitted for task in objects.tasks})
    learned_labels = {label for object_points, _, _ in fitted for label in object_points.model.labels}
    controls = tuple(
        control.name
        for control in point_controls(inputs.config)
        if any(label.stored in learned_labels for label in control.labels)
    )
    head = KeyPointsHead(
        tuple(object_points for object_points, _, _ in fitted), controls, tuple(tasks), backbone_checksum()
    )
    return _judged(inputs, head, fitted, layout.reasons)


def apply_keypoints(head: KeyPointsHead, prediction: ImagePrediction) -> ImagePrediction:
    """Add the points of the detected objects and of the whole image."""
    detections = prediction.detections
    points: list[tuple[str, float, float, float, int]] = []
    pixels: Pixels | None = None
    for object_points in head.objects:
        if object_points.owner:
            wanted = [
                index
                for index, (class_, score) in enumerate(
                    zip(detections.classes.tolist(), detections.scores.tolist(), strict=True)
                )
                if score >= MIN_SCORE and prediction.names[class_].casefold() in object_points.names
            ][:MAX_LOCATED]
            boxes = [detections.boxes[index].tolist() for index in wanted]
        else:
            wanted, boxes = [-1], [[0.0, 0.0, float(prediction.width), float(prediction.height)]]
        if not boxes:
            continue
        if pixels is None and object_points.model.has_heat_maps:
            pixels = prediction.pixels()
        frames = [CropFrame.around(box) for box in boxes]
        located = _located(object_points.model, frames, pixels, prediction.width)
        present, correct = object_points.model.confidence(located)
        for row, (frame, index) in enumerate(zip(frames, wanted, strict=True)):
            for column, (x, y) in enumerate(frame.to_image(located.points[row]).tolist()):
                if present[row, column] < MIN_PRESENT or correct[row, column] < MIN_CORRECT:
                    continue
                label = object_points.model.labels[column]
                confidence = float(present[row, column] * correct[row, column])
                points.append((label, *_clipped(x, y, prediction), confidence, index))
    return replace(prediction, points=(*prediction.points, *points))


@dataclass(frozen=True)
class PointLayout:
    """Which points are learned on which objects.

    Attributes:
        labels: Labels by owner: the class of a box, or empty for the whole image.
        reasons: Why other labels are not learned, in words.
    """

    labels: Mapping[str, tuple[str, ...]]
    reasons: tuple[str, ...]


def point_layout(examples: Sequence[HeadExample]) -> PointLayout:
    """Decide which points belong to which objects.

    A label belongs to boxes where most of its points lie in one, and to the whole image else. A label of which objects
    have several points has no single position, and is not learned.
    """
    inside: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for example in examples:
        for label, _, _, box in example.keypoints:
            total[label] += 1
            inside[label] += box >= 0
    owners = {label: "boxes" if 2 * inside[label] > total[label] else "image" for label in total}
    objects: dict[tuple[str, str], int] = defaultdict(int)
    repeated: dict[tuple[str, str], int] = defaultdict(int)
    for example in examples:
        counts: Counter[tuple[int, str]] = Counter()
        for label, _, _, box in example.keypoints:
            if owners[label] == "image":
                counts[-1, label] += 1
            elif box >= 0:
                counts[box, label] += 1
        for (box, label), count in counts.items():
            owner = example.labels[box] if box >= 0 else ""
            objects[owner, label] += 1
            repeated[owner, label] += count > 1
    labels: dict[str, list[str]] = defaultdict(list)
    reasons = []
    for (owner, label), count in objects.items():
        several = repeated[owner, label]
        if several > MAX_REPEATED * count:
            where = f"objects {owner!r}" if owner else "images"
            reasons.append(
                f"{several} of {count} {where} have several points {label!r}, and one point per label is learned"
            )
        elif count >= MIN_OBJECTS:
            labels[owner].append(label)
    return PointLayout({owner: tuple(sorted(names)) for owner, names in sorted(labels.items())}, tuple(reasons))


@dataclass(frozen=True, eq=False)
class _Objects:
    """Objects of one class with their features; `tasks` (n,) has the task of each."""

    examples: PointExamples
    tasks: npt.NDArray[np.int64]
    side: int


def _objects_of(examples: Sequence[HeadExample], owner: str, labels: Sequence[str], *, limit: int) -> _Objects:
    """Return the newest objects of a class with their features."""
    side = OBJECT_SIDE if owner else IMAGE_SIDE
    places = {label: number for number, label in enumerate(labels)}
    features, points, sizes, tasks = [], [], [], []
    left = limit
    for example in reversed(examples):
        located = _points_of(example, owner, places)[:left]
        if not located:
            continue
        left -= len(located)
        frames = [CropFrame.around(box) for box, _, _ in located]
        key = f"{example.key} {owner} {side} {','.join(labels)} {len(frames)}"
        features.append(_CACHE.get(key, partial(_example_features, frames, example, side)))
        for frame, (_, drawn, size) in zip(frames, located, strict=True):
            points.append(frame.to_crop(drawn))
            sizes.append(size / frame.side)
            tasks.append(example.task)
        if left <= 0:
            break
    numbers = np.array(tasks, np.int64)
    if not points:
        empty = np.zeros((0, (side // 4) ** 2, CHANNELS), np.float16)
        return _Objects(PointExamples(empty, np.zeros((0, len(labels), 2)), np.zeros(0), numbers), numbers, side)
    data = PointExamples(np.concatenate(features), np.stack(points), np.array(sizes), numbers)
    return _Objects(data, numbers, side)


def _points_of(
    example: HeadExample, owner: str, places: Mapping[str, int]
) -> list[tuple[Sequence[float], npt.NDArray[np.float64], float]]:
    """(box, points (k, 2) with NaN, size in pixels) of each object of a class on an image."""
    by_box: dict[int, npt.NDArray[np.float64]] = {}
    if owner:
        by_box = {
            index: np.full((len(places), 2), np.nan) for index, label in enumerate(example.labels) if label == owner
        }
    elif any(label in places for label, *_ in example.keypoints):
        by_box = {-1: np.full((len(places), 2), np.nan)}
    assigned: set[tuple[int, str]] = set()
    for label, x, y, belongs_to in example.keypoints:
        index = belongs_to if owner else -1
        if label not in places or index not in by_box:
            continue
        # Of several points with one label, none is the right one.
        by_box[index][places[label]] = np.nan if (index, label) in assigned else (x, y)
        assigned.add((index, label))
    objects: list[tuple[Sequence[float], npt.NDArray[np.float64], float]] = []
    for index, points in by_box.items():
        if index >= 0:
            box: Sequence[float] = example.boxes[index].tolist()
            size = max(box[2] - box[0], box[3] - box[1])
        else:
            box = [0.0, 0.0, float(example.width), float(example.height)]
            longer = float(max(example.width, example.height))
            labelled_points = points[np.isfinite(points[:, 0])]
            extent = (
                float(np.ptp(labelled_points, axis=0).max()) if len(labelled_points) > 1 else LONE_POINT_SIZE * longer
            )
            size = max(extent, 0.05 * longer)
        if size >= 2 and (index < 0 or np.isfinite(points).any() or len(example.labels) <= MAX_LOCATED):
            objects.append((box, points, size))
    return objects


def _example_features(frames: Sequence[CropFrame], example: HeadExample, side: int) -> npt.NDArray[np.float16]:
    return _features(frames, example.pixels(), example.width, side)


def _clipped(x: float, y: float, prediction: ImagePrediction) -> tuple[float, float]:
    return min(max(x, 0.0), float(prediction.width)), min(max(y, 0.0), float(prediction.height))


def _features(frames: Sequence[CropFrame], pixels: Pixels, width: int, side: int) -> npt.NDArray[np.float16]:
    """Features of crops of an image that is `width` pixels wide, from its pixels, which may be reduced."""
    factor = pixels.shape[1] / width if width else 1.0
    crops = [frame.scaled(factor).render(pixels, side) for frame in frames]
    return crop_backbone(side).features(crops)


def _located(model: PointModel, frames: Sequence[CropFrame], pixels: Pixels | None, width: int) -> PointEstimates:
    features = _features(frames, pixels, width, model.side) if pixels is not None and model.has_heat_maps else None
    return model.locate(features, len(frames))


def point_controls(config: LabelConfig) -> tuple[Control, ...]:
    """The controls whose labels name points: `KeyPointLabels`, and `Labels` of an image that has a `KeyPoint`."""
    drawn_on = {name for shape in config.controls_of("KeyPoint") for name in shape.to_names}
    generic = (control for control in config.controls_of("Labels") if drawn_on & set(control.to_names))
    return (*config.controls_of("KeyPointLabels"), *generic)


def _detector_names(config: LabelConfig, owner: str) -> tuple[str, ...]:
    """Classes of a detector that a label stands for, case-folded."""
    names = {owner}
    for control in config.controls.values():
        for label in control.labels:
            if owner in {label.stored, label.value}:
                names |= {label.value, label.stored, *label.predicted_values}
    return tuple(sorted({name.strip().casefold() for name in names if name})) if owner else ()


def _judged(
    inputs: FitInput,
    head: KeyPointsHead,
    fitted: Sequence[tuple[ObjectPoints, FittedPoints, _Objects]],
    reasons: Sequence[str],
) -> HeadResult:
    """Compare a head with the served one on images that neither was fitted on."""
    parent = inputs.parent if isinstance(inputs.parent, KeyPointsHead) else None
    mean_shape = _share([(result.pck["mean shape"], objects) for _, result, objects in fitted])
    held_out = _scores(head, parent, inputs.held_out)
    if held_out.labelled >= MIN_JUDGED:
        judged_by, count = "held-out", held_out.labelled
        value, served, mean_shape = held_out.own, held_out.other if parent else None, held_out.mean_shape
    else:
        judged_by = "cross-validation"
        count = sum(int(objects.examples.labelled.sum()) for _, _, objects in fitted)
        value = _share([(object_points.pck, objects) for object_points, _, objects in fitted])
        served, value, count = _against_parent(parent, fitted, value, count)
    summary = f"PCK@.1 {value:.2f} on {count} points; the mean shape has {mean_shape:.2f}"
    filled = [_filled_in(result) for _, result, _ in fitted]
    rest = f". {_sentence('; '.join(reasons))}" if reasons else "."
    if not any(count for count, _ in filled):
        reason = (
            f"{summary}: the features of the embedded model do not find these points, so none would be filled in{rest}"
        )
        return HeadResult(head, "PCK@.1", value, served, False, reason, judged_by)
    if served is not None:
        chance = (max(value * (1 - value), 0.01) / max(count, 1)) ** 0.5
        if value < served - inputs.tolerance - chance:
            reason = f"{summary}; the served points have {served:.2f} on them{rest}"
            return HeadResult(head, "PCK@.1", value, served, False, reason, judged_by)
        summary += f", the served points {served:.2f}"
    return HeadResult(head, "PCK@.1", value, served, True, f"{summary}{rest}", judged_by)


@dataclass(frozen=True)
class _Scores:
    """PCK@.1 of a head, of another, and of the mean shape on the same points, and how many these are."""

    own: float
    other: float
    mean_shape: float
    labelled: int


def _scores(head: KeyPointsHead, other: KeyPointsHead | None, examples: Sequence[HeadExample]) -> _Scores:
    """Score both heads on the points that the first one knows."""
    own = rival_hits = mean = labelled = 0
    others = {object_points.owner: object_points for object_points in other.objects} if other else {}
    for object_points in head.objects:
        objects = _objects_of(examples, object_points.owner, object_points.model.labels, limit=MAX_OBJECTS)
        if not len(objects.examples):
            continue
        labelled += int(objects.examples.labelled.sum())
        own += int(_correct(object_points.model, objects.examples, object_points.model.labels).sum())
        still = replace(object_points.model, weights=np.zeros((0, 0), np.float32))
        mean += int(_correct(still, objects.examples, object_points.model.labels).sum())
        rival = others.get(object_points.owner)
        if rival is not None:
            rival_hits += int(_correct(rival.model, objects.examples, object_points.model.labels).sum())
    count = max(labelled, 1)
    return _Scores(own / count, rival_hits / count, mean / count, labelled)


def _correct(model: PointModel, examples: PointExamples, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(n, k) whether a model's points are correct; a label that it does not know is not."""
    located = model.locate(examples.features if model.has_heat_maps else None, len(examples))
    points = np.full((len(examples), len(labels), 2), np.inf)
    places = {label: number for number, label in enumerate(model.labels)}
    for number, label in enumerate(labels):
        if label in places:
            points[:, number] = located.points[:, places[label]]
    return correct_points(points, examples)


def _against_parent(
    parent: KeyPointsHead | None,
    fitted: Sequence[tuple[ObjectPoints, FittedPoints, _Objects]],
    value: float,
    count: int,
) -> tuple[float | None, float, int]:
    """(PCK of the served head, of the candidate, points) on tasks that the served head was not fitted on.

    Where these are too few, the served head counts with its own cross-validation.
    """
    if parent is None:
        return None, value, count
    rivals = {object_points.owner: object_points for object_points in parent.objects}
    own = rival_hits = labelled = 0
    recorded: list[tuple[float, _Objects]] = []
    for object_points, result, objects in fitted:
        rival = rivals.get(object_points.owner)
        recorded.append((rival.pck if rival else 0.0, objects))
        new = ~np.isin(objects.tasks, parent.tasks)
        if not new.any():
            continue
        data = objects.examples
        part = PointExamples(data.features[new], data.points[new], data.sizes[new], data.groups[new])
        labelled += int(part.labelled.sum())
        own += int(result.correct[new].sum())
        if rival is not None and rival.model.side == object_points.model.side:
            rival_hits += int(_correct(rival.model, part, object_points.model.labels).sum())
    if labelled >= MIN_JUDGED:
        return rival_hits / labelled, own / labelled, labelled
    return _share(recorded), value, count


def _share(scored: Sequence[tuple[float, _Objects]]) -> float:
    """Mean of scores, weighted by labelled points."""
    counts = [int(objects.examples.labelled.sum()) for _, objects in scored]
    return sum(score * count for (score, _), count in zip(scored, counts, strict=True)) / max(1, sum(counts))


def _filled_in(result: FittedPoints) -> tuple[int, int]:
    """How many out-of-fold points would be filled in, and how many of these are correct."""
    present, correct = result.model.confidence(result.located)
    filled = (present >= MIN_PRESENT) & (correct >= MIN_CORRECT)
    return int(filled.sum()), int((filled & result.correct).sum())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


KIND = HeadKind("keypoints", KeyPointsHead.from_bytes, fit_keypoints, apply_keypoints, needs_pixels=True)
