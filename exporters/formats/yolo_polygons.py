"""YOLO segment and YOLO OBB: an outline or a turned box for every object, whatever was drawn.

Formats: https://docs.ultralytics.com/datasets/segment/ (``class x1 y1 x2 y2 ...``) and
https://docs.ultralytics.com/datasets/obb/ (``class x1 y1 x2 y2 x3 y3 x4 y4``), in shares of the image.
"""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from exporters.columnar.block import Block
from exporters.columnar.text_table import numbers, ring_texts, rounded
from exporters.formats.base import Encoded, shape_name
from exporters.formats.yolo import DIGITS, YoloRows, row_of
from exporters.model.outlines import one_ring, turned_box
from exporters.model.records import Box, Image, Object
from labelloop.labeling.geometry.shapes import Point, Rectangle

BRIDGED = "parts and holes joined by bridges"
TOO_LARGE = "turned box larger than the image -> upright box"


class YoloSegment(YoloRows):
    """YOLO segment: every shape is one ring. Parts and holes are joined to it by bridges of no width."""

    name: ClassVar[str] = "yolo-segment"
    implicit_conversions: tuple[str, str, str] = ("rectangle -> polygon", "rotated rectangle -> polygon", "")

    def encode(self, block: Block) -> Encoded:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_some(block.items.items(), len(block))
        boxes, sizes, rings = columns.fits.boxes, columns.shapes.sizes, columns.shapes.rings
        tokens = numbers(rounded(boxes / np.hstack((sizes, sizes)), DIGITS))
        edges = (tokens[place::4] for place in range(4))
        rows = [f"{x0} {y0} {x1} {y0} {x1} {y1} {x0} {y1}" for x0, y0, x1, y1 in zip(*edges, strict=True)]
        around = np.repeat(sizes[rings.rows], np.diff(rings.first), axis=0)
        points = rounded(np.minimum(np.maximum(rings.points, 0.0), around) / around, DIGITS)
        for row, text in zip(rings.rows.tolist(), ring_texts(rings, points), strict=True):
            rows[row] = text[1:-1].replace(",", " ")
        kinds = (columns.class_ids - 1).tolist()
        lines: list[list[str]] = []
        for number, place in enumerate(block.usual):
            mine = range(columns.first[number], columns.first[number + 1])
            converted: Counter[str] = Counter()
            for row in columns.others.keys() & mine:
                each = columns.others[row]
                assert each.box is not None
                rows[row] = self._row(each, each.box, block.images[place], converted)
            encoded.converted.extend((place, change, times) for change, times in converted.items())
            lines.append([f"{kinds[row]} {rows[row]}\n" for row in mine])
        self._take(encoded, block, lines)
        return encoded

    def _row(self, each: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        del box
        ring, parts, holes = one_ring(each, *image.canvas)
        if (name := shape_name(each)) != "polygon":
            converted[f"{name} -> polygon"] += 1
        if parts > 1 or holes:
            converted[BRIDGED] += 1
        return _points(ring, image)


class YoloObb(YoloRows):
    """YOLO OBB: every shape is its smallest box turned about; a rectangle is its own four corners."""

    name: ClassVar[str] = "yolo-obb"
    sizeless: ClassVar[tuple[type, ...]] = (Rectangle,)

    def _row(self, each: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        corners = turned_box(each)
        if not isinstance(each.geometry, Rectangle):
            converted[f"{shape_name(each)} -> smallest turned box"] += 1
        if not _accepted(corners, image):
            converted[TOO_LARGE] += 1
            x_min, y_min, x_max, y_max = box
            corners = [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
        return _points(corners, image)


def _accepted(corners: Iterable[Point], image: Image) -> bool:
    """Whether Ultralytics keeps the image of such a row: the upright box around it must fit the image.

    Its centre has to be on the image and its size at most the image's; corners may lie outside. Source: Ultralytics,
    ``verify_image_label``.
    """
    xs, ys = zip(*corners, strict=True)
    return all(
        0 <= (max(edges) + min(edges)) / 2 <= size and max(edges) - min(edges) <= size
        for edges, size in zip((xs, ys), image.canvas, strict=True)
    )


def _points(points: Iterable[Point], image: Image) -> str:
    width, height = image.canvas
    return row_of(share for x, y in points for share in (x / width, y / height))
