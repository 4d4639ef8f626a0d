"""SHAPES: the Label Studio shapes that detections can be written as, and how each is drawn."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from labelloop.labeling.geometry.mask_shapes import moment_ellipse, outline_polygon, smallest_rotated_box
from labelloop.labeling.geometry.raster import run_lengths
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Mask, Polygon, Rectangle
from ml_backend.detection.detections import Detections, corners_of
from ml_backend.detection.masks import OUTLINE_SIDE
from ml_backend.layouts.semantic import SemanticMask

# Diameter of a keypoint, as a share of the image's width.
POINT_WIDTH = 0.0075

# Minimum confidence of a keypoint; below it the point is hidden or outside the image and is not drawn.
MIN_KEYPOINT_CONFIDENCE = 0.5

# What the segmenter adds to the outputs of a model with boxes and without masks: a mask for each box.
SEGMENTED = "segmented"

# Output of a semantic model: one region per class; a polygon is drawn for each connected part.
SEMANTIC = "semantic"


@dataclass(frozen=True)
class ShapeRenderer:
    """How detections are drawn as one Label Studio shape.

    Attributes:
        native: Model outputs that the shape represents without loss (any of them).
        derived: Outputs that it can be drawn from otherwise, best first; used only where no other control shows the
            class.
        draw: (detections, index, image width, image height) -> geometry in pixels; None where it is empty.
    """

    native: frozenset[str]
    derived: tuple[str, ...]
    draw: Callable[[Detections, int, int, int], Geometry | None]

    def source(self, provides: AbstractSet[str]) -> str:
        """The output that the shape is drawn from, of those that a model provides; empty where it has none."""
        return next((source for source in (*sorted(self.native), *self.derived) if source in provides), "")

    @property
    def sources(self) -> frozenset[str]:
        """Model outputs that the shape can be drawn from."""
        return self.native | set(self.derived)


def rectangle_of(detections: Detections, index: int) -> Rectangle:
    """The box of one detection, rotated where the model's are."""
    if detections.rotated is not None:
        _, _, box_width, box_height, angle = (float(value) for value in detections.rotated[index])
        x, y = corners_of(detections.rotated[index : index + 1])[0, 0].tolist()
        rotation = round(math.degrees(angle) % 360, 3) % 360
        return Rectangle(round(x, 2), round(y, 2), round(box_width, 2), round(box_height, 2), rotation)
    left, top, right, bottom = (round(side, 2) for side in detections.boxes[index].tolist())
    return Rectangle(left, top, right - left, bottom - top)


def rotated_box(detections: Detections, index: int, width: int, height: int) -> Geometry:
    """The smallest rotated box of the mask, else the box."""
    del width, height
    if detections.segments is not None and (mask := detections.segments[index]) is not None:
        box = smallest_rotated_box(*mask.crop(OUTLINE_SIDE))
        if box is not None and box.width >= 1 and box.height >= 1:
            return box
    return rectangle_of(detections, index)


def _rectangle(detections: Detections, index: int, width: int, height: int) -> Geometry:
    del width, height
    return rectangle_of(detections, index)


def _ellipse(detections: Detections, index: int, width: int, height: int) -> Geometry:
    """The ellipse with the moments of the mask, else the one inscribed in the box."""
    del width, height
    if detections.segments is not None and (mask := detections.segments[index]) is not None:
        ellipse = moment_ellipse(*mask.crop(OUTLINE_SIDE))
        if ellipse is not None:
            return ellipse
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
    """The outline of the mask, else the corners of the box."""
    del width, height
    if detections.segments is not None and (mask := detections.segments[index]) is not None:
        return outline_polygon(*mask.crop(OUTLINE_SIDE, enlarge=True))
    if detections.rotated is not None:
        corners = corners_of(detections.rotated[index : index + 1])[0].tolist()
        return Polygon(tuple((x, y) for x, y in corners))
    left, top, right, bottom = (round(side, 2) for side in detections.boxes[index].tolist())
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)))


def _mask(detections: Detections, index: int, width: int, height: int) -> Geometry | None:
    mask = detections.segments[index] if detections.segments is not None else None
    if mask is None:
        return None
    pixels, (left, top, _, _) = mask.crop()
    if not pixels.any():
        return None
    return Mask(width, height, run_lengths(pixels, int(left), int(top), width, height))


def part_polygons(detections: Detections, index: int) -> list[Polygon]:
    """The outlines of the connected parts of a semantic region, the largest first."""
    mask = detections.segments[index] if detections.segments is not None else None
    parts = mask.parts() if isinstance(mask, SemanticMask) else ()
    outlines = (outline_polygon(*part.crop(OUTLINE_SIDE, enlarge=True)) for part in parts)
    return [outline for outline in outlines if outline is not None]


def points_of(detections: Detections, index: int, width: int) -> Mapping[int, KeyPoint]:
    """The keypoints of one detection above `MIN_KEYPOINT_CONFIDENCE`, by keypoint index."""
    if detections.keypoints is None:
        return {}
    return {
        number: KeyPoint(x, y, POINT_WIDTH * width)
        for number, (x, y, confidence) in enumerate(detections.keypoints[index].tolist())
        if confidence >= MIN_KEYPOINT_CONFIDENCE
    }


_BOXES, _MASKS, _NOTHING = frozenset({"boxes"}), frozenset({"masks", SEMANTIC}), frozenset[str]()

# Drawing by shape tag. `<shape>Labels` carries its own labels; a plain shape is the partner of `Labels`.
SHAPES: Mapping[str, ShapeRenderer] = {
    "Rectangle": ShapeRenderer(_BOXES, (), _rectangle),
    "Polygon": ShapeRenderer(_MASKS, ("turned", SEGMENTED, "boxes"), _polygon),
    "Brush": ShapeRenderer(_MASKS, (SEGMENTED,), _mask),
    "BitMask": ShapeRenderer(_MASKS, (SEGMENTED,), _mask),
    "KeyPoint": ShapeRenderer(frozenset({"keypoints"}), ("boxes",), _point),
    "Ellipse": ShapeRenderer(_NOTHING, ("masks", "turned", SEGMENTED, "boxes"), _ellipse),
}

# What a shape is drawn from, in words.
SOURCES: Mapping[str, str] = {
    "boxes": "from boxes",
    "masks": "from the model's masks",
    "turned": "from rotated boxes",
    "keypoints": "from keypoints",
    "classes": "from the class of the image",
    SEGMENTED: "from boxes by the segmenter",
    SEMANTIC: "from the model's classes of pixels",
}
