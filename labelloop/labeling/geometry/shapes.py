"""The shapes an annotator can draw, in pixels: origin at the top left of the image, x to the right, y down.

Every shape is a frozen value with the same members: ``bounds`` (x_min, y_min, x_max, y_max), ``area`` (square pixels),
``polygon()`` (shapely) and ``mask(width, height)`` (boolean, ``(height, width)``). Percent, normalised, 1-based and
run-length forms exist only in the files that speak those formats.
"""

import math
from typing import Any, Self

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from labelloop.labeling.geometry.raster import cover, rasterise, run_lengths, trace

Bounds = tuple[float, float, float, float]
Point = tuple[float, float]

_ELLIPSE_STEPS = 128  # an inscribed 128-gon covers 99.96 % of its ellipse
_BEZIER_STEPS = 16


class Rectangle(msgspec.Struct, frozen=True, gc=False):
    """A box from its top-left corner ``(x, y)``, turned clockwise by ``rotation`` degrees about that corner."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0

    @property
    def corners(self) -> tuple[Point, Point, Point, Point]:
        """Its four corners in drawing order: top left (the pivot), top right, bottom right, bottom left."""
        x, y = self.x, self.y
        if not self.rotation:
            right, bottom = x + self.width, y + self.height
            return (x, y), (right, y), (right, bottom), (x, bottom)
        turn = math.radians(self.rotation)
        cos, sin = math.cos(turn), math.sin(turn)
        wx, wy = self.width * cos, self.width * sin
        hx, hy = -self.height * sin, self.height * cos
        return (x, y), (x + wx, y + wy), (x + wx + hx, y + wy + hy), (x + hx, y + hy)

    @property
    def bounds(self) -> Bounds:
        """The upright box around it."""
        if not self.rotation:
            return self.x, self.y, self.x + self.width, self.y + self.height
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def area(self) -> float:
        """Width times height; turning changes nothing."""
        return self.width * self.height

    def polygon(self) -> shapely.Polygon:
        """Its outline."""
        return shapely.Polygon(self.corners)

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it covers on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class Ellipse(msgspec.Struct, frozen=True, gc=False):
    """An ellipse about ``(cx, cy)`` with radii ``rx`` and ``ry``, turned clockwise by ``rotation`` degrees."""

    cx: float
    cy: float
    rx: float
    ry: float
    rotation: float = 0.0

    @property
    def bounds(self) -> Bounds:
        """The upright box around it, exact."""
        turn = math.radians(self.rotation)
        half_width = math.hypot(self.rx * math.cos(turn), self.ry * math.sin(turn))
        half_height = math.hypot(self.rx * math.sin(turn), self.ry * math.cos(turn))
        return self.cx - half_width, self.cy - half_height, self.cx + half_width, self.cy + half_height

    @property
    def area(self) -> float:
        """Pi times both radii."""
        return math.pi * self.rx * self.ry

    def polygon(self) -> shapely.Polygon:
        """An inscribed 128-gon: 0.04 % smaller than the ellipse."""
        steps = np.linspace(0.0, 2 * math.pi, _ELLIPSE_STEPS, endpoint=False)
        turn = math.radians(self.rotation)
        x, y = self.rx * np.cos(steps), self.ry * np.sin(steps)
        cos, sin = math.cos(turn), math.sin(turn)
        return shapely.Polygon(np.column_stack((self.cx + x * cos - y * sin, self.cy + x * sin + y * cos)))

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it covers on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class Polygon(msgspec.Struct, frozen=True, gc=False):
    """A closed ring of at least three points; the last is joined to the first."""

    points: tuple[Point, ...]

    @property
    def bounds(self) -> Bounds:
        """The upright box around it."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def area(self) -> float:
        """The area that `polygon` encloses; a ring that crosses itself counts every enclosed part once."""
        return float(self.polygon().area)

    def polygon(self) -> shapely.Polygon | shapely.MultiPolygon:
        """Its outline; a ring that crosses itself becomes the valid parts it encloses (several, or with holes)."""
        return _valid(shapely.Polygon(self.points))

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it covers on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


