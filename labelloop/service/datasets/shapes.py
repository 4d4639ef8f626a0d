"""Convert the coordinates of other formats to geometries: rectangles, polygons, multi-polygons and RLE masks."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.errors import MaskTooLarge
from labelloop.labeling.geometry.raster import run_lengths
from labelloop.labeling.geometry.shapes import Mask, Point, Polygon, Rectangle, Vector, Vertex
from labelloop.service.datasets.errors import MalformedData

# Pixels: rounding of text formats. Four corners within this distance of a rectangle's corners are that rectangle.
TOLERANCE = 0.01
# Pixels: larger values are errors.
_MAX_COORDINATE = 1e7


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a number."""
    return type(value) in {int, float}


def parse_number(value: object, what: str) -> float:
    """The value as a float. Raises `MalformedData` if it is not a number or out of range."""
    if not is_number(value):
        raise MalformedData(f"{what} is {value!r:.40}, not a number")
    if not -_MAX_COORDINATE < value < _MAX_COORDINATE:
        raise MalformedData(f"{what} is {value!r:.40}, out of range")
    return float(value)


def image_size_or_zero(width: object, height: object) -> tuple[int, int]:
    """(width, height) in pixels; (0, 0) if either is invalid."""
    sides = _whole(width), _whole(height)
    return sides if all(0 < side < _MAX_COORDINATE for side in sides) else (0, 0)


def _whole(value: object) -> int:
    """A whole number, also one written as 640.0 or "640"; 0 for anything else."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole else 0  # type: ignore[call-overload]


def rectangle(x: float, y: float, width: float, height: float) -> Rectangle:
    """An axis-aligned rectangle. Raises `MalformedData` if it has no area."""
    if width <= 0 or height <= 0:
        raise MalformedData(f"a box of {width:g} x {height:g} pixels")
    return Rectangle(x, y, width, height)


def rectangle_or_polygon(points: Sequence[Point], *, upright: bool = True) -> Rectangle | Polygon:
    """The geometry of a ring of points: a rectangle (possibly rotated) if four corners form one, else a polygon.

    Args:
        points: Corners in pixels; the first may be repeated at the end.
        upright: An axis-aligned rectangle starts at its top left corner with rotation 0; if False, it starts at the
            first point of the ring with a rotation of 0, 90, 180 or 270 degrees.

    Raises:
        MalformedData: The ring has fewer than three points or no area.
    """
    outline = polygon(points)
    ring = list(outline.points)
    return (_as_rectangle(ring, upright=upright) if len(ring) == 4 else None) or outline


def polygon(points: Sequence[Point]) -> Polygon:
    """The polygon of a ring of points; the first may be repeated at the end.

    Raises:
        MalformedData: The ring has fewer than three points or no area.
    """
    ring = list(points)
    if len(ring) > 3 and math.dist(ring[0], ring[-1]) < TOLERANCE / 10:
        ring.pop()
    if len(ring) < 3:
        raise MalformedData(f"an outline of {len(ring)} points")
    if _is_collinear(ring):
        raise MalformedData("an outline without area")
    return Polygon(tuple(ring))


def open_line(points: Sequence[Point]) -> Vector:
    """An open line through points. Raises `MalformedData` if there are fewer than two."""
    if len(points) < 2:
        raise MalformedData(f"a line of {len(points)} points")
    ids = [f"v{index}" for index in range(len(points))]
    links = zip(points, ids, [None, *ids[:-1]], strict=True)
    return Vector(tuple(Vertex(x, y, own, before) for (x, y), own, before in links))


def mask_in_box(pixels: NDArray[np.bool_], left: int, top: int, width: int, height: int) -> Mask:
    """The mask of an image of ``width`` x ``height`` pixels from the pixels of a box in it.

    Raises:
        MalformedData: The mask is empty, or the box exceeds the image.
    """
    rows, columns = pixels.shape
    if left < 0 or top < 0 or left + columns > width or top + rows > height:
        raise MalformedData(f"a mask of {columns} x {rows} at {left}, {top} exceeds its image of {width} x {height}")
    try:
        return _require_pixels(Mask(width, height, run_lengths(pixels, left, top, width, height)))
    except MaskTooLarge as error:
        raise MalformedData(str(error)) from None


def rings_to_mask(rings: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """The union of several rings of one object as a mask, rasterised by pycocotools.

    Args:
        rings: Flat lists of coordinates x1, y1, x2, y2, ... in pixels.
        width: Image width in pixels.
        height: Image height in pixels.

    Raises:
        MalformedData: The mask is empty.
    """
    joined = coco.merge(coco.frPyObjects([list(ring) for ring in rings], height, width))
    return _require_pixels(Mask(width, height, joined["counts"]))


def decode_rle(rle: Any, width: int, height: int) -> Mask:
    """Decode COCO's RLE, compressed (a string) or uncompressed (a list).

    Raises:
        MalformedData: The RLE is invalid or has another size than the image.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise MalformedData(f"a mask of size {size!r:.40} on an image of {width} x {height}")
    if isinstance(counts, str):
        lengths = _decode_counts(counts)
    elif isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts):
        lengths = counts
    else:
        raise MalformedData("a mask whose counts are not run lengths")
    if sum(lengths) != width * height or any(length < 0 for length in lengths):
        raise MalformedData("a mask whose run lengths do not add up to the image size")
    encoded = coco.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
    return _require_pixels(Mask(width, height, encoded["counts"]))


