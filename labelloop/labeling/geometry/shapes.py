"""Shapes in pixels: origin at the top left of the image, x to the right, y down.

Every shape is a frozen value with the same members: ``bounds`` (x_min, y_min, x_max, y_max), ``area`` (square pixels),
``polygon()`` (shapely) and ``mask(width, height)`` (boolean, ``(height, width)``). Percent, normalised, 1-based and
run-length forms exist only in the modules of those formats.
"""

import math
from typing import Any, Self

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.geometry.brush_codec import fill_intervals
from labelloop.labeling.geometry.raster import rasterise, rasterise_crop, run_lengths, trace

Bounds = tuple[float, float, float, float]
Point = tuple[float, float]

_ELLIPSE_STEPS = 128  # an inscribed 128-gon covers 99.96 % of its ellipse
_BEZIER_STEPS = 16


class Rectangle(msgspec.Struct, frozen=True, gc=False):
    """A box with the top-left corner ``(x, y)``, rotated clockwise by ``rotation`` degrees about that corner."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0

    @property
    def corners(self) -> tuple[Point, Point, Point, Point]:
        """Its corners in drawing order: top left (the pivot), top right, bottom right, bottom left."""
        x, y = self.x, self.y
        if not self.rotation:
            right, bottom = x + self.width, y + self.height
            return (x, y), (right, y), (right, bottom), (x, bottom)
        angle = math.radians(self.rotation)
        cos, sin = math.cos(angle), math.sin(angle)
        wx, wy = self.width * cos, self.width * sin
        hx, hy = -self.height * sin, self.height * cos
        return (x, y), (x + wx, y + wy), (x + wx + hx, y + wy + hy), (x + hx, y + hy)

    @property
    def bounds(self) -> Bounds:
        """Its bounding box."""
        if not self.rotation:
            return self.x, self.y, self.x + self.width, self.y + self.height
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def area(self) -> float:
        """Width times height; independent of the rotation."""
        return self.width * self.height

    def polygon(self) -> shapely.Polygon:
        """Its outline."""
        return shapely.Polygon(self.corners)

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it covers on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class Ellipse(msgspec.Struct, frozen=True, gc=False):
    """An ellipse around ``(cx, cy)`` with radii ``rx`` and ``ry``, rotated clockwise by ``rotation`` degrees."""

    cx: float
    cy: float
    rx: float
    ry: float
    rotation: float = 0.0

    @property
    def bounds(self) -> Bounds:
        """Its exact bounding box."""
        angle = math.radians(self.rotation)
        half_width = math.hypot(self.rx * math.cos(angle), self.ry * math.sin(angle))
        half_height = math.hypot(self.rx * math.sin(angle), self.ry * math.cos(angle))
        return self.cx - half_width, self.cy - half_height, self.cx + half_width, self.cy + half_height

    @property
    def area(self) -> float:
        """Pi times both radii."""
        return math.pi * self.rx * self.ry

    @property
    def points(self) -> NDArray[np.float64]:
        """The corners of an inscribed 128-gon, 0.04 % smaller than the ellipse: (128, 2)."""
        steps = np.linspace(0.0, 2 * math.pi, _ELLIPSE_STEPS, endpoint=False)
        angle = math.radians(self.rotation)
        x, y = self.rx * np.cos(steps), self.ry * np.sin(steps)
        cos, sin = math.cos(angle), math.sin(angle)
        return np.column_stack((self.cx + x * cos - y * sin, self.cy + x * sin + y * cos))

    def polygon(self) -> shapely.Polygon:
        """The polygon of its `points`."""
        return shapely.Polygon(self.points)

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it covers on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class Polygon(msgspec.Struct, frozen=True, gc=False):
    """A ring of at least three points; the last is connected to the first."""

    points: tuple[Point, ...]

    @property
    def bounds(self) -> Bounds:
        """Its bounding box."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def area(self) -> float:
        """The area of `polygon()`; a self-intersecting ring counts every enclosed part once."""
        return float(self.polygon().area)

    def polygon(self) -> shapely.Polygon | shapely.MultiPolygon:
        """Its outline; a self-intersecting ring becomes the valid parts that it encloses (several, or with holes)."""
        return _valid(shapely.Polygon(self.points))

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it covers on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class KeyPoint(msgspec.Struct, frozen=True, gc=False):
    """A point. ``width`` is the diameter of its marker, for display only: its area is 0."""

    x: float
    y: float
    width: float = 0.0

    @property
    def bounds(self) -> Bounds:
        """The point itself, as a box without area."""
        return self.x, self.y, self.x, self.y

    @property
    def area(self) -> float:
        """Zero."""
        return 0.0

    def polygon(self) -> shapely.Polygon:
        """Empty."""
        return shapely.Polygon()

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixel that contains it, if that is on the image."""
        pixels = np.zeros((height, width), dtype=np.bool_)
        column, row = math.floor(self.x), math.floor(self.y)
        if 0 <= column < width and 0 <= row < height:
            pixels[row, column] = True
        return pixels


class Mask(msgspec.Struct, frozen=True, gc=False):
    """A binary mask of a ``width`` x ``height`` image.

    ``rle`` holds the compressed counts of COCO's run-length encoding (column-major, as in pycocotools).
    """

    width: int
    height: int
    rle: bytes

    @classmethod
    def from_array(cls, pixels: NDArray[Any]) -> Self:
        """From an array of shape ``(height, width)``; every pixel that is not zero is set."""
        height, width = pixels.shape
        encoded = coco.encode(np.asfortranarray(pixels != 0, dtype=np.uint8))
        return cls(width, height, encoded["counts"])

    @classmethod
    def from_intervals(cls, starts: NDArray[np.int64], ends: NDArray[np.int64], width: int, height: int) -> Self:
        """From intervals of pixels, counted row by row, that ascend and do not touch: only their box is filled.

        Args:
            starts: (n,), the first pixel of each.
            ends: (n,), the first pixel after each.
            width: The image's width in pixels.
            height: The image's height in pixels.
        """
        if not starts.size:
            return cls(width, height, run_lengths(np.zeros((0, 0), np.bool_), 0, 0, width, height))
        top, bottom = int(starts[0]) // width, int(ends[-1] - 1) // width + 1
        rows, first = np.divmod(starts, width)
        last = ends - rows * width
        x, right = (0, width) if (last > width).any() else (int(first.min()), int(last.max()))
        offsets = (rows - top) * (right - x) - x  # of the box
        pixels = fill_intervals(first + offsets, last + offsets, (bottom - top) * (right - x))
        return cls(width, height, run_lengths(pixels.reshape(bottom - top, right - x), x, top, width, height))

    @classmethod
    def from_outline(cls, outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int) -> Self:
        """The pixels of an image that an outline covers: see `rasterise_crop`. Raises `MaskTooLarge`."""
        return cls(width, height, run_lengths(*rasterise_crop(outline, width, height), width, height))

    @property
    def coco(self) -> dict[str, Any]:
        """For pycocotools: ``{"size": [height, width], "counts": bytes}``."""
        return {"size": [self.height, self.width], "counts": self.rle}

    def array(self) -> NDArray[np.bool_]:
        """Its pixels, boolean, of shape ``(height, width)``."""
        pixels: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(self.coco)).view(np.bool_)
        return pixels

    @property
    def bounds(self) -> Bounds:
        """The bounding box of its pixels; all zero if none is set."""
        x, y, width, height = (float(edge) for edge in coco.toBbox(self.coco))
        return x, y, x + width, y + height

    @property
    def area(self) -> float:
        """Number of pixels."""
        return float(coco.area(self.coco))

    @property
    def counts(self) -> list[int]:
        """Its run lengths in column-major order, background first: COCO's uncompressed RLE."""
        flat = self.array().ravel(order="F")
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        lengths: list[int] = np.diff(edges, prepend=0, append=flat.size).tolist()
        return [0, *lengths] if flat[0] else lengths

    def polygon(self) -> shapely.Polygon | shapely.MultiPolygon:
        """The outline along its pixel edges, with the same area, parts and holes."""
        left, top, right, bottom = map(int, self.bounds)
        cropped = np.ascontiguousarray(coco.decode(self.coco)[top:bottom, left:right]).view(np.bool_)
        return trace(cropped, left, top)

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """Its pixels on a ``width`` x ``height`` canvas, cropped or padded with background at the right and bottom."""
        pixels = np.zeros((height, width), dtype=np.bool_)
        own = self.array()[:height, :width]
        pixels[: own.shape[0], : own.shape[1]] = own
        return pixels


