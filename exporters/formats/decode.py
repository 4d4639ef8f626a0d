"""Decode the records of each format into the objects of an image: class, box and outline in pixels."""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from html import unescape
from typing import Any, Protocol

import msgspec
import shapely
from pycocotools import mask as coco

from exporters.model.class_map import Categories
from exporters.model.records import Box, Image
from labelloop.labeling.geometry.shapes import Mask, Point

Ring = Sequence[Point]


class DecodedObject(msgspec.Struct, frozen=True, gc=False):
    """An object: its class number from 1, its box, its area (square pixels), and the encoded outline.

    ``outline`` is empty if the format has only the box.
    """

    class_id: int
    box: Box
    area: float
    outline: Any = None

    def rings(self) -> Sequence[Ring]:
        """Return the outline as closed rings under the even-odd rule; the box's corners if there is none."""
        if isinstance(self.outline, msgspec.Raw):
            rings = _segmentation_rings(msgspec.json.decode(self.outline))
            if rings:
                return rings
        elif self.outline:
            return [self.outline]
        left, top, right, bottom = self.box
        return [[(left, top), (right, top), (right, bottom), (left, bottom)]]


# (record, image, class numbers) -> the image's objects.
Decoder = Callable[[bytes, Image, Mapping[str, int]], list[DecodedObject]]


class _Annotation(msgspec.Struct, gc=False):
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float = 0.0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _CocoRecord(msgspec.Struct, gc=False):
    annotations: list[_Annotation]


class _YoloRecord(msgspec.Struct, gc=False):
    rows: str


class _VocRecord(msgspec.Struct, gc=False):
    xml: str


class _BoxedObject(msgspec.Struct, gc=False):
    category: int
    bbox: tuple[float, float, float, float]
    area: float


class _ImageFolderRecord(msgspec.Struct, gc=False):
    objects: list[_BoxedObject]


class _Segments(msgspec.Struct, gc=False):
    segments_info: list[_Annotation]


class _PanopticRecord(msgspec.Struct, gc=False):
    annotation: _Segments


_decode_image_folder = msgspec.json.Decoder(_ImageFolderRecord).decode
_decode_panoptic = msgspec.json.Decoder(_PanopticRecord).decode
_decode_coco = msgspec.json.Decoder(_CocoRecord).decode
_decode_yolo = msgspec.json.Decoder(_YoloRecord).decode
_decode_voc = msgspec.json.Decoder(_VocRecord).decode


def _coco_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del image, classes
    objects = []
    for annotation in _decode_coco(record).annotations:
        x, y, width, height = annotation.bbox
        objects.append(
            DecodedObject(
                annotation.category_id, (x, y, x + width, y + height), annotation.area, annotation.segmentation
            )
        )
    return objects


def _yolo_box_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del classes
    objects = []
    for row in _decode_yolo(record).rows.splitlines():
        class_index, cx, cy, width, height, *_ = map(float, row.split())
        width_px, height_px = width * image.width, height * image.height
        left, top = cx * image.width - width_px / 2, cy * image.height - height_px / 2
        objects.append(
            DecodedObject(int(class_index) + 1, (left, top, left + width_px, top + height_px), width_px * height_px)
        )
    return objects


def _yolo_outline_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del classes
    objects = []
    for row in _decode_yolo(record).rows.splitlines():
        class_index, *values = map(float, row.split())
        ring = [(x * image.width, y * image.height) for x, y in zip(values[::2], values[1::2], strict=True)]
        shape = shapely.Polygon(ring)
        objects.append(DecodedObject(int(class_index) + 1, shape.bounds, float(shape.area), ring))
    return objects


def _voc_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del image
    objects = []
    for raw_name, *edges in _VOC_OBJECT.findall(_decode_voc(record).xml):
        x_min, y_min, x_max, y_max = map(float, edges)
        area = (x_max - x_min + 1) * (y_max - y_min + 1)
        name = unescape(raw_name) if "&" in raw_name else raw_name
        objects.append(DecodedObject(classes.get(name, 0), (x_min - 1, y_min - 1, x_max, y_max), area))
    return objects


