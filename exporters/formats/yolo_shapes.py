"""YOLO segment and YOLO OBB: an outline or a turned box for every object, whatever was drawn.

Formats: https://docs.ultralytics.com/datasets/segment/ (``class x1 y1 x2 y2 ...``) and
https://docs.ultralytics.com/datasets/obb/ (``class x1 y1 x2 y2 x3 y3 x4 y4``), in shares of the image.
"""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

from exporters.dataset import Box, Image, Object
from exporters.formats.format import shape_name
from exporters.formats.yolo import YoloDetect
from exporters.outlines import one_ring, turned_box
from labelloop.labeling.geometry import Point, Rectangle

BRIDGED = "parts and holes joined by bridges"
TOO_LARGE = "turned box larger than the image -> upright box"


class YoloSegment(YoloDetect):
    """YOLO segment: every shape is one ring. Parts and holes are joined to it by bridges of no width."""

    name: ClassVar[str] = "yolo-segment"

    def _row(self, each: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        del box
        ring, parts, holes = one_ring(each, image.width, image.height)
        if (name := shape_name(each)) != "polygon":
            converted[f"{name} -> polygon"] += 1
        if parts > 1 or holes:
            converted[BRIDGED] += 1
        return _points(ring, image)


class YoloObb(YoloDetect):
    """YOLO OBB: every shape is its smallest box turned about; a rectangle is its own four corners."""

    name: ClassVar[str] = "yolo-obb"

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
        for edges, size in ((xs, image.width), (ys, image.height))
    )


def _points(points: Iterable[Point], image: Image) -> str:
    return " ".join(f"{x / image.width:.8f} {y / image.height:.8f}" for x, y in points)
