"""What a format is: ``encode`` makes a record of each image at export, ``lay`` makes plain folders of records at pull.

A record is one line of JSON that holds all that the format says of one image. Records go into the shards of a version,
which later versions share: an image whose task did not change is never encoded again. So a record may depend on its
image, its objects, the skeleton and the numbers of their classes, and on nothing else; what is one for the whole data
set (lists of images, class names, the head of a large file) is written by ``lay``, when all of it is known.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import msgspec

from exporters.columnar.block import Block
from exporters.model.class_map import Categories
from exporters.model.clipping import is_upright
from exporters.model.keypoints import Skeleton
from exporters.model.records import Item, Object

BOX_CHANGES = ("", "rotated rectangle -> box", "polygon -> box")
"""`Format.implicit_conversions` of a format of boxes."""
NO_AREA = "a shape without an area has no box"
NO_CROWDS = "a crowd: the format has no regions to ignore"
FLAGS, ATTRIBUTES, NOTES, ABOUT = "flags", "attributes", "notes and further fields", "further fields"
"""What a format may have a place for beside labels and shapes; the last is of images, the others of regions."""
TWICE = "the same row as another object's of its image"
NO_SIZE = "its image's size is not known, and the format needs it"
UNSIZED = "image of unknown size, left out"
LEFT_OUT = b"null"
"""The record of an image that a format leaves out."""


class Job(msgspec.Struct, frozen=True):
    """What every format is told, at export and at pull alike.

    ``classes`` are the names of the classes in the order of their numbers, from 1. At export it is empty: labels that
    the config does not know are still being met (``Object.class_id`` is final all the same). ``skeleton`` is ``None``
    where the label config has no key points. ``categories`` are COCO's numbers and supercategories of the classes.
    """

    splits: tuple[str, ...]
    classes: tuple[str, ...] = ()
    skeleton: Skeleton | None = None
    categories: Categories = Categories()


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a format said of an image of ``split``: ``body`` is JSON."""

    split: str
    body: msgspec.Raw


class Encoded(msgspec.Struct, frozen=True):
    """The records of a block, one for each of its images in their order, and what the format did to the objects.

    ``refused`` are the objects that the format cannot hold: (place of the image, object, reason). ``converted`` counts,
    for a place of an image, the objects that were turned into another kind of shape, by ``from -> to``.
    """

    records: list[bytes]
    refused: list[tuple[int, Object, str]] = []
    converted: list[tuple[int, str, int]] = []


class Place(Protocol):
    """Where the files of a format are laid out. Paths are relative, with ``/``; a file is written once."""

    def write(self, path: str, data: bytes) -> None:
        """Write a small file."""

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A large file, to be written from its beginning to its end."""

    def scratch(self) -> AbstractContextManager[BinaryIO]:
        """An unnamed file for what must wait; it can be read again and is gone at the end."""


class Format(Protocol):
    """One format.

    Attributes:
        name: Its name in ``FORMATS``.
        image_folder: Where a reader of the format looks for an image, ``{split}`` standing for its split.
        needs_size: Whether it leaves images of unknown size out.
        publish_plain: Whether the files that ``write_files`` makes are put into the store too, for readers that take them from there.
        implicit_conversions: What ``encode`` turns each upright rectangle, turned rectangle and polygon of `Columns` into, as
            ``from -> to``, without counting it in `Encoded.converted`; empty where it counts, or changes nothing.
        places: What the format has a place for beside labels and shapes: `FLAGS` and so on. The bill counts the rest.
    """

    name: ClassVar[str]
    image_folder: ClassVar[str]
    needs_size: ClassVar[bool]
    publish_plain: ClassVar[bool]
    places: ClassVar[frozenset[str]]
    implicit_conversions: tuple[str, str, str]

    def __init__(self, job: Job) -> None: ...

    def encode(self, block: Block) -> Encoded:
        """A record of each image of a block, in the order of the block's images."""

    def write_files(self, records: Iterable[Record], place: Place) -> None:
        """Lay the data set out as plain files: the records of all images, in the order of their tasks."""

    def finish(self, root: Path) -> None:
        """Called by ``pull`` on the folder that ``lay`` wrote to, once the photos lie in ``image_folder`` as well."""


class ItemFormat:
    """A format that encodes one image at a time: write ``item`` and ``lay``."""

    name: ClassVar[str]
    image_folder: ClassVar[str] = "images/{split}"
    needs_size: ClassVar[bool] = True
    publish_plain: ClassVar[bool] = False
    places: ClassVar[frozenset[str]] = frozenset()
    implicit_conversions: tuple[str, str, str] = ("", "", "")

    def __init__(self, job: Job) -> None:
        self.job = job

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """The record of an image, and the objects that the format cannot hold, with the reason.

        Args:
            item: the image with its objects.
            converted: count here, by ``from -> to``, the objects that are turned into another kind of shape.
        """
        raise NotImplementedError

    def finish(self, root: Path) -> None:
        """See `Format.finish`. Most formats leave photos where they are."""

    def encode(self, block: Block) -> Encoded:
        """See `Format.encode`."""
        return self.encode_some(enumerate(block), len(block))

    def encode_some(self, items: Iterable[tuple[int, Item]], images: int) -> Encoded:
        """The records of some images by their places; those of the others are empty, to be filled."""
        records, refused, changed = [b""] * images, [], []
        for place, item in items:
            converted: Counter[str] = Counter()
            if self.needs_size and not item.image.width:
                converted[UNSIZED] = 1
                records[place] = LEFT_OUT
                refused += [(place, each, NO_SIZE) for each in item.objects]
            else:
                records[place], not_held = self.item(item, converted)
                refused += [(place, each, reason) for each, reason in not_held]
            changed += [(place, change, times) for change, times in converted.items() if times]
        return Encoded(records, refused, changed)


def repeated(objects: Sequence[Object], rows: Sequence[Any]) -> Iterator[tuple[Object, str]]:
    """The objects whose row another one before them has, with the reason why they have none."""
    seen: set[Any] = set()
    for each, row in zip(objects, rows, strict=True):
        if row in seen:
            yield each, TWICE
        seen.add(row)


def held(records: Iterable[Record]) -> Iterator[Record]:
    """The records of the images that a format does not leave out."""
    return (record for record in records if bytes(record.body) != LEFT_OUT)


def shape_name(each: Object) -> str:
    """The name of an object's shape in the bill of conversions."""
    name = type(each.geometry).__name__.lower()
    return "rotated rectangle" if name == "rectangle" and not is_upright(each.geometry) else name


def other_changes(block: Block, to: str) -> Iterator[tuple[int, str, int]]:
    """For `Encoded.converted`: the rows of kind ``OTHER`` that are no upright rectangles become another shape."""
    columns = block.columns
    if columns is None or not columns.others:
        return
    for number, place in enumerate(block.usual):
        for row in columns.others.keys() & range(columns.first[number], columns.first[number + 1]):
            if not is_upright(columns.others[row].geometry):
                yield place, f"{shape_name(columns.others[row])} -> {to}", 1
