"""Owns `Detections`: what a model sees on one photo, and the suppression of what it saw twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.detection.masks import Segment

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MOST_CANDIDATES = 1000
"""Candidates kept, best first, before suppression: the overlap matrix is quadratic in them."""


@dataclass(frozen=True)
class Detections:
    """What was seen on one photo, best first once suppressed.

    Attributes:
        boxes: (n, 4) float32, x_min, y_min, x_max, y_max in pixels. Of the network's input as a layout decodes
            them, of the original photo once `Fit.to_photo` has been applied.
        scores: (n,) float32 in [0, 1].
        classes: (n,) int64, the index into the model's names.
        turned: (n, 5) float32, the same boxes where the model turns them: centre x, centre y, width, height in pixels,
            angle in radians, clockwise on the screen; None where it does not.
        keypoints: (n, k, 3) float32: x, y in pixels, and how sure the model is of the point; None without.
        segments: One mask a box; None without.
    """

    boxes: Floats
    scores: Floats
    classes: Ints
    turned: Floats | None = None
    keypoints: Floats | None = None
    segments: tuple[Segment, ...] | None = None

    def __len__(self) -> int:
        """How many boxes."""
        return len(self.scores)

    def __getitem__(self, keep: Ints | npt.NDArray[np.bool_]) -> Detections:
        """The boxes at these indices, or where this mask is true."""
        places = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
        return Detections(
            self.boxes[keep],
            self.scores[keep],
            self.classes[keep],
            None if self.turned is None else self.turned[keep],
            None if self.keypoints is None else self.keypoints[keep],
            None if self.segments is None else tuple(self.segments[place] for place in places.tolist()),
        )

    @classmethod
    def none(cls) -> Detections:
        """A photo on which nothing was seen."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """All boxes of several looks at one photo by one model, in pixels of the photo."""
        if not parts:
            return cls.none()
        turned = [part.turned for part in parts if part.turned is not None]
        keypoints = [part.keypoints for part in parts if part.keypoints is not None]
        segments = [part.segments for part in parts if part.segments is not None]
        return cls(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate(turned) if len(turned) == len(parts) else None,
            np.concatenate(keypoints) if len(keypoints) == len(parts) else None,
            tuple(one for part in segments for one in part) if len(segments) == len(parts) else None,
        )


def bounds_of(turned: Floats) -> Floats:
    """The upright box around each turned one: (n, 5) -> (n, 4)."""
    cos, sin = np.abs(np.cos(turned[:, 4])), np.abs(np.sin(turned[:, 4]))
    half = np.stack([turned[:, 2] * cos + turned[:, 3] * sin, turned[:, 2] * sin + turned[:, 3] * cos], axis=1) / 2
    return np.concatenate([turned[:, :2] - half, turned[:, :2] + half], axis=1).astype(np.float32)


def corners_of(turned: Floats) -> npt.NDArray[np.float64]:
    """The corners of turned boxes, (n, 5) -> (n, 4, 2): the top left before turning first, then clockwise."""
    box = turned.astype(np.float64)
    cos, sin = np.cos(box[:, 4:]), np.sin(box[:, 4:])
    across = np.concatenate([cos, sin], axis=1) * box[:, 2:3] / 2
    down = np.concatenate([-sin, cos], axis=1) * box[:, 3:4] / 2
    centre = box[:, :2]
    return np.stack([centre - across - down, centre + across - down, centre + across + down, centre - across + down], 1)


def pairwise_iou(boxes: Floats) -> Floats:
    """Intersection over union of every box with every other: (n, 4) -> (n, n). Two empty boxes overlap by 0."""
    return cross_iou(boxes, boxes)


def cross_iou(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of every box with every other one: (n, 4), (m, 4) -> (n, m); 0 for two empty ones."""
    shared, areas, other_areas = _shared(boxes, others)
    union = areas[:, None] + other_areas - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float32)


