"""Owns `Detections`: the boxes that a model sees on one photo, and the suppression of boxes drawn twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MOST_CANDIDATES = 1000
"""Candidates kept, best first, before suppression: the overlap matrix is quadratic in them."""


@dataclass(frozen=True)
class Detections:
    """The boxes on one photo, best first once suppressed.

    Attributes:
        boxes: (n, 4) float32, x_min, y_min, x_max, y_max in pixels. Of the network's input as a layout decodes
            them, of the original photo once `Fit.to_photo` has been applied.
        scores: (n,) float32 in [0, 1].
        classes: (n,) int64, the index into the model's names.
    """

    boxes: Floats
    scores: Floats
    classes: Ints

    def __len__(self) -> int:
        """How many boxes."""
        return len(self.scores)

    def __getitem__(self, keep: Ints | npt.NDArray[np.bool_]) -> Detections:
        """The boxes at these indices, or where this mask is true."""
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])

    @classmethod
    def none(cls) -> Detections:
        """A photo on which nothing was seen."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def pairwise_iou(boxes: Floats) -> Floats:
    """Intersection over union of every box with every other: (n, 4) -> (n, n). Two empty boxes overlap by 0."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    shared = sides[..., 0] * sides[..., 1]
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    union = areas[:, None] + areas[None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), np.float32)


def suppress(found: Detections, *, iou: float, most: int = 300) -> Detections:
    """Greedy class-wise non-maximum suppression: of boxes of one class that overlap by more than `iou`, the best stays.

    The overlaps are one matrix; the loop runs once a box that is kept, not once a candidate.

    Args:
        found: Candidates in any order.
        iou: Overlap above which two boxes of a class are one object.
        most: Boxes kept at most.
    """
    order = np.argsort(-found.scores, kind="stable")[:MOST_CANDIDATES]
    found = found[order]
    rivals = (pairwise_iou(found.boxes) > iou) & (found.classes[:, None] == found.classes[None, :])
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
