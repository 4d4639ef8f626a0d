"""YOLO as Ultralytics reads it: ``labels/{train,val,test}/*.txt``, ``data.yaml`` and an image list per split.

Formats: https://docs.ultralytics.com/datasets/. Coordinates are shares of the image, classes count from 0. Detect,
segment, OBB and pose differ only in the rows of an object, and one data set has rows of one kind.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import ClassVar

import msgspec
import numpy as np

from exporters.columnar.block import Block
from exporters.columnar.columns import Columns
from exporters.columnar.text_table import (
    SMALLEST,
    Cell,
    Ints,
    decimals,
    integers,
    render_rows,
    row_ends,
    split_parts,
    to_units,
)
from exporters.formats.base import (
    BOX_CHANGES,
    NO_AREA,
    NO_CROWDS,
    NO_SIZE,
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
from exporters.model.clipping import SIZE_INDEPENDENT, is_axis_aligned
from exporters.model.records import Box, Image, Item, Object

# Digits after the point of a share: 10**-8 of the image.
DIGITS = 8
_REQUIRED_SPLITS = ("train", "val")
# Characters that JSON leaves unescaped and YAML does not read.
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_encode = msgspec.json.Encoder().encode


class YoloPage(msgspec.Struct, frozen=True, gc=False):
    """A record: the rows of an image and its file name."""

    file: str
    rows: str


class YoloRows(ItemFormat):
    """A kind of YOLO data set; subclasses implement ``_row`` for an object.

    Writes one text file per image, empty for an image without objects.

    Attributes:
        size_independent: The shapes whose row does not depend on the image's size.
    """

    needs_size: ClassVar[bool] = False
    file_per_image: ClassVar[bool] = True
    size_independent: ClassVar[tuple[type, ...]] = SIZE_INDEPENDENT

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image's rows; objects without a row are rejected."""
        image = item.image
        encoded_objects, lines = [], []
        dropped = reject_crowds(item)
        for obj in item.objects:
            if obj.box is None:
                dropped.append((obj, NO_AREA))
            elif not image.width and not isinstance(obj.geometry, self.size_independent):
                dropped.append((obj, NO_SIZE))
            elif not obj.crowd:
                encoded_objects.append(obj)
                lines.append(f"{obj.class_id - 1} {self._row(obj, obj.box, image, converted)}\n")
        return self._page(image, list(dict.fromkeys(lines))), [*dropped, *duplicates(encoded_objects, lines)]

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the rows, the image lists and ``data.yaml``; class numbers are those of the class map minus one."""
        decode = msgspec.json.Decoder(YoloPage).decode
        with ExitStack() as stack:
            lists = {split: stack.enter_context(output.open(f"{split}.txt")) for split in self.context.splits}
            for record in records:
                page = decode(record.body)
                output.write(f"labels/{record.split}/{page.file.rpartition('.')[0]}.txt", page.rows.encode())
                lists[record.split].write(f"./images/{record.split}/{page.file}\n".encode())
        names = self.context.classes
        splits = self.context.splits
        lines = [f"{split}: images/{split}" for split in splits]
        # Ultralytics requires both keys.
        lines += [
            f"{page}: images/{splits[0]}  # no split {page} was made" for page in _REQUIRED_SPLITS if page not in splits
        ]
        lines += [*self._sheet(), f"nc: {len(names)}", "names:" if names else "names: {}"]
        # A JSON string is a YAML string: no label is parsed as a number, a boolean or a comment.
        lines += [f"  {number}: {yaml_quoted(name)}" for number, name in enumerate(names)]
        output.write("data.yaml", ("\n".join(lines) + "\n").encode())

    def _row(self, obj: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        """Return the row of an object with an area, without its class."""
        raise NotImplementedError

    def _take(self, encoded: EncodedBlock, block: Block, rows_by_image: Iterable[Sequence[str]]) -> None:
        """Fill in the records of the columnar images of a block from their rows."""
        assert block.columns is not None
        encoded.refused.extend((index, obj, NO_AREA) for index, obj in columnar_points(block))
        for number, (index, rows) in enumerate(zip(block.columnar, rows_by_image, strict=True)):
            unique = list(dict.fromkeys(rows))
            if len(unique) < len(rows):
                rejected = duplicates(block.columns.box_objects(number), rows)
                encoded.refused.extend((index, obj, reason) for obj, reason in rejected)
            encoded.records[index] = self._page(block.images[index], unique)

    def _lines(self, encoded: EncodedBlock, block: Block, rows: list[str]) -> list[list[str]]:
        """Return the lines of each columnar image, given the rows of its objects without their classes."""
        columns = block.columns
        assert columns is not None
        kinds = (columns.class_ids - 1).tolist()
        owners = {row: bisect_right(columns.first, row) - 1 for row in columns.others}
        for row, obj in columns.others.items():
            assert obj.box is not None
            converted: Counter[str] = Counter()
            index = block.columnar[owners[row]]
            rows[row] = self._row(obj, obj.box, block.images[index], converted)
            encoded.converted.extend((index, change, times) for change, times in converted.items())
        lines = [f"{kind} {row}\n" for kind, row in zip(kinds, rows, strict=True)]
        return [lines[start:stop] for start, stop in pairwise(columns.first)]

    def _page(self, image: Image, rows: Sequence[str]) -> bytes:
        """Return the record of an image with these rows."""
        return _encode(YoloPage(image.file_name, "".join(rows)))

    def _sheet(self) -> list[str]:
        """Return lines of ``data.yaml`` that only this kind of data set has."""
        return []


class YoloDetect(YoloRows):
    """YOLO detect: the box of every shape, ``class x_centre y_centre width height``."""

    name: ClassVar[str] = "yolo-detect"
    implicit_conversions: tuple[str, str, str, str] = BOX_CHANGES

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        columns = block.columns
        if columns is None:
            return super().encode(block)
        encoded = self.encode_items(block.items.items(), len(block))
        encoded.converted.extend(other_changes(block, "box"))
        shares = _box_shares(columns)
        self._take(encoded, block, (rows.splitlines(keepends=True) for rows in _encode_box_rows(columns, shares)))
        sides = shares[:, 2:] / 10.0**DIGITS * columns.shapes.sizes
        low = shares[:, :2] / 10.0**DIGITS * columns.shapes.sizes - sides / 2
        return columnar_numbers(block, encoded, np.hstack((low, low + sides)), sides.prod(axis=1))

    def _row(self, obj: Object, box: Box, image: Image, converted: Counter[str]) -> str:
        if not is_axis_aligned(obj.geometry):
            converted[f"{shape_name(obj)} -> box"] += 1
        return box_row(box, *image.canvas)


def _box_shares(columns: Columns) -> Ints:
    """Return centre and size of each box, (rows, 4), in shares of the image, in units of the last digit."""
    low, high, sizes = columns.clipped.boxes[:, :2], columns.clipped.boxes[:, 2:], columns.shapes.sizes
    return to_units(np.hstack(((low + high) / 2 / sizes, (high - low) / sizes)), DIGITS)


def _encode_box_rows(columns: Columns, values: Ints) -> list[str]:
    """Return the rows of each image, given the `_box_shares`."""
    sizes = columns.shapes.sizes
    first = np.array(columns.first)
    cells: list[Cell] = [*integers(columns.class_ids - 1)]
    for share in decimals(values.T, DIGITS):
        cells += [b" ", *share]
    text = render_rows([*cells, row_ends(first, b"\n", b"\n")], len(columns))
    rows = [part.decode() for part in split_parts(text, first)]
    small = np.flatnonzero((values > 0) & (values < SMALLEST)) // values.shape[1]
    for image in set((np.searchsorted(first, small, side="right") - 1).tolist()):
        rows[image] = "".join(
            f"{obj.class_id - 1} {box_row(obj.box, *sizes[row].astype(int).tolist())}\n"
            for row, obj in enumerate(columns.box_objects(image), columns.first[image])
            if obj.box is not None
        )
    return rows


def reject_crowds(item: Item) -> list[tuple[Object, str]]:
    """Return the crowds of an image, with the reason why the format has none."""
    return [(obj, NO_CROWDS) for obj in item.objects if obj.crowd and obj.box is not None]


def box_row(box: Box, width: int, height: int) -> str:
    """Encode a box as its centre and size in shares of the image."""
    x_min, y_min, x_max, y_max = box
    return format_row(
        ((x_min + x_max) / 2 / width, (y_min + y_max) / 2 / height, (x_max - x_min) / width, (y_max - y_min) / height)
    )


def format_row(values: Iterable[float]) -> str:
    """Encode the numbers of a row with ``DIGITS`` digits."""
    scale = 10.0**DIGITS
    return _encode([math.floor(value * scale + 0.5) / scale for value in values])[1:-1].replace(b",", b" ").decode()


def yaml_quoted(name: str) -> str:
    """Quote any text as a YAML string."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", msgspec.json.encode(name).decode())
