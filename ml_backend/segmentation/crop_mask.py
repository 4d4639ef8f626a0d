"""Instance masks of the segmenters, and their conversion to boxes, polygons, ellipses and brush masks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.mask_shapes import moment_ellipse, outline_polygon
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from ml_backend.detection.masks import OUTLINE_SIDE

# Image pixels that are processed at once.
BAND_PIXELS = 1_000_000


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """The mask of an object.

    Attributes:
        level: (h, w) float32 in [-1, 1], positive inside the object; smooth, so that it can be enlarged.
        bounds: The region of the image that it covers: x_min, y_min, x_max, y_max, whole pixels.
        score: Confidence in [0, 1].
    """

    level: npt.NDArray[np.float32]
    bounds: tuple[int, int, int, int]
    score: float

    def scaled(self, across: float, down: float) -> "InstanceMask":
        """Scale to an image of `across` times the width and `down` times the height."""
        left, top, right, bottom = self.bounds
        x_min, y_min = round(left * across), round(top * down)
        x_max, y_max = max(x_min + 1, round(right * across)), max(y_min + 1, round(bottom * down))
        return InstanceMask(self.level, (x_min, y_min, x_max, y_max), self.score)

    def pixels(self, side: int | None = None, *, enlarge: bool = False) -> npt.NDArray[np.bool_]:
        """Render the mask within `bounds`.

        Args:
            side: Maximum longer side in pixels; None: the image's resolution.
            enlarge: Whether smaller masks are enlarged to `side`.

        Returns:
            (rows, columns) bool.
        """
        left, top, right, bottom = self.bounds
        width, height = right - left, bottom - top
        scale = side / max(width, height) if side else 1.0
        scale = scale if enlarge else min(1.0, scale)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        mask: npt.NDArray[np.bool_] = cv2.resize(self.level, size, interpolation=cv2.INTER_LINEAR) > 0
        return mask

    def mask(self, width: int, height: int) -> Mask:
        """Render on the whole image.

        Args:
            width: Of the image, pixels.
            height: Of the image, pixels.
        """
        left, top, right, bottom = self.bounds
        whole = np.zeros((height, width), np.bool_)
        part = whole[top:bottom, left:right]
        for first, rows in self._bands():
            part[first : first + len(rows)] = rows[: len(part) - first, : part.shape[1]]
        return Mask.from_array(whole)

    def _bands(self) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        """Yield (first row, rows) of `pixels()` in bands: a large image at once takes 500 MB."""
        left, top, right, bottom = self.bounds
        width, height, rows = right - left, bottom - top, len(self.level)
        wide = cv2.resize(self.level, (width, rows), interpolation=cv2.INTER_LINEAR)
        at = (np.arange(height, dtype=np.float32) + 0.5) * (rows / height) - 0.5
        above = np.clip(np.floor(at).astype(int), 0, rows - 1)
        share = np.clip(at - above, 0, 1)[:, None]
        step = max(1, BAND_PIXELS // width)
        for first in range(0, height, step):
            band = slice(first, first + step)
            upper, lower = wide[above[band]], wide[np.minimum(above[band] + 1, rows - 1)]
            yield first, upper + (lower - upper) * share[band] > 0

    def box(self, rotation: float = 0.0) -> Rectangle:
        """The tightest box, rotated clockwise by `rotation` degrees; of zero size without pixels."""
        left, top, right, bottom = self.bounds
        bands = [(0, self.pixels(OUTLINE_SIDE))] if rotation else self._bands()
        rows, columns = _row_ends(bands)
        if not rows.size:
            return Rectangle(left, top, 0.0, 0.0, rotation)
        shrink = min(1.0, OUTLINE_SIDE / max(right - left, bottom - top)) if rotation else 1.0
        size = max(1, round((right - left) * shrink)), max(1, round((bottom - top) * shrink))
        scale = np.array([(right - left) / size[0], (bottom - top) / size[1]])
        corners = np.concatenate([np.column_stack((columns + x, rows + y)) for x in (0, 1) for y in (0, 1)])
        points = corners * scale + [left, top]
        angle = np.deg2rad(rotation)
        axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        along = points @ axes.T
        low, high = along.min(0), along.max(0)
        x, y = low @ axes
        across, down = (high - low).tolist()
        return Rectangle(round(float(x), 2), round(float(y), 2), round(across, 2), round(down, 2), rotation)

    def crop(
        self, side: int | None = None, *, enlarge: bool = False
    ) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float, float]]:
        """Render the mask within `bounds`; see `ml_backend.detection.masks.ObjectMask`."""
        return self.pixels(side, enlarge=enlarge), self.bounds

    def on_image(self, fit: Any) -> "InstanceMask":
        """The mask itself: it is on the image."""
        del fit
        return self

    def polygon(self) -> Polygon | None:
        """The outer ring of the largest part with few vertices; None without pixels."""
        return outline_polygon(*self.crop(OUTLINE_SIDE, enlarge=True))

    def ellipse(self) -> Ellipse | None:
        """The ellipse with the pixels' second moments; None with fewer than five pixels."""
        return moment_ellipse(*self.crop(OUTLINE_SIDE))


def _row_ends(bands: Iterable[tuple[int, npt.NDArray[np.bool_]]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows and columns of the first and last pixel of each row; the pixels between cannot enlarge a box."""
    rows: list[npt.NDArray[Any]] = [np.empty(0, int)]
    columns: list[npt.NDArray[Any]] = [np.empty(0, int)]
    for first, pixels in bands:
        filled = np.flatnonzero(pixels.any(axis=1))
        if filled.size:
            rows += [filled + first, filled + first]
            columns += [pixels[filled].argmax(axis=1), pixels.shape[1] - 1 - pixels[filled, ::-1].argmax(axis=1)]
    return np.concatenate(rows), np.concatenate(columns)
