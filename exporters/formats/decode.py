"""What the records of each format say of an image's objects: OBJECTS, their class, box and outline in pixels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import shapely

from exporters.model.manifest import Manifest
from exporters.model.records import Box, Image
from labelloop.labeling.geometry.shapes import Point
from labelloop.service.datasets.shapes import run_lengths

Ring = Sequence[Point]


class DecodedObject(msgspec.Struct, frozen=True, gc=False):
    """An object: the number of its class from 1, its box, its area (square pixels), and what its outline is read from.

    ``outline`` is empty where the box is all that the format says.
    """

    class_id: int
    box: Box
    area: float
    outline: Any = None

    def rings(self) -> Sequence[Ring]:
        """Its outline, closed rings that the even-odd rule fills; the box's corners where there is none."""
        if isinstance(self.outline, msgspec.Raw):
            found = _segmentation(msgspec.json.decode(self.outline))
            if found:
                return found
        elif self.outline:
            return [self.outline]
        left, top, right, bottom = self.box
        return [[(left, top), (right, top), (right, bottom), (left, bottom)]]


Read = Callable[[bytes, Image, Mapping[str, int]], list[DecodedObject]]
"""A record, its image and the numbers of the classes -> its objects."""


class _Annotation(msgspec.Struct, gc=False):
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float = 0.0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Sheet(msgspec.Struct, gc=False):
    annotations: list[_Annotation]


class _Rows(msgspec.Struct, gc=False):
    rows: str


class _Page(msgspec.Struct, gc=False):
    xml: str


_sheet = msgspec.json.Decoder(_Sheet).decode
_rows = msgspec.json.Decoder(_Rows).decode


def _coco(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del image, classes
    found = []
    for each in _sheet(record).annotations:
        x, y, width, height = each.bbox
        found.append(DecodedObject(each.category_id, (x, y, x + width, y + height), each.area, each.segmentation))
    return found


def _boxes(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del classes
    found = []
    for row in _rows(record).rows.splitlines():
        kind, cx, cy, width, height, *_ = (float(cell) for cell in row.split())
        across, down = width * image.width, height * image.height
        left, top = cx * image.width - across / 2, cy * image.height - down / 2
        found.append(DecodedObject(int(kind) + 1, (left, top, left + across, top + down), across * down))
    return found


def _outlines(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del classes
    found = []
    for row in _rows(record).rows.splitlines():
        kind, *numbers = (float(cell) for cell in row.split())
        ring = [(x * image.width, y * image.height) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        shape = shapely.Polygon(ring)
        found.append(DecodedObject(int(kind) + 1, shape.bounds, float(shape.area), ring))
    return found


def _voc(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    from defusedxml.ElementTree import fromstring

    del image
    found = []
    for each in fromstring(msgspec.json.decode(record, type=_Page).xml).iter("object"):
        left, top, right, bottom = (
            float(each.findtext(f"bndbox/{edge}") or 0) for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        box = (left - 1, top - 1, right, bottom)
        found.append(
            DecodedObject(classes.get(each.findtext("name") or "", 0), box, (box[2] - box[0]) * (box[3] - box[1]))
        )
    return found


OBJECTS: Mapping[str, Read] = {
    "coco": _coco,
    "webdataset": _coco,
    "yolo-segment": _outlines,
    "ndjson-segment": _outlines,
    "yolo-obb": _outlines,
    "ndjson-obb": _outlines,
    "yolo-detect": _boxes,
    "ndjson-detect": _boxes,
    "yolo-pose": _boxes,
    "ndjson-pose": _boxes,
    "voc": _voc,
    "voc-masks": _voc,
}
"""Format -> how its records are read, the format that says most first."""


def objects_of(name: str, record: bytes, image: Image, manifest: Manifest) -> list[DecodedObject]:
    """The objects of an image by a format's record of it; their classes have the class map's numbers."""
    found = OBJECTS[name](record, image, manifest.classes)
    if name != "coco" or not manifest.categories.ids:
        return found
    numbers = {manifest.categories.id(label, number): number for label, number in manifest.classes.items()}
    return [msgspec.structs.replace(each, class_id=numbers.get(each.class_id, 0)) for each in found]


def best_format(manifest: Manifest) -> str:
    """The format of a version whose records say most of the objects; empty where none does (classes of images)."""
    return next((name for name in OBJECTS if name in manifest.formats), "")


def _segmentation(given: Any) -> list[Ring]:
    if isinstance(given, list):
        return [list(zip(ring[::2], ring[1::2], strict=True)) for ring in given]
    if not isinstance(given, dict):
        return []
    height, width = given["size"]
    outline = shapely.simplify(run_lengths(given, width, height).polygon(), 0.5)
    rings: list[Ring] = []
    for part in shapely.get_parts(outline):
        rings += [list(ring.coords) for ring in (part.exterior, *part.interiors)]
    return rings
