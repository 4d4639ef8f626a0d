"""A region's shape inside its image: edges clipped, and the box and the outline that formats ask for."""

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
    enclosed,
)

TOLERANCE = 0.01
"""Pixels over the edge that are arithmetic, not drawing: Label Studio stores percents with limited digits."""

NARROWEST = TOLERANCE / 10
"""Pixels: an outline whose area is less than its longer side times this is a line in the digits of the formats."""
SIZELESS = (Rectangle, Ellipse, Polygon, KeyPoint, Vector)
"""Shapes that are the same shares of an image whatever its size, unless they are turned."""

CLIPPED = "clipped to the image"
CROSSING = "outline that crosses itself"


class Unfit(Exception):
    """The shape cannot be in a data set; ``args[0]`` is the reason."""


class Fitted(msgspec.Struct, frozen=True):
    """Where a shape is in its image: the true box and area of what can be seen (pixels), and the repairs it took.

    ``outline`` is what can be seen, as shapely has it, where the repairs made it another than the one drawn.
    """

    box: Box | None
    area: float
    repairs: tuple[str, ...] = ()
    outline: Any = None


def fit(geometry: Geometry, width: int, height: int) -> Fitted:
    """Bring a shape inside a ``width`` x ``height`` image.

    The box is the axis-aligned box of what can be seen of the shape: of the turned corners of a rotated rectangle, of
    the pixels of a mask. A key point and an open line have no box.

    Raises:
        Unfit: nothing of the shape is left: no area, outside the image; or a mask of another size than its image.
    """
    if type(geometry) is Rectangle and geometry.rotation % 360 == 0:
        return _fit_upright(geometry.bounds, width, height)
    repairs: tuple[str, ...] = ()
    if isinstance(geometry, Mask) and (geometry.width, geometry.height) != (width, height):
        raise Unfit("a mask of another size than its image")
    x_min, y_min, x_max, y_max = geometry.bounds
    if isinstance(geometry, KeyPoint) or (isinstance(geometry, Vector) and not geometry.closed):
        if x_max < 0 or y_max < 0 or x_min > width or y_min > height:
            raise Unfit("outside the image")
        return Fitted(None, 0.0, repairs)
    if x_max - x_min < TOLERANCE or y_max - y_min < TOLERANCE:
        raise Unfit("no area")
    if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
        raise Unfit("outside the image")
    over = max(-x_min, -y_min, x_max - width, y_max - height)
    if over > TOLERANCE:
        repairs = (CLIPPED,)
    elif not isinstance(geometry, Polygon | Vector):
        area = _wide(geometry.area, geometry.bounds)
        return Fitted(_with_area(_clamp(geometry.bounds, width, height)), area, repairs)
    if not isinstance(geometry, Polygon):
        outline = geometry.polygon()
    elif not shapely.is_valid(outline := shapely.Polygon(geometry.points)):
        outline, repairs = enclosed(outline), (*repairs, CROSSING)
    elif not repairs:
        area = _wide(_shoelace(geometry.points), geometry.bounds)
        return Fitted(_with_area(_clamp((x_min, y_min, x_max, y_max), width, height)), area)
    if over > TOLERANCE:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
    if outline.area <= 0:
        raise Unfit("no area")
    area = _wide(float(outline.area), outline.bounds)
    box = _with_area(_clamp(outline.bounds, width, height))
    return Fitted(box, area, repairs, outline if repairs else None)


def is_sizeless(geometry: Geometry) -> bool:
    """Whether a shape can be said in shares of its image without the image's size."""
    return isinstance(geometry, SIZELESS) and getattr(geometry, "rotation", 0.0) % 360 == 0


def is_upright(geometry: Geometry) -> bool:
    """Whether the shape is its box: a rectangle that is not turned."""
    return type(geometry) is Rectangle and geometry.rotation % 360 == 0


def visible(each: Object) -> Any:
    """What can be seen of an object with an area: a shapely polygon, or several, with holes where it has them."""
    return each.geometry.polygon() if each.outline is None else each.outline


def parts(outline: Any) -> list[Any]:
    """The polygons of an outline, without lines and points that a cut may leave."""
    return [part for part in shapely.get_parts(outline) if part.geom_type == "Polygon" and part.area > 0]


def rings(each: Object, width: int, height: int) -> list[list[Point]] | None:
    """The outline inside the image as closed rings, one for each part; ``None`` where rings cannot say it (holes).

    Args:
        each: an object with a box.
        width: the image's, in pixels.
        height: the image's, in pixels.

    Returns:
        Corners as drawn for a rectangle (clockwise from its own top left one) and for a polygon inside the image.
    """
    shape = each.geometry
    if each.box is not None and is_upright(shape):
        x_min, y_min, x_max, y_max = each.box
        return [[(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]]
    if each.outline is None and isinstance(shape, Rectangle | Polygon):
        drawn = shape.corners if isinstance(shape, Rectangle) else shape.points
        return [[inside(point, width, height) for point in drawn]]
    found = parts(visible(each))
    if any(part.interiors for part in found):
        return None
    return [[inside(point, width, height) for point in part.exterior.coords[:-1]] for part in found]


def _fit_upright(bounds: Box, width: int, height: int) -> Fitted:
    x_min, y_min, x_max, y_max = bounds
    if x_max - x_min < TOLERANCE or y_max - y_min < TOLERANCE:
        raise Unfit("no area")
    if x_min >= 0 and y_min >= 0 and x_max <= width and y_max <= height:
        return Fitted(bounds, (x_max - x_min) * (y_max - y_min))
    if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
        raise Unfit("outside the image")
    over = max(-x_min, -y_min, x_max - width, y_max - height)
    box = _with_area(_clamp(bounds, width, height))
    return Fitted(box, (box[2] - box[0]) * (box[3] - box[1]), (CLIPPED,) if over > TOLERANCE else ())


def ring_areas(points: NDArray[np.float64], first: NDArray[np.int64]) -> NDArray[np.float64]:
    """The areas of rings that do not cross themselves. Source: Gauss' area formula.

    Args:
        points: (points, 2), those of a ring one after the other.
        first: where each ring begins.
    """
    before = np.arange(-1, len(points) - 1)
    before[first] = np.append(first[1:], len(points)) - 1
    x, y = points[:, 0], points[:, 1]
    areas: NDArray[np.float64] = np.abs(np.add.reduceat(x[before] * y - x * y[before], first)) / 2
    return areas


def _shoelace(points: tuple[Point, ...]) -> float:
    return float(ring_areas(np.array(points), np.zeros(1, np.int64))[0])


def _wide(area: float, bounds: Box) -> float:
    """The area of an outline. Raises `Unfit` where it is too narrow to have one."""
    x_min, y_min, x_max, y_max = bounds
    if area < NARROWEST * max(x_max - x_min, y_max - y_min):
        raise Unfit("no area")
    return area


def _with_area(box: Box) -> Box:
    if box[2] - box[0] < TOLERANCE or box[3] - box[1] < TOLERANCE:
        raise Unfit("no area")
    return box


def _clamp(bounds: Box, width: int, height: int) -> Box:
    x_min, y_min, x_max, y_max = bounds
    return max(x_min, 0.0), max(y_min, 0.0), min(x_max, float(width)), min(y_max, float(height))


def inside(point: Point, width: int, height: int) -> Point:
    """The nearest point of the image: for what lies over its edge by arithmetic alone."""
    return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))
