"""Decode the records of many images at once, into the numbers of their objects: class, box and area.

The numbers are those of `exporters.formats.decode`, to the bit.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from itertools import chain

import msgspec
import numpy as np
import shapely
from numpy.typing import NDArray

from exporters.formats.base import LEFT_OUT, ObjectNumbers
from exporters.formats.decode import ClassNumbers, class_by_category, decode_objects
from exporters.model.records import Image
from exporters.structures.arrays import pack

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Annotation(msgspec.Struct, gc=False):
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float = 0.0


class _CocoRecord(msgspec.Struct, gc=False):
    annotations: list[_Annotation]


class _YoloRecord(msgspec.Struct, gc=False):
    rows: str


class _VocRecord(msgspec.Struct, gc=False):
    xml: str


_decode_coco = msgspec.json.Decoder(list[_CocoRecord]).decode
_decode_yolo = msgspec.json.Decoder(list[_YoloRecord]).decode
_decode_voc = msgspec.json.Decoder(list[_VocRecord]).decode
# The fields of an object without attributes, as `exporters.formats.voc` writes it: name and edges.
_VOC_FIELD = re.compile(r"<(?:name|xmin|ymin|xmax|ymax)>([^<]*)</")


def decode_numbers(
    name: str, records: Sequence[bytes], images: Sequence[Image], classes: ClassNumbers
) -> ObjectNumbers:
    """Return the numbers of the objects of some images.

    Args:
        name: The format.
        records: Its record of each image.
        images: The images.
        classes: The class numbers.
    """
    included = [number for number, record in enumerate(records) if record != LEFT_OUT] if name else []
    kept, sizes = [records[number] for number in included], [images[number] for number in included]
    decode = _DECODERS.get(name)
    decoded = decode(b"[" + b",".join(kept) + b"]", sizes, classes) if decode and kept else None
    if decoded is None:
        decoded = _one_by_one(name, kept, sizes, classes)
    counts = np.zeros(len(records), np.int64)
    counts[included] = decoded.counts
    return ObjectNumbers(counts, decoded.values)


def _one_by_one(name: str, records: Sequence[bytes], images: Sequence[Image], classes: ClassNumbers) -> ObjectNumbers:
    objects = [decode_objects(name, record, image, classes) for record, image in zip(records, images, strict=True)]
    values = [[obj.class_id, *obj.box, obj.area] for obj in chain.from_iterable(objects)]
    return ObjectNumbers(np.array(list(map(len, objects)), np.int64), np.array(values, np.float64).reshape(-1, 6))


def _coco_numbers(records: bytes, images: Sequence[Image], classes: ClassNumbers) -> ObjectNumbers:
    del images
    decoded = _decode_coco(records)
    annotations = list(chain.from_iterable([record.annotations for record in decoded]))
    values = np.empty((len(annotations), 6))
    values[:, 0] = _class_numbers([annotation.category_id for annotation in annotations], class_by_category(classes))
    boxes = list(chain.from_iterable([annotation.bbox for annotation in annotations]))
    values[:, 1:5] = np.frombuffer(pack(boxes)).reshape(-1, 4)
    values[:, 3:5] += values[:, 1:3]
    values[:, 5] = [annotation.area for annotation in annotations]
    return ObjectNumbers(np.array([len(record.annotations) for record in decoded], np.int64), values)


def _class_numbers(numbers: list[int], class_of: Mapping[int, int]) -> list[int]:
    return [class_of.get(number, 0) for number in numbers] if class_of else numbers


def _yolo_rows(records: bytes, images: Sequence[Image], cells: int) -> tuple[Ints, Floats, Floats]:
    """Return the number of rows of each image, the rows, and the size of the image of each row."""
    rows = [record.rows for record in _decode_yolo(records)]
    counts = np.array([text.count("\n") for text in rows], np.int64)
    values = np.fromstring("".join(rows), sep=" ").reshape(-1, cells)
    sizes = np.array([(image.width, image.height) for image in images], np.float64)
    return counts, values, np.repeat(sizes, counts, axis=0)


def _box_numbers(records: bytes, images: Sequence[Image], classes: ClassNumbers) -> ObjectNumbers:
    del classes
    counts, rows, sizes = _yolo_rows(records, images, 5)
    sides = rows[:, 3:5] * sizes
    low = rows[:, 1:3] * sizes - sides / 2
    return ObjectNumbers(counts, np.column_stack((rows[:, 0] + 1, low, low + sides, sides[:, 0] * sides[:, 1])))


def _rotated_numbers(records: bytes, images: Sequence[Image], classes: ClassNumbers) -> ObjectNumbers:
    del classes
    counts, rows, sizes = _yolo_rows(records, images, 9)
    corners = rows[:, 1:].reshape(-1, 4, 2) * sizes[:, None]
    values = np.column_stack(
        (rows[:, 0] + 1, corners.min(axis=1), corners.max(axis=1), shapely.area(shapely.polygons(corners)))
    )
    return ObjectNumbers(counts, values)


def _voc_numbers(records: bytes, images: Sequence[Image], classes: ClassNumbers) -> ObjectNumbers | None:
    del images
    pages = [record.xml for record in _decode_voc(records)]
    text = "".join(pages)
    if "<attributes>" in text:  # they have names too
        return None
    fields = _VOC_FIELD.findall(text)
    numbers = {name: classes.classes.get(unescape(name), 0) for name in set(fields[::5])}
    edges = np.array([list(map(int, fields[start::5])) for start in range(1, 5)], np.float64).T.reshape(-1, 4)
    area = (edges[:, 2] - edges[:, 0] + 1) * (edges[:, 3] - edges[:, 1] + 1)
    values = np.column_stack(
        (np.array([numbers[name] for name in fields[::5]], np.float64), edges[:, :2] - 1, edges[:, 2:], area)
    )
    return ObjectNumbers(np.array([page.count("<object>") for page in pages], np.int64), values)


# Decoders of the records of a format as a JSON list; None: they need `decode_objects`.
_Decoder = Callable[[bytes, Sequence[Image], ClassNumbers], ObjectNumbers | None]
_DECODERS: Mapping[str, _Decoder] = {
    "coco": _coco_numbers,
    "yolo-detect": _box_numbers,
    "yolo-obb": _rotated_numbers,
    "voc": _voc_numbers,
}