class KeyPoint(msgspec.Struct, frozen=True, gc=False):
    """A point. ``width`` is the diameter it is drawn with: a matter of display, so it encloses nothing."""

    x: float
    y: float
    width: float = 0.0

    @property
    def bounds(self) -> Bounds:
        """The point itself, as a box without extent."""
        return self.x, self.y, self.x, self.y

    @property
    def area(self) -> float:
        """Zero."""
        return 0.0

    def polygon(self) -> shapely.Polygon:
        """Empty."""
        return shapely.Polygon()

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The one pixel it lies in, if that is on the image."""
        pixels = np.zeros((height, width), dtype=np.bool_)
        column, row = math.floor(self.x), math.floor(self.y)
        if 0 <= column < width and 0 <= row < height:
            pixels[row, column] = True
        return pixels


class Mask(msgspec.Struct, frozen=True, gc=False):
    """The pixels of a ``width`` x ``height`` image that belong to the region.

    ``rle`` holds them as the compressed counts of COCO's run-length encoding (column-major, as in pycocotools).
    """

    width: int
    height: int
    rle: bytes

    @classmethod
    def of(cls, pixels: NDArray[Any]) -> Self:
        """From an array of shape ``(height, width)``; every pixel that is not zero belongs to the region."""
        height, width = pixels.shape
        encoded = coco.encode(np.asfortranarray(pixels != 0, dtype=np.uint8))
        return cls(width, height, encoded["counts"])

    @classmethod
    def covering(cls, outline: shapely.Polygon | shapely.MultiPolygon, width: int, height: int) -> Self:
        """The pixels of an image that an outline covers: see `cover`. Raises `TooLarge`."""
        return cls(width, height, run_lengths(*cover(outline, width, height), width, height))

    @property
    def coco(self) -> dict[str, Any]:
        """As pycocotools takes it: ``{"size": [height, width], "counts": bytes}``."""
        return {"size": [self.height, self.width], "counts": self.rle}

    def array(self) -> NDArray[np.bool_]:
        """Its pixels, boolean, of shape ``(height, width)``."""
        pixels: NDArray[np.bool_] = np.ascontiguousarray(coco.decode(self.coco)).view(np.bool_)
        return pixels

    @property
    def bounds(self) -> Bounds:
        """The box around its pixels; all zero when it has none."""
        x, y, width, height = (float(edge) for edge in coco.toBbox(self.coco))
        return x, y, x + width, y + height

    @property
    def area(self) -> float:
        """How many pixels it has."""
        return float(coco.area(self.coco))

    @property
    def counts(self) -> list[int]:
        """Its run lengths column by column, background first: COCO's uncompressed encoding."""
        flat = self.array().ravel(order="F")
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        lengths: list[int] = np.diff(edges, prepend=0, append=flat.size).tolist()
        return [0, *lengths] if flat[0] else lengths

    def polygon(self) -> shapely.Polygon | shapely.MultiPolygon:
        """The outline along its pixels' edges: the same area, parts and holes kept."""
        return trace(self.array())

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """Its pixels on a ``width`` x ``height`` canvas: cut, or filled up with background, at the right and bottom."""
        pixels = np.zeros((height, width), dtype=np.bool_)
        own = self.array()[:height, :width]
        pixels[: own.shape[0], : own.shape[1]] = own
        return pixels


class Vertex(msgspec.Struct, frozen=True, gc=False):
    """A corner of a vector, with the two handles of a Bezier curve where it has them.

    ``before`` steers the curve that arrives from the previous vertex, ``after`` the one that leaves for the next;
    ``id`` and ``previous`` are Label Studio's own links, by which a vector can branch.
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
        """Every segment drawn, curves flattened into 16 pieces."""
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
        """The upright box around what is drawn."""
        if len(self.vertices) == 1:
            only = self.vertices[0]
            return only.x, only.y, only.x, only.y
        x_min, y_min, x_max, y_max = self.line().bounds
        return x_min, y_min, x_max, y_max

    @property
    def area(self) -> float:
        """The area enclosed; zero when it is open."""
        return float(self.polygon().area)

    def polygon(self) -> shapely.Polygon | shapely.MultiPolygon:
        """The area enclosed; empty when it is open."""
        if not self.closed or len(self.vertices) < 3:
            return shapely.Polygon()
        ring: list[Point] = []
        for start, end in zip(self.vertices, (*self.vertices[1:], self.vertices[0]), strict=True):
            ring.extend(_flatten(start, end)[:-1])
        return _valid(shapely.Polygon(ring))

    def mask(self, width: int, height: int) -> NDArray[np.bool_]:
        """The pixels it encloses on a ``width`` x ``height`` image."""
        return rasterise(self.polygon(), width, height)


Geometry = Rectangle | Ellipse | Polygon | KeyPoint | Mask | Vector


def _flatten(start: Vertex, end: Vertex) -> list[Point]:
    first, last = (start.x, start.y), (end.x, end.y)
    leaving = start.after if start.bezier else None
    arriving = end.before if end.bezier else None
    if leaving is None and arriving is None:
        return [first, last]
    # Label Studio's own curve where one end is a plain corner: that end's handle sits at 0.3 of the chord.
    across, down = end.x - start.x, end.y - start.y
    leaving = leaving or (start.x + 0.3 * across, start.y + 0.3 * down)
    arriving = arriving or (end.x - 0.3 * across, end.y - 0.3 * down)
    handles = np.array([first, leaving, arriving, last])
    t = np.linspace(0.0, 1.0, _BEZIER_STEPS + 1)[:, None]
    weights = np.hstack(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3))
    return [(float(x), float(y)) for x, y in weights @ handles]


def _valid(ring: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    return ring if shapely.is_valid(ring) else enclosed(ring)


def enclosed(ring: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    """What a ring that crosses itself encloses by the even-odd rule, as COCO's tools and OpenCV fill it.

    The ring is cut where it crosses itself into faces, and a face counts where a ray from it crosses the ring an odd
    number of times. (``shapely.make_valid`` takes an edge that is gone along twice, as bridges to holes are, for one.)
    """
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.node(ring.exterior))))
    if not len(faces):
        return shapely.Polygon()
    seen = shapely.get_coordinates(shapely.point_on_surface(faces))
    odd = _crossings(seen, shapely.get_coordinates(ring.exterior)) % 2 == 1
    return shapely.union_all(faces[odd])


def _crossings(points: NDArray[np.float64], ring: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many edges of a closed ring (n, 2) the ray to the right of each point (m, 2) crosses."""
    x, y = points[:, :1], points[:, 1:]
    x0, y0, x1, y1 = ring[:-1, 0], ring[:-1, 1], ring[1:, 0], ring[1:, 1]
    over = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):  # level edges, which no ray crosses
        right = x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    crossed: NDArray[np.int64] = (over & right).sum(axis=1)
    return crossed
