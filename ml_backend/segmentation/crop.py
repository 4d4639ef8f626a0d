"""Crop the surroundings of a box as a square, and map results back to the image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Rectangle

# Side of the crop in boxes: the surroundings show the background.
CONTEXT = 1.4

# Grey value beyond the image's edge.
PAD_GREY = 114

# Longer side in pixels of a level mapped to the image: it is smooth, and enlarged later.
MAX_LEVEL_SIDE = 160

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BoxCrop:
    """A box, upright or rotated, with its surroundings stretched to a square.

    Attributes:
        box: In pixels of the image.
        width: Of the image, pixels.
        height: Of the image, pixels.
    """

    box: Rectangle
    width: int
    height: int

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Covered region of the image: x_min, y_min, x_max, y_max, whole pixels; empty for a crop outside of it."""
        corners = self.to_image_matrix() @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]], float)
        (left, top), (right, bottom) = np.floor(corners[:2].min(1)), np.ceil(corners[:2].max(1))
        return max(0, int(left)), max(0, int(top)), min(self.width, int(right)), min(self.height, int(bottom))

    def to_image_matrix(self) -> npt.NDArray[np.float64]:
        """Affine matrix (3, 3) float64 from crop coordinates to image pixels."""
        angle = np.deg2rad(self.box.rotation)
        across, down = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        centre = np.array([self.box.x, self.box.y]) + across * self.box.width / 2 + down * self.box.height / 2
        across, down = across * max(self.box.width, 2.0) * CONTEXT, down * max(self.box.height, 2.0) * CONTEXT
        corner = centre - (across + down) / 2
        return np.array([[across[0], down[0], corner[0]], [across[1], down[1], corner[1]], [0, 0, 1]])

    def render(self, image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
        """Render the crop: (side, side, 3) uint8.

        Args:
            image: (height, width, 3) uint8 RGB.
            side: Pixels.
        """
        import cv2

        left, top, right, bottom = self.bounds
        part = image[top:bottom, left:right]
        frame = self.to_image_matrix()
        steps = np.linalg.norm(frame[:2, :2], axis=0) / side  # image pixels per crop pixel
        if self.box.rotation:
            steps = np.full(2, steps.min())
        shrink = np.maximum(1.0, steps)
        small = (max(1, round((right - left) / shrink[0])), max(1, round((bottom - top) / shrink[1])))
        if (steps > 1.5).any():  # else bilinear sampling would skip pixels
            part = cv2.resize(part, small, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        scale = np.array([part.shape[1] / (right - left), part.shape[0] / (bottom - top), 1.0])
        matrix = np.diag(scale) @ _translation(-left, -top) @ frame @ np.diag([1 / side, 1 / side, 1.0])
        crop: Any = cv2.warpAffine(
            part,
            _opencv_matrix(matrix)[:2],
            (side, side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(PAD_GREY, PAD_GREY, PAD_GREY),
        )
        return crop  # type: ignore[no-any-return]

    def to_image(self, level: Floats) -> Floats:
        """Map a level (h, w) float32 of the crop to the region `bounds` of the image; -1 outside the crop."""
        import cv2

        left, top, right, bottom = self.bounds
        shrink = min(1.0, MAX_LEVEL_SIDE / max(right - left, bottom - top))
        columns, rows = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
        onto = _translation(left, top) @ np.diag([(right - left) / columns, (bottom - top) / rows, 1.0])
        matrix = np.diag([level.shape[1], level.shape[0], 1.0]) @ np.linalg.inv(self.to_image_matrix()) @ onto
        mapped: Any = cv2.warpAffine(
            level,
            _opencv_matrix(matrix)[:2],
            (columns, rows),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=-1,
        )
        return mapped  # type: ignore[no-any-return]

    def to_crop(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the image to crop coordinates: 0 to 1 from left to right and from top to bottom."""
        across, down, _ = np.linalg.inv(self.to_image_matrix()) @ [x, y, 1.0]
        return float(across), float(down)


def _translation(x: float, y: float) -> npt.NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _opencv_matrix(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert a matrix to OpenCV's convention, where pixel centres are integers instead of halves."""
    return _translation(-0.5, -0.5) @ matrix @ _translation(0.5, 0.5)
