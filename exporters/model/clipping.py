"""Clip a region's shape to its image, and compute the boxes, outlines and areas that formats need."""

from typing import Any

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.model.records import Box, Object
from labelloop.labeling.geometry.shapes import (
    Ellipse,
    Geometry,
    KeyPoint,
    Mask,
    Point,
    Polygon,
    Rectangle,
    Vector,
    even_odd_polygon,
)

# Pixels by which a shape may exceed the image through rounding: Label Studio stores percents with limited digits.
TOLERANCE = 0.01
# Pixels. An outline with an area below its longer side times this is a line at the precision of the formats.
MIN_MEAN_WIDTH = TOLERANCE / 10
# Shapes whose coordinates in shares of the image do not depend on its size, unless they are rotated.
SIZE_INDEPENDENT = (Rectangle, Ellipse, Polygon, KeyPoint, Vector)

CLIPPED = "clipped to the image"
CROSSING = "outline that crosses itself"


class ShapeRejected(Exception):
    """The shape cannot be in a data set; ``args[0]`` is the reason, which is counted in the manifest."""


class ClippedShape(msgspec.Struct, frozen=True):
    """A shape clipped to its image.

    Attributes:
        box: The bounding box of its visible part; ``None`` for a shape without an area.
        area: The area of its visible part, in square pixels.
        repairs: What was changed: `CLIPPED`, `CROSSING`.
        outline: The visible part (shapely), where the repairs changed the shape.
    """

    box: Box | None
    area: float
    repairs: tuple[str, ...] = ()
    outline: Any = None


def clip_to_image(geometry: Geometry, width: int, height: int) -> ClippedShape:
    """Clip a shape to an image of ``width`` x ``height`` pixels.

    The box bounds the visible part: the corners of a rotated rectangle, the pixels of a mask. A key point and an open
    line have no box.

    Raises:
        ShapeRejected: no area, outside the image, or a mask whose size is not the image's.
    """
    if type(geometry) is Rectangle and geometry.rotation % 360 == 0:
        return _clip_rectangle(geometry.bounds, width, height)
    repairs: tuple[str, ...] = ()
    if isinstance(geometry, Mask) and (geometry.width, geometry.height) != (width, height):
        raise ShapeRejected("a mask of another size than its image")
    x_min, y_min, x_max, y_max = geometry.bounds
    if isinstance(geometry, KeyPoint) or (isinstance(geometry, Vector) and not geometry.closed):
        if x_max < 0 or y_max < 0 or x_min > width or y_min > height:
            raise ShapeRejected("outside the image")
        return ClippedShape(None, 0.0, repairs)
    if x_max - x_min < TOLERANCE or y_max - y_min < TOLERANCE:
        raise ShapeRejected("no area")
    if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
        raise ShapeRejected("outside the image")
    overhang = max(-x_min, -y_min, x_max - width, y_max - height)
    if overhang > TOLERANCE:
        repairs = (CLIPPED,)
    elif not isinstance(geometry, Polygon | Vector):
        area = _checked_area(geometry.area, geometry.bounds)
        return ClippedShape(_checked_box(_clamp(geometry.bounds, width, height)), area, repairs)
    if not isinstance(geometry, Polygon):
        outline = geometry.polygon()
    elif not shapely.is_valid(outline := shapely.Polygon(geometry.points)):
        outline, repairs = even_odd_polygon(outline), (*repairs, CROSSING)
    elif not repairs:
        area = _checked_area(_shoelace(geometry.points), geometry.bounds)
        return ClippedShape(_checked_box(_clamp((x_min, y_min, x_max, y_max), width, height)), area)
    if overhang > TOLERANCE and isinstance(geometry, Rectangle):
        [outline] = clip_convex(np.array([outline]), width, height)
    elif overhang > TOLERANCE:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
    if outline.area <= 0:
        raise ShapeRejected("no area")
    area = _checked_area(float(outline.area), outline.bounds)
    box = _checked_box(_clamp(outline.bounds, width, height))
    return ClippedShape(box, area, repairs, outline if repairs else None)


def clip_convex(outlines: NDArray[Any], width: float, height: float) -> NDArray[Any]:
    """Return the part of convex polygons (shapely) inside an image: (n,) -> (n,).

    Equals ``shapely.intersection``, which serves any outline, in a seventh of the time.
    """
    visible: NDArray[Any]
    try:
        visible = shapely.clip_by_rect(outlines, 0, 0, width, height)
    except shapely.GEOSException:  # one of them touches the edge, in fewer points than a polygon has
        if len(outlines) == 1:
            visible = shapely.intersection(outlines, shapely.box(0, 0, width, height))
        else:
            visible = np.array([clip_convex(outlines[[index]], width, height)[0] for index in range(len(outlines))])
    return visible


