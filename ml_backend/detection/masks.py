"""Instance masks of detections, rendered on demand."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.detection.fit import Fit

# Longer side in pixels at which an outline is traced: finer steps come from the raster, not the object.
OUTLINE_SIDE = 256


class ObjectMask(Protocol):
    """The mask of one detection on its image."""

    def crop(
        self, side: int | None = None, *, enlarge: bool = False
    ) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float, float]]:
        """Render the mask.

        Args:
            side: Maximum longer side in pixels; None: the image's resolution.
            enlarge: Whether smaller masks are enlarged to `side`.

        Returns:
            The pixels (h, w) bool, and the region of the image that they cover: x_min, y_min, x_max, y_max in whole
            pixels.
        """

    def on_image(self, fit: Fit) -> "ObjectMask":
        """The same mask with the position of the image in the network's input; itself where it is on the image."""


@dataclass(frozen=True)
class Segment:
    """A mask as a weighted sum of planes shared by all masks of an image, cropped to its detection's box.

    Prototype masks (Bolya et al. 2019, https://arxiv.org/abs/1904.02689) are sums of planes; a full mask is one plane
    without weights. Pixels are computed on demand.

    Attributes:
        planes: (c, h, w) float32, stretched over the network's whole input; or (h, w) for a full mask.
        weights: (c,) float32; None for a full mask.
        threshold: Pixels above it belong to the mask.
        box: x_min, y_min, x_max, y_max in pixels of the network's input.
        size: (height, width) of the input in pixels.
        fit: Position of the image in the input; None before `Detections.to_image`.
    """

    planes: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None
    threshold: float
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    fit: Fit | None = None

    def crop(
        self, side: int | None = None, *, enlarge: bool = False
    ) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float, float]]:
        """Render the part of the mask inside the detection's box.

        Args:
            side: Maximum longer side in pixels; None: the image's resolution.
            enlarge: Whether smaller masks are enlarged to `side`.

        Returns:
            The pixels (h, w) bool, and the region of the image that they cover: x_min, y_min, x_max, y_max in whole
            pixels. Empty where the box lies outside the image.

        Raises:
            ValueError: `fit` is not set.
        """
        if self.fit is None:
            raise ValueError("a segment is in pixels of the input until Detections.to_image is applied")
        fit = self.fit
        low, high = fit.to_image_point(*self.box[:2]), fit.to_image_point(*self.box[2:])
        left, top = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
        right, bottom = min(fit.width, int(np.ceil(high[0]))), min(fit.height, int(np.ceil(high[1])))
        if right <= left or bottom <= top:
            return np.zeros((0, 0), np.bool_), (0.0, 0.0, 0.0, 0.0)
        scale = side / max(right - left, bottom - top) if side else 1.0
        scale = scale if enlarge else min(1.0, scale)
        width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        plane = self.planes if self.weights is None else np.tensordot(self.weights, self.planes, 1)
        rows, columns = plane.shape
        across, down = columns / self.size[1], rows / self.size[0]
        region = fit.to_input_point(left, top) + fit.to_input_point(right, bottom)
        part = (
            min(max(region[0] * across, 0), columns), min(max(region[1] * down, 0), rows),
            min(max(region[2] * across, 0), columns), min(max(region[3] * down, 0), rows),
        )  # fmt: skip
        if part[2] <= part[0] or part[3] <= part[1]:
            return np.zeros((0, 0), np.bool_), (0.0, 0.0, 0.0, 0.0)
        image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
        drawn = image.resize((width, height), Image.Resampling.BILINEAR, box=part)
        return np.asarray(drawn) > self.threshold, (left, top, right, bottom)

    def on_image(self, fit: Fit) -> "Segment":
        """The same mask with the position of the image in the input."""
        return replace(self, fit=fit)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Render the mask on the whole image: (height, width) bool."""
        pixels, (left, top, right, bottom) = self.crop()
        assert self.fit is not None
        whole = np.zeros((self.fit.height, self.fit.width), np.bool_)
        if pixels.size:
            whole[int(top) : int(bottom), int(left) : int(right)] = pixels
        return whole
