"""Pascal VOC: ``Annotations/*.xml``, ``ImageSets/Main/{train,val,trainval,test}.txt``, the classes in ``labelmap.txt``.

Format: the VOC2012 development kit, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/. Coordinates there are
whole pixels counted from 1, the maximum included: the box of a whole W x H image is 1, 1, W, H.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
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
    Encoded,
    ItemFormat,
    Place,
    Record,
    other_changes,
    repeated,
    shape_name,
)
from exporters.model.clipping import is_upright
from exporters.model.records import Box, Image, Item, Object
from labelloop.labeling.studio.region_attributes import POSE, flag_of

_encode = msgspec.json.Encoder().encode


class VocPage(msgspec.Struct, frozen=True, gc=False):
    """A record: the XML of an image, and its stem, by which the lists name it."""

    stem: str
    xml: str


class Voc(ItemFormat):
    """Lays out one XML an image, also for an image without objects.

    ``truncated`` marks what the image's edge cuts, and what was said to be so. A crowd is a ``difficult`` object, which
    evaluation ignores. Attributes are written as CVAT writes them.
    """

    name: ClassVar[str] = "voc"
    places: ClassVar[frozenset[str]] = frozenset({FLAGS, ATTRIBUTES})
    image_folder: ClassVar[str] = "JPEGImages"
    implicit_conversions: tuple[str, str, str] = BOX_CHANGES

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """An image and its objects; shapes without an area are given back."""
        image = item.image
        dropped = [(each, NO_AREA) for each in item.objects if each.box is None]
        held, lines = [], []
        for each in item.objects:
            if each.box is None:
                continue
            held.append(each)
            if not is_upright(each.geometry):
                converted[f"{shape_name(each)} -> box"] += 1
            converted["crowd -> difficult object"] += each.crowd
            lines.append(_object(each, each.box, image))
        keys = self._keys(held, lines, image)
        once: dict[Any, str] = {}
        for key, line in zip(keys, lines, strict=True):
            once.setdefault(key, line)
        return _encode(VocPage(image.stem, _page(image, list(once.values())))), [*dropped, *repeated(held, keys)]

    def _keys(self, objects: Sequence[Object], lines: Sequence[str], image: Image) -> Sequence[Hashable]:
        """By what two objects of an image are the same: what the page says of them."""
        del objects, image
        return lines

    def encode(self, block: Block) -> Encoded:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_some(block.items.items(), len(block))
        encoded.converted.extend(other_changes(block, "box"))
        sizes = columns.shapes.sizes
        low = np.minimum(np.rint(columns.fits.boxes[:, :2]) + 1, sizes)
        high = np.minimum(np.maximum(np.rint(columns.fits.boxes[:, 2:]), low), sizes)
        edges = np.column_stack((low, high)).astype(np.int64).T.tolist()
        numbers = columns.class_ids.tolist()
        names = {number: _text(columns.classes[number - 1]) for number in set(numbers)}
        rows = [
            _OBJECT % (names[number], _UNSPECIFIED, clipped, 0, "", *box, "")
            for number, clipped, *box in zip(numbers, columns.fits.clipped.tolist(), *edges, strict=True)
        ]
        first = columns.first
        for number, place in enumerate(block.usual):
            image = block.images[place]
            mine = rows[first[number] : first[number + 1]]
            once = list(dict.fromkeys(mine))
            if len(once) < len(mine):
                lost = repeated(columns.objects(number), mine)
                encoded.refused.extend((place, each, reason) for each, reason in lost)
            page = VocPage(image.stem, _page(image, once))
            encoded.records[place] = _encode(page)
        return encoded

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Write the pages, the classes and the lists of images, empty ones too: readers expect all four."""
        place.write("labelmap.txt", label_map(self.job.classes))
        decode = msgspec.json.Decoder(VocPage).decode
        with ExitStack() as opened:
            lists = {
                name: opened.enter_context(place.open(f"ImageSets/Main/{name}.txt"))
                for name in dict.fromkeys(("train", "val", "trainval", "test", *self.job.splits))
            }
            for record in records:
                page = decode(record.body)
                place.write(f"Annotations/{page.stem}.xml", page.xml.encode())
                for name in (record.split, "trainval") if record.split in ("train", "val") else (record.split,):
                    lists[name].write(f"{page.stem}\n".encode())


