"""Check decoded trial outputs: scores must lie in 0..1, boxes in pixels over the input."""

from collections.abc import Sequence

import numpy as np

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.preprocess import InputSpec

# Boxes whose coordinates are all within +-NORMALISED_LIMIT are normalised; some slightly exceed 1.
NORMALISED_LIMIT = 2.0

# Tolerance of scores around 0..1, for half-precision and quantised outputs.
ROUNDING = 0.02


# Minimum share of boxes with x_max >= x_min and y_max >= y_min.
UPRIGHT = 0.1


class Misfit(ValueError):
    """A graph matches a layout's shapes but not its values; the message says why."""


def check_scores(detections: Sequence[Detections]) -> None:
    """Raise Misfit where scores are no probabilities."""
    scores = (
        np.concatenate([image_detections.scores for image_detections in detections])
        if detections
        else np.zeros(0, np.float32)
    )
    if not scores.size:
        return
    if not np.isfinite(scores).all():
        raise Misfit("some scores are not numbers (NaN)")
    low, high = float(scores.min()), float(scores.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise Misfit(f"scores reach from {low:.3g} to {high:.3g}, and probabilities lie in 0..1")


def check_boxes(detections: Sequence[Detections], spec: InputSpec) -> bool:
    """Whether there were boxes to check.

    Raises:
        Misfit: They do not lie over the input, in its pixels.
    """
    boxes = (
        np.concatenate([image_detections.boxes for image_detections in detections])
        if detections
        else np.zeros((0, 4), np.float32)
    )
    boxes = boxes[(boxes != 0).any(axis=1)]  # padding rows
    if not len(boxes):
        return False
    if not np.isfinite(boxes).all():
        raise Misfit("some boxes are not numbers (NaN)")
    upright = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    if upright.mean() < UPRIGHT:
        raise Misfit("most boxes have x_max < x_min or y_max < y_min: they are not x_min, y_min, x_max, y_max")
    if are_normalised(boxes):
        raise Misfit(
            f"boxes reach {boxes.max():.3g} at most: they are normalised, or not applied to their cells "
            "yet, instead of pixels"
        )
    sides = np.array([spec.width, spec.height], np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    over = ((centres >= -0.5 * sides) & (centres <= 1.5 * sides)).all(axis=1)
    if over.mean() < 0.5:
        raise Misfit(f"most boxes lie outside the input of {spec.width} x {spec.height} pixels")
    return True


def are_normalised(boxes: Floats) -> bool:
    """Whether boxes (n, 4) can only be normalised by the input's sides."""
    return len(boxes) > 0 and bool(np.abs(boxes).max() <= NORMALISED_LIMIT)
