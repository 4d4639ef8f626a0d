"""Owns `Segment`: the mask of one detection, kept as a model gives it and drawn only where a control wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from ml_backend.detection.preprocess import Fit

MOST_OUTLINE_SIDE = 512
"""Pixels of the longer side at which an outline is traced: models give masks of 160 pixels a side or less."""


@dataclass(frozen=True)
class Segment:
    """A mask as a weighted sum of planes that all masks of a photo share, cut off at the box of its detection.

    Prototype masks (Bolya et al. 2019, https://arxiv.org/abs/1904.02689) are sums of planes; a model that gives whole
    masks has one plane a mask and no weights. Nothing is computed before it is asked for.

    Attributes:
        planes: (c, h, w) float32, stretched over the network's whole input; or (h, w) where the mask is a plane.
        weights: (c,) float32; None where the mask is a plane.
        threshold: A pixel belongs to the mask above it.
        box: x_min, y_min, x_max, y_max in pixels of the network's input.
        size: (height, width) of the input in pixels.
        fit: How the photo lies in the input; None before `Fit.to_photo`.
    """

    planes: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None
    threshold: float
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    fit: Fit | None = None

    def crop(self, most_side: int | None = None) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float, float]]:
        """The part of the mask inside the detection's box.

        Args:
            most_side: Pixels of the longer side at most; None: the photo's own.

        Returns:
            The pixels (h, w), and the part of the photo that they lie over: x_min, y_min, x_max, y_max in its pixels,
            whole numbers. Empty where the box lies outside the photo.

        Raises:
            ValueError: Nobody said how the photo lies in the input.
        """
        if self.fit is None:
            raise ValueError("a segment is in pixels of the input until Fit.to_photo has been applied")
        fit = self.fit
        low, high = fit.point(*self.box[:2]), fit.point(*self.box[2:])
        left, top = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
        right, bottom = min(fit.width, int(np.ceil(high[0]))), min(fit.height, int(np.ceil(high[1])))
        if right <= left or bottom <= top:
            return np.zeros((0, 0), np.bool_), (0.0, 0.0, 0.0, 0.0)
        shrink = min(1.0, most_side / max(right - left, bottom - top)) if most_side else 1.0
        width, height = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
        plane = self.planes if self.weights is None else np.tensordot(self.weights, self.planes, 1)
        rows, columns = plane.shape
        across, down = columns / self.size[1], rows / self.size[0]
        seen = fit.place(left, top) + fit.place(right, bottom)
        part = (
            min(max(seen[0] * across, 0), columns), min(max(seen[1] * down, 0), rows),
            min(max(seen[2] * across, 0), columns), min(max(seen[3] * down, 0), rows),
        )  # fmt: skip
        if part[2] <= part[0] or part[3] <= part[1]:
            return np.zeros((0, 0), np.bool_), (0.0, 0.0, 0.0, 0.0)
        image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
        drawn = image.resize((width, height), Image.Resampling.BILINEAR, box=part)
        return np.asarray(drawn) > self.threshold, (left, top, right, bottom)

    def mask(self) -> npt.NDArray[np.bool_]:
        """The mask on the whole photo, (height, width)."""
        pixels, (left, top, right, bottom) = self.crop()
        assert self.fit is not None
        whole = np.zeros((self.fit.height, self.fit.width), np.bool_)
        if pixels.size:
            whole[int(top) : int(bottom), int(left) : int(right)] = pixels
        return whole

    def outline(self) -> tuple[tuple[float, float], ...]:
        """The largest part's outer edge in pixels of the photo, with as few points as show it; empty without pixels."""
        import shapely

        from labelloop.labeling.geometry.raster import trace

        pixels, (left, top, right, bottom) = self.crop(MOST_OUTLINE_SIDE)
        parts = (
            [part for part in shapely.get_parts(trace(pixels)) if part.geom_type == "Polygon"] if pixels.any() else []
        )
        if not parts:
            return ()
        largest = max(parts, key=lambda part: shapely.Polygon(part.exterior).area)
        # Half a pixel's stairs are the raster's, not the object's; more than 1 % of its size would be.
        tolerance = max(0.75, 0.005 * max(pixels.shape))
        ring = shapely.Polygon(largest.exterior).simplify(tolerance).exterior
        points = shapely.get_coordinates(ring)[:-1]
        scale = np.array([(right - left) / pixels.shape[1], (bottom - top) / pixels.shape[0]])
        placed = points * scale + [left, top]
        return tuple((float(x), float(y)) for x, y in placed) if len(placed) >= 3 else ()