def label_map(classes: Sequence[str]) -> bytes:
    """The classes with their colours as datumaro and CVAT read them; the format has no way to write a colon.

    Format: https://docs.cvat.ai/docs/manual/advanced/formats/format-voc/.
    """
    rows = [("background", 0), *((name, number) for number, name in enumerate(classes, 1) if number < 256)]
    palette = colours(256).tolist()
    rows = [(" ".join(name.splitlines()), number) for name, number in rows]
    lines = [f"{name}:{','.join(map(str, palette[number]))}::\n" for name, number in rows if ":" not in name]
    return ("# label:color_rgb:parts:actions\n" + "".join(lines)).encode()


def colours(count: int) -> NDArray[np.uint8]:
    """The development kit's colours, (count, 3): the bits of a number spread over red, green and blue.

    Source: ``VOClabelcolormap.m`` of the VOC2012 development kit.
    """
    numbers = np.arange(count)
    found = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            found[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return found


def whole_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in the development kit's pixels: from 1, maxima included, at least one pixel, inside the image."""
    x_min, y_min, x_max, y_max = box
    left, top = min(round(x_min) + 1, width), min(round(y_min) + 1, height)
    return left, top, min(max(round(x_max), left), width), min(max(round(y_max), top), height)


_UNSPECIFIED = "Unspecified"
_OBJECT = (
    "  <object>\n    <name>%s</name>\n    <pose>%s</pose>\n    <truncated>%d</truncated>\n"
    "    <difficult>%d</difficult>\n%s    <bndbox>\n      <xmin>%d</xmin>\n      <ymin>%d</ymin>\n"
    "      <xmax>%d</xmax>\n      <ymax>%d</ymax>\n    </bndbox>\n%s  </object>\n"
)


def _object(each: Object, box: Box, image: Image) -> str:
    said = each.remarks
    return _OBJECT % (
        _text(each.label),
        _text(said.pose) or _UNSPECIFIED,
        each.clipped or "truncated" in said.flags,
        each.crowd or "difficult" in said.flags,
        "    <occluded>1</occluded>\n" if "occluded" in said.flags else "",
        *whole_pixels(box, image.width, image.height),
        _attributes(each),
    )


def _attributes(each: Object) -> str:
    """What is said of an object beside the format's own flags, a list value by value. Source: CVAT's VOC exports."""
    told = {**each.remarks.attributes, **each.attributes}
    rows = [
        f"      <attribute>\n        <name>{_text(name)}</name>\n        <value>{_text(_scalar(value))}</value>\n"
        "      </attribute>\n"
        for name, given in told.items()
        if not (flag_of(name) or name.casefold() == POSE)
        for value in (given if isinstance(given, list | tuple) else [given])
    ]
    return f"    <attributes>\n{''.join(rows)}    </attributes>\n" if rows else ""


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _page(image: Image, objects: Sequence[str]) -> str:
    return (
        "<annotation>\n  <folder>JPEGImages</folder>\n"
        f"  <filename>{_text(image.file_name)}</filename>\n"
        f"  <source>\n    <database>labelloop</database>\n    <image>{_text(image.url)}</image>\n  </source>\n"
        f"  <size>\n    <width>{image.width}</width>\n    <height>{image.height}</height>\n    <depth>3</depth>\n"
        f"  </size>\n  <segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
    )


def _text(value: str) -> str:
    # XML 1.0 has no way to write most control characters, not even escaped.
    return escape("".join(letter if letter >= " " or letter in "\t\n" else " " for letter in value), quote=False)
