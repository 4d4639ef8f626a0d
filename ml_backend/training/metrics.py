"""AP50 of detections, computed by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.detection.detections import Detections, Floats

# Detections per image that count, best first, as in COCO; on images with more objects, twice their number.
MAX_DETECTIONS = 100


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground truth of an image: boxes (m, 4) float32 in pixels of the image, and the class name of each."""

    boxes: Floats
    labels: tuple[str, ...]


def ap50(truths: Sequence[GroundTruth], detections: Sequence[Detections], *, names: Sequence[str]) -> dict[str, float]:
    """Compute the average precision at IoU 0.5 of each class with ground truth.

    Args:
        truths: Ground truth of each image.
        detections: One per image; classes are indices into `names`.
        names: Class names of the detections. A class of the ground truth that is missing here scores 0.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    classes = sorted({label for truth in truths for label in truth.labels})
    if not classes:
        return {}
    category = {name: index + 1 for index, name in enumerate(classes)}
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (truth, image_detections) in enumerate(zip(truths, detections, strict=True), 1):
        for box, label in zip(truth.boxes.tolist(), truth.labels, strict=True):
            annotations.append(_entry(image, category[label], box) | {"id": len(annotations) + 1, "iscrowd": 0})
        for box, score, index in zip(
            image_detections.boxes.tolist(),
            image_detections.scores.tolist(),
            image_detections.classes.tolist(),
            strict=True,
        ):
            if names[index] in category:
                results.append(_entry(image, category[names[index]], box) | {"score": score})
    if not results:
        return dict.fromkeys(classes, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(1, len(truths) + 1)],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in category.items()],
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.params.iouThrs = np.array([0.5])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [max(MAX_DETECTIONS, *(2 * len(truth.labels) for truth in truths))]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][0, :, :, 0, 0]  # (recall levels, classes), -1 without ground truth
    return {name: float(max(precision[:, index].mean(), 0.0)) for index, name in enumerate(classes)}


def mean_ap50(truths: Sequence[GroundTruth], detections: Sequence[Detections], *, names: Sequence[str]) -> float:
    """Mean of `ap50` over classes; 0 without ground truth."""
    return float(np.mean(list(ap50(truths, detections, names=names).values()) or [0.0]))


def _entry(image: int, category: int, box: list[float]) -> dict[str, Any]:
    width, height = box[2] - box[0], box[3] - box[1]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [box[0], box[1], width, height],
        "area": width * height,
    }
