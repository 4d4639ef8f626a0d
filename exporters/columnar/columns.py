"""Many objects at once, in columns: the same inner form as `Object`, for what numpy does faster than Python.

What most tasks hold are boxes and polygons with one label, well inside their image. `fit` puts whole blocks of those
into their images; what it does not know for certain it leaves to `exporters.model.clipping.fit`, row by row. The
arithmetic is that of `Rectangle`, `Polygon` and `shapes.fit`, operation by operation, so that a region has the same
bits either way.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.polygons import Floats, Rings, simple_areas
from exporters.model.clipping import CLIPPED, NARROWEST, TOLERANCE, Fitted, Unfit
from exporters.model.clipping import fit as fit_one
from exporters.model.records import Object
from exporters.structures.arrays import offsets
from labelloop.labeling.geometry.shapes import Geometry, Polygon, Rectangle

UPRIGHT, TURNED, RING, NOT_VECTORISED = range(4)
"""Kinds of rows: a rectangle that is its box, one that is turned, a polygon; and what has an `Object` of its own."""


class Shapes(msgspec.Struct, frozen=True):
    """Shapes as drawn, in pixels, a row each.

    Attributes:
        boxes: (rows, 5): x, y, width, height and rotation of a rectangle; no numbers for a polygon.
        rings: The corners of the turned rectangles and of the polygons.
        sizes: (rows, 2): width and height of the image.
        turned: Which rows are turned rectangles.
        ring: Which rows are polygons.
    """

    boxes: Floats
    rings: Rings
    sizes: Floats
    turned: NDArray[np.bool_]
    ring: NDArray[np.bool_]

    def geometry(self, row: int) -> Geometry:
        """The shape of a row."""
        if self.ring[row]:
            place = int(np.searchsorted(self.rings.rows, row))
            points = self.rings.points[self.rings.first[place] : self.rings.first[place + 1]]
            return Polygon(tuple((x, y) for x, y in points.tolist()))
        return Rectangle(*self.boxes[row].tolist())


class ClippedShapes(msgspec.Struct, frozen=True):
    """Where shapes are in their images, a row each, as `shapes.Fitted` says it; ``OTHER`` is what is not known."""

    kinds: NDArray[np.uint8]
    boxes: Floats  # (rows, 4)
    areas: Floats
    clipped: NDArray[np.bool_]


class RegionMetadata(msgspec.Struct, frozen=True):
    """What is known of shapes beside their form and their class, a row each: as in `Object`."""

    regions: list[str] = []
    scores: list[float | None] = []

    def some(self, rows: Sequence[int]) -> "RegionMetadata":
        """Some of the rows."""
        return RegionMetadata([self.regions[row] for row in rows], [self.scores[row] for row in rows])


class Columns(msgspec.Struct, frozen=True):
    """The objects of some images, in their order; ``first[i]`` is where those of image ``i`` begin.

    ``annotations`` and ``annotators`` are those of the images; ``classes`` the names of the classes, in the order of
    their numbers. ``others`` are the objects of the rows of kind ``OTHER``. Every object has a box.
    """

    first: list[int]
    annotations: list[int | None]
    annotators: list[int | None]
    shapes: Shapes
    fits: ClippedShapes
    said: RegionMetadata
    ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    classes: Sequence[str]
    others: Mapping[int, Object] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def twins(self, digits: int) -> set[int]:
        """The images in which two objects of one class have one box, to so many digits of a pixel."""
        owners = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        boxes = np.floor(self.fits.boxes * 10.0**digits + 0.5).astype(np.int64)
        rows = np.column_stack((owners, self.class_ids, boxes))
        order = np.lexsort(rows.T[::-1])
        same = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
        found: set[int] = set(owners[order[1:]][same].tolist())
        return found

    def objects(self, image: int) -> tuple[Object, ...]:
        """The objects of an image, one by one."""
        rows = range(self.first[image], self.first[image + 1])
        return tuple(self.others.get(row) or self.object(image, row, self._fitted(row)) for row in rows)

    def object(self, image: int, row: int, fitted: Fitted) -> Object:
        """A row of an image as an object that fits so."""
        number, class_id = int(self.ids[row]), int(self.class_ids[row])
        return Object(
            number,
            class_id,
            self.classes[class_id - 1],
            self.shapes.geometry(row),
            fitted.box,
            fitted.area,
            number,
            CLIPPED in fitted.repairs,
            fitted.outline,
            self.said.regions[row],
            annotation=self.annotations[image],
            annotator=self.annotators[image],
            score=self.said.scores[row],
        )

    def _fitted(self, row: int) -> Fitted:
        x_min, y_min, x_max, y_max = self.fits.boxes[row].tolist()
        repairs = (CLIPPED,) if self.fits.clipped[row] else ()
        return Fitted((x_min, y_min, x_max, y_max), float(self.fits.areas[row]), repairs)


def percent_to_pixels(
    boxes: Floats, points: Floats, counts: Sequence[int] | NDArray[np.int64], ring: NDArray[np.bool_], sizes: Floats
) -> Shapes:
    """Shapes in pixels from percent.

    Args:
        boxes: (rows, 5): x, y, width, height in percent and rotation; anything for a polygon.
        points: (points, 2): the points of all polygons, in percent.
        counts: how many points each polygon has.
        ring: which rows are polygons.
        sizes: (rows, 2): width and height of the image.
    """
    pixels = boxes.copy("F")
    pixels[:, :2] *= sizes
    pixels[:, 2:4] *= sizes
    pixels[:, :4] /= 100
    turned = ~ring & (pixels[:, 4] != 0)
    corners = _corners(pixels[turned]) if turned.any() else np.empty((0, 2))
    points = points * np.repeat(sizes[ring], counts, axis=0) / 100
    rows = np.concatenate((np.flatnonzero(turned), np.flatnonzero(ring)))
    lengths = np.concatenate((np.full(len(corners) // 4, 4), np.asarray(counts, np.int64)))
    rings = Rings(rows, offsets(lengths), np.concatenate((corners, points)))
    if len(corners):
        rings = rings.some(np.argsort(rows, kind="stable"))  # in the order of their rows
    return Shapes(pixels, rings, sizes, turned, ring)


def clip_batch(shapes: Shapes) -> ClippedShapes:
    """Bring shapes inside their images, as far as that is a matter of columns: see `exporters.model.clipping.fit`."""
    drawn = shapes.boxes[:, :4].copy("F")
    drawn[:, 2:] += drawn[:, :2]
    rings = shapes.rings
    if len(rings.rows):
        begins = rings.first[:-1]
        drawn[rings.rows, :2] = np.minimum.reduceat(rings.points, begins, axis=0)
        drawn[rings.rows, 2:] = np.maximum.reduceat(rings.points, begins, axis=0)
    boxes = np.empty_like(drawn)
    np.maximum(drawn[:, :2], 0.0, out=boxes[:, :2])
    np.minimum(drawn[:, 2:], shapes.sizes, out=boxes[:, 2:])
    over = np.maximum(-drawn[:, :2], drawn[:, 2:] - shapes.sizes)
    clipped = np.maximum(over[:, 0], over[:, 1]) > TOLERANCE
    sides = boxes[:, 2:] - boxes[:, :2]  # none is longer than as drawn
    known = (sides[:, 0] >= TOLERANCE) & (sides[:, 1] >= TOLERANCE)
    upright = ~(shapes.turned | shapes.ring)
    areas = np.where(upright, sides[:, 0] * sides[:, 1], shapes.boxes[:, 2] * shapes.boxes[:, 3])
    least = NARROWEST * (drawn[:, 2:] - drawn[:, :2]).max(axis=1, initial=0.0)
    known &= upright | shapes.ring | (areas >= least)
    known &= upright | ~clipped  # what the edge cuts of another shape is for shapely
    known &= ~(shapes.turned & (shapes.boxes[:, 4] % 360 == 0))  # turned all round: its box, by way of its corners
    if shapes.ring.any():
        drawn_rings = rings.some(np.flatnonzero(shapes.ring[rings.rows])) if shapes.turned.any() else rings
        simple, areas[drawn_rings.rows] = simple_areas(drawn_rings)
        known[drawn_rings.rows] &= simple & (areas[drawn_rings.rows] >= least[drawn_rings.rows])
    kinds = np.full(len(areas), UPRIGHT, np.uint8)
    kinds[shapes.turned], kinds[shapes.ring] = TURNED, RING
    kinds[~known] = NOT_VECTORISED
    return ClippedShapes(kinds, boxes, areas, clipped)


def clip_remaining(shapes: Shapes, rows: Sequence[int]) -> dict[int, Fitted | str]:
    """What `exporters.model.clipping.fit` says of rows of kind ``OTHER``: how each fits, or why it does not."""
    found: dict[int, Fitted | str] = {}
    for row in rows:
        width, height = shapes.sizes[row].tolist()
        try:
            found[row] = fit_one(shapes.geometry(row), int(width), int(height))
        except Unfit as unfit:
            found[row] = str(unfit)
    return found


def take(shapes: Shapes, fits: ClippedShapes, rows: NDArray[np.int64]) -> tuple[Shapes, ClippedShapes]:
    """Some of the rows, in ascending order."""
    places = np.full(len(shapes.boxes), -1)
    places[rows] = np.arange(len(rows))
    rings = shapes.rings.some(np.flatnonzero(places[shapes.rings.rows] >= 0))
    rings = msgspec.structs.replace(rings, rows=places[rings.rows])
    return (
        Shapes(shapes.boxes[rows], rings, shapes.sizes[rows], shapes.turned[rows], shapes.ring[rows]),
        ClippedShapes(fits.kinds[rows], fits.boxes[rows], fits.areas[rows], fits.clipped[rows]),
    )


def _corners(boxes: Floats) -> Floats:
    """(4 x rows, 2): see `Rectangle.corners`. Sines are Python's: numpy's may differ in the last bit."""
    turns = np.radians(boxes[:, 4]).tolist()
    cos, sin = np.array([math.cos(turn) for turn in turns]), np.array([math.sin(turn) for turn in turns])
    x, y, width, height = boxes[:, :4].T
    wx, wy, hx, hy = width * cos, width * sin, -height * sin, height * cos
    corners = np.stack((x, y, x + wx, y + wy, x + wx + hx, y + wy + hy, x + hx, y + hy), axis=1)
    return corners.reshape(-1, 2)
