"""Objects as columns (struct of arrays): the counterpart of `Object` for boxes and polygons, clipped with numpy.

Most tasks hold boxes and polygons with one label, well inside their image. `clip_batch` clips blocks of them; shapes it
cannot decide with certainty go through `exporters.model.clipping.clip_to_image` one by one (`clip_remaining`). The
arithmetic repeats that of `Rectangle`, `Polygon` and `clip_to_image` operation by operation, so both ways give the same
bits.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.polygons import Floats, Rings, simple_areas
from exporters.model.clipping import CLIPPED, MIN_MEAN_WIDTH, TOLERANCE, ClippedShape, ShapeRejected
from exporters.model.clipping import clip_to_image as fit_one
from exporters.model.records import Object
from exporters.structures.arrays import offsets
from labelloop.labeling.geometry.shapes import Geometry, Polygon, Rectangle

# Kinds of rows: an axis-aligned rectangle, a rotated one, a polygon, and a shape with an `Object` of its own.
UPRIGHT, ROTATED, RING, NOT_VECTORISED = range(4)


class Shapes(msgspec.Struct, frozen=True):
    """Shapes as drawn, in pixels, one row each.

    Attributes:
        boxes: (rows, 5): x, y, width, height in pixels and rotation in degrees of a rectangle; NaN for a polygon.
        rings: The corners of the rotated rectangles and of the polygons.
        sizes: (rows, 2): width and height of the image, in pixels.
        rotated: (rows,), whether the row is a rotated rectangle.
        ring: (rows,), whether the row is a polygon.
    """

    boxes: Floats
    rings: Rings
    sizes: Floats
    rotated: NDArray[np.bool_]
    ring: NDArray[np.bool_]

    def geometry(self, row: int) -> Geometry:
        """Return the shape of a row."""
        if self.ring[row]:
            ring = int(np.searchsorted(self.rings.rows, row))
            points = self.rings.points[self.rings.first[ring] : self.rings.first[ring + 1]]
            return Polygon(tuple((x, y) for x, y in points.tolist()))
        return Rectangle(*self.boxes[row].tolist())


class ClippedShapes(msgspec.Struct, frozen=True):
    """Shapes clipped to their images, one row each: `exporters.model.clipping.ClippedShape` as columns.

    Attributes:
        kinds: (rows,): `UPRIGHT`, `ROTATED`, `RING`, or `NOT_VECTORISED` where the other columns are not valid.
        boxes: (rows, 4): x_min, y_min, x_max, y_max in pixels.
        areas: (rows,), in square pixels.
        is_clipped: (rows,), whether the edge of the image cuts the shape.
    """

    kinds: NDArray[np.uint8]
    boxes: Floats
    areas: Floats
    is_clipped: NDArray[np.bool_]


class RegionMetadata(msgspec.Struct, frozen=True):
    """Region ids and scores, one per row, as in `Object`."""

    regions: list[str] = []
    scores: list[float | None] = []

    def take(self, rows: Sequence[int]) -> "RegionMetadata":
        """Return the metadata of some rows."""
        return RegionMetadata([self.regions[row] for row in rows], [self.scores[row] for row in rows])


class Columns(msgspec.Struct, frozen=True):
    """The objects of some images, one row each, grouped by image. Every object has a box.

    Attributes:
        first: The first row of each image, then the number of rows: (images + 1,).
        annotations: The annotation id of each image.
        annotators: The user id of each image's annotator.
        shapes: The shapes as drawn.
        clipped: The shapes clipped to their images.
        metadata: Region ids and scores.
        ids: (rows,), the object ids.
        class_ids: (rows,), from 1.
        classes: The class names, in the order of their ids.
        others: The objects of the rows of kind `NOT_VECTORISED`.
    """

    first: list[int]
    annotations: list[int | None]
    annotators: list[int | None]
    shapes: Shapes
    clipped: ClippedShapes
    metadata: RegionMetadata
    ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    classes: Sequence[str]
    others: Mapping[int, Object] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def duplicate_images(self, digits: int) -> set[int]:
        """Return the images with two objects of one class whose boxes are equal when rounded to ``digits`` digits."""
        owners = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        boxes = np.floor(self.clipped.boxes * 10.0**digits + 0.5).astype(np.int64)
        rows = np.column_stack((owners, self.class_ids, boxes))
        order = np.lexsort(rows.T[::-1])
        same = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
        images: set[int] = set(owners[order[1:]][same].tolist())
        return images

    def objects(self, image: int) -> tuple[Object, ...]:
        """Return the objects of an image."""
        rows = range(self.first[image], self.first[image + 1])
        return tuple(self.others.get(row) or self.object(image, row, self._fitted(row)) for row in rows)

    def object(self, image: int, row: int, fitted: ClippedShape) -> Object:
        """Return a row as an object, with its clipped shape."""
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
            self.metadata.regions[row],
            annotation=self.annotations[image],
            annotator=self.annotators[image],
            score=self.metadata.scores[row],
        )

    def _fitted(self, row: int) -> ClippedShape:
        x_min, y_min, x_max, y_max = self.clipped.boxes[row].tolist()
        repairs = (CLIPPED,) if self.clipped.is_clipped[row] else ()
        return ClippedShape((x_min, y_min, x_max, y_max), float(self.clipped.areas[row]), repairs)


def percent_to_pixels(
    boxes: Floats, points: Floats, counts: Sequence[int] | NDArray[np.int64], ring: NDArray[np.bool_], sizes: Floats
) -> Shapes:
    """Convert shapes from percent of the image to pixels.

    Args:
        boxes: (rows, 5): x, y, width, height in percent and rotation in degrees; ignored for a polygon.
        points: (points, 2): the points of all polygons, in percent, concatenated.
        counts: (polygons,), the number of points of each.
        ring: (rows,), whether the row is a polygon.
        sizes: (rows, 2): width and height of the image, in pixels.
    """
    pixels = boxes.copy("F")
    pixels[:, :2] *= sizes
    pixels[:, 2:4] *= sizes
    pixels[:, :4] /= 100
    rotated = ~ring & (pixels[:, 4] != 0)
    corners = _corners(pixels[rotated]) if rotated.any() else np.empty((0, 2))
    points = points * np.repeat(sizes[ring], counts, axis=0) / 100
    rows = np.concatenate((np.flatnonzero(rotated), np.flatnonzero(ring)))
    lengths = np.concatenate((np.full(len(corners) // 4, 4), np.asarray(counts, np.int64)))
    rings = Rings(rows, offsets(lengths), np.concatenate((corners, points)))
    if len(corners):
        rings = rings.take(np.argsort(rows, kind="stable"))  # in the order of their rows
    return Shapes(pixels, rings, sizes, rotated, ring)


def clip_batch(shapes: Shapes) -> ClippedShapes:
    """Clip shapes to their images, vectorised; undecided rows get `NOT_VECTORISED`: see `clip_remaining`."""
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
    vectorised = (sides[:, 0] >= TOLERANCE) & (sides[:, 1] >= TOLERANCE)
    upright = ~(shapes.rotated | shapes.ring)
    areas = np.where(upright, sides[:, 0] * sides[:, 1], shapes.boxes[:, 2] * shapes.boxes[:, 3])
    min_areas = MIN_MEAN_WIDTH * (drawn[:, 2:] - drawn[:, :2]).max(axis=1, initial=0.0)
    vectorised &= upright | shapes.ring | (areas >= min_areas)
    vectorised &= upright | ~clipped  # other shapes cut by the edge need shapely
    # a full turn: the general code computes its box from its corners
    vectorised &= ~(shapes.rotated & (shapes.boxes[:, 4] % 360 == 0))
    if shapes.ring.any():
        drawn_rings = rings.take(np.flatnonzero(shapes.ring[rings.rows])) if shapes.rotated.any() else rings
        simple, areas[drawn_rings.rows] = simple_areas(drawn_rings)
        vectorised[drawn_rings.rows] &= simple & (areas[drawn_rings.rows] >= min_areas[drawn_rings.rows])
    kinds = np.full(len(areas), UPRIGHT, np.uint8)
    kinds[shapes.rotated], kinds[shapes.ring] = ROTATED, RING
    kinds[~vectorised] = NOT_VECTORISED
    return ClippedShapes(kinds, boxes, areas, clipped)


def clip_remaining(shapes: Shapes, rows: Sequence[int]) -> dict[int, ClippedShape | str]:
    """Clip the shapes at some rows one by one: row -> the clipped shape, or the reason why it is rejected."""
    results: dict[int, ClippedShape | str] = {}
    for row in rows:
        width, height = shapes.sizes[row].tolist()
        try:
            results[row] = fit_one(shapes.geometry(row), int(width), int(height))
        except ShapeRejected as error:
            results[row] = str(error)
    return results


def take_rows(shapes: Shapes, clipped: ClippedShapes, rows: NDArray[np.int64]) -> tuple[Shapes, ClippedShapes]:
    """Return the shapes at some rows, in ascending order."""
    new_rows = np.full(len(shapes.boxes), -1)
    new_rows[rows] = np.arange(len(rows))
    rings = shapes.rings.take(np.flatnonzero(new_rows[shapes.rings.rows] >= 0))
    rings = msgspec.structs.replace(rings, rows=new_rows[rings.rows])
    return (
        Shapes(shapes.boxes[rows], rings, shapes.sizes[rows], shapes.rotated[rows], shapes.ring[rows]),
        ClippedShapes(clipped.kinds[rows], clipped.boxes[rows], clipped.areas[rows], clipped.is_clipped[rows]),
    )


def _corners(boxes: Floats) -> Floats:
    """Return the corners of rotated rectangles, (rows, 5) -> (4 * rows, 2): see `Rectangle.corners`.

    Sines come from `math`: those of numpy may differ in the last bit.
    """
    turns = np.radians(boxes[:, 4]).tolist()
    cos, sin = np.array([math.cos(turn) for turn in turns]), np.array([math.sin(turn) for turn in turns])
    x, y, width, height = boxes[:, :4].T
    wx, wy, hx, hy = width * cos, width * sin, -height * sin, height * cos
    corners = np.stack((x, y, x + wx, y + wy, x + wx + hx, y + wy + hy, x + hx, y + hy), axis=1)
    return corners.reshape(-1, 2)
