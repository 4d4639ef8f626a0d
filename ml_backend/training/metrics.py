"""Owns AP50: how good detections are, judged by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.detection.detections import Detections, Floats

MOST_BOXES = 100
"""Boxes a photo that count, best first, as in COCO."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is on a photo: boxes (m, 4), pixels of the photo, and the class of each."""

    boxes: Floats
    labels: tuple[str, ...]


def ap50(truths: Sequence[GroundTruth], found: Sequence[Detections], *, names: Sequence[str]) -> dict[str, float]:
    """Average precision at an overlap of one half, for each class that is drawn on any of the photos.

    Args:
        truths: What was drawn on each photo.
        found: What was found on each, classes as indices into `names`.
        names: Classes of the detections. A class that was drawn and has no name here was never found: 0.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    drawn = sorted({label for truth in truths for label in truth.labels})
    if not drawn:
        return {}
    number = {name: index + 1 for index, name in enumerate(drawn)}
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (truth, one) in enumerate(zip(truths, found, strict=True), 1):
        for box, label in zip(truth.boxes.tolist(), truth.labels, strict=True):
            annotations.append(_entry(image, number[label], box) | {"id": len(annotations) + 1, "iscrowd": 0})
        for box, score, index in zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True):
            if names[index] in number:
                results.append(_entry(image, number[names[index]], box) | {"score": score})
    if not results:
        return dict.fromkeys(drawn, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(1, len(truths) + 1)],
            "annotations": annotations,
            "categories": [{"id": one, "name": name} for name, one in number.items()],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.params.iouThrs = np.array([0.5])
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [MOST_BOXES]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][0, :, :, 0, 0]  # (recall levels, classes), -1 where there is nothing to find
    return {name: float(max(precision[:, index].mean(), 0.0)) for index, name in enumerate(drawn)}


def mean_ap50(truths: Sequence[GroundTruth], found: Sequence[Detections], *, names: Sequence[str]) -> float:
    """The mean of `ap50` over classes; 0 where nothing is drawn."""
    return float(np.mean(list(ap50(truths, found, names=names).values()) or [0.0]))


def _entry(image: int, category: int, box: list[float]) -> dict[str, Any]:
    width, height = box[2] - box[0], box[3] - box[1]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [box[0], box[1], width, height],
        "area": width * height,
    }
