"""DOTA: ``{split}/labelTxt/NAME.txt`` and ``{split}/images/``, a rotated box in pixels in each row.

Format: https://captain-whu.github.io/DOTA/dataset.html: ``x1 y1 x2 y2 x3 y3 x4 y4 category difficult``, without the
optional header, which mmrotate does not read. Class names have no spaces there: they are written with ``-``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import msgspec

from exporters.formats.base import FLAGS, NO_AREA, ItemFormat, OutputTree, Record, duplicates, shape_name
from exporters.formats.yolo import YoloPage, yaml_quoted
from exporters.model.outlines import min_area_box
from exporters.model.records import Item, Object
from labelloop.labeling.geometry.shapes import Rectangle

_CROWD = "crowd -> difficult object"
_NAME = "class name written with - for spaces"
_DIFFICULT = "difficult"
# Digits after the point, in pixels.
_DIGITS = 4


class Dota(ItemFormat):
    """Writes one text file per image, empty for an image without objects.

    A rectangle has its own corners, every other shape its minimum-area box. Objects flagged ``difficult`` and crowds
    are difficult, which DOTA's evaluation ignores.
    """

    name: ClassVar[str] = "dota"
    image_folder: ClassVar[str] = "{split}/images"
    needs_size: ClassVar[bool] = True
    file_per_image: ClassVar[bool] = True
    supported_metadata: ClassVar[frozenset[str]] = frozenset({FLAGS})

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode the rows of an image; shapes without an area are rejected."""
        dropped = [(obj, NO_AREA) for obj in item.objects if obj.box is None]
        objects = [obj for obj in item.objects if obj.box is not None]
        rows = []
        for obj in objects:
            if not isinstance(obj.geometry, Rectangle):
                converted[f"{shape_name(obj)} -> smallest turned box"] += 1
            converted[_CROWD] += obj.crowd
            converted[_NAME] += class_name(obj.label) != obj.label
            corners = " ".join(map(_number, _flat(obj)))
            rows.append(f"{corners} {class_name(obj.label)} {int(obj.crowd or _DIFFICULT in obj.remarks.flags)}\n")
        page = YoloPage(item.image.file_name, "".join(dict.fromkeys(rows)))
        return msgspec.json.encode(page), [*dropped, *duplicates(objects, rows)]

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the rows, and ``data.yaml`` with the classes in the order of their numbers."""
        decode = msgspec.json.Decoder(YoloPage).decode
        for record in records:
            page = decode(record.body)
            output.write(f"{record.split}/labelTxt/{page.file.rpartition('.')[0]}.txt", page.rows.encode())
        names = self.context.classes
        lines = [f"{split}: {split}/images" for split in self.context.splits]
        lines += [f"nc: {len(names)}", "names:" if names else "names: {}"]
        lines += [f"  {number}: {yaml_quoted(class_name(name))}" for number, name in enumerate(names)]
        output.write("data.yaml", ("\n".join(lines) + "\n").encode())


def class_name(label: str) -> str:
    """Return the name of a class in a row, which is split at spaces."""
    return "-".join(label.split()) or "-"


def _flat(obj: Object) -> list[float]:
    return [value for point in min_area_box(obj) for value in point]


def _number(value: float) -> str:
    text = f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text