def mask_from_array(pixels: NDArray[np.bool_]) -> Mask:
    """A boolean array (height, width) as a mask. Raises `MalformedData` if it is empty."""
    return _require_pixels(Mask.from_array(pixels))


def _require_pixels(mask: Mask) -> Mask:
    if not mask.area:
        raise MalformedData("an empty mask")
    return mask


def _is_collinear(ring: Sequence[Point]) -> bool:
    x0, y0 = ring[0]
    far_x, far_y = max(ring, key=lambda point: math.dist(point, ring[0]))
    across, down = far_x - x0, far_y - y0
    return all(abs(across * (y - y0) - down * (x - x0)) <= 1e-9 * (across**2 + down**2) for x, y in ring)


def _as_rectangle(ring: list[Point], *, upright: bool) -> Rectangle | None:
    """The rectangle with these corners within `TOLERANCE`, or None; clockwise from its pivot as in Label Studio."""
    doubled_area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]]))
    if doubled_area < 0:  # counter-clockwise on the screen, where y points down
        ring = [ring[0], *reversed(ring[1:])]
    (x0, y0), (x1, y1), _, (x3, y3) = ring
    width, height = math.dist(ring[0], ring[1]), math.dist(ring[0], ring[3])
    if width < TOLERANCE or height < TOLERANCE:
        return None
    # The angle from both sides, weighted by their lengths: more accurate with rounded corners than one side.
    across, down = (x1 - x0) + (y3 - y0), (y1 - y0) - (x3 - x0)
    candidate = Rectangle(x0, y0, width, height, math.degrees(math.atan2(down, across)) % 360)
    if max(math.dist(fitted, corner) for fitted, corner in zip(candidate.corners, ring, strict=True)) > TOLERANCE:
        return None
    quarter = round(candidate.rotation / 90) % 4
    upright_candidate = Rectangle(x0, y0, width, height, 90.0 * quarter)
    if (
        max(math.dist(fitted, corner) for fitted, corner in zip(upright_candidate.corners, ring, strict=True))
        > TOLERANCE
    ):
        return candidate
    if not upright and quarter:
        return upright_candidate
    xs, ys = zip(*ring, strict=True)
    return Rectangle(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def _decode_counts(text: str) -> list[int]:
    """Decode and validate COCO's compressed run lengths; pycocotools does not check its input.

    Source: ``rleFrString`` of https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 40:
            raise MalformedData("a mask whose counts are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise MalformedData("a mask whose counts are truncated")
    return lengths
