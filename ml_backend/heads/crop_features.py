"""Frozen feature maps of the crop around an object: the first blocks of the embedded detector's backbone.

The crop is a square around the box, so that the object keeps its aspect ratio. Crop coordinates run from 0 to 1 across
and down; `CropFrame` maps them to the image.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.errors import ModelBroken
from ml_backend.inference.detector import embedded_model
from ml_backend.inference.run_limit import RunLimit

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

# Outputs of the backbone's blocks and their channels, at strides 2, 4, 8 and 16.
TAPS = {
    "/n/bb/_blocks.0/_project_conv/Conv_output_0": 16,
    "/n/bb/_blocks.2/Add_output_0": 24,
    "/n/bb/_blocks.4/Add_output_0": 40,
    "/n/bb/_blocks.10/Add_output_0": 112,
}
CHANNELS = sum(TAPS.values())

# Pixels of the crop per cell of the returned maps.
STRIDE = 4

# Side of the crop, in longer sides of the box: the surroundings help to find the outline.
CONTEXT = 1.25

# Grey value beyond the image's edge.
PAD_GREY = 114

# Crops per run: more take memory and are no faster on a CPU.
BATCH = 8


@dataclass(frozen=True)
class CropFrame:
    """A square region of an image.

    Attributes:
        cx: Centre in pixels of the image.
        cy: Centre in pixels of the image.
        side: Side in pixels of the image.
        rotation: Degrees clockwise by which the region is rotated about its centre.
    """

    cx: float
    cy: float
    side: float
    rotation: float = 0.0

    @classmethod
    def around(cls, box: Sequence[float]) -> CropFrame:
        """The frame of a box (x_min, y_min, x_max, y_max) with its surroundings."""
        x_min, y_min, x_max, y_max = (float(edge) for edge in box)
        side = max(x_max - x_min, y_max - y_min, 2.0) * CONTEXT
        return cls((x_min + x_max) / 2, (y_min + y_max) / 2, side)

    def to_crop(self, points: npt.ArrayLike) -> Matrix:
        """Map points (..., 2) of the image to crop coordinates, float64."""
        return (np.asarray(points, np.float64) - (self.cx, self.cy)) @ self._axes / self.side + 0.5

    def to_image(self, points: npt.ArrayLike) -> Matrix:
        """Map points (..., 2) of the crop to pixels of the image, float64."""
        return (np.asarray(points, np.float64) - 0.5) * self.side @ self._axes.T + (self.cx, self.cy)

    def scaled(self, factor: float) -> CropFrame:
        """The same region of the image resized by `factor`."""
        return CropFrame(self.cx * factor, self.cy * factor, self.side * factor, self.rotation)

    def render(self, pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
        """Render the region: (side, side, 3) uint8; grey beyond the image.

        Args:
            pixels: (h, w, 3) uint8 RGB.
            side: Pixels.
        """
        corners = self.to_image([(0, 0), (0, 1), (1, 0), (1, 1)])
        low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
        x_min, y_min = np.maximum(low, 0).tolist()
        x_max, y_max = np.minimum(high, (pixels.shape[1], pixels.shape[0])).tolist()
        if x_max <= x_min or y_max <= y_min:
            return np.full((side, side, 3), PAD_GREY, np.uint8)
        part: Any = np.ascontiguousarray(pixels[y_min:y_max, x_min:x_max])
        scale = side / self.side
        if scale < 1 / 1.5:  # else bilinear sampling would skip pixels
            size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
            part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        shrink = np.array([part.shape[1] / (x_max - x_min), part.shape[0] / (y_max - y_min)])
        # From pixel centres of the crop to pixel centres of the part.
        step = self._axes * (self.side / side)
        start = self.to_image((0.5 / side, 0.5 / side)) - (x_min, y_min)
        matrix = np.column_stack([step * shrink[:, None], start * shrink - 0.5])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop: Any = cv2.warpAffine(
            part, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(PAD_GREY,) * 3
        )
        return crop  # type: ignore[no-any-return]

    @property
    def _axes(self) -> Matrix:
        """(2, 2): its directions across and down as columns, in the image."""
        angle = np.deg2rad(self.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin], [sin, cos]])


class CropBackbone:
    """The first blocks of the embedded detector, for crops of one side. Thread-safe."""

    def __init__(self, side: int) -> None:
        """Cut the blocks out of the embedded detector.

        Args:
            side: Of the crops, pixels; a multiple of 32.

        Raises:
            ModelBroken: The embedded detector has no such blocks.
        """
        import onnx
        import onnx.utils  # `onnx` alone does not have it
        import onnxruntime

        self.side, self.grid = side, side // STRIDE
        path = embedded_model()
        whole = onnx.load(path)
        del whole.graph.value_info[:]
        shape = whole.graph.input[0].type.tensor_type.shape
        for axis, size in ((0, 0), (2, side), (3, side)):
            if axis == 0:
                shape.dim[0].dim_param = "batch"
            else:
                shape.dim[axis].dim_value = size
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        try:
            extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(whole))
            part = extractor.extract_model([whole.graph.input[0].name], list(TAPS))
            self._session = onnxruntime.InferenceSession(part.SerializeToString(), options)
        except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
            raise ModelBroken(path=path, reason=f"its first blocks cannot be used: {error}") from error
        self._input = whole.graph.input[0].name
        self._limit = RunLimit()

    def features(self, crops: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
        """Return the feature maps of crops, each (side, side, 3) uint8 RGB: (n, grid * grid, CHANNELS) float16."""
        rows = [self._run(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, self.grid**2, CHANNELS), np.float16)

    def _run(self, crops: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
        batch = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32)
        maps = self._limit.run(self._session, list(TAPS), {self._input: batch})
        columns = []
        for level in maps:
            rows = np.ascontiguousarray(level.transpose(0, 2, 3, 1), np.float32)  # (n, h, w, channels)
            if rows.shape[1] != self.grid:
                interpolation = cv2.INTER_AREA if rows.shape[1] > self.grid else cv2.INTER_LINEAR
                size = (self.grid, self.grid)
                rows = np.stack([cv2.resize(row, size, interpolation=interpolation) for row in rows])
            columns.append(rows.reshape(len(rows), self.grid**2, -1))
        return np.concatenate(columns, axis=2).astype(np.float16)


_LOCK = threading.Lock()


@lru_cache(maxsize=4)
def _opened(side: int) -> CropBackbone:
    return CropBackbone(side)


def crop_backbone(side: int) -> CropBackbone:
    """The backbone for crops of a side, opened once per process.

    Raises:
        ModelBroken: The embedded detector has no such blocks.
    """
    with _LOCK:
        return _opened(side)
