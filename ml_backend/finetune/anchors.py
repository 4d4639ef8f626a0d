"""Cells of a detector's candidates, for assignment: the centre and the stride of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import prepare
from ml_backend.finetune.errors import NotTrainable
from ml_backend.inference.detector import Detector
from ml_backend.layouts.base import grid, grid_strides

# Layout -> boxes per cell.
PER_CELL = {"yolov5": 3}


@dataclass(frozen=True, eq=False)
class AnchorPoints:
    """Cells of the candidates, in their order.

    Attributes:
        centres: (n, 2) float32 x, y in pixels of the input.
        strides: (n,) float32 pixels.
    """

    centres: Floats
    strides: Floats


def anchors_of(detector: Detector, *, path: Path) -> AnchorPoints:
    """Find the grid of a detector's candidates.

    Args:
        detector: The detector.
        path: The user's file, for messages.

    Raises:
        NotTrainable: They lie on no grid, such as the queries of a DETR.
    """
    spec = detector.spec
    per_cell = PER_CELL.get(detector.layout, 1)
    grey = prepare(np.full((spec.height, spec.width, 3), 114, np.uint8), spec)
    outputs = detector.engine.run([grey.tensor], detector.reader.outputs)
    counts = {side for array in outputs.values() for side in array.shape[1:]}
    counts.add(sum(array.shape[1] for array in outputs.values() if array.ndim == 3) // 2)
    for count in sorted(counts, reverse=True):
        strides = grid_strides(spec.height, spec.width, count, anchors_per_cell=per_cell)
        if strides:
            break
    else:
        reason = "its candidates are not the cells of a grid, and the assignment of boxes to candidates needs one"
        raise NotTrainable(path=path, reason=reason)
    levels = [grid(spec.height, spec.width, (stride,)) for stride in strides]
    cells = np.concatenate([level[0] for level in levels for _ in range(per_cell)])
    steps = np.concatenate([level[1] for level in levels for _ in range(per_cell)])
    return AnchorPoints(np.asarray((cells + np.float32(0.5)) * steps, np.float32), np.asarray(steps[:, 0], np.float32))