# An object as `exporters.formats.voc` writes it.
_VOC_OBJECT = re.compile(
    r"<object>\s*<name>(.*?)</name>.*?<xmin>(\d+)</xmin>\s*<ymin>(\d+)</ymin>\s*<xmax>(\d+)</xmax>\s*<ymax>(\d+)</ymax>",
    re.DOTALL,
)


def _image_folder_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del image, classes
    return [
        DecodedObject(one.category + 1, _corners(one.bbox), one.area) for one in _decode_image_folder(record).objects
    ]


def _panoptic_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del image, classes
    segments = _decode_panoptic(record).annotation.segments_info
    return [DecodedObject(one.category_id, _corners(one.bbox), one.area) for one in segments]


def _dota_objects(record: bytes, image: Image, classes: Mapping[str, int]) -> list[DecodedObject]:
    del image
    numbers = {"-".join(name.split()) or "-": number for name, number in classes.items()}  # no spaces in a row
    objects = []
    for row in _decode_yolo(record).rows.splitlines():
        *cells, name, _ = row.split(" ")
        numbers_of_row = list(map(float, cells))
        ring = list(zip(numbers_of_row[::2], numbers_of_row[1::2], strict=True))
        shape = shapely.Polygon(ring)
        objects.append(DecodedObject(numbers.get(name, 0), shape.bounds, float(shape.area), ring))
    return objects


def _corners(bbox: Sequence[float]) -> Box:
    x, y, width, height = bbox
    return x, y, x + width, y + height


# Format -> decoder of its records, the most informative format first.
DECODERS: Mapping[str, Decoder] = {
    "coco": _coco_objects,
    "webdataset": _coco_objects,
    "yolo-segment": _yolo_outline_objects,
    "ndjson-segment": _yolo_outline_objects,
    "yolo-obb": _yolo_outline_objects,
    "ndjson-obb": _yolo_outline_objects,
    "dota": _dota_objects,
    "coco-panoptic": _panoptic_objects,
    "yolo-detect": _yolo_box_objects,
    "ndjson-detect": _yolo_box_objects,
    "yolo-pose": _yolo_box_objects,
    "ndjson-pose": _yolo_box_objects,
    "imagefolder": _image_folder_objects,
    "voc": _voc_objects,
    "voc-masks": _voc_objects,
}


class ClassNumbers(Protocol):
    """The classes of a data set: a manifest, or those of an export that is running."""

    @property
    def classes(self) -> Mapping[str, int]:
        """The number of each class, from 1."""

    @property
    def categories(self) -> Categories:
        """COCO's category ids."""


def decode_objects(name: str, record: bytes, image: Image, classes: ClassNumbers) -> list[DecodedObject]:
    """Return the objects of an image from a format's record, with the class map's numbers."""
    objects = DECODERS[name](record, image, classes.classes)
    class_of = class_by_category(classes) if name in _WITH_CATEGORIES else {}
    if not class_of:
        return objects
    return [msgspec.structs.replace(obj, class_id=class_of.get(obj.class_id, 0)) for obj in objects]


# Formats whose records have COCO's category ids.
_WITH_CATEGORIES = ("coco", "coco-panoptic")


def class_by_category(classes: ClassNumbers) -> Mapping[int, int]:
    """Return the class number of each COCO category; empty if they are equal."""
    categories = classes.categories
    if not categories.ids:
        return {}
    return {categories.id(label, number): number for label, number in classes.classes.items()}


def best_format(formats: Container[str]) -> str:
    """Return the most informative of some formats; empty if none has objects (image classes only)."""
    return next((name for name in DECODERS if name in formats), "")


def _segmentation_rings(segmentation: Any) -> list[Ring]:
    if isinstance(segmentation, list):
        return [list(zip(ring[::2], ring[1::2], strict=True)) for ring in segmentation]
    if not isinstance(segmentation, dict):
        return []
    (height, width), counts = segmentation["size"], segmentation["counts"]
    # run lengths of our own: a text, or the list of a crowd
    rle = counts.encode() if isinstance(counts, str) else coco.frPyObjects(segmentation, height, width)["counts"]
    outline = shapely.simplify(Mask(width, height, rle).polygon(), 0.5)
    rings: list[Ring] = []
    for part in shapely.get_parts(outline):
        rings += [list(ring.coords) for ring in (part.exterior, *part.interiors)]
    return rings
