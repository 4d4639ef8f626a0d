"""Masks of objects in training data, as short texts: the crop of the object's box in COCO's compressed RLE.

A text is `"<rows> <columns> <counts>"`, with the counts of pycocotools (column-major). Crops are reduced to `MAX_SIDE`
pixels, because a column of the store holds the masks of all boxes of a task.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from pycocotools import mask as coco

from labelloop.labeling.geometry.raster import rasterise
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, Mask, Polygon, Vector

Bools = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]

# Longer side in pixels of an encoded mask.
MAX_SIDE = 128

# Maximum length of a text in characters; frayed masks that exceed it are reduced further. Smooth ones take 100 to 400.
MAX_TEXT = 4096


def crop_bounds(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Region of the image that the mask of a box covers: x_min, y_min, x_max, y_max, whole pixels.

    Args:
        box: x_min, y_min, x_max, y_max, pixels.
        width: Of the image, pixels.
        height: Of the image, pixels.

    Returns:
        The box rounded outwards and clipped to the image; without area for a box outside of it.
    """
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    return left, top, max(left, min(width, math.ceil(box[2]))), max(top, min(height, math.ceil(box[3])))


def encode_mask(mask: Bools) -> str:
    """Encode the mask of a box's crop; "" for a mask without pixels.

    Args:
        mask: (rows, columns) bool, the crop `crop_bounds` of the image.
    """
    if not mask.any():
        return ""
    side = MAX_SIDE
    while True:
        text = _encode(_reduce(mask, side))
        if len(text) <= MAX_TEXT or side <= 16:
            return text
        side //= 2


def decode_mask(text: str, rows: int = 0, columns: int = 0) -> Bools:
    """Decode a mask of a box's crop.

    Args:
        text: Of `encode_mask`.
        rows: Rows of the crop; 0: as encoded.
        columns: Columns of the crop; 0: as encoded.

    Returns:
        (rows, columns) bool, empty for "".

    Raises:
        ValueError: The text is not of this form.
    """
    import cv2

    if not text:
        return np.zeros((rows, columns), np.bool_)
    high, wide, counts = text.split(" ")
    height, width = int(high), int(wide)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ValueError(f"a mask of {height} x {width} pixels: at most {MAX_SIDE} are encoded")
    pixels: Any = coco.decode({"size": [height, width], "counts": counts.encode("ascii")})
    if not rows or not columns or (rows, columns) == (height, width):
        return np.asarray(pixels != 0, np.bool_, order="C")
    smooth = cv2.resize(np.ascontiguousarray(pixels, np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(smooth >= 0.5)


def encode_geometry(geometry: Geometry, box: Box, width: int, height: int) -> str:
    """Encode the pixels that a shape covers in its box; "" for shapes that say nothing about the object's pixels.

    Outlines are drawn at the encoded resolution, so the cost does not depend on the image's size.

    Args:
        geometry: A polygon, mask, ellipse or closed vector; other shapes are no masks.
        box: Its box as kept in the training data.
        width: Of the image, pixels.
        height: Of the image, pixels.
    """
    left, top, right, bottom = crop_bounds(box, width, height)
    columns, rows = right - left, bottom - top
    if columns < 1 or rows < 1:
        return ""
    if isinstance(geometry, Mask):
        return encode_mask(geometry.array()[top:bottom, left:right])
    if not isinstance(geometry, (Polygon, Ellipse, Vector)):
        return ""
    outline = geometry.polygon()
    if outline.is_empty:
        return ""
    size = _size(rows, columns, MAX_SIDE)
    scale = np.array([size[1] / columns, size[0] / rows])
    return encode_mask(
        rasterise(shapely.transform(outline, lambda points: (points - [left, top]) * scale), size[1], size[0])
    )


def _encode(mask: Bools) -> str:
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return f"{mask.shape[0]} {mask.shape[1]} {encoded['counts'].decode('ascii')}"


def _reduce(mask: Bools, side: int) -> Bools:
    """Reduce a mask to `side` pixels at most, by majority; its largest value where no pixel keeps one."""
    import cv2

    size = _size(mask.shape[0], mask.shape[1], side)
    if size == mask.shape:
        return mask
    share = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(share >= min(0.5, float(share.max())))


def _size(rows: int, columns: int, side: int) -> tuple[int, int]:
    shrink = min(1.0, side / max(rows, columns))
    return max(1, round(rows * shrink)), max(1, round(columns * shrink))
