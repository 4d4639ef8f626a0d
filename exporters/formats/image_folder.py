"""Hugging Face ImageFolder: images in ``{split}/`` with a ``metadata.jsonl``, as ``load_dataset("imagefolder")`` reads.

Format: https://huggingface.co/docs/datasets/image_dataset#imagefolder. A row has ``file_name``, ``image_id``,
``width``, ``height``; ``objects`` with the ``bbox`` (x, y, width, height in pixels), ``category`` (from 0),
``category_name``, ``area`` and ``iscrowd`` of each object; ``label``, the class of the image; ``text``, its captions,
a line each.

The loader infers the type of a column from the first rows of each split, and refuses splits that differ. So numbers are
always floats where they may be, a missing label or text is an empty string, and images with objects come first.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, ClassVar

import msgspec

from exporters.formats.base import NO_AREA, ItemFormat, OutputTree, Record, duplicates, shape_name
from exporters.model.clipping import is_axis_aligned
from exporters.model.records import Item, Object

_encode = msgspec.json.Encoder().encode
_SEVERAL = "image of several classes: its label is empty"
_COLUMNS = ("id", "bbox", "category", "category_name", "area", "iscrowd")


class _Row(msgspec.Struct, frozen=True, gc=False):
    """A record: the fields of an image."""

    file_name: str
    image_id: int
    width: int
    height: int
    objects: list[dict[str, Any]]
    label: str
    text: str


class ImageFolder(ItemFormat):
    """Writes one ``metadata.jsonl`` per split; columns that no image of the data set needs are left out."""

    name: ClassVar[str] = "imagefolder"
    image_folder: ClassVar[str] = "{split}"
    # The loader needs the images next to the labels, so that a version has both in one zip.
    file_per_image: ClassVar[bool] = True

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image with its boxes, class and captions; shapes without an area are rejected."""
        image = item.image
        dropped = [(obj, NO_AREA) for obj in item.objects if obj.box is None]
        objects = [obj for obj in item.objects if obj.box is not None]
        records = []
        for obj in objects:
            if not is_axis_aligned(obj.geometry):
                converted[f"{shape_name(obj)} -> box"] += 1
            records.append(_object(obj))
        keys = [_encode(record | {"id": 0}) for record in records]
        unique: dict[bytes, dict[str, Any]] = {}
        for key, record in zip(keys, records, strict=True):
            unique.setdefault(key, record)
        converted[_SEVERAL] += len(item.choices) > 1
        row = _Row(
            image.file_name,
            image.id,
            image.width,
            image.height,
            list(unique.values()),
            item.choices[0] if len(item.choices) == 1 else "",
            "\n".join(" ".join(text.split()) for text in item.texts),
        )
        return _encode(row), [*dropped, *duplicates(objects, keys)]

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the rows of each split, those with objects first."""
        decode = msgspec.json.Decoder(_Row).decode
        used = {"objects": bool(self.context.classes), "label": False, "text": False}
        with ExitStack() as stack:
            waiting: dict[str, tuple[BinaryIO, BinaryIO]] = {
                split: (stack.enter_context(output.scratch()), stack.enter_context(output.scratch()))
                for split in self.context.splits
            }
            for record in records:
                row = decode(record.body)
                used["label"] |= bool(row.label)
                used["text"] |= bool(row.text)
                waiting[record.split][not row.objects].write(bytes(record.body) + b"\n")
            for split, files in waiting.items():
                with output.open(f"{split}/metadata.jsonl") as out:
                    for file in files:
                        file.seek(0)
                        for line in file:
                            out.write(_line(decode(line), used))
        output.write("classes.json", msgspec.json.format(_encode(self.context.classes)) + b"\n")


def _object(obj: Object) -> dict[str, Any]:
    assert obj.box is not None
    x_min, y_min, x_max, y_max = (round(value, 4) for value in obj.box)
    return {
        "id": obj.id,
        "bbox": [float(x_min), float(y_min), round(x_max - x_min, 4) + 0.0, round(y_max - y_min, 4) + 0.0],
        "category": obj.class_id - 1,
        "category_name": obj.label,
        "area": round(float(obj.area), 4),
        "iscrowd": int(obj.crowd),
    }


def _line(row: _Row, used: Mapping[str, bool]) -> bytes:
    fields = msgspec.to_builtins(row)
    fields["objects"] = {column: [entry[column] for entry in row.objects] for column in _COLUMNS}
    return _encode({key: value for key, value in fields.items() if used.get(key, True)}) + b"\n"
