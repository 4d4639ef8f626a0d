"""Detections of one image, box overlaps and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.fit import Fit
from ml_backend.detection.masks import ObjectMask

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Candidates kept, best first, before suppression: the overlap matrix is quadratic in them.
MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first after suppression.

    Attributes:
        boxes: (n, 4) float32 x_min, y_min, x_max, y_max in pixels: of the network's input as decoded, of the original
            image after `to_image`.
        scores: (n,) float32 in [0, 1].
        classes: (n,) int64 indices into the model's names.
        rotated: (n, 5) float32 rotated boxes: centre x, centre y, width, height in pixels, angle in radians, clockwise
            on the screen; None for upright boxes.
        keypoints: (n, k, 3) float32: x, y in pixels, and the point's confidence; None without keypoints.
        segments: One mask per box, None for a box without one; None without masks.
        rows: (n,) int64 index of each among the network's candidates, until `with_features`; None: unknown.
        embeddings: (n, d) float32 frozen features of each; None where the model gives none.
        image_features: (g,) float32 frozen features of the whole image; None where the model gives none.
    """

    boxes: Floats
    scores: Floats
    classes: Ints
    rotated: Floats | None = None
    keypoints: Floats | None = None
    segments: tuple[ObjectMask | None, ...] | None = None
    rows: Ints | None = None
    embeddings: Floats | None = None
    image_features: Floats | None = None

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.scores)

    def __getitem__(self, keep: Ints | npt.NDArray[np.bool_]) -> Detections:
        """Select boxes by index or mask."""
        indices = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
        return Detections(
            self.boxes[keep],
            self.scores[keep],
            self.classes[keep],
            None if self.rotated is None else self.rotated[keep],
            None if self.keypoints is None else self.keypoints[keep],
            None if self.segments is None else tuple(self.segments[index] for index in indices.tolist()),
            None if self.rows is None else self.rows[keep],
            None if self.embeddings is None else self.embeddings[keep],
            self.image_features,
        )

    def with_features(self, embeddings: npt.NDArray[Any] | None, image_features: npt.NDArray[Any] | None) -> Detections:
        """Add frozen features: of the boxes whose candidates are known, and of the image.

        Args:
            embeddings: (candidates, d) of all candidates of the network; None without.
            image_features: (g,) of the image; None without.
        """
        known = embeddings is not None and self.rows is not None
        return replace(
            self,
            rows=None,
            embeddings=np.asarray(embeddings[self.rows], np.float32) if known else None,  # type: ignore[index]
            image_features=None if image_features is None else np.asarray(image_features, np.float32),
        )

    def to_image(self, fit: Fit) -> Detections:
        """Map to pixels of the original image, and clip boxes to it; boxes outside of it are dropped.

        Rotated boxes are not clipped, since the result would not be a rotated box.
        """
        boxes, rotated = fit.boxes(self.boxes), self.rotated
        if rotated is not None:
            rotated = fit.rotated_boxes(rotated)
            boxes = fit.clip(bounds_of(rotated))
        keypoints = None if self.keypoints is None else fit.keypoints(self.keypoints)
        segments = None
        if self.segments is not None:
            segments = tuple(segment and segment.on_image(fit) for segment in self.segments)
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        moved = replace(self, boxes=boxes, rotated=rotated, keypoints=keypoints, segments=segments)
        return moved if inside.all() else moved[inside]

    @classmethod
    def empty(cls) -> Detections:
        """Return zero detections."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Concatenate the detections of several views of one image by one model, in pixels of the image.

        The features of the image are those of the first view.
        """
        if not parts:
            return cls.empty()
        rotated = [part.rotated for part in parts if part.rotated is not None]
        keypoints = [part.keypoints for part in parts if part.keypoints is not None]
        segments = [part.segments for part in parts if part.segments is not None]
        embeddings = [part.embeddings for part in parts if part.embeddings is not None]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate(rotated) if len(rotated) == len(parts) else None,
            np.concatenate(keypoints) if len(keypoints) == len(parts) else None,
            tuple(segment for part in segments for segment in part) if len(segments) == len(parts) else None,
            None,
            np.concatenate(embeddings) if len(embeddings) == len(parts) else None,
            parts[0].image_features,
        )


def bounds_of(rotated: Floats) -> Floats:
    """Upright bounding boxes of rotated boxes: (n, 5) -> (n, 4) float32."""
    cos, sin = np.abs(np.cos(rotated[:, 4])), np.abs(np.sin(rotated[:, 4]))
    half = np.stack([rotated[:, 2] * cos + rotated[:, 3] * sin, rotated[:, 2] * sin + rotated[:, 3] * cos], axis=1) / 2
    return np.concatenate([rotated[:, :2] - half, rotated[:, :2] + half], axis=1).astype(np.float32)


