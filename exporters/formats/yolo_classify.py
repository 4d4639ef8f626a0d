"""YOLO classify: photos in folders named for their class, as Ultralytics and torchvision's ImageFolder read them.

Format: https://docs.ultralytics.com/datasets/classify/: ``train/cat/1.jpg``. The class of an image is what was answered
to the label config's first ``<Choices>`` about the whole task.
"""

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from exporters.formats.base import ItemFormat, Place, Record
from exporters.model.records import Item, Object

SHEET = "labels.csv"
WITHOUT = "image without a class, left out"
SEVERAL = "image of several classes, left out"
NO_SHAPES = "a class of a whole image has no shapes"

_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|]+')


class _Row(msgspec.Struct, frozen=True, gc=False):
    """A record: an image and its class; empty where it has none, or several."""

    file: str
    label: str


class YoloClassify(ItemFormat):
    """Lays out ``labels.csv`` and, with the photos, a folder for each class in a folder for each split."""

    name: ClassVar[str] = "yolo-classify"
    image_folder: ClassVar[str] = ".photos/{split}"
    needs_size: ClassVar[bool] = False

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """The class of an image; every object is given back."""
        if len(item.choices) != 1:
            converted[SEVERAL if item.choices else WITHOUT] += 1
        label = item.choices[0] if len(item.choices) == 1 else ""
        return msgspec.json.encode(_Row(item.image.file_name, label)), [(each, NO_SHAPES) for each in item.objects]

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Write the sheet: file, split, class and the folder of the class."""
        decode = msgspec.json.Decoder(_Row).decode
        folders = _Folders()
        with place.open(SHEET) as out:
            out.write(_line("file", "split", "class", "folder"))
            for record in records:
                row = decode(record.body)
                if row.label:
                    out.write(_line(row.file, record.split, row.label, folders.of(row.label)))

    def finish(self, root: Path) -> None:
        """Move the photos into the folders of their classes; those without a class go."""
        with (root / SHEET).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                photo = root / self.image_folder.format(split=row["split"]) / row["file"]
                if photo.is_file():
                    folder = root / row["split"] / row["folder"]
                    folder.mkdir(parents=True, exist_ok=True)
                    photo.replace(folder / row["file"])
        shutil.rmtree(root / ".photos", ignore_errors=True)


class _Folders:
    """A folder's name for each class: its own where every file system takes that."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, label: str) -> str:
        if label not in self._names:
            name = _UNSAFE.sub("_", label).strip(". ").encode()[:200].decode(errors="ignore") or "class"
            while name.casefold() in self._taken:
                name += "_"
            self._taken.add(name.casefold())
            self._names[label] = name
        return self._names[label]


def _line(*cells: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
