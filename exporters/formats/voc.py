"""Pascal VOC: ``Annotations/*.xml``, ``ImageSets/Main/{train,val,trainval,test}.txt``, the classes in ``labelmap.txt``.

Format: the VOC2012 development kit, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/. Coordinates there are
whole pixels counted from 1, the maximum included: the box of a whole W x H image is 1, 1, W, H.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from html import escape
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.block import Block
from exporters.formats.base import (
    ATTRIBUTES,
    BOX_CHANGES,
    FLAGS,
    NO_AREA,
    EncodedBlock,
    ItemFormat,
    OutputTree,
    Record,
    columnar_numbers,
    columnar_points,
    duplicates,
    other_changes,
    shape_name,
)
from exporters.model.clipping import is_axis_aligned
from exporters.model.records import Box, Image, Item, Object
from labelloop.labeling.studio.region_attributes import CROWD, POSE, ObjectAttributes, flag_of

_encode = msgspec.json.Encoder().encode


class VocPage(msgspec.Struct, frozen=True, gc=False):
    """A record: the XML of an image and its stem, which the image lists use."""

    stem: str
    xml: str


class Voc(ItemFormat):
    """Writes one XML file per image, also for an image without objects.

    ``truncated`` is set for objects cut by the edge of the image or marked so. A crowd is a ``difficult`` object, which
    evaluation ignores. Attributes are written as CVAT writes them.
    """

    name: ClassVar[str] = "voc"
    supported_metadata: ClassVar[frozenset[str]] = frozenset({FLAGS, ATTRIBUTES})
    image_folder: ClassVar[str] = "JPEGImages"
    file_per_image: ClassVar[bool] = True
    implicit_conversions: tuple[str, str, str, str] = BOX_CHANGES

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image and its objects; shapes without an area are rejected."""
        image = item.image
        dropped = [(obj, NO_AREA) for obj in item.objects if obj.box is None]
        encoded_objects, lines = [], []
        for obj in item.objects:
            if obj.box is None:
                continue
            encoded_objects.append(obj)
            if not is_axis_aligned(obj.geometry):
                converted[f"{shape_name(obj)} -> box"] += 1
            converted["crowd -> difficult object"] += obj.crowd
            box = _box_xml(*to_voc_pixels(obj.box, image.width, image.height))
            lines.append(_object_xml(_xml_text(obj.label), obj.remarks, obj.attributes, obj.clipped, box))
        keys = self._keys(encoded_objects, lines, image)
        unique: dict[Any, str] = {}
        for key, line in zip(keys, lines, strict=True):
            unique.setdefault(key, line)
        return _encode(VocPage(image.stem, _page_xml(image, list(unique.values())))), [
            *dropped,
            *duplicates(encoded_objects, keys),
        ]

    def _keys(self, objects: Sequence[Object], lines: Sequence[str], image: Image) -> Sequence[Hashable]:
        """Return a key per object that is equal for duplicates: its XML."""
        del objects, image
        return lines

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_items(block.items.items(), len(block))
        encoded.converted.extend(other_changes(block, "box"))
        encoded.refused.extend((index, obj, NO_AREA) for index, obj in columnar_points(block))
        sizes = columns.shapes.sizes
        low = np.minimum(np.rint(columns.clipped.boxes[:, :2]) + 1, sizes)
        high = np.minimum(np.maximum(np.rint(columns.clipped.boxes[:, 2:]), low), sizes)
        boxes = list(map(_box_xml, *np.hstack((low, high)).astype(np.int64).T.tolist()))
        numbers = columns.class_ids.tolist()
        names = {number: _xml_text(columns.classes[number - 1]) for number in set(numbers)}
        clipped = columns.clipped.is_clipped.tolist()
        heads = {
            (number, cut): _HEAD_XML % (name, _UNSPECIFIED, cut, 0, "")
            for number, name in names.items()
            for cut in (False, True)
        }
        rows = [
            f"{heads[number, cut]}{box}{_END_XML}" for number, cut, box in zip(numbers, clipped, boxes, strict=True)
        ]
        for row, notes in enumerate(columns.metadata.notes):
            if notes is not None:
                name = names[numbers[row]]
                rows[row] = _object_xml(name, notes.remarks, notes.attributes, clipped[row], boxes[row])
        first = columns.first
        for number, index in enumerate(block.columnar):
            image = block.images[index]
            image_rows = rows[first[number] : first[number + 1]]
            unique = list(dict.fromkeys(image_rows))
            if len(unique) < len(image_rows):
                rejected = duplicates(columns.box_objects(number), image_rows)
                encoded.refused.extend((index, obj, reason) for obj, reason in rejected)
            page = VocPage(image.stem, _page_xml(image, unique))
            encoded.records[index] = _encode(page)
        return columnar_numbers(block, encoded, np.hstack((low - 1, high)), (high - low + 1).prod(axis=1))

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the XML files, the classes and the image lists; empty lists too, as readers expect all four."""
        output.write("labelmap.txt", label_map(self.context.classes))
        decode = msgspec.json.Decoder(VocPage).decode
        with ExitStack() as stack:
            lists = {
                name: stack.enter_context(output.open(f"ImageSets/Main/{name}.txt"))
                for name in dict.fromkeys(("train", "val", "trainval", "test", *self.context.splits))
            }
            for record in records:
                page = decode(record.body)
                output.write(f"Annotations/{page.stem}.xml", page.xml.encode())
                for name in (record.split, "trainval") if record.split in ("train", "val") else (record.split,):
                    lists[name].write(f"{page.stem}\n".encode())


def label_map(classes: Sequence[str]) -> bytes:
    """Return the classes with their colours as datumaro and CVAT read them; the format cannot hold a name with a colon.

    Format: https://docs.cvat.ai/docs/manual/advanced/formats/format-voc/.
    """
    rows = [("background", 0), *((name, number) for number, name in enumerate(classes, 1) if number < 256)]
    palette = colormap(256).tolist()
    rows = [(" ".join(name.splitlines()), number) for name, number in rows]
    lines = [f"{name}:{','.join(map(str, palette[number]))}::\n" for name, number in rows if ":" not in name]
    return ("# label:color_rgb:parts:actions\n" + "".join(lines)).encode()


def colormap(count: int) -> NDArray[np.uint8]:
    """Return the VOC colormap, (count, 3) uint8: the bits of a class number distributed over red, green and blue.

    Source: ``VOClabelcolormap.m`` of the VOC2012 development kit.
    """
    numbers = np.arange(count)
    palette = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def to_voc_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Convert a box to VOC pixels: 1-based, inclusive maxima, at least one pixel, inside the image."""
    x_min, y_min, x_max, y_max = box
    left, top = min(round(x_min) + 1, width), min(round(y_min) + 1, height)
    return left, top, min(max(round(x_max), left), width), min(max(round(y_max), top), height)