class Vertex(msgspec.Struct, frozen=True, gc=False):
    """A vertex of a vector, with optional Bezier handles.

    ``before`` is the handle of the curve from the previous vertex, ``after`` that of the curve to the next one.
    ``id`` and ``previous`` are Label Studio's links, with which a vector can branch.
    """

    x: float
    y: float
    id: str = ""
    previous: str | None = None
    before: Point | None = None
    after: Point | None = None
    bezier: bool = False


class Vector(msgspec.Struct, frozen=True, gc=False):
    """Lines and Bezier curves through ``vertices``. Only a closed one encloses an area."""

    vertices: tuple[Vertex, ...]
    closed: bool = False

    def line(self) -> shapely.MultiLineString:
        """All segments, curves flattened into 16 pieces."""
        return shapely.MultiLineString([_flatten(start, end) for start, end in self._segments()])

    def _segments(self) -> list[tuple[Vertex, Vertex]]:
        by_id = {vertex.id: index for index, vertex in enumerate(self.vertices) if vertex.id}
        links = []
        for index, vertex in enumerate(self.vertices):
            previous = by_id.get(vertex.previous or "", index - 1)
            if previous >= 0:
                links.append((previous, index))
        last = len(self.vertices) - 1
        if self.closed and last > 1 and (last, 0) not in links:
            links.append((last, 0))
        return [(self.vertices[start], self.vertices[end]) for start, end in links]

    @property
    def bounds(self) -> Bounds:
        """The bounding box of all segments."""
        if len(self.vertices) == 1:
            only = self.vertices[0]
            return only.x, only.y, only.x, only.y
        x_min, y_min, x_max, y_max = self.line().bounds
        return x_min, y_min, x_max, y_max

    @property
    def area(self) -> float:
        """The enclosed area; 0 for an open vector."""
        return float(self.polygon().area)

    def polygon(self) -> shapely.Polygon | shapely.MultiPolygon:
        """The outline of the enclosed area; empty for an open vector."""
        if not self.closed or len(self.vertices) < 3:
            return shapely.Polygon()
        ring: list[Point] = []
        for start, end in zip(self.vertices, (*self.vertices[1:], self.vertices[0]), strict=True):
            ring.extend(_flatten(start, end)[:-1])
        return _valid(shapely.Polygon(ring))

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it encloses on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class Interval(msgspec.Struct, frozen=True, gc=False):
    """A span of a text, a recording or a series, from ``start`` to ``end``: a box of height 1 on no image."""

    start: float
    end: float

    @property
    def bounds(self) -> Bounds:
        """The box of height 1."""
        return self.start, 0.0, self.end, 1.0

    @property
    def area(self) -> float:
        """Its length."""
        return self.end - self.start

    def polygon(self) -> Any:
        """The box of height 1 (shapely)."""
        return shapely.box(*self.bounds)

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """Nothing: it lies on no image."""
        return np.zeros((height, width), np.bool_)


