"""Owns the way from detections to Label Studio's results: which control shows what, and the JSON of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.studio.regions import detection_result
from ml_backend.detection.detections import Detections
from ml_backend.predict.controls import CHOICES
from ml_backend.predict.label_mapping import Target
from ml_backend.predict.protocol import ProjectOptions
from ml_backend.predict.shapes import SHAPES, points_of
from ml_backend.predict.task_score import near_miss_floor


@dataclass(frozen=True)
class TargetThresholds:
    """A target with the threshold of each class that it shows."""

    target: Target
    thresholds: Mapping[int, float]


@dataclass(frozen=True)
class ImageResult:
    """What was seen on one photo, in its pixels, and where the results of it belong.

    Attributes:
        found: Best first.
        width: Of the photo, pixels; height: the same.
        key: Of the photo: the same for the same version, task and item, so that asking twice gives the same JSON.
        item: Which photo of a list it is; None where the task has one.
    """

    found: Detections
    width: int
    height: int
    key: str
    item: int | None


def aims_of(
    targets: Sequence[Target], names: Sequence[str], options: ProjectOptions, default: float
) -> list[TargetThresholds]:
    """The targets with their thresholds.

    Args:
        targets: Controls that results go to.
        names: The model's class names.
        options: What the project asks for.
        default: The backend's threshold.
    """
    threshold = default if options.score_threshold is None else options.score_threshold
    usual = options.usual if options.score_threshold is None else {}
    by_name = options.score_thresholds
    return [
        TargetThresholds(one, one.thresholds(threshold, names=names, by_name=by_name, usual=usual)) for one in targets
    ]


def floor_of(aims: Sequence[TargetThresholds]) -> float:
    """The lowest score that any of them looks at: near misses count for the photo's score."""
    return min((near_miss_floor(one) for aim in aims for one in aim.thresholds.values()), default=1.0)


def to_label_studio_results(
    seen: ImageResult, aims: Sequence[TargetThresholds]
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """The results of one photo for these targets, and (score, threshold) of each candidate for the photo's score."""
    results: list[dict[str, Any]] = []
    candidates: list[tuple[float, float]] = []
    for aim in aims:
        write = _choices if aim.target.draws == CHOICES else _regions
        some, counted = write(seen, aim)
        results += some
        candidates += counted
    return results, candidates


def _regions(seen: ImageResult, aim: TargetThresholds) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    target, results, candidates = aim.target, [], []
    for place, (score, class_) in enumerate(zip(seen.found.scores.tolist(), seen.found.classes.tolist(), strict=True)):
        threshold = aim.thresholds.get(class_)
        if threshold is None or score < near_miss_floor(threshold):
            continue
        candidates.append((score, threshold))
        if score < threshold:
            continue
        for name, label, geometry in _drawn(seen, target, place, class_):
            results += _results(seen, target, label, geometry, score=score, region=_region_id(seen, target, name))
    return results, candidates


def _drawn(seen: ImageResult, target: Target, place: int, class_: int) -> list[tuple[str, str, Geometry]]:
    """(name within the photo, label, shape) of each region that one detection becomes."""
    if target.points:
        points = points_of(seen.found, place, seen.width)
        return [(f"{place}.{n}", target.points[n], point) for n, point in points.items() if n in target.points]
    geometry = SHAPES[target.draws].draw(seen.found, place, seen.width, seen.height)
    return [(str(place), target.labels[class_], geometry)] if geometry is not None else []


def _results(
    seen: ImageResult, target: Target, label: str, geometry: Geometry, *, score: float, region: str
) -> list[dict[str, Any]]:
    """One region: one result, or two of one id where labels and shape are separate controls."""
    drawn = detection_result(
        geometry,
        None if target.shape else label,
        control=target.shape or target.control,
        width=seen.width,
        height=seen.height,
        score=round(score, 4),
        id=region,
        item_index=seen.item,
    )
    drawn["to_name"] = target.to_name  # a control may serve several images
    if target.shape is None:
        return [drawn]
    value = {**drawn["value"], "labels": [label]}
    return [drawn, {**drawn, "from_name": target.control.name, "type": target.control.type, "value": value}]


def _choices(seen: ImageResult, aim: TargetThresholds) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """The best class, or all that reach their threshold where several may be picked."""
    target, found = aim.target, seen.found
    shown = found[np.array([class_ in aim.thresholds for class_ in found.classes.tolist()], bool)]
    scored = list(zip(shown.scores.tolist(), shown.classes.tolist(), strict=True))
    if not target.control.multiple:
        scored = scored[:1]
    scored = [(score, class_) for score, class_ in scored if score >= near_miss_floor(aim.thresholds[class_])]
    candidates = [(score, aim.thresholds[class_]) for score, class_ in scored]
    picked = [(score, target.labels[class_]) for score, class_ in scored if score >= aim.thresholds[class_]]
    if not picked:
        return [], candidates
    result: dict[str, Any] = {
        "id": _region_id(seen, target, "choices"),
        "from_name": target.control.name,
        "to_name": target.to_name,
        "type": target.control.type,
        "value": {"choices": list(dict.fromkeys(label for _, label in picked))},
        "score": round(picked[0][0], 4),
    }
    if seen.item is not None:
        result["item_index"] = seen.item
    return [result], candidates


def _region_id(seen: ImageResult, target: Target, name: str) -> str:
    key = f"{seen.key} {target.control.name} {target.to_name} {name}"
    return hashlib.blake2s(key.encode(), digest_size=5).hexdigest()
