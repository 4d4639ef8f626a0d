"""Outline to pixels and back, by pycocotools' rasteriser and along pixel edges."""

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco


def rasterise(outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int) -> NDArray[np.bool_]:
    """The pixels of a ``width`` x ``height`` image that an outline covers, by the rule of COCO's own tools.

    Parts are joined and holes are left out. What lies outside the image is cut off.

    Returns:
        A boolean array of shape ``(height, width)``.
    """
    pixels = np.zeros((height, width), dtype=np.bool_)
    if outline.is_empty:
        return pixels
    x_min, y_min, x_max, y_max = outline.bounds
    if x_min < 0 or y_min < 0 or x_max > width or y_max > height:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
    for part in shapely.get_parts(outline):
        if part.geom_type != "Polygon" or part.is_empty:
            continue
        covered = _fill(part.exterior, width, height)
        for hole in part.interiors:
            covered &= ~_fill(hole, width, height)
        pixels |= covered
    return pixels


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


def _fill(ring: shapely.LinearRing, width: int, height: int) -> NDArray[np.bool_]:
    flat = shapely.get_coordinates(ring)[:-1].ravel().tolist()
    if len(flat) < 6:
        return np.zeros((height, width), dtype=np.bool_)
    filled: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(coco.frPyObjects([flat], height, width)[0])) != 0
    return filled
