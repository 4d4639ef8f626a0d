"""Outline to pixels and back, by pycocotools' rasteriser and along pixel edges."""

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.errors import TooLarge

MOST_PIXELS = 1 << 28
"""That are held at once: as many as Label Studio's brush may have."""

_STEPS = 5
"""Of the rasteriser's grid in a pixel (``rleFrPoly`` in pycocotools' ``maskApi.c``)."""


def rasterise(outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int) -> NDArray[np.bool_]:
    """The pixels of a ``width`` x ``height`` image that an outline covers, by the rule of COCO's own tools.

    Parts are joined and holes are left out. What lies outside the image is cut off.

    Returns:
        A boolean array of shape ``(height, width)``.

    Raises:
        TooLarge: More than `MOST_PIXELS`.
    """
    if width * height > MOST_PIXELS:
        raise TooLarge(width, height)
    whole = np.zeros((height, width), dtype=np.bool_)
    pixels, x, y = cover(outline, width, height)
    whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return whole


def cover(
    outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int
) -> tuple[NDArray[np.bool_], int, int]:
    """As `rasterise`, of the part of the image alone that the outline lies in: an image may be larger than memory.

    Returns:
        Its pixels, boolean, and the column and the row of its first pixel.

    Raises:
        TooLarge: The outline alone is around more than `MOST_PIXELS`.
    """
    none = np.zeros((0, 0), dtype=np.bool_), 0, 0
    if outline.is_empty:
        return none
    x_min, y_min, x_max, y_max = outline.bounds
    if x_min < 0 or y_min < 0 or x_max > width or y_max > height:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
        if outline.is_empty:
            return none
        x_min, y_min, x_max, y_max = outline.bounds
    # a pixel more at each side: the rasteriser treats the edge of its canvas as that of the image
    x, y = max(math.floor(x_min) - 1, 0), max(math.floor(y_min) - 1, 0)
    columns, rows = min(math.ceil(x_max) + 1, width) - x, min(math.ceil(y_max) + 1, height) - y
    if columns * rows > MOST_PIXELS:
        raise TooLarge(columns, rows)
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
    """COCO's compressed run lengths of a ``width`` x ``height`` image in which only these pixels are set.

    Args:
        pixels: What `cover` gave.
        x: The column of their first.
        y: The row of their first.
        width: The image's.
        height: The image's.

    Raises:
        TooLarge: pycocotools counts the pixels of an image in 32 bits.
    """
    if width * height >= 1 << 32:
        raise TooLarge(width, height)
    columns, rows = pixels.shape[1], pixels.shape[0]
    padded = np.zeros((columns, rows + 2), dtype=np.int8)
    padded[:, 1:-1] = pixels.T
    column, row = np.nonzero(np.diff(padded, axis=1))  # starts and ends in turn, column by column
    edges = (x + column) * height + y + row
    same = np.flatnonzero(edges[1:] == edges[:-1])  # a run to the foot of a column goes on at the head of the next
    edges = np.delete(edges, np.concatenate((same, same + 1)))
    counts = np.diff(edges, prepend=0, append=width * height)
    counts = counts if counts[-1] else counts[:-1]  # as pycocotools ends them
    found: bytes = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)["counts"]
    return found


def trace(pixels: NDArray[np.bool_]) -> shapely.Polygon | shapely.MultiPolygon:
    """The outline of a mask along its pixels' edges: the same area, with its parts and holes.

    Args:
        pixels: Boolean, of shape ``(height, width)``.
    """
    padded = np.zeros((pixels.shape[0], pixels.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = pixels
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    if not rows.size:
        return shapely.Polygon()
    # Runs that repeat in the next row become one taller box: fewer pieces to join.
    order = np.lexsort((rows, ends, starts))
    rows, starts, ends = rows[order], starts[order], ends[order]
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(starts) != 0) | (np.diff(ends) != 0)) + 1
    first = np.concatenate(([0], breaks))
    last = np.concatenate((breaks, [rows.size])) - 1
    boxes = shapely.box(starts[first], rows[first], ends[first], rows[last] + 1)
    return shapely.union_all(boxes)


def _fill(ring: shapely.LinearRing, x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    # The rasteriser begins by bringing points to a grid; done before they are moved, ties fall as on the whole image.
    grid = np.floor(_STEPS * shapely.get_coordinates(ring)[:-1] + 0.5)
    flat = (grid / _STEPS - (x, y)).ravel().tolist()
    if len(flat) < 6:
        return np.zeros((height, width), dtype=np.bool_)
    filled: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(coco.frPyObjects([flat], height, width)[0])) != 0
    return filled
