"""Define the interface of a format: ``encode`` makes a record per image at export, ``write_files`` makes files at pull.

A record is one line of JSON with everything that the format holds of one image. Records are stored in the shards of a
version, which later versions share: an image whose task did not change is never encoded again. A record may therefore
depend only on its image, its objects, the skeleton and the class numbers. What exists once per data set (lists of
images, class names, the head of a large file) is written by ``write_files``, when the whole data set is known.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.columnar.block import Block
from exporters.model.class_map import Categories
from exporters.model.clipping import is_axis_aligned
from exporters.model.keypoints import Skeleton
from exporters.model.manifest import ImageCopy
from exporters.model.records import Item, Object
from labelloop.labeling.studio.config import LabelConfig

# `Format.implicit_conversions` of a format of boxes, and of one of outlines.
BOX_CHANGES = ("", "rotated rectangle -> box", "polygon -> box", "ellipse -> box")
OUTLINE_CHANGES = ("rectangle -> polygon", "rotated rectangle -> polygon", "", "ellipse -> polygon")
NO_AREA = "a shape without an area has no box"
NO_CROWDS = "a crowd: the format has no regions to ignore"
# Metadata that a format may hold besides labels and shapes; `IMAGE_FIELDS` is of images, the others are of regions.
FLAGS, ATTRIBUTES, NOTES, IMAGE_FIELDS = "flags", "attributes", "notes and further fields", "further fields"
DUPLICATE_ROW = "the same row as another object's of its image"
NO_SIZE = "its image's size is not known, and the format needs it"
UNSIZED = "image of unknown size, left out"
# The record of an image that a format leaves out.
LEFT_OUT = b"null"


class FormatContext(msgspec.Struct, frozen=True):
    """Settings that every format gets, at export and at pull.

    Attributes:
        splits: The splits of the data set.
        classes: Class names in the order of their numbers, from 1. Empty at export, while new labels are still found;
            ``Object.class_id`` is final nevertheless.
        skeleton: The key points; ``None`` if the label config has none.
        categories: COCO's category ids and supercategories.
        config: The label config, at export; None at pull, and where there is none.
    """

    splits: tuple[str, ...]
    classes: tuple[str, ...] = ()
    skeleton: Skeleton | None = None
    categories: Categories = Categories()
    config: LabelConfig | None = None


class Record(msgspec.Struct, frozen=True, gc=False):
    """A format's record of an image of ``split``; ``body`` is JSON."""

    split: str
    body: msgspec.Raw


class ObjectNumbers(msgspec.Struct, frozen=True):
    """The numbers of the objects of some images, as they are in a format's records.

    Attributes:
        counts: (images,), the number of objects of each image.
        values: (objects, 6): class number from 1, box (x_min, y_min, x_max, y_max in pixels) and area.
    """

    counts: NDArray[np.int64]
    values: NDArray[np.float64]


class EncodedBlock(msgspec.Struct, frozen=True):
    """The records of a block, one per image in the order of its images, and the changes made to objects.

    Attributes:
        records: JSON, one per image.
        refused: Objects that the format cannot hold: (image index, object, reason).
        converted: Numbers of objects changed to another kind of shape: (image index, ``from -> to``, count).
        numbers: What `exporters.formats.decode_numbers` would read from the records; None: read it from them.
    """

    records: list[bytes]
    refused: list[tuple[int, Object, str]] = []
    converted: list[tuple[int, str, int]] = []
    numbers: ObjectNumbers | None = None