def corners_of(rotated: Floats) -> npt.NDArray[np.float64]:
    """Corners of rotated boxes, (n, 5) -> (n, 4, 2) float64, clockwise from the unrotated top left."""
    box = rotated.astype(np.float64)
    cos, sin = np.cos(box[:, 4:]), np.sin(box[:, 4:])
    across = np.concatenate([cos, sin], axis=1) * box[:, 2:3] / 2
    down = np.concatenate([-sin, cos], axis=1) * box[:, 3:4] / 2
    centre = box[:, :2]
    return np.stack([centre - across - down, centre + across - down, centre + across + down, centre - across + down], 1)


def pairwise_iou(boxes: Floats) -> Floats:
    """IoU of every box with every other: (n, 4) -> (n, n) float32; 0 for two empty boxes."""
    return cross_iou(boxes, boxes)


def cross_iou(boxes: Floats, others: Floats) -> Floats:
    """IoU of boxes (n, 4) with others (m, 4): (n, m) float32; 0 for two empty boxes."""
    shared, areas, other_areas = _shared(boxes, others)
    union = areas[:, None] + other_areas - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float32)


def pairwise_ios(boxes: Floats) -> Floats:
    """Intersection over the smaller area, (n, 4) -> (n, n) float32; 1 where one box contains the other."""
    shared, areas, _ = _shared(boxes, boxes)
    smaller = np.minimum(areas[:, None], areas[None, :])
    return np.asarray(np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0), np.float32)


def pairwise_rotated_iou(rotated: Floats) -> Floats:
    """IoU of rotated boxes, (n, 5) -> (n, n) float32, from exact polygon intersections."""
    import shapely

    outlines = shapely.polygons(corners_of(rotated))
    areas = shapely.area(outlines)
    overlaps = np.zeros((len(outlines), len(outlines)), np.float32)
    first, second = shapely.STRtree(outlines).query(outlines)
    shared = shapely.area(shapely.intersection(outlines[first], outlines[second]))
    union = areas[first] + areas[second] - shared
    overlaps[first, second] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps


def non_max_suppression(detections: Detections, *, iou: float, max_boxes: int = 300) -> Detections:
    """Suppress greedily per class: of boxes that overlap by more than `iou`, keep the best.

    Args:
        detections: In any order.
        iou: IoU above which two boxes of a class are one object.
        max_boxes: Maximum number of boxes to keep.
    """
    detections = detections[np.argsort(-detections.scores, kind="stable")[:MAX_CANDIDATES]]
    overlaps = (
        pairwise_iou(detections.boxes) if detections.rotated is None else pairwise_rotated_iou(detections.rotated)
    )
    return _greedy(detections, overlaps > iou, max_boxes)


def merge_slices(parts: Sequence[Detections], *, share: float, iou: float, max_boxes: int = 1000) -> Detections:
    """Merge the detections of overlapping slices of one image.

    A slice may cut an object that another slice shows completely. So a box is dropped where a better one of its class
    overlaps it by `iou`, or where a larger one, of a similar score or a better one, covers more than `share` of it.

    Args:
        parts: One per slice, in pixels of the image.
        share: Intersection over the smaller area above which a box is a fragment of the larger.
        iou: As in `non_max_suppression`.
        max_boxes: Maximum number of boxes to keep.
    """
    detections = Detections.concatenate(parts)
    detections = detections[np.argsort(-detections.scores, kind="stable")[:MAX_CANDIDATES]]
    detections = _greedy(detections, pairwise_iou(detections.boxes) > iou, max_boxes)
    areas = np.prod(np.clip(detections.boxes[:, 2:] - detections.boxes[:, :2], 0, None), axis=1)
    same = detections.classes[:, None] == detections.classes[None, :]
    inside = (pairwise_ios(detections.boxes) > share) & same & (areas[:, None] < areas[None, :])
    # A fragment yields only to a box of a similar score: two people in one poor box stay two.
    trusted = detections.scores[None, :] >= 0.7 * detections.scores[:, None]
    return detections[~(inside & trusted).any(axis=1)]


def _shared(boxes: Floats, others: Floats) -> tuple[Floats, Floats, Floats]:
    """Intersection areas (n, m) of boxes with others, and the areas of both."""
    left, top, right, bottom = np.ascontiguousarray(boxes.T)[:, :, None]
    other_left, upper, other_right, lower = np.ascontiguousarray(others.T)
    # One axis at a time: numpy is five times slower over a last axis of length two.
    width = np.minimum(right, other_right) - np.maximum(left, other_left)
    height = np.minimum(bottom, lower) - np.maximum(top, upper)
    shared = np.maximum(width, 0, out=width)
    shared *= np.maximum(height, 0, out=height)
    return shared, _areas(boxes), _areas(others)


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))


def _greedy(detections: Detections, rivals: npt.NDArray[np.bool_], max_boxes: int) -> Detections:
    rivals = rivals & (detections.classes[:, None] == detections.classes[None, :])
    alive = np.ones(len(detections), bool)
    selected: list[int] = []
    index = 0
    while len(selected) < max_boxes and index < len(detections):
        selected.append(index)
        alive &= ~rivals[index]
        alive[index] = False
        later = np.flatnonzero(alive[index + 1 :])
        if not len(later):
            break
        index += 1 + int(later[0])
    return detections[np.asarray(selected, np.int64)]
