"""A region's shape inside its image: edges clipped, and the box and the outline that formats ask for."""

import msgspec
import shapely

from exporters.dataset import Box
from labelloop.labeling.geometry import Geometry, KeyPoint, Mask, Point, Polygon, Rectangle, Vector

TOLERANCE = 0.01
"""Pixels over the edge that are arithmetic, not drawing: Label Studio stores percents with limited digits."""

CLIPPED = "clipped to the image"
CROSSING = "outline that crosses itself"


class Unfit(Exception):
    """The shape cannot be in a data set; ``args[0]`` is the reason."""


class Fitted(msgspec.Struct, frozen=True):
    """Where a shape is in its image: the true box and area of what can be seen (pixels), and the repairs it took."""

    box: Box | None
    area: float
    repairs: tuple[str, ...] = ()


def fit(geometry: Geometry, width: int, height: int) -> Fitted:
    """Bring a shape inside a ``width`` x ``height`` image.

    The box is the axis-aligned box of what can be seen of the shape: of the turned corners of a rotated rectangle, of
    the pixels of a mask. A key point and an open line have no box.

    Raises:
        Unfit: nothing of the shape is left: no area, outside the image; or a mask of another size than its image.
    """
    if is_upright(geometry):
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
        return Fitted(_with_area(_clamp(geometry.bounds, width, height)), geometry.area, repairs)
    if isinstance(geometry, Polygon) and shapely.is_valid(drawn := shapely.Polygon(geometry.points)):
        outline = drawn
    else:
        outline = geometry.polygon()
        repairs = (*repairs, CROSSING) if isinstance(geometry, Polygon) else repairs
    if over > TOLERANCE:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
    if outline.area <= 0:
        raise Unfit("no area")
    return Fitted(_with_area(_clamp(outline.bounds, width, height)), float(outline.area), repairs)


def is_upright(geometry: Geometry) -> bool:
    """Whether the shape is its box: a rectangle that is not turned."""
    return isinstance(geometry, Rectangle) and geometry.rotation % 360 == 0


def rings(geometry: Geometry, box: Box, width: int, height: int, *, crossing: bool = False) -> list[list[Point]] | None:
    """The outline inside the image as closed rings, one for each part; ``None`` where rings cannot say it (holes).

    Args:
        geometry: the shape.
        box: its box, from ``fit``.
        width: the image's, in pixels.
        height: the image's, in pixels.
        crossing: whether ``fit`` found that the outline crosses itself.

    Returns:
        Corners as drawn for a rectangle (clockwise from its own top left one) and for a polygon inside the image.
    """
    if is_upright(geometry):
        x_min, y_min, x_max, y_max = box
        return [[(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]]
    x_min, y_min, x_max, y_max = geometry.bounds
    inside = max(-x_min, -y_min, x_max - width, y_max - height) <= TOLERANCE
    if inside and not crossing and isinstance(geometry, Rectangle | Polygon):
        drawn = geometry.corners if isinstance(geometry, Rectangle) else geometry.points
        return [[_inside(point, width, height) for point in drawn]]
    outline = geometry.polygon()
    if not inside:
        outline = shapely.intersection(outline, shapely.box(0, 0, width, height))
    parts = [part for part in shapely.get_parts(outline) if part.geom_type == "Polygon" and part.area > 0]
    if any(part.interiors for part in parts):
        return None
    return [[_inside(point, width, height) for point in part.exterior.coords[:-1]] for part in parts]


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


def _with_area(box: Box) -> Box:
    if box[2] - box[0] < TOLERANCE or box[3] - box[1] < TOLERANCE:
        raise Unfit("no area")
    return box


def _clamp(bounds: Box, width: int, height: int) -> Box:
    x_min, y_min, x_max, y_max = bounds
    return max(x_min, 0.0), max(y_min, 0.0), min(x_max, float(width)), min(y_max, float(height))


def _inside(point: Point, width: int, height: int) -> Point:
    return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))