Geometry = Rectangle | Ellipse | Polygon | KeyPoint | Mask | Vector | Interval


def _flatten(start: Vertex, end: Vertex) -> list[Point]:
    first, last = (start.x, start.y), (end.x, end.y)
    leaving = start.after if start.bezier else None
    arriving = end.before if end.bezier else None
    if leaving is None and arriving is None:
        return [first, last]
    # As in Label Studio: an end without a handle gets one at 0.3 of the chord.
    across, down = end.x - start.x, end.y - start.y
    leaving = leaving or (start.x + 0.3 * across, start.y + 0.3 * down)
    arriving = arriving or (end.x - 0.3 * across, end.y - 0.3 * down)
    handles = np.array([first, leaving, arriving, last])
    t = np.linspace(0.0, 1.0, _BEZIER_STEPS + 1)[:, None]
    weights = np.hstack(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3))
    return [(float(x), float(y)) for x, y in weights @ handles]


def _valid(ring: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    return ring if shapely.is_valid(ring) else even_odd_polygon(ring)


def even_odd_polygon(ring: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    """The area of a self-intersecting ring by the even-odd rule, as pycocotools and OpenCV fill it.

    The ring is split at its intersections into faces; a face is inside if a ray from it crosses the ring an odd number
    of times. (``shapely.make_valid`` treats an edge that occurs twice, such as a bridge to a hole, as one edge.)
    """
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.node(ring.exterior))))
    if not len(faces):
        return shapely.Polygon()
    inner_points = shapely.get_coordinates(shapely.point_on_surface(faces))
    odd = _crossings(inner_points, shapely.get_coordinates(ring.exterior)) % 2 == 1
    return shapely.union_all(faces[odd])


def _crossings(points: NDArray[np.float64], ring: NDArray[np.float64]) -> NDArray[np.int64]:
    """(m,): number of edges of a closed ring (n, 2) that the ray to the right of each point (m, 2) crosses."""
    x, y = points[:, :1], points[:, 1:]
    x0, y0, x1, y1 = ring[:-1, 0], ring[:-1, 1], ring[1:, 0], ring[1:, 1]
    over = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # horizontal edges: no ray crosses
        right = x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    crossed: NDArray[np.int64] = (over & right).sum(axis=1)
    return crossed
