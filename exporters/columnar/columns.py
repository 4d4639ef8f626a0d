"""Objects as columns (struct of arrays): the counterpart of `Object` for boxes, polygons and key points.

`clip_batch` clips blocks of shapes with numpy, those that the edge of the image cuts with shapely's vectorised
functions; shapes it cannot decide with certainty go through `exporters.model.clipping.clip_to_image` one by one
(`clip_remaining`). The arithmetic repeats that of `Rectangle`, `Polygon` and `clip_to_image` operation by operation, so
both ways give the same bits.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.columnar.polygons import Floats, Rings, simple_areas
from exporters.model.clipping import CLIPPED, MIN_MEAN_WIDTH, TOLERANCE, ClippedShape, ShapeRejected, clip_convex
from exporters.model.clipping import clip_to_image as fit_one
from exporters.model.records import Object
from exporters.structures.arrays import offsets
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Polygon, Rectangle
from labelloop.labeling.studio.region_attributes import CROWD, NO_OBJECT_ATTRIBUTES, ObjectAttributes

# Kinds of rows: an axis-aligned rectangle, a rotated one, a polygon, an ellipse, a shape with an `Object` of its own, a
# key point.
KINDS = UPRIGHT, ROTATED, RING, ELLIPSE, NOT_VECTORISED, POINT = range(6)
# shapely's type id of a polygon.
_POLYGON = 3
# An odd number, for hashes: 2**64 divided by the golden ratio. Source: Knuth, TAOCP 3, 6.4.
_HASH = np.int64(-7046029254386353131)
# Makes one number of a width and a height.
_SIZE_KEY = float(1 << 24)
# The points of an ellipse without a rotation around the origin, with radii of 1: cosines and sines.
_CIRCLE = Ellipse(0.0, 0.0, 1.0, 1.0).points


class Shapes(msgspec.Struct, frozen=True):
    """Shapes as drawn, in pixels, one row each.

    Attributes:
        boxes: (rows, 5): x, y, width, height in pixels and rotation in degrees of a rectangle; x, y and diameter of a
            key point; centre, radii and rotation of an ellipse; NaN for a polygon.
        rings: The corners of the rotated rectangles and of the polygons, and the points of the ellipses.
        sizes: (rows, 2): width and height of the image, in pixels.
        rotated: (rows,), whether the row is a rotated rectangle.
        ring: (rows,), whether the row is a polygon.
        point: (rows,), whether the row is a key point.
        ellipse: (rows,), whether the row is an ellipse.
    """

    boxes: Floats
    rings: Rings
    sizes: Floats
    rotated: NDArray[np.bool_]
    ring: NDArray[np.bool_]
    point: NDArray[np.bool_]
    ellipse: NDArray[np.bool_]

    def geometry(self, row: int) -> Geometry:
        """Return the shape of a row."""
        if self.point[row]:
            x, y, diameter = self.boxes[row, :3].tolist()
            return KeyPoint(x, y, diameter)
        if self.ring[row]:
            ring = int(np.searchsorted(self.rings.rows, row))
            points = self.rings.points[self.rings.first[ring] : self.rings.first[ring + 1]]
            return Polygon(tuple((x, y) for x, y in points.tolist()))
        return (Ellipse if self.ellipse[row] else Rectangle)(*self.boxes[row].tolist())


class ClippedShapes(msgspec.Struct, frozen=True):
    """Shapes clipped to their images, one row each: `exporters.model.clipping.ClippedShape` as columns.

    Attributes:
        kinds: (rows,): `UPRIGHT`, `ROTATED`, `RING`, `ELLIPSE`, `POINT`, or `NOT_VECTORISED` where the other columns
            are not valid.
        boxes: (rows, 4): x_min, y_min, x_max, y_max in pixels.
        areas: (rows,), in square pixels.
        is_clipped: (rows,), whether the edge of the image cuts the shape.
        rings: The visible outlines of the rotated rectangles, the polygons and the ellipses.
        outlines: The visible part (shapely) of those that the edge cuts, by row.
    """

    kinds: NDArray[np.uint8]
    boxes: Floats
    areas: Floats
    is_clipped: NDArray[np.bool_]
    rings: Rings
    outlines: Mapping[int, Any] = {}

    def shape(self, row: int) -> ClippedShape:
        """Return a row, which is vectorised and no key point."""
        x_min, y_min, x_max, y_max = self.boxes[row].tolist()
        repairs = (CLIPPED,) if self.is_clipped[row] else ()
        return ClippedShape((x_min, y_min, x_max, y_max), float(self.areas[row]), repairs, self.outlines.get(row))


class RegionNotes(msgspec.Struct, frozen=True):
    """What a region has besides its shape and its label: see `Object.attributes` and `Object.remarks`."""

    attributes: Mapping[str, tuple[Any, ...]] = {}
    remarks: ObjectAttributes = NO_OBJECT_ATTRIBUTES

    @property
    def counts(self) -> tuple[int, int, int]:
        """Whether it has flags, attributes and notes, each as 0 or 1."""
        remarks = self.remarks
        if remarks is NO_OBJECT_ATTRIBUTES:
            return 0, int(bool(self.attributes)), 0
        return (
            int(bool(remarks.flags - {CROWD} or remarks.pose)),
            int(bool(remarks.attributes or self.attributes)),
            int(bool(remarks.fields or remarks.meta)),
        )


class RegionMetadata(msgspec.Struct, frozen=True):
    """Region ids, scores and notes, one per row, as in `Object`; ``notes`` is empty if no row has any."""

    regions: list[str] = []
    scores: list[float | None] = []
    notes: list[RegionNotes | None] = []

    def take(self, rows: Sequence[int]) -> "RegionMetadata":
        """Return the metadata of some rows."""
        notes = [self.notes[row] for row in rows] if self.notes else []
        return RegionMetadata(
            [self.regions[row] for row in rows],
            [self.scores[row] for row in rows],
            notes if any(note is not None for note in notes) else [],
        )

    def noted(self, row: int) -> RegionNotes:
        """Return the notes of a row."""
        return (self.notes[row] if self.notes else None) or _NO_NOTES


_NO_NOTES = RegionNotes()


class PointColumns(msgspec.Struct, frozen=True):
    """The key points of some images, one row each, grouped by image.

    Attributes:
        first: The first row of each image, then the number of rows: (images + 1,).
        xy: (rows, 2), in pixels.
        diameters: (rows,), of their markers, in pixels.
        ids: (rows,), the object ids.
        labels: Their names.
        parents: The regions that they belong to; empty without one.
        hidden: Whether the annotator marked them as not visible.
        metadata: Region ids, scores and notes.
    """

    first: list[int]
    xy: Floats
    diameters: Floats
    ids: NDArray[np.int64]
    labels: list[str]
    parents: list[str]
    hidden: list[bool]
    metadata: RegionMetadata


class Columns(msgspec.Struct, frozen=True):
    """The objects of some images, one row each, grouped by image. Every object has a box.

    Attributes:
        first: The first row of each image, then the number of rows: (images + 1,).
        annotations: The annotation id of each image.
        annotators: The user id of each image's annotator.
        shapes: The shapes as drawn.
        clipped: The shapes clipped to their images.
        metadata: Region ids, scores and notes.
        ids: (rows,), the object ids.
        class_ids: (rows,), from 1.
        classes: The class names, in the order of their ids.
        others: The objects of the rows of kind `NOT_VECTORISED`.
        points: The key points, if there are any: objects without a box.
        regions: (rows,), the first row of each row's region: one with several labels has a row for each. None if each
            region has one row.
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
    points: PointColumns | None = None
    regions: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """(rows,), whether a row is the first of its region."""
        return np.ones(len(self), np.bool_) if self.regions is None else self.regions == np.arange(len(self))

    def kind_counts(self) -> list[list[int]]:
        """Count the rows of each image by kind: (images, kinds)."""
        images = len(self.first) - 1
        owners = np.repeat(np.arange(images), np.diff(self.first))
        counts: list[list[int]] = count_kinds(owners, self.clipped.kinds, images).tolist()
        return counts

    def number(self, row: int) -> int:
        """Return the region number of a row: see `Object.number`."""
        return int(self.ids[row if self.regions is None else self.regions[row]])

    def duplicate_images(self, digits: int) -> set[int]:
        """Return the images with two objects of one class whose boxes are equal when rounded to ``digits`` digits.

        Boxes with equal hashes count as equal.
        """
        owners = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        boxes = np.floor(self.clipped.boxes * 10.0**digits + 0.5).astype(np.int64)
        hashes = np.zeros(len(owners), np.int64)
        for column in (owners, self.class_ids, *boxes.T):
            hashes = (hashes ^ column) * _HASH
        order = np.argsort(hashes)
        # rows with one hash that differ only make an image a candidate: it is encoded object by object
        images: set[int] = set(owners[order[1:]][np.diff(hashes[order]) == 0].tolist())
        return images

    def objects(self, image: int) -> tuple[Object, ...]:
        """Return the objects of an image."""
        objects = self.box_objects(image)
        if self.points is not None:
            objects = sorted([*objects, *self.point_objects(image)], key=lambda obj: obj.id)
        return tuple(objects)

    def box_objects(self, image: int) -> list[Object]:
        """Return the objects of an image that have a box: all but key points, a row each."""
        rows = range(self.first[image], self.first[image + 1])
        return [self.others.get(row) or self.object(image, row, self.clipped.shape(row)) for row in rows]

    def point_objects(self, image: int) -> list[Object]:
        """Return the key points of an image as objects."""
        points = self.points
        if points is None:
            return []
        return [
            Object(
                id=(number := int(points.ids[row])),
                class_id=0,
                label=points.labels[row],
                geometry=KeyPoint(float(points.xy[row, 0]), float(points.xy[row, 1]), float(points.diameters[row])),
                box=None,
                area=0.0,
                number=number,
                region=points.metadata.regions[row],
                parent=points.parents[row],
                hidden=points.hidden[row],
                annotation=self.annotations[image],
                annotator=self.annotators[image],
                score=points.metadata.scores[row],
                attributes=(notes := points.metadata.noted(row)).attributes,
                remarks=notes.remarks,
            )
            for row in range(points.first[image], points.first[image + 1])
        ]

    def object(self, image: int, row: int, fitted: ClippedShape) -> Object:
        """Return a row as an object, with its clipped shape."""
        number, class_id = int(self.ids[row]), int(self.class_ids[row])
        notes = self.metadata.noted(row)
        return Object(
            number,
            class_id,
            self.classes[class_id - 1],
            self.shapes.geometry(row),
            fitted.box,
            fitted.area,
            self.number(row),
            CLIPPED in fitted.repairs,
            fitted.outline,
            self.metadata.regions[row],
            annotation=self.annotations[image],
            annotator=self.annotators[image],
            score=self.metadata.scores[row],
            attributes=notes.attributes,
            remarks=notes.remarks,
        )


