"""Score models on labelled images: an unchanged file, and the refit of the last layer upon it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labelloop.labeling.geometry.overlap import box_iou
from labelloop.service.media import load_image
from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import load_detector
from ml_backend.training.backbone import open_backbone
from ml_backend.training.datasets import LocalImage
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.metrics import GroundTruth, ap50
from ml_backend.training.model_selection import select_and_fit
from ml_backend.training.simulate import EVALUATION_FLOOR, FeatureSource

# Bytes of features on disk for the refit that the result is compared with.
CACHE_BYTES = 4 * 2**30

# IoU from which a detection is that of an object, as in AP50.
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Score:
    """One model on the images that decide.

    Attributes:
        ap50: Mean over classes.
        by_class: AP50 by class.
        error: See `squared_error`.
    """

    ap50: float
    by_class: dict[str, float] = field(default_factory=dict)
    error: float = 0.0


def evaluate(path: Path, images: Sequence[LocalImage], *, layout: str = "") -> Score:
    """AP50 of a model file on labelled images, with its own suppression; classes match by name, whatever the case."""
    detector = load_detector(path, layout=layout, threads=1, allow_numbered=True)
    labels = {label.casefold(): label for image in images for label in image.labels}
    names = [labels.get(name.casefold(), name) for name in detector.names.names]
    detections: list[Detections] = []
    for image in images:
        photo = load_image(image.path.read_bytes(), max_side=detector.spec.decode_side, name=image.path.name)
        prepared = prepare(photo.pixels, detector.spec, size=(photo.width, photo.height))
        detections += detector.detect([prepared], floor=EVALUATION_FLOOR)
    return _score(images, detections, names)


def refit_score(
    path: Path, trained: Sequence[LocalImage], images: Sequence[LocalImage], *, layout: str = "", folder: Path
) -> Score:
    """AP50 of the refit of the last layer on the same images: what `labelloop learn` would serve.

    Raises:
        ModelError: The model cannot be refitted.
    """
    backbone = open_backbone(path, folder=folder, layout=layout, threads=1)
    source = FeatureSource(backbone, FeatureCache(folder / "sights", max_bytes=CACHE_BYTES))
    examples: list[Example] = [source.example(image) for image in trained]
    classes = {label for image in trained for label in image.labels}
    known = [(name, index) for index, name in enumerate(backbone.names) if name in classes]
    head = select_and_fit(examples, levels=backbone.levels, backbone_classes=known).head
    detections = [head.detect(source.extract(image), floor=EVALUATION_FLOOR, exact=False) for image in images]
    return _score(images, detections, head.names)


def _score(images: Sequence[LocalImage], found: Sequence[Detections], names: Sequence[str]) -> Score:
    truths = [GroundTruth(np.asarray(image.boxes, np.float32).reshape(-1, 4), image.labels) for image in images]
    by_class = ap50(truths, found, names=names)
    error = sum(squared_error(*each, names=names) for each in zip(truths, found, strict=True))
    return Score(float(np.mean(list(by_class.values()) or [0.0])), by_class, error)


def squared_error(truth: GroundTruth, found: Detections, *, names: Sequence[str]) -> float:
    """Squared error of the scores on an image (Brier 1950), in boxes.

    It is (1 - score)^2 for an object with a detection, 1 for one without, and score^2 for every other detection. An
    object has the best-scored detection of its class from an IoU of `MATCH_IOU` on.
    """
    overlaps = box_iou(found.boxes, truth.boxes)
    free = np.ones(len(truth.labels), bool)
    labels, error = np.array(truth.labels, object), 0.0
    for index in np.argsort(-found.scores, kind="stable").tolist():
        score = float(found.scores[index])
        possible = free & (labels == names[found.classes[index]]) & (overlaps[index] >= MATCH_IOU)
        if possible.any():
            free[np.where(possible, overlaps[index], -1.0).argmax()] = False
            error += (1 - score) ** 2
        else:
            error += score**2
    return error + float(free.sum())
