"""YOLO segment and YOLO OBB: an outline or a rotated box for every object, whatever its shape.

Formats: https://docs.ultralytics.com/datasets/segment/ (``class x1 y1 x2 y2 ...``) and
https://docs.ultralytics.com/datasets/obb/ (``class x1 y1 x2 y2 x3 y3 x4 y4``), in shares of the image.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.columnar.block import Block
from exporters.columnar.columns import ELLIPSE, NOT_VECTORISED, RING, ROTATED, Columns
from exporters.columnar.polygons import Floats, Rings
from exporters.columnar.text_table import json_numbers, json_rings, json_rows, round_half_up
from exporters.formats.base import OUTLINE_CHANGES, EncodedBlock, columnar_numbers, shape_name
from exporters.formats.yolo import DIGITS, YoloRows, format_row
from exporters.model.outlines import drawn_box, min_area_box, min_area_boxes, single_ring
from exporters.model.records import Box, Image, Object
from labelloop.labeling.geometry.shapes import Point, Rectangle

BRIDGED = "parts and holes joined by bridges"
TOO_LARGE = "turned box larger than the image -> upright box"
_SMALLEST = "{} -> smallest turned box"


class YoloSegment(YoloRows):
    """YOLO segment: every shape is one ring; parts and holes are joined to it by zero-width bridges."""

    name: ClassVar[str] = "yolo-segment"
    implicit_conversions: tuple[str, str, str, str] = OUTLINE_CHANGES

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_items(block.items.items(), len(block))
        boxes, sizes, rings = columns.clipped.boxes, columns.shapes.sizes, columns.clipped.rings
        shares = json_numbers(round_half_up(boxes / np.hstack((sizes, sizes)), DIGITS))
        edges = (shares[index::4] for index in range(4))
        rows = [f"{x0} {y0} {x1} {y0} {x1} {y1} {x0} {y1}" for x0, y0, x1, y1 in zip(*edges, strict=True)]
        ring_sizes = np.repeat(sizes[rings.rows], np.diff(rings.first), axis=0)
        points = round_half_up(np.minimum(np.maximum(rings.points, 0.0), ring_sizes) / ring_sizes, DIGITS)
        for row, text in zip(rings.rows.tolist(), json_rings(rings, points), strict=True):
            rows[row] = text[1:-1].replace(",", " ")
        self._take(encoded, block, self._lines(encoded, block, rows))
        return encoded

    def _row(self, obj: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        del box
        ring, parts, holes = single_ring(obj, *image.canvas)
        if (name := shape_name(obj)) != "polygon":
            converted[f"{name} -> polygon"] += 1
        if parts > 1 or holes:
            converted[BRIDGED] += 1
        return _points(ring, image)


class YoloObb(YoloRows):
    """YOLO OBB: the minimum-area rotated box of every shape; a rectangle has its own four corners."""

    name: ClassVar[str] = "yolo-obb"
    size_independent: ClassVar[tuple[type, ...]] = (Rectangle,)
    implicit_conversions: tuple[str, str, str, str] = ("", "", _SMALLEST.format("polygon"), _SMALLEST.format("ellipse"))

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_items(block.items.items(), len(block))
        corners, sizes = _box_corners(columns.clipped.boxes), columns.shapes.sizes
        kinds, is_clipped, rings = columns.clipped.kinds, columns.clipped.is_clipped, columns.shapes.rings
        drawn = rings.take(np.flatnonzero((kinds[rings.rows] == ROTATED) & ~is_clipped[rings.rows]))
        corners[drawn.rows] = drawn.points.reshape(-1, 4, 2)
        visible = columns.clipped.rings
        is_visible = (kinds[visible.rows] == RING) | (kinds[visible.rows] == ROTATED) & is_clipped[visible.rows]
        visible = visible.take(np.flatnonzero(is_visible))
        corners[visible.rows] = min_area_boxes(_outlines(columns, visible))
        for row in np.flatnonzero(kinds == ELLIPSE).tolist():
            corners[row] = drawn_box(columns.shapes.geometry(row), columns.clipped.shape(row).box)
        low, high = corners.min(axis=1), corners.max(axis=1)
        accepted = ((low + high >= 0) & ((low + high) / 2 <= sizes) & (high - low <= sizes)).all(axis=1)
        large = np.flatnonzero(~accepted & (kinds != NOT_VECTORISED))
        corners[large] = _box_corners(columns.clipped.boxes[large])
        owners = np.searchsorted(np.array(columns.first), large, side="right") - 1
        for number, times in Counter(owners.tolist()).items():
            encoded.converted.append((block.columnar[number], TOO_LARGE, times))
        shares = round_half_up(corners / sizes[:, None], DIGITS)
        self._take(encoded, block, self._lines(encoded, block, json_rows(shares.reshape(-1, 8))))
        written = shares * sizes[:, None]
        boxes = np.hstack((written.min(axis=1), written.max(axis=1)))
        return encoded if columns.others else columnar_numbers(block, encoded, boxes, quadrilateral_areas(written))

    def _row(self, obj: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        corners = min_area_box(obj)
        if not isinstance(obj.geometry, Rectangle):
            converted[_SMALLEST.format(shape_name(obj))] += 1
        if not _accepted(corners, image):
            converted[TOO_LARGE] += 1
            x_min, y_min, x_max, y_max = box
            corners = [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
        return _points(corners, image)


def _accepted(corners: Iterable[Point], image: Image) -> bool:
    """Whether Ultralytics accepts such a row: its upright bounding box must fit the image.

    The centre has to be inside the image and the size at most the image's; corners may lie outside. Source:
    Ultralytics, ``verify_image_label``.
    """
    xs, ys = zip(*corners, strict=True)
    return all(
        0 <= (max(values) + min(values)) / 2 <= size and max(values) - min(values) <= size
        for values, size in zip((xs, ys), image.canvas, strict=True)
    )


def _box_corners(boxes: Floats) -> Floats:
    """Return the corners of upright boxes, clockwise from the top left one: (rows, 4) -> (rows, 4, 2)."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def _outlines(columns: Columns, rings: Rings) -> NDArray[Any]:
    """Return rings, which are drawn or what is visible of them, as polygons of shapely: (rings,)."""
    clipped = columns.clipped.outlines
    outlines = np.fromiter(map(clipped.get, rings.rows.tolist()), np.object_, len(rings.rows))
    drawn = np.flatnonzero(shapely.is_missing(outlines))
    rings = rings.take(drawn)
    owners = np.repeat(np.arange(len(drawn)), np.diff(rings.first))
    outlines[drawn] = shapely.polygons(shapely.linearrings(rings.points, indices=owners))
    return outlines


def quadrilateral_areas(corners: Floats) -> Floats:
    """Return the areas of quadrilaterals, (rows, 4, 2) -> (rows,), to the bit as ``shapely.area`` adds them up."""
    x, y = corners[..., 0].T, corners[..., 1].T
    _, x1, x2, x3 = x - x[0]
    areas: Floats = np.abs((x1 * (y[0] - y[2]) + x2 * (y[1] - y[3]) + x3 * (y[2] - y[0])) / 2)
    return areas


def _points(points: Iterable[Point], image: Image) -> str:
    width, height = image.canvas
    return format_row(share for x, y in points for share in (x / width, y / height))
