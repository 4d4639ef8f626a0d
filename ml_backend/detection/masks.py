"""Instance masks of detections, rendered on demand."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.detection.fit import Fit

# Longer side in pixels at which an outline is traced; models output masks of 160 pixels per side or less.
MAX_OUTLINE_SIDE = 512


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

    def crop(self, max_side: int | None = None) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float, float]]:
        """Render the part of the mask inside the detection's box.

        Args:
            max_side: Maximum longer side in pixels; None: the image's resolution.

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
        shrink = min(1.0, max_side / max(right - left, bottom - top)) if max_side else 1.0
        width, height = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
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

    def mask(self) -> npt.NDArray[np.bool_]:
        """Render the mask on the whole image: (height, width) bool."""
        pixels, (left, top, right, bottom) = self.crop()
        assert self.fit is not None
        whole = np.zeros((self.fit.height, self.fit.width), np.bool_)
        if pixels.size:
            whole[int(top) : int(bottom), int(left) : int(right)] = pixels
        return whole

    def outline(self) -> tuple[tuple[float, float], ...]:
        """Trace the largest part's outer ring, simplified, in pixels of the image; empty without pixels."""
        import shapely

        from labelloop.labeling.geometry.raster import trace

        pixels, (left, top, right, bottom) = self.crop(MAX_OUTLINE_SIDE)
        parts = (
            [part for part in shapely.get_parts(trace(pixels)) if part.geom_type == "Polygon"] if pixels.any() else []
        )
        if not parts:
            return ()
        largest = max(parts, key=lambda part: shapely.Polygon(part.exterior).area)
        # Removes the raster's staircase (half a pixel), and keeps detail above about 1 % of the size.
        tolerance = max(0.75, 0.005 * max(pixels.shape))
        ring = shapely.Polygon(largest.exterior).simplify(tolerance).exterior
        points = shapely.get_coordinates(ring)[:-1]
        scale = np.array([(right - left) / pixels.shape[1], (bottom - top) / pixels.shape[0]])
        vertices = points * scale + [left, top]
        return tuple((float(x), float(y)) for x, y in vertices) if len(vertices) >= 3 else ()
