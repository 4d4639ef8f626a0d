"""Sliced inference: detect small objects in overlapping slices of a large image, and merge the detections.

After Akyon et al. 2022, https://arxiv.org/abs/2202.06934 (SAHI): slices at full resolution, and the whole image for
objects larger than a slice.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from ml_backend.detection.detections import Detections, merge_slices
from ml_backend.detection.preprocess import RgbImage, prepare
from ml_backend.inference.detector import Detector

# IoU above which two boxes of a class from two views are one object.
MERGE_IOU = 0.5

# Share of a box inside a larger one of its class above which it is a fragment cut by a slice's edge.
MERGE_IOS = 0.75

# Share of a slice's side within which a box ends at its edge.
NEAR_EDGE = 0.01


@dataclass(frozen=True)
class Slices:
    """How images are sliced.

    Attributes:
        side: Side of a slice in pixels of the original image; 0: no slicing.
        overlap: Share of a slice that its neighbour covers too; objects up to that size are complete in one of them.
    """

    side: int = 0
    overlap: float = 0.2


def slice_boxes(width: int, height: int, slices: Slices) -> list[tuple[int, int, int, int]]:
    """Compute the slices of an image: x_min, y_min, x_max, y_max in pixels, row by row; empty where one slice suffices.

    Slices have equal size, are evenly spaced, and overlap by at least `slices.overlap`.
    """
    if slices.side <= 0 or max(width, height) <= slices.side:
        return []
    columns, rows = _starts(width, slices), _starts(height, slices)
    side = slices.side
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def detect_sliced(
    detector: Detector, image: RgbImage, slices: Slices, *, floor: float, size: tuple[int, int] | None = None
) -> Detections:
    """Detect objects on the whole image and on each slice at full resolution.

    Args:
        detector: Runs on the whole image and on the slices, in batches.
        image: (h, w, 3) uint8, a full-size decode where it is to be sliced.
        slices: How it is sliced.
        floor: Minimum score.
        size: (width, height) of the original where `image` is a reduced decode, which is not sliced.

    Raises:
        ModelBroken: The session failed.
    """
    reduced = size is not None and size != (image.shape[1], image.shape[0])
    parts = [] if reduced else slice_boxes(image.shape[1], image.shape[0], slices)
    views: list[tuple[int, int, int, int] | None] = [None, *parts]
    results: list[Detections] = []
    for batch in _batches(views, detector.batch):
        batch_results = detector.detect(
            [prepare(image, detector.spec, size=size, part=part) for part in batch], floor=floor
        )
        results += [
            _drop_fragments(detections, part, image.shape[1], image.shape[0]) if part else detections
            for detections, part in zip(batch_results, batch, strict=True)
        ]
    return merge_slices(results, share=MERGE_IOS, iou=MERGE_IOU) if parts else results[0]


def _drop_fragments(detections: Detections, part: tuple[int, int, int, int], width: int, height: int) -> Detections:
    """Drop boxes that end at a slice's edge inside the image: they are fragments.

    Objects no larger than the overlap are complete in a neighbouring slice; larger ones are detected on the whole
    image.
    """
    tolerance = max(2.0, NEAR_EDGE * max(part[2] - part[0], part[3] - part[1]))
    limits = (0, 0, width, height)
    cut = np.zeros(len(detections), np.bool_)
    for side in range(4):
        if part[side] != limits[side]:
            cut |= np.abs(detections.boxes[:, side] - part[side]) <= tolerance
    return detections[~cut]


def _starts(length: int, slices: Slices) -> list[int]:
    if length <= slices.side:
        return [0]
    count = ceil((length - slices.side) / max(1.0, slices.side * (1 - slices.overlap))) + 1
    return [round(index * (length - slices.side) / (count - 1)) for index in range(count)]


def _batches(views: list[tuple[int, int, int, int] | None], count: int) -> list[list[tuple[int, int, int, int] | None]]:
    return [views[start : start + count] for start in range(0, len(views), count)]
