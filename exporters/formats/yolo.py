"""YOLO as Ultralytics reads it: ``labels/{train,val,test}/*.txt``, ``data.yaml`` and a list of images a split.

Formats: https://docs.ultralytics.com/datasets/. Rows are in shares of the image, classes count from 0. What a row says
of an object is the one thing in which detect, segment, OBB and pose differ, so rows of one data set never mix.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import ClassVar

import msgspec
import numpy as np

from exporters.columnar.block import Block
from exporters.columnar.columns import Columns
from exporters.columnar.text_table import SMALLEST, Cell, decimals, ends, parts, sheet, units, whole
from exporters.formats.base import (
    BOX_CHANGES,
    NO_AREA,
    NO_CROWDS,
    NO_SIZE,
    Encoded,
    ItemFormat,
    Place,
    Record,
    other_changes,
    repeated,
    shape_name,
)
from exporters.model.clipping import SIZELESS, is_upright
from exporters.model.records import Box, Image, Item, Object

DIGITS = 8
"""Digits after the point of a share: a hundred-millionth of the image."""
_WANTED = ("train", "val")
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What JSON writes as it is and YAML does not read."""
_encode = msgspec.json.Encoder().encode


class YoloPage(msgspec.Struct, frozen=True, gc=False):
    """A record: the rows of an image, and the image's file name."""

    file: str
    rows: str


class YoloRows(ItemFormat):
    """A kind of YOLO data set: subclasses say by ``_row`` what they say of an object.

    Lays out one text file an image, empty for an image without objects.

    Attributes:
        sizeless: The shapes whose row does not depend on the image's size.
    """

    needs_size: ClassVar[bool] = False
    sizeless: ClassVar[tuple[type, ...]] = SIZELESS

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """An image's rows; what has none is given back."""
        image = item.image
        held, lines = [], []
        dropped = crowds(item)
        for each in item.objects:
            if each.box is None:
                dropped.append((each, NO_AREA))
            elif not image.width and not isinstance(each.geometry, self.sizeless):
                dropped.append((each, NO_SIZE))
            elif not each.crowd:
                held.append(each)
                lines.append(f"{each.class_id - 1} {self._row(each, each.box, image, converted)}\n")
        return self._page(image, list(dict.fromkeys(lines))), [*dropped, *repeated(held, lines)]

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Write the rows, the lists of images and ``data.yaml``, whose class numbers are the class map's less one."""
        decode = msgspec.json.Decoder(YoloPage).decode
        with ExitStack() as opened:
            lists = {split: opened.enter_context(place.open(f"{split}.txt")) for split in self.job.splits}
            for record in records:
                each = decode(record.body)
                place.write(f"labels/{record.split}/{each.file.rpartition('.')[0]}.txt", each.rows.encode())
                lists[record.split].write(f"./images/{record.split}/{each.file}\n".encode())
        names = self.job.classes
        splits = self.job.splits
        lines = [f"{split}: images/{split}" for split in splits]
        # Ultralytics does not begin without both keys, whatever is to be trained or tested.
        lines += [f"{each}: images/{splits[0]}  # no split {each} was made" for each in _WANTED if each not in splits]
        lines += [*self._sheet(), f"nc: {len(names)}", "names:" if names else "names: {}"]
        # JSON strings are YAML strings, so that no label is taken for a number, a boolean or a comment.
        lines += [f"  {number}: {quoted(name)}" for number, name in enumerate(names)]
        place.write("data.yaml", ("\n".join(lines) + "\n").encode())

    def _row(self, each: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        """What stands after the class of an object with an area."""
        raise NotImplementedError

    def _take(self, encoded: Encoded, block: Block, lines: Iterable[Sequence[str]]) -> None:
        """Fill in the records of the usual images of a block from the rows of each."""
        assert block.columns is not None
        for number, (place, rows) in enumerate(zip(block.usual, lines, strict=True)):
            once = list(dict.fromkeys(rows))
            if len(once) < len(rows):
                lost = repeated(block.columns.objects(number), rows)
                encoded.refused.extend((place, each, reason) for each, reason in lost)
            encoded.records[place] = self._page(block.images[place], once)

    def _page(self, image: Image, rows: Sequence[str]) -> bytes:
        """The record of an image with these rows."""
        return _encode(YoloPage(image.file_name, "".join(rows)))

    def _sheet(self) -> list[str]:
        """Lines of ``data.yaml`` that only this kind of data set has."""
        return []


class YoloDetect(YoloRows):
    """YOLO detect: every shape is its box, ``class x_centre y_centre width height``."""

    name: ClassVar[str] = "yolo-detect"
    implicit_conversions: tuple[str, str, str] = BOX_CHANGES

    def encode(self, block: Block) -> Encoded:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_some(block.items.items(), len(block))
        encoded.converted.extend(other_changes(block, "box"))
        self._take(encoded, block, (rows.splitlines(keepends=True) for rows in _box_rows(columns)))
        return encoded

    def _row(self, each: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        if not is_upright(each.geometry):
            converted[f"{shape_name(each)} -> box"] += 1
        return shares(box, *image.canvas)


def _box_rows(columns: Columns) -> list[str]:
    """The rows of each image."""
    low, high, sizes = columns.fits.boxes[:, :2], columns.fits.boxes[:, 2:], columns.shapes.sizes
    told = units(np.hstack(((low + high) / 2 / sizes, (high - low) / sizes)), DIGITS)
    first = np.array(columns.first)
    cells: list[Cell] = [*whole(columns.class_ids - 1)]
    for share in decimals(told.T, DIGITS):
        cells += [b" ", *share]
    text = sheet([*cells, ends(first, b"\n", b"\n")], len(columns))
    rows = [part.decode() for part in parts(text, first)]
    small = np.flatnonzero((told > 0) & (told < SMALLEST)) // told.shape[1]
    for image in set((np.searchsorted(first, small, side="right") - 1).tolist()):
        rows[image] = "".join(
            f"{each.class_id - 1} {shares(each.box, *sizes[row].astype(int).tolist())}\n"
            for row, each in enumerate(columns.objects(image), columns.first[image])
            if each.box is not None
        )
    return rows


def crowds(item: Item) -> list[tuple[Object, str]]:
    """The crowds of an image, with the reason why a format of rows has none."""
    return [(each, NO_CROWDS) for each in item.objects if each.crowd and each.box is not None]


def shares(box: Box, width: int, height: int) -> str:
    """A box as YOLO writes it: its centre and size in shares of the image."""
    x_min, y_min, x_max, y_max = box
    return row_of(
        ((x_min + x_max) / 2 / width, (y_min + y_max) / 2 / height, (x_max - x_min) / width, (y_max - y_min) / height)
    )


def row_of(values: Iterable[float]) -> str:
    """Numbers of a row, to ``DIGITS`` digits."""
    scale = 10.0**DIGITS
    return _encode([math.floor(value * scale + 0.5) / scale for value in values])[1:-1].replace(b",", b" ").decode()


def quoted(name: str) -> str:
    """A text as YAML has it, whatever is in it."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.encode(name).decode())
