"""Write detections as Label Studio results: select the control of each detection and build its JSON."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from labelloop.labeling.geometry.shapes import Geometry, KeyPoint
from labelloop.labeling.studio.writing import detection_result
from ml_backend.detection.detections import Detections
from ml_backend.detection.masks import ObjectMask
from ml_backend.heads.base import ImagePrediction
from ml_backend.predict.answers import image_answer, region_answer
from ml_backend.predict.controls import ANSWERS, CHOICES
from ml_backend.predict.label_mapping import Target
from ml_backend.predict.protocol import ProjectOptions
from ml_backend.predict.shapes import POINT_WIDTH, SEMANTIC, SHAPES, part_polygons, points_of, rotated_box
from ml_backend.predict.task_score import near_miss_floor

# Confidence of a learned key point that counts as undecided in the task's score.
POINT_THRESHOLD = 0.5


@dataclass(frozen=True)
class TargetThresholds:
    """A target with the threshold of each class that it shows."""

    target: Target
    by_class: Mapping[int, float]


@dataclass(frozen=True)
class ImageResult:
    """The detections of one image in pixels, and the identity of the image.

    Attributes:
        detections: Detections, best first.
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        key: Identifies version, task and item, so that repeated requests give the same region ids.
        item: Index of the image in a list; None where the task has one image.
        box_masks: Masks that the segmenter made from boxes, by index of the detection.
        prediction: What the version's heads predicted; None without heads.
    """

    detections: Detections
    width: int
    height: int
    key: str
    item: int | None
    box_masks: Mapping[int, ObjectMask] = field(default_factory=dict)
    prediction: ImagePrediction | None = None

    def detections_for(self, target: Target) -> Detections:
        """The detections with the masks that the target is drawn from: of the model, of the segmenter, or none."""
        if target.is_segmented:
            return replace(self.detections, segments=tuple(map(self.box_masks.get, range(len(self.detections)))))
        if target.source in {"boxes", "turned"}:
            return replace(self.detections, segments=None)
        return self.detections


def target_thresholds(
    targets: Sequence[Target], names: Sequence[str], options: ProjectOptions, default: float
) -> list[TargetThresholds]:
    """Combine targets with their thresholds.

    Args:
        targets: Controls that results go to.
        names: The model's class names.
        options: Options of the project.
        default: Score threshold of the backend.
    """
    threshold = default if options.score_threshold is None else options.score_threshold
    defaults = options.model_thresholds if options.score_threshold is None else {}
    by_name = options.score_thresholds
    return [
        TargetThresholds(target, target.thresholds(threshold, names=names, by_name=by_name, class_defaults=defaults))
        for target in targets
    ]


def score_floor(targets: Sequence[TargetThresholds]) -> float:
    """The lowest score that a target uses; near misses count for the task's score."""
    return min(
        (near_miss_floor(threshold) for target in targets for threshold in target.by_class.values()), default=1.0
    )


