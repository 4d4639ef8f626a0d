"""Pascal VOC with masks: beside the boxes two PNG an image, of the classes and of the objects of its pixels.

Format: the VOC2012 development kit, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/: pixel n of
``SegmentationObject`` is the n-th object of the XML, of ``SegmentationClass`` the n-th class of ``labelmap.txt``; 0 is
background. Colours are the kit's own.
"""

import io
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.block import Block
from exporters.formats.base import Encoded, ItemFormat, Place, Record
from exporters.formats.voc import Voc, VocPage, colours
from exporters.formats.yolo import crowds
from exporters.model.clipping import visible
from exporters.model.records import Image, Item, Object
from labelloop.labeling.geometry.raster import MOST_PIXELS
from labelloop.labeling.geometry.shapes import Mask

MOST = 254
"""Objects in an image, and classes: a pixel is a byte, and 255 is void."""
TOO_MANY = f"a mask image holds {MOST} objects, and objects of {MOST} classes"
TOO_LARGE = f"a mask image holds {MOST_PIXELS >> 20} million pixels"


class _Page(msgspec.Struct, frozen=True, gc=False):
    """A record: VOC's, and the run lengths of each object of the XML with its class."""

    stem: str
    xml: str
    width: int
    height: int
    masks: tuple[tuple[int, str], ...]


class VocMasks(Voc):
    """Where objects overlap, the smaller one is on top: whatever was drawn can be seen."""

    name: ClassVar[str] = "voc-masks"
    implicit_conversions: tuple[str, str, str] = ("", "", "")

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """An image, its objects and their pixels; shapes without an area are given back."""
        ignored = crowds(item)
        item = msgspec.structs.replace(item, objects=tuple(each for each in item.objects if not each.crowd))
        held = [each for each in item.objects if each.box is not None]
        width, height = item.image.width, item.image.height
        if width * height > MOST_PIXELS:
            over, why = {each.id: each for each in held}, TOO_LARGE
        else:
            over = {each.id: each for place, each in enumerate(held) if place >= MOST or each.class_id > MOST}
            why = TOO_MANY
        kept = tuple(each for each in item.objects if each.id not in over)
        record, dropped = super().item(msgspec.structs.replace(item, objects=kept), converted)
        page = msgspec.json.decode(record, type=VocPage)
        away = {each.id for each, _ in dropped} | over.keys()
        masks = tuple(
            (each.class_id, _mask(each, width, height).rle.decode("ascii")) for each in held if each.id not in away
        )
        converted["object -> mask"] += len(masks)
        xml = page.xml.replace("<segmented>0</segmented>", f"<segmented>{int(bool(masks))}</segmented>", 1)
        return (
            msgspec.json.encode(_Page(page.stem, xml, width, height, masks)),
            [*dropped, *((each, why) for each in over.values()), *ignored],
        )

    def _keys(self, objects: Sequence[Object], lines: Sequence[str], image: Image) -> Sequence[Hashable]:
        """By what two objects are the same: what the page says of them, and their pixels."""
        return [(line, _mask(each, image.width, image.height).rle) for each, line in zip(objects, lines, strict=True)]

    def encode(self, block: Block) -> Encoded:
        """See `Format.encode`."""
        return ItemFormat.encode(self, block)

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Write what VOC writes, the two PNG of each image that has objects, and the lists of those."""
        palette = colours(256).tobytes()
        decode = msgspec.json.Decoder(_Page).decode
        with ExitStack() as opened:
            lists = {
                name: opened.enter_context(place.open(f"ImageSets/Segmentation/{name}.txt"))
                for name in dict.fromkeys(("train", "val", "trainval", "test", *self.job.splits))
            }

            def told() -> Iterable[Record]:
                for record in records:
                    page = decode(record.body)
                    if page.masks:
                        classes, objects = _painted(page)
                        place.write(f"SegmentationClass/{page.stem}.png", _png(classes, palette))
                        place.write(f"SegmentationObject/{page.stem}.png", _png(objects, palette))
                        names = (record.split, "trainval") if record.split in {"train", "val"} else (record.split,)
                        for name in names:
                            lists[name].write(f"{page.stem}\n".encode())
                    yield record

            super().write_files(told(), place)


def _mask(each: Object, width: int, height: int) -> Mask:
    if isinstance(each.geometry, Mask):
        return each.geometry
    return Mask.covering(visible(each), width, height)


def _painted(page: _Page) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The classes and the objects of an image's pixels, each (height, width)."""
    classes, objects = (np.zeros((page.height, page.width), dtype=np.uint8) for _ in range(2))
    masks = [Mask(page.width, page.height, rle.encode("ascii")) for _, rle in page.masks]
    for place in sorted(range(len(masks)), key=lambda place: (-masks[place].area, place)):
        pixels = masks[place].array()
        classes[pixels], objects[pixels] = page.masks[place][0], place + 1
    return classes, objects


def _png(pixels: NDArray[Any], palette: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(pixels, "P")
    image.putpalette(palette)
    image.save(out, "PNG")
    return out.getvalue()
