"""SHAPES: the Label Studio shapes that detections can be written as, and how each is drawn."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Mask, Polygon, Rectangle
from ml_backend.detection.detections import Detections, corners_of

# Diameter of a keypoint, as a share of the image's width.
POINT_WIDTH = 0.0075

# Minimum confidence of a keypoint; below it the point is hidden or outside the image and is not drawn.
MIN_KEYPOINT_CONFIDENCE = 0.5


@dataclass(frozen=True)
class ShapeRenderer:
    """How detections are drawn as one Label Studio shape.

    Attributes:
        native: Model outputs that the shape represents without loss (any of them).
        derived: Outputs it can be approximated from; used only where no other control shows the class.
        draw: (detections, index, image width, image height) -> geometry in pixels; None where it is empty.
    """

    native: frozenset[str]
    derived: frozenset[str]
    draw: Callable[[Detections, int, int, int], Geometry | None]


def _rectangle(detections: Detections, index: int, width: int, height: int) -> Geometry:
    del width, height
    if detections.rotated is not None:
        _, _, box_width, box_height, angle = (float(value) for value in detections.rotated[index])
        x, y = corners_of(detections.rotated[index : index + 1])[0, 0].tolist()
        rotation = round(math.degrees(angle) % 360, 3) % 360
        return Rectangle(round(x, 2), round(y, 2), round(box_width, 2), round(box_height, 2), rotation)
    left, top, right, bottom = (round(side, 2) for side in detections.boxes[index].tolist())
    return Rectangle(left, top, right - left, bottom - top)


def _ellipse(detections: Detections, index: int, width: int, height: int) -> Geometry:
    """The ellipse inscribed in the box."""
    del width, height
    if detections.rotated is not None:
        cx, cy, box_width, box_height, angle = (float(value) for value in detections.rotated[index])
        return Ellipse(cx, cy, box_width / 2, box_height / 2, math.degrees(angle) % 360)
    left, top, right, bottom = detections.boxes[index].tolist()
    return Ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)


def _point(detections: Detections, index: int, width: int, height: int) -> Geometry:
    """The centre of the box."""
    del height
    left, top, right, bottom = detections.boxes[index].tolist()
    return KeyPoint((left + right) / 2, (top + bottom) / 2, POINT_WIDTH * width)


def _polygon(detections: Detections, index: int, width: int, height: int) -> Geometry | None:
    """The outline of the mask, else the corners of a rotated box."""
    del width, height
    if detections.segments is not None:
        outline = detections.segments[index].outline()
        return Polygon(outline) if outline else None
    if detections.rotated is not None:
        corners = corners_of(detections.rotated[index : index + 1])[0].tolist()
        return Polygon(tuple((x, y) for x, y in corners))
    return None


def _mask(detections: Detections, index: int, width: int, height: int) -> Geometry | None:
    del width, height
    pixels = detections.segments[index].mask() if detections.segments is not None else None
    return Mask.from_array(pixels) if pixels is not None and pixels.any() else None


def points_of(detections: Detections, index: int, width: int) -> Mapping[int, KeyPoint]:
    """The keypoints of one detection above `SURE_POINT`, by keypoint index."""
    if detections.keypoints is None:
        return {}
    return {
        number: KeyPoint(x, y, POINT_WIDTH * width)
        for number, (x, y, confidence) in enumerate(detections.keypoints[index].tolist())
        if confidence >= MIN_KEYPOINT_CONFIDENCE
    }


_BOXES, _MASKS, _NOTHING = frozenset({"boxes"}), frozenset({"masks"}), frozenset[str]()

# Drawing by shape tag. `<shape>Labels` carries its own labels; a plain shape is the partner of `Labels`.
SHAPES: Mapping[str, ShapeRenderer] = {
    "Rectangle": ShapeRenderer(_BOXES, _NOTHING, _rectangle),
    "Polygon": ShapeRenderer(_MASKS, frozenset({"turned"}), _polygon),
    "Brush": ShapeRenderer(_MASKS, _NOTHING, _mask),
    "BitMask": ShapeRenderer(_MASKS, _NOTHING, _mask),
    "KeyPoint": ShapeRenderer(frozenset({"keypoints"}), _BOXES, _point),
    "Ellipse": ShapeRenderer(_NOTHING, _BOXES, _ellipse),
}