def is_size_independent(geometry: Geometry) -> bool:
    """Whether the shape in shares of the image does not depend on the image's size."""
    return isinstance(geometry, SIZE_INDEPENDENT) and getattr(geometry, "rotation", 0.0) % 360 == 0


def is_axis_aligned(geometry: Geometry) -> bool:
    """Whether the shape equals its bounding box: a rectangle that is not rotated."""
    return type(geometry) is Rectangle and geometry.rotation % 360 == 0


def visible_outline(obj: Object) -> Any:
    """Return the visible part of an object with an area: a shapely Polygon or MultiPolygon, with its holes."""
    return obj.geometry.polygon() if obj.outline is None else obj.outline


def polygon_parts(outline: Any) -> list[Any]:
    """Return the polygons of an outline, without the lines and points that clipping may leave."""
    return [part for part in shapely.get_parts(outline) if part.geom_type == "Polygon" and part.area > 0]


def outline_rings(obj: Object, width: int, height: int) -> list[list[Point]] | None:
    """Return the outline inside the image as closed rings, one per part; ``None`` if it has holes.

    Args:
        obj: an object with a box.
        width: the image's, in pixels.
        height: the image's, in pixels.

    Returns:
        Points in pixels: for a rectangle its corners, clockwise from its own top left one.
    """
    shape = obj.geometry
    if obj.box is not None and is_axis_aligned(shape):
        x_min, y_min, x_max, y_max = obj.box
        return [[(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]]
    if obj.outline is None and isinstance(shape, Rectangle | Polygon | Ellipse):
        drawn = shape.corners if isinstance(shape, Rectangle) else shape.points
        return [clamp_points(np.array(drawn), width, height)]
    polygons = polygon_parts(visible_outline(obj))
    if any(part.interiors for part in polygons):
        return None
    return [clamp_points(shapely.get_coordinates(part.exterior)[:-1], width, height) for part in polygons]


def _clip_rectangle(bounds: Box, width: int, height: int) -> ClippedShape:
    x_min, y_min, x_max, y_max = bounds
    if x_max - x_min < TOLERANCE or y_max - y_min < TOLERANCE:
        raise ShapeRejected("no area")
    if x_min >= 0 and y_min >= 0 and x_max <= width and y_max <= height:
        return ClippedShape(bounds, (x_max - x_min) * (y_max - y_min))
    if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
        raise ShapeRejected("outside the image")
    overhang = max(-x_min, -y_min, x_max - width, y_max - height)
    box = _checked_box(_clamp(bounds, width, height))
    return ClippedShape(box, (box[2] - box[0]) * (box[3] - box[1]), (CLIPPED,) if overhang > TOLERANCE else ())


def ring_areas(points: NDArray[np.float64], first: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the areas of simple rings by the shoelace formula: (rings,).

    Args:
        points: (points, 2), ring after ring.
        first: (rings,), the first point of each ring.
    """
    before = np.arange(-1, len(points) - 1)
    before[first] = np.append(first[1:], len(points)) - 1
    x, y = points[:, 0], points[:, 1]
    areas: NDArray[np.float64] = np.abs(np.add.reduceat(x[before] * y - x * y[before], first)) / 2
    return areas


def _shoelace(points: tuple[Point, ...]) -> float:
    return float(ring_areas(np.array(points), np.zeros(1, np.int64))[0])


def _checked_area(area: float, bounds: Box) -> float:
    """Return the area. Raises `ShapeRejected` if the outline is too narrow to have one."""
    x_min, y_min, x_max, y_max = bounds
    if area < MIN_MEAN_WIDTH * max(x_max - x_min, y_max - y_min):
        raise ShapeRejected("no area")
    return area


def _checked_box(box: Box) -> Box:
    if box[2] - box[0] < TOLERANCE or box[3] - box[1] < TOLERANCE:
        raise ShapeRejected("no area")
    return box


def _clamp(bounds: Box, width: int, height: int) -> Box:
    x_min, y_min, x_max, y_max = bounds
    return max(x_min, 0.0), max(y_min, 0.0), min(x_max, float(width)), min(y_max, float(height))


def clamp_points(points: NDArray[np.float64], width: int, height: int) -> list[Point]:
    """Return the nearest point of the image to each point: (points, 2)."""
    return [(x, y) for x, y in np.minimum(np.maximum(points, 0.0), (width, height)).tolist()]