def pairwise_ios(boxes: Floats) -> Floats:
    """Intersection over the smaller of both boxes: (n, 4) -> (n, n). 1 where one lies inside the other."""
    shared, areas, _ = _shared(boxes, boxes)
    smaller = np.minimum(areas[:, None], areas[None, :])
    return np.asarray(np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0), np.float32)


def pairwise_turned_iou(turned: Floats) -> Floats:
    """The same for turned boxes, (n, 5) -> (n, n): their true outlines, where their upright boxes meet."""
    import shapely

    outlines = shapely.polygons(corners_of(turned))
    areas = shapely.area(outlines)
    overlaps = np.zeros((len(outlines), len(outlines)), np.float32)
    first, second = shapely.STRtree(outlines).query(outlines)
    shared = shapely.area(shapely.intersection(outlines[first], outlines[second]))
    union = areas[first] + areas[second] - shared
    overlaps[first, second] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps


def suppress(found: Detections, *, iou: float, most: int = 300) -> Detections:
    """Greedy class-wise non-maximum suppression: of boxes of one class that overlap by more than `iou`, the best stays.

    The overlaps are one matrix; the loop runs once a box that is kept, not once a candidate.

    Args:
        found: Candidates in any order.
        iou: Overlap above which two boxes of a class are one object.
        most: Boxes kept at most.
    """
    found = found[np.argsort(-found.scores, kind="stable")[:MOST_CANDIDATES]]
    overlaps = pairwise_iou(found.boxes) if found.turned is None else pairwise_turned_iou(found.turned)
    return _greedy(found, overlaps > iou, most)


def merge(parts: Sequence[Detections], *, share: float, iou: float, most: int = 1000) -> Detections:
    """Several overlapping looks at one photo, as one: what was seen twice, or cut by an edge, counts once.

    A part of an object that one look cut off lies inside the whole that another one saw: so a box goes where a better
    one of its class overlaps it by `iou`, or where a larger one covers at least `share` of it, whatever their scores.

    Args:
        parts: In pixels of the photo.
        share: Intersection over the smaller box above which it is a piece of the larger.
        iou: As in `suppress`.
        most: Boxes kept at most.
    """
    found = Detections.joined(parts)
    found = found[np.argsort(-found.scores, kind="stable")[:MOST_CANDIDATES]]
    found = _greedy(found, pairwise_iou(found.boxes) > iou, most)
    areas = np.prod(np.clip(found.boxes[:, 2:] - found.boxes[:, :2], 0, None), axis=1)
    same = found.classes[:, None] == found.classes[None, :]
    inside = (pairwise_ios(found.boxes) > share) & same & (areas[:, None] < areas[None, :])
    # A piece is given up only for a whole that the model is about as sure of: two people in one poor box stay two.
    trusted = found.scores[None, :] >= 0.7 * found.scores[:, None]
    return found[~(inside & trusted).any(axis=1)]


def _shared(boxes: Floats, others: Floats) -> tuple[Floats, Floats, Floats]:
    """What each box shares with each other one (n, m), and the areas of both."""
    left, top, right, bottom = np.ascontiguousarray(boxes.T)[:, :, None]
    start, ceiling, end, ground = np.ascontiguousarray(others.T)
    # One side after the other: over a last axis of two, numpy is five times slower.
    width = np.minimum(right, end) - np.maximum(left, start)
    height = np.minimum(bottom, ground) - np.maximum(top, ceiling)
    shared = np.maximum(width, 0, out=width)
    shared *= np.maximum(height, 0, out=height)
    return shared, _areas(boxes), _areas(others)


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))


def _greedy(found: Detections, rivals: npt.NDArray[np.bool_], most: int) -> Detections:
    rivals = rivals & (found.classes[:, None] == found.classes[None, :])
    alive = np.ones(len(found), bool)
    kept: list[int] = []
    index = 0
    while len(kept) < most and index < len(found):
        kept.append(index)
        alive &= ~rivals[index]
        alive[index] = False
        later = np.flatnonzero(alive[index + 1 :])
        if not len(later):
            break
        index += 1 + int(later[0])
    return found[np.asarray(kept, np.int64)]