_UNSPECIFIED = "Unspecified"
# The XML of an object before its box, and after its attributes.
_HEAD_XML = (
    "  <object>\n    <name>%s</name>\n    <pose>%s</pose>\n    <truncated>%d</truncated>\n"
    "    <difficult>%d</difficult>\n%s"
)
_END_XML = "  </object>\n"


def _box_xml(x_min: int, y_min: int, x_max: int, y_max: int) -> str:
    """Return the XML of a box in VOC pixels."""
    return (
        f"    <bndbox>\n      <xmin>{x_min}</xmin>\n      <ymin>{y_min}</ymin>\n"
        f"      <xmax>{x_max}</xmax>\n      <ymax>{y_max}</ymax>\n    </bndbox>\n"
    )


def _object_xml(name: str, remarks: ObjectAttributes, answers: Mapping[str, Any], is_clipped: bool, box: str) -> str:
    """Return the XML of an object: its name and its box as XML, and what it has besides."""
    flags = remarks.flags
    head = (
        name,
        _xml_text(remarks.pose) or _UNSPECIFIED,
        is_clipped or "truncated" in flags,
        CROWD in flags or "difficult" in flags,
        "    <occluded>1</occluded>\n" if "occluded" in flags else "",
    )
    return _HEAD_XML % head + box + _attributes_xml({**remarks.attributes, **answers}) + _END_XML


def _attributes_xml(attributes: Mapping[str, Any]) -> str:
    """Return the attributes except VOC's own flags, one element per list item. Source: CVAT's VOC exports."""
    rows = [
        f"      <attribute>\n        <name>{_xml_text(name)}</name>\n"
        f"        <value>{_xml_text(_scalar_text(value))}</value>\n"
        "      </attribute>\n"
        for name, values in attributes.items()
        if not (flag_of(name) or name.casefold() == POSE)
        for value in (values if isinstance(values, list | tuple) else [values])
    ]
    return f"    <attributes>\n{''.join(rows)}    </attributes>\n" if rows else ""


def _scalar_text(value: Any) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _page_xml(image: Image, objects: Sequence[str]) -> str:
    return (
        "<annotation>\n  <folder>JPEGImages</folder>\n"
        f"  <filename>{_xml_text(image.file_name)}</filename>\n"
        f"  <source>\n    <database>labelloop</database>\n    <image>{_xml_text(image.url)}</image>\n  </source>\n"
        f"  <size>\n    <width>{image.width}</width>\n    <height>{image.height}</height>\n    <depth>3</depth>\n"
        f"  </size>\n  <segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
    )


def _xml_text(value: str) -> str:
    # XML 1.0 has no way to write most control characters, not even escaped.
    if not value.isprintable():
        value = "".join(letter if letter >= " " or letter in "\t\n" else " " for letter in value)
    return escape(value, quote=False)