class OutputTree(Protocol):
    """The files of a format. Paths are relative, with ``/``; each file is written once."""

    def write(self, path: str, data: bytes) -> None:
        """Write a small file."""

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a large file for sequential writing."""

    def scratch(self) -> AbstractContextManager[BinaryIO]:
        """Open an unnamed temporary file that can be read back; it is deleted on exit."""


class ImageReader(Protocol):
    """Reads images in the order of their tasks, a split at a time."""

    def split(self, split: str) -> Callable[[str], bytes | None]:
        """Return a function that takes file names in order and returns the content; None if there is no such image."""


class Format(Protocol):
    """One format.

    Attributes:
        name: Its name in ``FORMATS``.
        image_folder: The folder where readers of the format expect an image; ``{split}`` stands for its split.
        needs_size: Whether it leaves out images of unknown size.
        file_per_image: Whether ``write_files`` writes a file for each image; a version then has them in a zip.
        implicit_conversions: What ``encode`` turns each upright rectangle, rotated rectangle, polygon and ellipse of
            `Columns` into, as ``from -> to``, without counting it in `EncodedBlock.converted`; empty where it counts,
            or changes nothing.
        supported_metadata: What the format holds besides labels and shapes: `FLAGS` and so on. The accounts count the
            rest.
    """

    name: ClassVar[str]
    image_folder: ClassVar[str]
    needs_size: ClassVar[bool]
    file_per_image: ClassVar[bool]
    supported_metadata: ClassVar[frozenset[str]]
    implicit_conversions: tuple[str, str, str, str]

    def __init__(self, context: FormatContext) -> None: ...

    def encode(self, block: Block) -> EncodedBlock:
        """Return a record for each image of a block, in the order of the block's images."""

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the data set as plain files.

        Args:
            records: the records of all images, in the order of their tasks.
            output: where the files go.
        """

    def image_paths(
        self, records: Iterable[Record], copies: Iterable[tuple[str, ImageCopy]]
    ) -> Iterator[tuple[str, ImageCopy]]:
        """Yield the path of each image that lies next to the labels: none for a format that packs images.

        Args:
            records: the records of all images, in the order of their tasks.
            copies: the copies of images with their splits, in the same order; some images may have none.
        """

    def finish(self, root: Path, images: "ImageReader | None" = None) -> None:
        """Finish the folder that ``write_files`` wrote to.

        Args:
            root: the folder.
            images: the images; by default they are in ``image_folder``, where `pull` has put them.
        """


class ItemFormat:
    """A format that encodes one image at a time: implement ``item`` and ``write_files``."""

    name: ClassVar[str]
    image_folder: ClassVar[str] = "images/{split}"
    needs_size: ClassVar[bool] = True
    file_per_image: ClassVar[bool] = False
    supported_metadata: ClassVar[frozenset[str]] = frozenset()
    implicit_conversions: tuple[str, str, str, str] = ("", "", "", "")

    def __init__(self, context: FormatContext) -> None:
        self.context = context

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image. Return its record, and the objects that the format cannot hold, with the reason.

        Args:
            item: the image with its objects.
            converted: counts, by ``from -> to``, objects that are changed to another kind of shape.
        """
        raise NotImplementedError

    def image_paths(
        self, records: Iterable[Record], copies: Iterable[tuple[str, ImageCopy]]
    ) -> Iterator[tuple[str, ImageCopy]]:
        """See `Format.image_paths`."""
        del records
        for split, copy in copies:
            yield f"{self.image_folder.format(split=split)}/{copy.file_name}", copy

    def finish(self, root: Path, images: "ImageReader | None" = None) -> None:
        """See `Format.finish`. Most formats leave images in place."""

    def encode(self, block: Block) -> EncodedBlock:
        """See `Format.encode`."""
        return self.encode_items(enumerate(block), len(block))

    def encode_items(self, indexed_items: Iterable[tuple[int, Item]], images: int) -> EncodedBlock:
        """Encode some images of a block; the records of the others are left empty, to be filled in.

        Args:
            indexed_items: (image index, image).
            images: the number of images in the block.
        """
        records, refused, changed = [b""] * images, [], []
        for index, item in indexed_items:
            converted: Counter[str] = Counter()
            if self.needs_size and not item.image.width:
                converted[UNSIZED] = 1
                records[index] = LEFT_OUT
                refused += [(index, obj, NO_SIZE) for obj in item.objects]
            else:
                records[index], rejected = self.item(item, converted)
                refused += [(index, obj, reason) for obj, reason in rejected]
            changed += [(index, change, times) for change, times in converted.items() if times]
        return EncodedBlock(records, refused, changed)


def duplicates(objects: Sequence[Object], rows: Sequence[Any]) -> Iterator[tuple[Object, str]]:
    """Yield the objects whose row equals that of an earlier object, with the reason for dropping them."""
    earlier: set[Any] = set()
    for obj, row in zip(objects, rows, strict=True):
        if row in earlier:
            yield obj, DUPLICATE_ROW
        earlier.add(row)


def included(records: Iterable[Record]) -> Iterator[Record]:
    """Filter out the records of images that a format leaves out."""
    return (record for record in records if bytes(record.body) != LEFT_OUT)


def shape_name(obj: Object) -> str:
    """Return the name of an object's shape in the accounts."""
    name = type(obj.geometry).__name__.lower()
    return "rotated rectangle" if name == "rectangle" and not is_axis_aligned(obj.geometry) else name


def other_changes(block: Block, to: str) -> Iterator[tuple[int, str, int]]:
    """Yield `EncodedBlock.converted` entries for the objects in ``columns.others`` that are not upright rectangles."""
    columns = block.columns
    if columns is None or not columns.others:
        return
    for image, index in enumerate(block.columnar):
        for row in columns.others.keys() & range(columns.first[image], columns.first[image + 1]):
            if not is_axis_aligned(columns.others[row].geometry):
                yield index, f"{shape_name(columns.others[row])} -> {to}", 1


def columnar_points(block: Block) -> Iterator[tuple[int, Object]]:
    """Yield the key points of the columnar images of a block, each with the index of its image."""
    columns = block.columns
    if columns is None or columns.points is None:
        return
    for number, index in enumerate(block.columnar):
        for obj in columns.point_objects(number):
            yield index, obj


def columnar_numbers(
    block: Block, encoded: EncodedBlock, boxes: NDArray[np.float64], areas: NDArray[np.float64]
) -> EncodedBlock:
    """Add the numbers of the objects to the result of a block in which all images are columnar, and all rows written.

    Args:
        block: The block.
        encoded: Its result.
        boxes: (rows, 4), as they are in the records: x_min, y_min, x_max, y_max in pixels.
        areas: (rows,), as they are in the records.
    """
    columns = block.columns
    if columns is None or block.items or encoded.refused:
        return encoded
    counts = np.diff(np.array(columns.first, np.int64))
    values: NDArray[np.float64] = np.column_stack((columns.class_ids, boxes, areas)).astype(np.float64)
    return msgspec.structs.replace(encoded, numbers=ObjectNumbers(counts, values))
