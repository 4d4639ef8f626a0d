"""Whether what a layout reads from a trial run can be what it says: scores in 0..1, boxes in pixels over the input."""

from collections.abc import Sequence

import numpy as np

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.preprocess import InputSpec

SHARE = 2.0
"""Pixels: where no side of any box lies beyond it, sides are shares of the input. Some reach a little over 1."""

ROUNDING = 0.02
"""How far a score may lie outside 0..1, as outputs of half precision and of integers do."""


UPRIGHT = 0.1
"""Share of the boxes that must not end before they begin."""


class Misfit(ValueError):
    """A graph has the shape of a layout, and its numbers do not fit it; the message says which."""


def check_scores(found: Sequence[Detections]) -> None:
    """Raises Misfit where scores are no probabilities."""
    scores = np.concatenate([one.scores for one in found]) if found else np.zeros(0, np.float32)
    if not scores.size:
        return
    if not np.isfinite(scores).all():
        raise Misfit("some scores are not numbers (NaN)")
    low, high = float(scores.min()), float(scores.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise Misfit(f"scores reach from {low:.3g} to {high:.3g}, and probabilities lie in 0..1")


def check_boxes(found: Sequence[Detections], spec: InputSpec) -> bool:
    """Whether there were boxes to judge by.

    Raises:
        Misfit: They do not lie over the input, in its pixels.
    """
    boxes = np.concatenate([one.boxes for one in found]) if found else np.zeros((0, 4), np.float32)
    boxes = boxes[(boxes != 0).any(axis=1)]  # rows that are only filled up
    if not len(boxes):
        return False
    if not np.isfinite(boxes).all():
        raise Misfit("some boxes are not numbers (NaN)")
    upright = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    if upright.mean() < UPRIGHT:
        raise Misfit("most boxes end before they begin: they are no corners x_min, y_min, x_max, y_max")
    if are_shares(boxes):
        raise Misfit(
            f"boxes reach to {boxes.max():.3g} at most: shares of the input's sides, or not applied to their cells "
            "yet, and no pixels"
        )
    sides = np.array([spec.width, spec.height], np.float32)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    over = ((middles >= -0.5 * sides) & (middles <= 1.5 * sides)).all(axis=1)
    if over.mean() < 0.5:
        raise Misfit(f"most boxes lie outside the input of {spec.width} x {spec.height} pixels")
    return True


def are_shares(boxes: Floats) -> bool:
    """Whether boxes (n, 4) can only be shares of the input's sides."""
    return len(boxes) > 0 and bool(np.abs(boxes).max() <= SHARE)
