"""What a format is: a writer that takes one image at a time and leaves its files in a version."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import msgspec

from exporters.classes import ClassMap
from exporters.dataset import Item, Object
from exporters.keypoints import Skeleton
from exporters.shapes import is_upright

NO_AREA = "a shape without an area has no box"


class Sink(Protocol):
    """Where a writer's files go. Keys are relative to the format's folder; the bytes are final."""

    def write(self, key: str, data: bytes) -> None:
        """Write a small file."""

    def write_file(self, key: str, path: Path) -> None:
        """Write a large file from the disk; it may be removed when the version is done."""


class Job(msgspec.Struct, frozen=True):
    """What every writer is told: where to write, a folder for temporary files, the splits and the class map.

    ``classes`` grows while tasks are read (a label the config does not know), so it is complete only at ``close``.
    ``skeleton`` is ``None`` where the label config has no key points.
    """

    sink: Sink
    scratch: Path
    splits: tuple[str, ...]
    classes: ClassMap
    skeleton: Skeleton | None = None


class Writer(Protocol):
    """One format being written. ``write`` is called once for each image, in the order of the tasks; then ``close``.

    Attributes:
        image_folder: Where a reader of the format looks for an image, ``{split}`` standing for its split.
        converted: How many objects were turned into another kind of shape, by ``from -> to``.
    """

    image_folder: ClassVar[str]
    converted: Counter[str]

    def __init__(self, job: Job) -> None: ...

    def write(self, item: Item) -> Sequence[tuple[Object, str]]:
        """Write an image and its objects; gives back the objects that the format cannot hold, with the reason."""

    def close(self) -> None:
        """Write what is one for the whole data set: lists, class names, the closing part of large files."""


def shape_name(each: Object) -> str:
    """The name of an object's shape in the bill of conversions."""
    name = type(each.geometry).__name__.lower()
    return "rotated rectangle" if name == "rectangle" and not is_upright(each.geometry) else name
