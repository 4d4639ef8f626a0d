"""YOLO segment and YOLO OBB: an outline or a rotated box for every object, whatever its shape.

Formats: https://docs.ultralytics.com/datasets/segment/ (``class x1 y1 x2 y2 ...``) and
https://docs.ultralytics.com/datasets/obb/ (``class x1 y1 x2 y2 x3 y3 x4 y4``), in shares of the image.
"""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from exporters.columnar.block import Block
from exporters.columnar.text_table import json_numbers, json_rings, round_half_up
from exporters.formats.base import EncodedBlock, shape_name
from exporters.formats.yolo import DIGITS, YoloRows, format_row
from exporters.model.outlines import min_area_box, single_ring
from exporters.model.records import Box, Image, Object
from labelloop.labeling.geometry.shapes import Point, Rectangle

BRIDGED = "parts and holes joined by bridges"
TOO_LARGE = "turned box larger than the image -> upright box"


class YoloSegment(YoloRows):
    """YOLO segment: every shape is one ring; parts and holes are joined to it by zero-width bridges."""

    name: ClassVar[str] = "yolo-segment"
    implicit_conversions: tuple[str, str, str] = ("rectangle -> polygon", "rotated rectangle -> polygon", "")

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_items(block.items.items(), len(block))
        boxes, sizes, rings = columns.clipped.boxes, columns.shapes.sizes, columns.shapes.rings
        shares = json_numbers(round_half_up(boxes / np.hstack((sizes, sizes)), DIGITS))
        edges = (shares[index::4] for index in range(4))
        rows = [f"{x0} {y0} {x1} {y0} {x1} {y1} {x0} {y1}" for x0, y0, x1, y1 in zip(*edges, strict=True)]
        ring_sizes = np.repeat(sizes[rings.rows], np.diff(rings.first), axis=0)
        points = round_half_up(np.minimum(np.maximum(rings.points, 0.0), ring_sizes) / ring_sizes, DIGITS)
        for row, text in zip(rings.rows.tolist(), json_rings(rings, points), strict=True):
            rows[row] = text[1:-1].replace(",", " ")
        kinds = (columns.class_ids - 1).tolist()
        lines: list[list[str]] = []
        for number, index in enumerate(block.columnar):
            image_rows = range(columns.first[number], columns.first[number + 1])
            converted: Counter[str] = Counter()
            for row in columns.others.keys() & image_rows:
                obj = columns.others[row]
                assert obj.box is not None
                rows[row] = self._row(obj, obj.box, block.images[index], converted)
            encoded.converted.extend((index, change, times) for change, times in converted.items())
            lines.append([f"{kinds[row]} {rows[row]}\n" for row in image_rows])
        self._take(encoded, block, lines)
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

    def _row(self, obj: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        corners = min_area_box(obj)
        if not isinstance(obj.geometry, Rectangle):
            converted[f"{shape_name(obj)} -> smallest turned box"] += 1
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


def _points(points: Iterable[Point], image: Image) -> str:
    width, height = image.canvas
    return format_row(share for x, y in points for share in (x / width, y / height))
