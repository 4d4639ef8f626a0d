"""The inner form of a data set: images with labelled objects, in pixels, as every writer receives them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.studio.region_attributes import CROWD, NONE, Remarks
from labelloop.labeling.studio.task import LARGEST

Box = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max in pixels; the origin is the image's top left corner, the maxima are exclusive edges."""

OBJECTS_A_TASK = 100_000
NOMINAL = LARGEST
"""Pixels along each edge of the square that stands for an image of unknown size: no image is as large."""
IMAGE_SLOT = 10_000_000_000
"""Task ids below this number keep images of different tasks apart; Label Studio's are 32-bit."""


class Image(msgspec.Struct, frozen=True, gc=False):
    """One image of a task and the place it got in the data set.

    ``id`` is the task's id for a task with one image, so it is stable from run to run and as the project grows
    (further images of a task: see ``image_id``). ``file_name`` is safe and unique in the data set. ``width`` and
    ``height`` are 0 where nothing tells the size: the shapes on it are in pixels of `canvas`.
    """

    id: int
    file_name: str
    width: int
    height: int
    split: str
    url: str
    task: int
    item_index: int = 0
    key: str = ""

    @property
    def canvas(self) -> tuple[int, int]:
        """The width and height that the pixels of its shapes are of."""
        return (self.width, self.height) if self.width else (NOMINAL, NOMINAL)

    @property
    def stem(self) -> str:
        """The file name without its extension: the name of the image's label files."""
        return self.file_name.rpartition(".")[0]


class Object(msgspec.Struct, frozen=True):
    """One labelled object: a region with one of its labels, inside its image.

    ``box`` is the true axis-aligned box, or ``None`` for a shape that has no area (a key point). ``class_id`` is the
    number of the label in the class map, from 1 (0: a key point); ``number`` the region's place in its task, which the
    objects of a region with several labels share. ``clipped``: the image's edge cuts it. ``outline`` is what can be
    seen of it (shapely) where that is not the shape as drawn: cut by the edge, or crossing itself. ``parent`` is the
    region that a key point belongs to; ``hidden``: the annotator said that it cannot be seen. ``annotators`` marked an
    object of a consensus, which is nobody's own. ``remarks`` are its flags and what else is said of it.
    """

    id: int
    class_id: int
    label: str
    geometry: Geometry
    box: Box | None
    area: float
    number: int = 1
    clipped: bool = False
    outline: Any = None
    region: str = ""
    parent: str = ""
    hidden: bool = False
    annotation: int | None = None
    annotator: int | None = None
    score: float | None = None
    attributes: Mapping[str, tuple[Any, ...]] = {}
    annotators: tuple[int, ...] = ()
    remarks: Remarks = NONE

    @property
    def crowd(self) -> bool:
        """Whether it is a region of many objects, which evaluation ignores (COCO's ``iscrowd``)."""
        return CROWD in self.remarks.flags


class Item(msgspec.Struct, frozen=True):
    """One image with all of its objects: what a writer writes at a time. No objects: a negative, kept as such.

    ``source`` is where the photo can be read, signatures included: it is never written down. ``choices`` is what was
    answered about the whole image: to the label config's first ``Choices`` that asks about a task.
    ``about`` are fields of a COCO image that an import kept, with its ``license`` and the ``info`` of its data set.
    """

    image: Image
    objects: tuple[Object, ...] = ()
    source: str = ""
    choices: tuple[str, ...] = ()
    about: Mapping[str, Any] = {}


def image_id(task: int, slot: int = 0) -> int:
    """The number of an image: its task's for the first image, moved up by ten digits for each further one.

    Args:
        task: the task's id, from 1 and below ``IMAGE_SLOT``.
        slot: 0 for the first image of the task, counted over its image tags and the items of their lists.

    Raises:
        OverflowError: a number over 2**53 would not survive JSON readers that use doubles.
    """
    return _fits(slot * IMAGE_SLOT + task)


def object_id(task: int, ordinal: int) -> int:
    """The number of an object, from 1: its task's id, then its place in the task in five digits.

    pycocotools takes 0 for "no match", so nothing is numbered 0. Other tasks never move it.

    Raises:
        OverflowError: more than 99,999 objects in one task, or a number over 2**53.
    """
    if not 0 < ordinal < OBJECTS_A_TASK:
        raise OverflowError(f"object {ordinal} of task {task}")
    return _fits(task * OBJECTS_A_TASK + ordinal)


def _fits(number: int) -> int:
    if number > 2**53:
        raise OverflowError(f"the number {number} does not fit the 53 bits of a JSON number")
    return number
