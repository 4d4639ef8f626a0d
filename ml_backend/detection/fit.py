"""Position of an image in a network's input, and the mapping of boxes and points between both."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fit:
    """Position of an image in a network's input, to map boxes back.

    Attributes:
        scale_x: Input pixels per image pixel, horizontally.
        scale_y: Input pixels per image pixel, vertically.
        left: Input pixels left of the image.
        top: Input pixels above the image.
        width: Of the original image, pixels.
        height: Of the original image, pixels.
        origin: x, y in pixels of the original image where the shown region starts; 0, 0 without slicing.
    """

    scale_x: float
    scale_y: float
    left: int
    top: int
    width: int
    height: int
    origin: tuple[int, int] = (0, 0)

    def to_image_point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the input to pixels of the original image."""
        return (x - self.left) / self.scale_x + self.origin[0], (y - self.top) / self.scale_y + self.origin[1]

    def to_input_point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the original image to pixels of the input."""
        return (x - self.origin[0]) * self.scale_x + self.left, (y - self.origin[1]) * self.scale_y + self.top

    def keypoints(self, keypoints: FloatArray) -> FloatArray:
        """Map keypoints (n, k, 3) of the input to pixels of the original image; confidences stay."""
        shift = np.array([self.left, self.top], np.float32)
        scale = np.array([self.scale_x, self.scale_y], np.float32)
        points = (keypoints[..., :2] - shift) / scale + np.array(self.origin, np.float32)
        return np.asarray(np.concatenate([points, keypoints[..., 2:]], axis=-1), np.float32)

    def boxes(self, boxes: FloatArray) -> FloatArray:
        """Map boxes (n, 4) of the input to pixels of the original image, clipped to it."""
        shift = np.array([self.left, self.top], np.float32)
        scale = np.array([self.scale_x, self.scale_y], np.float32)
        origin = np.array(self.origin, np.float32)
        mapped = (boxes - np.tile(shift, 2)) / np.tile(scale, 2) + np.tile(origin, 2)
        return self.clip(mapped.astype(np.float32))

    def clip(self, boxes: FloatArray) -> FloatArray:
        """Clip boxes (n, 4) to the original image."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        return np.clip(boxes, 0, limit).astype(np.float32)

    def rotated_boxes(self, rotated: FloatArray) -> FloatArray:
        """Map rotated boxes (n, 5) of the input to pixels of the original image.

        Where the aspect ratio is kept, the two scales differ only by rounding.
        """
        cos, sin = np.cos(rotated[:, 4]), np.sin(rotated[:, 4])
        x, y = self.to_image_point(rotated[:, 0], rotated[:, 1])  # type: ignore[arg-type]
        width = rotated[:, 2] * np.hypot(cos / self.scale_x, sin / self.scale_y)
        height = rotated[:, 3] * np.hypot(sin / self.scale_x, cos / self.scale_y)
        angle = np.arctan2(sin / self.scale_y, cos / self.scale_x)
        return np.stack([x, y, width, height, angle], axis=1).astype(np.float32)