def to_label_studio_results(
    image: ImageResult, targets: Sequence[TargetThresholds]
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Return the results of one image, and (score, threshold) of each candidate for the task's score."""
    results: list[dict[str, Any]] = []
    candidates: list[tuple[float, float]] = []
    for target in targets:
        if target.target.draws == ANSWERS:
            continue
        write = _choices if target.target.draws == CHOICES else _regions
        target_results, target_candidates = write(image, target)
        results += target_results
        candidates += target_candidates
    answers, answer_candidates = _answers(image, targets, results)
    points, point_candidates = _learned_points(image, targets, results)
    return [*results, *points, *answers], [*candidates, *point_candidates, *answer_candidates]


def _answers(
    image: ImageResult, targets: Sequence[TargetThresholds], drawn: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Write the learned answers about the image and about each drawn region."""
    results: list[dict[str, Any]] = []
    candidates: list[tuple[float, float]] = []
    prediction = image.prediction
    answer_targets = [target.target for target in targets if target.target.draws == ANSWERS]
    if prediction is None or not answer_targets:
        return results, candidates
    regions: dict[str, Mapping[str, Any]] = {}
    for result in drawn:
        regions.setdefault(str(result["id"]), result)
    drawing = [target.target for target in targets if target.target.draws not in {ANSWERS, CHOICES}]
    for target in answer_targets:
        control = target.control
        if not control.per_region:
            answer = prediction.choices.get(control.name)
            if answer is not None:
                candidates.append((answer.score, answer.threshold))
                if answer.values:
                    name = _region_id(image, target, "answer")
                    results.append(image_answer(control, target.to_name, answer, name=name, item=image.item))
            continue
        for index, answers in enumerate(prediction.region_choices):
            answer = answers.get(control.name)
            if answer is None or not answer.values:
                continue
            ids = (_region_id(image, other, str(index)) for other in drawing if other.to_name == target.to_name)
            results += [region_answer(control, regions[name], answer) for name in ids if name in regions]
    return results, candidates


def _learned_points(
    image: ImageResult, targets: Sequence[TargetThresholds], drawn: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Write the learned key points; those of an object as children of its region, and only where that is drawn."""
    results: list[dict[str, Any]] = []
    candidates: list[tuple[float, float]] = []
    prediction = image.prediction
    point_targets = [target.target for target in targets if target.target.draws_points]
    if prediction is None or not prediction.points:
        return results, candidates
    ids = {str(result["id"]) for result in drawn}
    drawing = [target.target for target in targets if target.target.draws not in {ANSWERS, CHOICES}]
    for target in point_targets:
        for label, x, y, confidence, index in prediction.points:
            stored = target.control.label_for(label)
            parents = [_region_id(image, other, str(index)) for other in drawing if other.to_name == target.to_name]
            parent = next((name for name in parents if name in ids), "") if index >= 0 else ""
            if stored is None or (index >= 0 and parents and not parent):
                continue
            point = KeyPoint(x, y, POINT_WIDTH * image.width)
            name = _region_id(image, target, f"{index} {label}")
            written = _results(image, target, stored, point, score=confidence, region=name)
            results += [{**result, "parentID": parent} for result in written] if parent else written
            candidates.append((confidence, POINT_THRESHOLD))
    return results, candidates


def segmented_rows(detections: Detections, targets: Sequence[TargetThresholds]) -> list[int]:
    """Indices of the detections that some target draws from a mask of the segmenter, best first."""
    segmented = [target for target in targets if target.target.is_segmented]
    return [
        index
        for index, (score, class_) in enumerate(
            zip(detections.scores.tolist(), detections.classes.tolist(), strict=True)
        )
        if any(class_ in target.by_class and score >= target.by_class[class_] for target in segmented)
    ]


def _regions(
    image: ImageResult, thresholds: TargetThresholds
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    target, results, candidates = thresholds.target, [], []
    detections = image.detections_for(target)
    for index, (score, class_) in enumerate(
        zip(image.detections.scores.tolist(), image.detections.classes.tolist(), strict=True)
    ):
        threshold = thresholds.by_class.get(class_)
        if threshold is None or score < near_miss_floor(threshold):
            continue
        candidates.append((score, threshold))
        if score < threshold:
            continue
        for name, label, geometry in _drawn(image, detections, target, index, class_):
            results += _results(image, target, label, geometry, score=score, region=_region_id(image, target, name))
    return results, candidates


def _drawn(
    image: ImageResult, detections: Detections, target: Target, index: int, class_: int
) -> list[tuple[str, str, Geometry]]:
    """(name within the image, label, geometry) of each region that one detection becomes."""
    if target.keypoint_labels:
        points = points_of(detections, index, image.width)
        return [
            (f"{index}.{n}", target.keypoint_labels[n], point)
            for n, point in points.items()
            if n in target.keypoint_labels
        ]
    if target.source == SEMANTIC and target.draws == "Polygon":
        outlines = enumerate(part_polygons(detections, index))
        return [(f"{index}.{n}", target.labels[class_], outline) for n, outline in outlines]
    draw = rotated_box if target.rotated else SHAPES[target.draws].draw
    geometry = draw(detections, index, image.width, image.height)
    return [(str(index), target.labels[class_], geometry)] if geometry is not None else []


def _results(
    image: ImageResult, target: Target, label: str, geometry: Geometry, *, score: float, region: str
) -> list[dict[str, Any]]:
    """Write one region: one result, or two with one id where labels and shape are separate controls."""
    drawn = detection_result(
        geometry,
        None if target.shape else label,
        control=target.shape or target.control,
        width=image.width,
        height=image.height,
        score=round(score, 4),
        id=region,
        item_index=image.item,
    )
    drawn["to_name"] = target.to_name  # a control may serve several images
    if target.shape is None:
        return [drawn]
    value = {**drawn["value"], "labels": [label]}
    return [drawn, {**drawn, "from_name": target.control.name, "type": target.control.type, "value": value}]


def _choices(
    image: ImageResult, thresholds: TargetThresholds
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """Write the best class, or with multiple choice every class above its threshold."""
    target, detections = thresholds.target, image.detections
    selected = detections[np.array([class_ in thresholds.by_class for class_ in detections.classes.tolist()], bool)]
    scored = list(zip(selected.scores.tolist(), selected.classes.tolist(), strict=True))
    if not target.control.multiple:
        scored = scored[:1]
    scored = [(score, class_) for score, class_ in scored if score >= near_miss_floor(thresholds.by_class[class_])]
    candidates = [(score, thresholds.by_class[class_]) for score, class_ in scored]
    picked = [(score, target.labels[class_]) for score, class_ in scored if score >= thresholds.by_class[class_]]
    if not picked:
        return [], candidates
    result: dict[str, Any] = {
        "id": _region_id(image, target, "choices"),
        "from_name": target.control.name,
        "to_name": target.to_name,
        "type": target.control.type,
        "value": {"choices": list(dict.fromkeys(label for _, label in picked))},
        "score": round(picked[0][0], 4),
    }
    if image.item is not None:
        result["item_index"] = image.item
    return [result], candidates


def _region_id(image: ImageResult, target: Target, name: str) -> str:
    key = f"{image.key} {target.control.name} {target.to_name} {name}"
    return hashlib.blake2s(key.encode(), digest_size=5).hexdigest()
