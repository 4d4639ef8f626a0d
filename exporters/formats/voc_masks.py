"""Pascal VOC with masks: in addition to the boxes two PNG files per image, with the classes and objects of its pixels.

Format: the VOC2012 development kit, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/: pixel n of
``SegmentationObject`` is the n-th object of the XML, of ``SegmentationClass`` the n-th class of ``labelmap.txt``; 0 is
background. Colours are those of the development kit.
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
from exporters.formats.base import EncodedBlock, ItemFormat, OutputTree, Record
from exporters.formats.voc import Voc, VocPage, colormap
from exporters.formats.yolo import reject_crowds
from exporters.model.clipping import visible_outline
from exporters.model.records import Image, Item, Object
from labelloop.labeling.geometry.raster import MAX_PIXELS
from labelloop.labeling.geometry.shapes import Mask

# Largest number of objects in an image, and class number: a pixel is a byte, and 255 is void.
MAX_OBJECTS = 254
TOO_MANY = f"a mask image holds {MAX_OBJECTS} objects, and objects of {MAX_OBJECTS} classes"
TOO_LARGE = f"a mask image holds {MAX_PIXELS >> 20} million pixels"


class _MaskPage(msgspec.Struct, frozen=True, gc=False):
    """A record: that of VOC, and the class and run lengths of each object in the XML."""

    stem: str
    xml: str
    width: int
    height: int
    masks: tuple[tuple[int, str], ...]


class VocMasks(Voc):
    """Where objects overlap, the smaller one is on top, so that all of them are visible."""

    name: ClassVar[str] = "voc-masks"
    implicit_conversions: tuple[str, str, str, str] = ("", "", "", "")

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image, its objects and their masks; shapes without an area are rejected."""
        ignored = reject_crowds(item)
        item = msgspec.structs.replace(item, objects=tuple(obj for obj in item.objects if not obj.crowd))
        with_box = [obj for obj in item.objects if obj.box is not None]
        width, height = item.image.width, item.image.height
        if width * height > MAX_PIXELS:
            excess, excess_reason = {obj.id: obj for obj in with_box}, TOO_LARGE
        else:
            excess = {
                obj.id: obj for index, obj in enumerate(with_box) if index >= MAX_OBJECTS or obj.class_id > MAX_OBJECTS
            }
            excess_reason = TOO_MANY
        remaining = tuple(obj for obj in item.objects if obj.id not in excess)
        record, dropped = super().item(msgspec.structs.replace(item, objects=remaining), converted)
        page = msgspec.json.decode(record, type=VocPage)
        unmasked = {obj.id for obj, _ in dropped} | excess.keys()
        masks = tuple(
            (obj.class_id, _mask(obj, width, height).rle.decode("ascii")) for obj in with_box if obj.id not in unmasked
        )
        converted["object -> mask"] += len(masks)
        xml = page.xml.replace("<segmented>0</segmented>", f"<segmented>{int(bool(masks))}</segmented>", 1)
        return (
            msgspec.json.encode(_MaskPage(page.stem, xml, width, height, masks)),
            [*dropped, *((obj, excess_reason) for obj in excess.values()), *ignored],
        )

    def _keys(self, objects: Sequence[Object], lines: Sequence[str], image: Image) -> Sequence[Hashable]:
        """Return a key per object that is equal for duplicates: its XML and its pixels."""
        return [(line, _mask(obj, image.width, image.height).rle) for obj, line in zip(objects, lines, strict=True)]

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        return ItemFormat.encode(self, block)

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the files of VOC, two PNG files for each image with objects, and the lists of those images."""
        palette = colormap(256).tobytes()
        decode = msgspec.json.Decoder(_MaskPage).decode
        with ExitStack() as stack:
            lists = {
                name: stack.enter_context(output.open(f"ImageSets/Segmentation/{name}.txt"))
                for name in dict.fromkeys(("train", "val", "trainval", "test", *self.context.splits))
            }

            def write_masks() -> Iterable[Record]:
                for record in records:
                    page = decode(record.body)
                    if page.masks:
                        classes, objects = _paint(page)
                        output.write(f"SegmentationClass/{page.stem}.png", _png(classes, palette))
                        output.write(f"SegmentationObject/{page.stem}.png", _png(objects, palette))
                        names = (record.split, "trainval") if record.split in {"train", "val"} else (record.split,)
                        for name in names:
                            lists[name].write(f"{page.stem}\n".encode())
                    yield record

            super().write_files(write_masks(), output)


def _mask(obj: Object, width: int, height: int) -> Mask:
    if isinstance(obj.geometry, Mask):
        return obj.geometry
    return Mask.from_outline(visible_outline(obj), width, height)


def _paint(page: _MaskPage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the class and the object number of each pixel, (height, width) each."""
    classes, objects = (np.zeros((page.height, page.width), dtype=np.uint8) for _ in range(2))
    masks = [Mask(page.width, page.height, rle.encode("ascii")) for _, rle in page.masks]
    for index in sorted(range(len(masks)), key=lambda index: (-masks[index].area, index)):
        pixels = masks[index].array()
        classes[pixels], objects[pixels] = page.masks[index][0], index + 1
    return classes, objects


def _png(pixels: NDArray[Any], palette: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(pixels, "P")
    image.putpalette(palette)
    image.save(out, "PNG")
    return out.getvalue()
