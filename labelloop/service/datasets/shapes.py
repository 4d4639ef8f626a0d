"""Shapes from the numbers of other formats: outlines that are rectangles, several rings as one mask, run lengths."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.geometry.shapes import Mask, Point, Polygon, Rectangle
from labelloop.service.datasets.errors import Flawed

EXACT = 0.01
"""Pixels: what a format's digits lose. Four corners nearer than this to a rectangle's are that rectangle."""

_FAR = 1e7  # pixels; no photo is that wide


def number(value: object, what: str) -> float:
    """A sensible number. Raises `Flawed`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Flawed(f"{what} is {value!r:.40}, not a number")
    if not -_FAR < value < _FAR:
        raise Flawed(f"{what} is {value!r:.40}, out of range")
    return float(value)


def size_of(width: object, height: object) -> tuple[int, int]:
    """A photo's size in pixels; zeros where either is none."""
    if type(width) is int and type(height) is int and 0 < width < _FAR and 0 < height < _FAR:
        return width, height
    return 0, 0


def box(x: float, y: float, width: float, height: float) -> Rectangle:
    """An upright rectangle. Raises `Flawed` where it has no area."""
    if width <= 0 or height <= 0:
        raise Flawed(f"a box of {width:g} x {height:g} pixels")
    return Rectangle(x, y, width, height)


def outline(points: Sequence[Point], *, upright: bool = True) -> Rectangle | Polygon:
    """A ring of points as what it is: a rectangle, upright or turned, where four corners are one; else a polygon.

    Args:
        points: Corners in pixels; the first may be repeated at the end.
        upright: A rectangle along the axes begins at its top left corner; else at the ring's first one, turned by
            90, 180 or 270 degrees.

    Raises:
        Flawed: Fewer than three corners, or no area.
    """
    ring = list(points)
    if len(ring) > 3 and math.dist(ring[0], ring[-1]) < EXACT / 10:
        ring.pop()
    if len(ring) < 3:
        raise Flawed(f"an outline of {len(ring)} points")
    if len(ring) == 4 and (found := _rectangle(ring, upright=upright)):
        return found
    if _on_one_line(ring):
        raise Flawed("an outline without area")
    return Polygon(tuple(ring))


def rings_as_mask(rings: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """Several rings of one object as pixels, as pycocotools fills them. Raises `Flawed` where no pixel is in them."""
    joined = coco.merge(coco.frPyObjects([list(ring) for ring in rings], height, width))
    return _filled(Mask(width, height, joined["counts"]))


def run_lengths(given: Any, width: int, height: int) -> Mask:
    """COCO's RLE, compressed (a text) or not (a list), as a mask.

    Raises:
        Flawed: It is none, or belongs to an image of another size.
    """
    size, counts = given.get("size"), given.get("counts")
    if size != [height, width]:
        raise Flawed(f"a mask of size {size!r:.40} on a photo of {width} x {height}")
    if isinstance(counts, str):
        lengths = _uncompressed(counts)
    elif isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts):
        lengths = counts
    else:
        raise Flawed("a mask whose counts are no run lengths")
    if sum(lengths) != width * height or any(length < 0 for length in lengths):
        raise Flawed("a mask whose run lengths do not fill the photo")
    encoded = coco.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
    return _filled(Mask(width, height, encoded["counts"]))


def pixels_mask(pixels: NDArray[np.bool_]) -> Mask:
    """A boolean array (height, width) as a mask. Raises `Flawed` where no pixel is in it."""
    return _filled(Mask.of(pixels))


def _filled(mask: Mask) -> Mask:
    if not mask.area:
        raise Flawed("a mask without a pixel")
    return mask


def _on_one_line(ring: Sequence[Point]) -> bool:
    x0, y0 = ring[0]
    far_x, far_y = max(ring, key=lambda point: math.dist(point, ring[0]))
    across, down = far_x - x0, far_y - y0
    return all(abs(across * (y - y0) - down * (x - x0)) <= 1e-9 * (across**2 + down**2) for x, y in ring)


def _rectangle(ring: list[Point], *, upright: bool) -> Rectangle | None:
    """The rectangle whose corners these are within `EXACT`, as Label Studio has it: clockwise from its pivot."""
    twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise([*ring, ring[0]]))
    if twice < 0:  # counter-clockwise on the screen, where y points down
        ring = [ring[0], *reversed(ring[1:])]
    (x0, y0), (x1, y1), _, (x3, y3) = ring
    width, height = math.dist(ring[0], ring[1]), math.dist(ring[0], ring[3])
    if width < EXACT or height < EXACT:
        return None
    # the angle by both sides, the longer one counting for more: four rounded corners tell it better than two
    across, down = (x1 - x0) + (y3 - y0), (y1 - y0) - (x3 - x0)
    found = Rectangle(x0, y0, width, height, math.degrees(math.atan2(down, across)) % 360)
    if max(math.dist(own, given) for own, given in zip(found.corners, ring, strict=True)) > EXACT:
        return None
    quarter = round(found.rotation / 90) % 4
    square = Rectangle(x0, y0, width, height, 90.0 * quarter)
    if max(math.dist(own, given) for own, given in zip(square.corners, ring, strict=True)) > EXACT:
        return found
    if not upright and quarter:
        return square
    xs, ys = zip(*ring, strict=True)
    return Rectangle(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def _uncompressed(text: str) -> list[int]:
    """Run lengths from COCO's compressed text, checked as they are read: pycocotools trusts what it is given.

    Source: ``rleFrString`` of https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 40:
            raise Flawed("a mask whose counts are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise Flawed("a mask whose counts end in the middle")
    return lengths
