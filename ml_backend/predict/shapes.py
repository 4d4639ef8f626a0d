"""Owns SHAPES: which shapes of Label Studio a model's detections can become, and how each is drawn. The one table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Mask, Polygon, Rectangle
from ml_backend.detection.detections import Detections, corners_of

POINT_WIDTH = 0.0075
"""Diameter that a keypoint is drawn with, as a share of the photo's width."""

SURE_POINT = 0.5
"""A keypoint that the model is less sure of is hidden or outside the photo, and is not drawn."""


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        native: What a model must give for the shape to say all that the model saw.
        derived: What it can be drawn from at a loss; used only where no other control shows the class.
        draw: The shape of one detection, in pixels of the photo; None where nothing of it is left.
    """

    native: frozenset[str]
    derived: frozenset[str]
    draw: Callable[[Detections, int, int, int], Geometry | None]


def _rectangle(found: Detections, index: int, width: int, height: int) -> Geometry:
    del width, height
    if found.turned is not None:
        _, _, across, down, angle = (float(value) for value in found.turned[index])
        x, y = corners_of(found.turned[index : index + 1])[0, 0].tolist()
        turn = round(math.degrees(angle) % 360, 3) % 360
        return Rectangle(round(x, 2), round(y, 2), round(across, 2), round(down, 2), turn)
    left, top, right, bottom = (round(side, 2) for side in found.boxes[index].tolist())
    return Rectangle(left, top, right - left, bottom - top)


def _ellipse(found: Detections, index: int, width: int, height: int) -> Geometry:
    """The ellipse that fills the box."""
    del width, height
    if found.turned is not None:
        cx, cy, across, down, angle = (float(value) for value in found.turned[index])
        return Ellipse(cx, cy, across / 2, down / 2, math.degrees(angle) % 360)
    left, top, right, bottom = found.boxes[index].tolist()
    return Ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)


def _point(found: Detections, index: int, width: int, height: int) -> Geometry:
    """The middle of the box."""
    del height
    left, top, right, bottom = found.boxes[index].tolist()
    return KeyPoint((left + right) / 2, (top + bottom) / 2, POINT_WIDTH * width)


def _polygon(found: Detections, index: int, width: int, height: int) -> Geometry | None:
    """The outline of the mask, else the corners of a turned box."""
    del width, height
    if found.segments is not None:
        outline = found.segments[index].outline()
        return Polygon(outline) if outline else None
    if found.turned is not None:
        corners = corners_of(found.turned[index : index + 1])[0].tolist()
        return Polygon(tuple((x, y) for x, y in corners))
    return None


def _mask(found: Detections, index: int, width: int, height: int) -> Geometry | None:
    del width, height
    pixels = found.segments[index].mask() if found.segments is not None else None
    return Mask.of(pixels) if pixels is not None and pixels.any() else None


def points_of(found: Detections, index: int, width: int) -> Mapping[int, KeyPoint]:
    """The keypoints of one detection that the model is sure of, by their number."""
    if found.keypoints is None:
        return {}
    return {
        number: KeyPoint(x, y, POINT_WIDTH * width)
        for number, (x, y, sure) in enumerate(found.keypoints[index].tolist())
        if sure >= SURE_POINT
    }


_BOXES, _MASKS, _NOTHING = frozenset({"boxes"}), frozenset({"masks"}), frozenset[str]()

SHAPES: Mapping[str, Shape] = {
    "Rectangle": Shape(_BOXES, _NOTHING, _rectangle),
    "Polygon": Shape(_MASKS, frozenset({"turned"}), _polygon),
    "Brush": Shape(_MASKS, _NOTHING, _mask),
    "BitMask": Shape(_MASKS, _NOTHING, _mask),
    "KeyPoint": Shape(frozenset({"keypoints"}), _BOXES, _point),
    "Ellipse": Shape(_NOTHING, _BOXES, _ellipse),
}
"""Shape, as its tag is called -> how it is drawn. `<shape>Labels` has the labels itself, `Labels` stands beside it."""