def percent_to_pixels(
    boxes: Floats,
    points: Floats,
    counts: Sequence[int] | NDArray[np.int64],
    ring: NDArray[np.bool_],
    sizes: Floats,
    *,
    point: NDArray[np.bool_] | None = None,
    ellipse: NDArray[np.bool_] | None = None,
) -> Shapes:
    """Convert shapes from percent of the image to pixels.

    Args:
        boxes: (rows, 5): x, y, width, height in percent and rotation in degrees; ignored for a polygon; of a key point
            x, y and its diameter in percent of the width.
        points: (points, 2): the points of all polygons, in percent, concatenated.
        counts: (polygons,), the number of points of each.
        ring: (rows,), whether the row is a polygon.
        sizes: (rows, 2): width and height of the image, in pixels.
        point: (rows,), whether the row is a key point; None if there are none.
        ellipse: (rows,), whether the row is an ellipse, with its radii in place of width and height; None if there are
            none.
    """
    pixels = boxes.copy("F")
    pixels[:, :2] *= sizes
    pixels[:, 2:4] *= sizes
    pixels[:, :4] /= 100
    point = np.zeros(len(boxes), np.bool_) if point is None else point
    ellipse = np.zeros(len(boxes), np.bool_) if ellipse is None else ellipse
    rotated = ~(ring | point | ellipse) & (pixels[:, 4] != 0)
    corners = _corners(pixels[rotated]) if rotated.any() else np.empty((0, 2))
    points = points * np.repeat(sizes[ring], counts, axis=0) / 100
    round_points = _ellipse_points(pixels[ellipse]) if ellipse.any() else np.empty((0, 2))
    rows = np.concatenate([np.flatnonzero(kind) for kind in (rotated, ring, ellipse)])
    of_ellipses = np.full(len(round_points) // len(_CIRCLE), len(_CIRCLE))
    lengths = np.concatenate((np.full(len(corners) // 4, 4), np.asarray(counts, np.int64), of_ellipses))
    rings = Rings(rows, offsets(lengths), np.concatenate((corners, points, round_points)))
    if len(corners) or len(round_points):
        rings = rings.take(np.argsort(rows, kind="stable"))  # in the order of their rows
    return Shapes(pixels, rings, sizes, rotated, ring, point, ellipse)


def clip_batch(shapes: Shapes) -> ClippedShapes:
    """Clip shapes to their images, vectorised; undecided rows get `NOT_VECTORISED`: see `clip_remaining`."""
    drawn = shapes.boxes[:, :4].copy("F")
    drawn[:, 2:] += drawn[:, :2]
    rings = shapes.rings
    if len(rings.rows):
        begins = rings.first[:-1]
        drawn[rings.rows, :2] = np.minimum.reduceat(rings.points, begins, axis=0)
        drawn[rings.rows, 2:] = np.maximum.reduceat(rings.points, begins, axis=0)
    round_rows = np.flatnonzero(shapes.ellipse)
    if len(round_rows):
        drawn[round_rows] = [Ellipse(*box).bounds for box in shapes.boxes[round_rows].tolist()]
    boxes = np.empty_like(drawn)
    np.maximum(drawn[:, :2], 0.0, out=boxes[:, :2])
    np.minimum(drawn[:, 2:], shapes.sizes, out=boxes[:, 2:])
    over = np.maximum(-drawn[:, :2], drawn[:, 2:] - shapes.sizes)
    clipped = np.maximum(over[:, 0], over[:, 1]) > TOLERANCE
    sides = boxes[:, 2:] - boxes[:, :2]  # none is longer than as drawn
    vectorised = (sides[:, 0] >= TOLERANCE) & (sides[:, 1] >= TOLERANCE) & ~(shapes.ellipse & clipped | shapes.point)
    upright = ~(shapes.rotated | shapes.ring | shapes.ellipse | shapes.point)
    areas = np.where(upright, sides[:, 0] * sides[:, 1], shapes.boxes[:, 2] * shapes.boxes[:, 3])
    areas[round_rows] = math.pi * shapes.boxes[round_rows, 2] * shapes.boxes[round_rows, 3]
    min_areas = MIN_MEAN_WIDTH * (drawn[:, 2:] - drawn[:, :2]).max(axis=1, initial=0.0)
    vectorised &= upright | shapes.ring | (areas >= min_areas)
    # a full turn: the general code computes its box from its corners
    vectorised &= ~(shapes.rotated & (shapes.boxes[:, 4] % 360 == 0))
    if shapes.ring.any():
        drawn_rings = rings if (is_ring := shapes.ring[rings.rows]).all() else rings.take(np.flatnonzero(is_ring))
        simple, areas[drawn_rings.rows] = simple_areas(drawn_rings)
        vectorised[drawn_rings.rows] &= simple & (areas[drawn_rings.rows] >= min_areas[drawn_rings.rows])
    outlines: dict[int, Any] = {}
    if (cut := np.flatnonzero(clipped & vectorised & ~upright)).size:
        rings, outlines = _clip_at_edge(shapes, cut, boxes=boxes, areas=areas, vectorised=vectorised)
    kinds = np.full(len(areas), UPRIGHT, np.uint8)
    kinds[shapes.rotated], kinds[shapes.ring], kinds[round_rows] = ROTATED, RING, ELLIPSE
    kinds[~vectorised] = NOT_VECTORISED
    if shapes.point.any():
        x, y = shapes.boxes[:, 0], shapes.boxes[:, 1]
        inside = (x >= 0) & (y >= 0) & (x <= shapes.sizes[:, 0]) & (y <= shapes.sizes[:, 1])
        kinds[shapes.point] = np.where(inside[shapes.point], POINT, NOT_VECTORISED)
        clipped &= ~shapes.point
    return ClippedShapes(kinds, boxes, areas, clipped, rings, outlines)


def _clip_at_edge(
    shapes: Shapes, rows: NDArray[np.int64], *, boxes: Floats, areas: Floats, vectorised: NDArray[np.bool_]
) -> tuple[Rings, dict[int, Any]]:
    """Clip rotated rectangles and simple polygons that the edge of the image cuts.

    Sets the boxes and areas of those whose visible part is one ring, and marks the others as not vectorised.

    Args:
        shapes: All shapes.
        rows: (cut,), the rows to clip.
        boxes: (rows, 4), written to.
        areas: (rows,), written to.
        vectorised: (rows,), written to.

    Returns:
        The outlines of all shapes, those of the clipped rows replaced, and the visible parts (shapely) by row.
    """
    rings = shapes.rings
    indices = np.searchsorted(rings.rows, rows)
    drawn = rings.take(indices)
    owners = np.repeat(np.arange(len(rows)), np.diff(drawn.first))
    outlines = shapely.polygons(shapely.linearrings(drawn.points, indices=owners))
    visible, ring = np.empty(len(rows), np.object_), shapes.ring[rows]
    width, height = shapes.sizes[rows][ring].T
    visible[ring] = shapely.intersection(outlines[ring], shapely.box(0, 0, width, height))
    sizes, groups = np.unique(shapes.sizes[rows] @ (_SIZE_KEY, 1.0), return_inverse=True)
    for group, size in enumerate(sizes.tolist()):
        convex, (width, height) = ~ring & (groups == group), divmod(size, _SIZE_KEY)
        visible[convex] = clip_convex(outlines[convex], width, height)
    bounds, visible_areas = shapely.bounds(visible), shapely.area(visible)
    bounds[:, :2] = np.maximum(bounds[:, :2], 0.0)
    bounds[:, 2:] = np.minimum(bounds[:, 2:], shapes.sizes[rows])
    sides = bounds[:, 2:] - bounds[:, :2]
    # a margin, as the general code compares sides that are not clamped: what is near a limit is left to it
    clippable = (visible_areas > 2 * MIN_MEAN_WIDTH * sides.max(axis=1)) & (sides >= 2 * TOLERANCE).all(axis=1)
    clippable &= (shapely.get_type_id(visible) == _POLYGON) & (shapely.get_num_interior_rings(visible) == 0)
    vectorised[rows[~clippable]] = False
    rows, indices, visible = rows[clippable], indices[clippable], visible[clippable]
    boxes[rows], areas[rows] = bounds[clippable], visible_areas[clippable]
    points, owners = shapely.get_coordinates(visible, return_index=True)
    lengths = np.bincount(owners, minlength=len(rows)) - 1  # without the last point, which repeats the first
    closing = np.cumsum(lengths + 1) - 1
    return rings.replaced(indices, lengths, np.delete(points, closing, axis=0)), dict(
        zip(rows.tolist(), visible, strict=True)
    )


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

    def take_rings(rings: Rings) -> Rings:
        taken = rings.take(np.flatnonzero(new_rows[rings.rows] >= 0))
        return msgspec.structs.replace(taken, rows=new_rows[taken.rows])

    drawn = take_rings(shapes.rings)
    return (
        Shapes(
            shapes.boxes[rows],
            drawn,
            shapes.sizes[rows],
            *(kind[rows] for kind in (shapes.rotated, shapes.ring, shapes.point, shapes.ellipse)),
        ),
        ClippedShapes(
            clipped.kinds[rows],
            clipped.boxes[rows],
            clipped.areas[rows],
            clipped.is_clipped[rows],
            drawn if clipped.rings is shapes.rings else take_rings(clipped.rings),
            {int(new_rows[row]): outline for row, outline in clipped.outlines.items() if new_rows[row] >= 0},
        ),
    )


def _corners(boxes: Floats) -> Floats:
    """Return the corners of rotated rectangles, (rows, 5) -> (4 * rows, 2): see `Rectangle.corners`."""
    cos, sin = _turns(boxes)
    x, y, width, height = boxes[:, :4].T
    wx, wy, hx, hy = width * cos, width * sin, -height * sin, height * cos
    corners = np.stack((x, y, x + wx, y + wy, x + wx + hx, y + wy + hy, x + hx, y + hy), axis=1)
    return corners.reshape(-1, 2)


def _ellipse_points(boxes: Floats) -> Floats:
    """Return the points of ellipses, (rows, 5) -> (128 * rows, 2): see `Ellipse.points`."""
    cos, sin = (turn[:, None] for turn in _turns(boxes))
    x, y = boxes[:, 2:3] * _CIRCLE[:, 0], boxes[:, 3:4] * _CIRCLE[:, 1]
    points = np.stack((boxes[:, :1] + x * cos - y * sin, boxes[:, 1:2] + x * sin + y * cos), axis=2)
    return points.reshape(-1, 2)


def _turns(boxes: Floats) -> tuple[Floats, Floats]:
    """Return the cosines and sines of rotations, (rows, 5) -> (rows,): of `math`, as numpy's differ in the last bit."""
    turns = np.radians(boxes[:, 4]).tolist()
    return np.array([math.cos(turn) for turn in turns]), np.array([math.sin(turn) for turn in turns])


def count_kinds(owners: NDArray[np.int64], kinds: NDArray[np.uint8], parts: int) -> NDArray[np.int64]:
    """Count rows by their owner and their kind: (rows,), (rows,) -> (parts, kinds)."""
    return np.bincount(owners * len(KINDS) + kinds, minlength=parts * len(KINDS)).reshape(parts, -1)
