"""Shapes of a mask: an editable polygon, the ellipse of its moments, and its smallest rotated box.

Each function takes the mask as pixels that cover a region of an image, at any resolution.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.geometry.shapes import Bounds, Ellipse, Polygon, Rectangle

# Tolerances of the polygon, coarse to fine, as shares of the square root of the outline's area. The first one whose
# polygon has an IoU of at least MIN_POLYGON_IOU with the outline is taken: annotators move vertices one by one.
TOLERANCES = (0.06, 0.05, 0.04, 0.03, 0.022, 0.016, 0.011, 0.007)
MIN_POLYGON_IOU = 0.96

# Pixels of a mask from which its moments are an ellipse.
MIN_ELLIPSE_PIXELS = 5


def outline_polygon(pixels: NDArray[np.bool_], bounds: Bounds, *, min_iou: float = MIN_POLYGON_IOU) -> Polygon | None:
    """The outer ring of the mask's largest part with few vertices; None without pixels.

    Simplified by Douglas-Peucker with the largest of `TOLERANCES` that keeps `min_iou`.

    Args:
        pixels: (h, w) bool.
        bounds: Region of the image that `pixels` cover: x_min, y_min, x_max, y_max in pixels of the image.
        min_iou: Minimum IoU of the polygon with the ring.
    """
    import cv2
    import shapely

    ring = _largest_ring(pixels)
    if ring is None:
        return None
    low, high = ring.min(axis=0), ring.max(axis=0)
    size = (high - low + 1).tolist()
    canvas: Any = np.zeros((size[1], size[0]), np.uint8)
    filled = cv2.drawContours(canvas, [ring - low], -1, 1, cv2.FILLED).astype(np.bool_)
    scale = math.sqrt(float(filled.sum()))
    simple = ring
    for tolerance in TOLERANCES:
        simple = cv2.approxPolyDP(ring, max(0.75, tolerance * scale), closed=True)[:, 0]  # type: ignore[assignment]
        if len(simple) < 3:
            continue
        drawn = cv2.fillPoly(np.zeros_like(canvas), [simple - low], 1).astype(np.bool_)
        union = int((drawn | filled).sum())
        if int((drawn & filled).sum()) >= min_iou * union and shapely.Polygon(simple).is_valid:
            break
    if len(simple) < 3 or not shapely.Polygon(simple).is_valid:  # a few pixels, or a line
        simple = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
    # The ring runs through the centres of pixels: scale it to their edges.
    spread = (high - low).astype(float)
    points = np.where(spread > 0, (simple - low) * (spread + 1) / np.maximum(spread, 1), (simple > low) * 1.0)
    if (spread == 0).any():  # one row or column of pixels
        points = np.array([(0, 0), (size[0], 0), (size[0], size[1]), (0, size[1])], float)
    vertices = (points + low) * _scale(pixels, bounds) + bounds[:2]
    return Polygon(tuple((float(x), float(y)) for x, y in vertices.round(2).tolist()))


def moment_ellipse(pixels: NDArray[np.bool_], bounds: Bounds) -> Ellipse | None:
    """The ellipse with the mask's second moments, rotation in [0, 180) degrees; None with fewer than five pixels.

    Args:
        pixels: (h, w) bool.
        bounds: As in `outline_polygon`.
    """
    import cv2

    moments: Any = cv2.moments(pixels.astype(np.uint8), binaryImage=True)
    area = moments["m00"]
    if area < MIN_ELLIPSE_PIXELS:
        return None
    scale = _scale(pixels, bounds)
    centre = (np.array([moments["m10"], moments["m01"]]) / area + 0.5) * scale + bounds[:2]
    covariance = np.array([[moments["mu20"], moments["mu11"]], [moments["mu11"], moments["mu02"]]]) / area
    # The variance of a filled ellipse along an axis is a quarter of the squared radius.
    values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
    radii = 2 * np.sqrt(np.maximum(values, 0.25))
    angle = float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))) % 180
    return Ellipse(float(centre[0]), float(centre[1]), float(radii[1]), float(radii[0]), angle)


def smallest_rotated_box(pixels: NDArray[np.bool_], bounds: Bounds) -> Rectangle | None:
    """The rotated box of the smallest area around the mask's pixels; None without pixels.

    The rotation is the smaller one of both sides, in (-45, 45] degrees modulo 360.

    Args:
        pixels: (h, w) bool.
        bounds: As in `outline_polygon`.
    """
    import cv2

    rows = np.flatnonzero(pixels.any(axis=1))
    if not rows.size:
        return None
    first, last = pixels[rows].argmax(axis=1), pixels.shape[1] - pixels[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack((side, rows + down)) for side in (first, last) for down in (0, 1)])
    points = (ends * _scale(pixels, bounds) + bounds[:2]).astype(np.float32)
    (cx, cy), (width, height), angle = cv2.minAreaRect(points)
    angle = (angle + 45) % 180 - 45
    if angle > 45:
        angle, width, height = angle - 90, height, width
    radians = math.radians(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    x = cx - cos * width / 2 + sin * height / 2
    y = cy - sin * width / 2 - cos * height / 2
    return Rectangle(round(x, 2), round(y, 2), round(width, 2), round(height, 2), round(angle % 360, 3) % 360)


def _largest_ring(pixels: NDArray[np.bool_]) -> NDArray[np.int32] | None:
    """Pixel centres (n, 2) int32 along the outer ring of the largest part."""
    import cv2

    rings = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    if not rings:
        return None
    largest = max(rings, key=lambda ring: (cv2.contourArea(ring), len(ring)))
    return np.asarray(largest[:, 0], np.int32)


def _scale(pixels: NDArray[np.bool_], bounds: Bounds) -> NDArray[np.float64]:
    """(2,): pixels of the image per pixel of the mask, across and down."""
    return np.array([(bounds[2] - bounds[0]) / pixels.shape[1], (bounds[3] - bounds[1]) / pixels.shape[0]])
