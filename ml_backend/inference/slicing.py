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
        side: Side of a slice in pixels of the original image; 0: that of `grid`.
        overlap: Share of a slice that its neighbour covers too; objects up to that size are complete in one of them.
        grid: Slices along an image's longer side, where `side` is 0; 1: no slicing.
    """

    side: int = 0
    overlap: float = 0.2
    grid: int = 1

    def side_for(self, width: int, height: int) -> int:
        """Side of a slice of an image of width x height pixels; 0: the image is not sliced."""
        side = self.side or ceil(max(width, height) / (1 + (self.grid - 1) * (1 - self.overlap)))
        return side if 0 < side < max(width, height) else 0

    def large_from(self, width: int, height: int) -> float:
        """Longer side in pixels from which an object may be cut by every slice, so that the whole image shows it."""
        return self.side_for(width, height) * self.overlap


def slice_boxes(width: int, height: int, slices: Slices) -> list[tuple[int, int, int, int]]:
    """Compute the slices of an image: x_min, y_min, x_max, y_max in pixels, row by row; empty where one slice suffices.

    Slices have equal size, are evenly spaced, and overlap by at least `slices.overlap`.
    """
    side = slices.side_for(width, height)
    if not side:
        return []
    columns, rows = _starts(width, side, slices.overlap), _starts(height, side, slices.overlap)
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
            drop_fragments(detections, part, image.shape[1], image.shape[0])
            if part
            else _large(detections, slices, image)
            if parts and slices.grid > 1
            else detections
            for detections, part in zip(batch_results, batch, strict=True)
        ]
    return merge_slices(results, share=MERGE_IOS, iou=MERGE_IOU) if parts else results[0]


def drop_fragments(detections: Detections, part: tuple[int, int, int, int], width: int, height: int) -> Detections:
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


def detect_as_learned(
    detector: Detector, image: RgbImage, *, floor: float, size: tuple[int, int] | None = None
) -> Detections:
    """Detect objects on the views that the model was learned on: the whole image, or tiles of a full-size decode.

    Args:
        detector: The model.
        image: (h, w, 3) uint8.
        floor: Minimum score.
        size: (width, height) of the original where `image` is a reduced decode.

    Raises:
        ModelBroken: The session failed.
    """
    return detect_sliced(detector, image, Slices(grid=detector.tiles), floor=floor, size=size)


def _large(detections: Detections, slices: Slices, image: RgbImage) -> Detections:
    """Detections on the whole image that slices may cut: a model that was learned on slices sees smaller ones there."""
    sides = (detections.boxes[:, 2:] - detections.boxes[:, :2]).max(axis=1, initial=0)
    return detections[sides >= slices.large_from(image.shape[1], image.shape[0])]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    count = ceil((length - side) / max(1.0, side * (1 - overlap)) - 1e-9) + 1
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def _batches(views: list[tuple[int, int, int, int] | None], count: int) -> list[list[tuple[int, int, int, int] | None]]:
    return [views[start : start + count] for start in range(0, len(views), count)]
