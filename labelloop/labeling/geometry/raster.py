"""Rasterise outlines with pycocotools, and trace masks along pixel edges."""

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.errors import MaskTooLarge

# Pixels in memory at once: the maximum of Label Studio's brush.
MAX_PIXELS = 1 << 28

# Grid steps per pixel of the rasteriser (``rleFrPoly`` in pycocotools' ``maskApi.c``).
_GRID_STEPS = 5


def rasterise(outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int) -> NDArray[np.bool_]:
    """The pixels of a ``width`` x ``height`` image that an outline covers, by the rule of pycocotools.

    Parts are merged, holes left out, and the outline is clipped to the image.

    Returns:
        A boolean array of shape ``(height, width)``.

    Raises:
        MaskTooLarge: More than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise MaskTooLarge(width, height)
    mask = np.zeros((height, width), dtype=np.bool_)
    pixels, x, y = rasterise_crop(outline, width, height)
    mask[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return mask


def rasterise_crop(
    outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int
) -> tuple[NDArray[np.bool_], int, int]:
    """Like `rasterise`, but only the part of the image around the outline: an image may be larger than memory.

    Returns:
        The pixels, boolean, and the column and row of the first one.

    Raises:
        MaskTooLarge: The bounds of the outline have more than `MAX_PIXELS`.
    """
    empty = np.zeros((0, 0), dtype=np.bool_), 0, 0
    if outline.is_empty:
        return empty
    x_min, y_min, x_max, y_max = outline.bounds
    if x_min < 0 or y_min < 0 or x_max > width or y_max > height:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
        if outline.is_empty:
            return empty
        x_min, y_min, x_max, y_max = outline.bounds
    # one pixel of margin: the rasteriser clips at the edge of its canvas
    x, y = max(math.floor(x_min) - 1, 0), max(math.floor(y_min) - 1, 0)
    columns, rows = min(math.ceil(x_max) + 1, width) - x, min(math.ceil(y_max) + 1, height) - y
    if columns * rows > MAX_PIXELS:
        raise MaskTooLarge(columns, rows)
    pixels = np.zeros((rows, columns), dtype=np.bool_)
    for part in shapely.get_parts(outline):
        if part.geom_type != "Polygon" or part.is_empty:
            continue
        covered = _fill(part.exterior, x, y, columns, rows)
        for hole in part.interiors:
            covered &= ~_fill(hole, x, y, columns, rows)
        pixels |= covered
    return pixels, x, y


def run_lengths(pixels: NDArray[np.bool_], x: int, y: int, width: int, height: int) -> bytes:
    """COCO's compressed RLE of a ``width`` x ``height`` mask in which only these pixels are set.

    Args:
        pixels: The pixels of `rasterise_crop`.
        x: The column of the first pixel.
        y: The row of the first pixel.
        width: The image's width in pixels.
        height: The image's height in pixels.

    Raises:
        MaskTooLarge: The image has 2^32 pixels or more, the limit of pycocotools.
    """
    if width * height >= 1 << 32:
        raise MaskTooLarge(width, height)
    columns, rows = pixels.shape[1], pixels.shape[0]
    padded = np.zeros((columns, rows + 2), dtype=np.int8)
    padded[:, 1:-1] = pixels.T
    column, row = np.nonzero(np.diff(padded, axis=1))  # alternating starts and ends, column by column
    edges = (x + column) * height + y + row
    # Merge a run at the bottom of a column with one at the top of the next.
    same = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate((same, same + 1)))
    counts = np.diff(edges, prepend=0, append=width * height)
    counts = counts if counts[-1] else counts[:-1]  # as pycocotools does
    encoded: bytes = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)["counts"]
    return encoded


def trace(pixels: NDArray[np.bool_], x: int = 0, y: int = 0) -> shapely.Polygon | shapely.MultiPolygon:
    """The outline of a mask along its pixel edges, with the same area, parts and holes.

    Args:
        pixels: Boolean, of shape ``(height, width)``.
        x: The column of the first pixel.
        y: The row of the first pixel.
    """
    padded = np.zeros((pixels.shape[0], pixels.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = pixels
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    if not rows.size:
        return shapely.Polygon()
    # Equal runs in consecutive rows become one box: fewer boxes to merge.
    order = np.lexsort((rows, ends, starts))
    rows, starts, ends = rows[order], starts[order], ends[order]
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(starts) != 0) | (np.diff(ends) != 0)) + 1
    first = np.concatenate(([0], breaks))
    last = np.concatenate((breaks, [rows.size])) - 1
    boxes = shapely.box(starts[first] + x, rows[first] + y, ends[first] + x, rows[last] + 1 + y)
    return shapely.union_all(boxes)


def _fill(ring: shapely.LinearRing, x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    # The rasteriser rounds points to a grid. Rounding before the shift gives the same ties as on the whole image.
    grid = np.floor(_GRID_STEPS * shapely.get_coordinates(ring)[:-1] + 0.5)
    flat = (grid / _GRID_STEPS - (x, y)).ravel().tolist()
    if len(flat) < 6:
        return np.zeros((height, width), dtype=np.bool_)
    filled: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(coco.frPyObjects([flat], height, width)[0])) != 0
    return filled
