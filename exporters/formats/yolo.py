"""YOLO as Ultralytics reads it: ``labels/{train,val,test}/*.txt``, ``data.yaml`` and a list of images a split.

Formats: https://docs.ultralytics.com/datasets/. Rows are in shares of the image, classes count from 0. What a row says
of an object is the one thing in which detect, segment, OBB and pose differ, so rows of one data set never mix.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import ClassVar

import msgspec

from exporters.dataset import Box, Image, Item, Object
from exporters.formats.format import NO_AREA, ItemFormat, Place, Record, shape_name
from exporters.shapes import is_upright


class YoloPage(msgspec.Struct, frozen=True, gc=False):
    """A record: the rows of an image, and the image's file name."""

    file: str
    rows: str


class YoloDetect(ItemFormat):
    """YOLO detect: every shape is its box, ``class x_centre y_centre width height``.

    Lays out one text file an image, empty for an image without objects.
    """

    name: ClassVar[str] = "yolo-detect"

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """An image's rows; what has none is given back."""
        image = item.image
        rows, dropped = [], []
        for each in item.objects:
            if each.box is None:
                dropped.append((each, NO_AREA))
                continue
            rows.append(f"{each.class_id - 1} {self._row(each, each.box, image, converted)}\n")
        return page(image, rows), dropped

    def lay(self, records: Iterable[Record], place: Place) -> None:
        """Write the rows, the lists of images and ``data.yaml``, whose class numbers are the class map's less one."""
        decode = msgspec.json.Decoder(YoloPage).decode
        with ExitStack() as opened:
            lists = {split: opened.enter_context(place.open(f"{split}.txt")) for split in self.job.splits}
            for record in records:
                each = decode(record.body)
                place.write(f"labels/{record.split}/{each.file.rpartition('.')[0]}.txt", each.rows.encode())
                lists[record.split].write(f"./images/{record.split}/{each.file}\n".encode())
        names = self.job.classes
        lines = [f"{split}: images/{split}" for split in self.job.splits]
        lines += [*self._sheet(), f"nc: {len(names)}", "names:"]
        # JSON strings are YAML strings, so that no label is taken for a number, a boolean or a comment.
        lines += [f"  {number}: {quoted(name)}" for number, name in enumerate(names)]
        place.write("data.yaml", ("\n".join(lines) + "\n").encode())

    def _row(self, each: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        if not is_upright(each.geometry):
            converted[f"{shape_name(each)} -> box"] += 1
        return shares(box, image.width, image.height)

    def _sheet(self) -> list[str]:
        """Lines of ``data.yaml`` that only this kind of data set has."""
        return []


def page(image: Image, rows: Sequence[str]) -> bytes:
    """The record of an image with these rows."""
    return msgspec.json.encode(YoloPage(image.file_name, "".join(rows)))


def shares(box: Box, width: int, height: int) -> str:
    """A box as YOLO writes it: its centre and size in shares of the image."""
    x_min, y_min, x_max, y_max = box
    return (
        f"{(x_min + x_max) / 2 / width:.8f} {(y_min + y_max) / 2 / height:.8f} "
        f"{(x_max - x_min) / width:.8f} {(y_max - y_min) / height:.8f}"
    )


def quoted(name: str) -> str:
    """A text as YAML has it, whatever is in it."""
    return msgspec.json.encode(name).decode()
