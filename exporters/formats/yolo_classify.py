"""YOLO classify: images in folders named after their class, as Ultralytics and torchvision's ImageFolder read them.

Format: https://docs.ultralytics.com/datasets/classify/: ``train/cat/1.jpg``. The class of an image is the answer to the
label config's first task-level ``<Choices>``.
"""

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from exporters.formats.base import ImageReader, ItemFormat, OutputTree, Record
from exporters.model.manifest import ImageCopy
from exporters.model.records import Item, Object

SHEET = "labels.csv"
WITHOUT = "image without a class, left out"
SEVERAL = "image of several classes, left out"
NO_SHAPES = "a class of a whole image has no shapes"

_NO_COPY: tuple[str, ImageCopy | None] = ("", None)
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|]+')


class _Row(msgspec.Struct, frozen=True, gc=False):
    """A record: an image and its class; empty for no class or several."""

    file: str
    label: str


class YoloClassify(ItemFormat):
    """Writes ``labels.csv`` and, with the images, a folder per class in a folder per split."""

    name: ClassVar[str] = "yolo-classify"
    image_folder: ClassVar[str] = ".photos/{split}"
    needs_size: ClassVar[bool] = False
    file_per_image: ClassVar[bool] = True

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode the class of an image; all objects are rejected."""
        if len(item.choices) != 1:
            converted[SEVERAL if item.choices else WITHOUT] += 1
        label = item.choices[0] if len(item.choices) == 1 else ""
        return msgspec.json.encode(_Row(item.image.file_name, label)), [(obj, NO_SHAPES) for obj in item.objects]

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the table: file, split, class, and the folder of the class."""
        decode = msgspec.json.Decoder(_Row).decode
        folders = _FolderNames()
        with output.open(SHEET) as out:
            out.write(_line("file", "split", "class", "folder"))
            for record in records:
                row = decode(record.body)
                if row.label:
                    out.write(_line(row.file, record.split, row.label, folders.folder(row.label)))

    def image_paths(
        self, records: Iterable[Record], copies: Iterable[tuple[str, ImageCopy]]
    ) -> Iterator[tuple[str, ImageCopy]]:
        """See `Format.image_paths`. Images without a class are left out."""
        decode = msgspec.json.Decoder(_Row).decode
        folders, remaining = _FolderNames(), iter(copies)
        _, copy = next(remaining, _NO_COPY)
        for record in records:
            row = decode(record.body)
            folder = folders.folder(row.label) if row.label else ""
            if copy is not None and copy.file_name == row.file:
                if folder:
                    yield f"{record.split}/{folder}/{row.file}", copy
                _, copy = next(remaining, _NO_COPY)

    def finish(self, root: Path, images: ImageReader | None = None) -> None:
        """Move the images into the folders of their classes; images without a class are removed."""
        del images
        with (root / SHEET).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                image = root / self.image_folder.format(split=row["split"]) / row["file"]
                if image.is_file():
                    folder = root / row["split"] / row["folder"]
                    folder.mkdir(parents=True, exist_ok=True)
                    image.replace(folder / row["file"])
        shutil.rmtree(root / ".photos", ignore_errors=True)


class _FolderNames:
    """Assigns a folder name to each class: the class name where file systems allow it."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._used: set[str] = set()

    def folder(self, label: str) -> str:
        if label not in self._names:
            name = _UNSAFE.sub("_", label).strip(". ").encode()[:200].decode(errors="ignore") or "class"
            while name.casefold() in self._used:
                name += "_"
            self._used.add(name.casefold())
            self._names[label] = name
        return self._names[label]


def _line(*cells: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
