"""The internal form of a data set: images with labelled objects, in pixels. Every format encodes it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.result import MAX_IMAGE_SIDE
from labelloop.labeling.studio.region_attributes import CROWD, NO_OBJECT_ATTRIBUTES, ObjectAttributes

# x_min, y_min, x_max, y_max in pixels; the origin is the top left corner of the image, the maxima are exclusive.
Box = tuple[float, float, float, float]

OBJECTS_A_TASK = 100_000
# Side, in pixels, of the square canvas assumed for an image of unknown size: no image is as large.
NOMINAL = MAX_IMAGE_SIDE
# Upper bound of task ids, so that image ids of different tasks never collide; those of Label Studio are 32-bit.
IMAGE_SLOT = 10_000_000_000


class Image(msgspec.Struct, frozen=True, gc=False):
    """One image of a task, with its file name and split in the data set.

    ``id`` is the task's id for a task with one image, so it is stable from run to run and as the project grows
    (further images of a task: see ``image_id``). ``file_name`` is safe and unique in the data set. ``width`` and
    ``height`` are in pixels, 0 for an unknown size: its shapes are then in pixels of `canvas`.
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
        """Width and height of the pixel grid of its shapes."""
        return (self.width, self.height) if self.width else (NOMINAL, NOMINAL)

    @property
    def stem(self) -> str:
        """File name without extension: the name of the image's label files."""
        return self.file_name.rpartition(".")[0]


class Object(msgspec.Struct, frozen=True):
    """One labelled object: a region with one of its labels, inside its image.

    ``box`` is the axis-aligned bounding box, or ``None`` for a shape without an area (a key point). ``class_id`` is the
    label's number in the class map, from 1 (0: a key point). ``number`` identifies the region within its task: the
    objects of a region with several labels share it. ``clipped``: the edge of the image cuts it. ``outline`` is the
    visible part (shapely) where it differs from the shape as drawn: clipped, or repaired self-crossing. ``parent`` is
    the region of a key point; ``hidden``: the annotator marked the key point as not visible. ``annotators`` are those
    who drew an object of a consensus, which has no single annotator. ``remarks`` are its flags, attributes and notes.
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
    remarks: ObjectAttributes = NO_OBJECT_ATTRIBUTES

    @property
    def crowd(self) -> bool:
        """Whether it is a crowd region, which evaluation ignores (COCO's ``iscrowd``)."""
        return CROWD in self.remarks.flags


class Item(msgspec.Struct, frozen=True):
    """One image with all of its objects; an image without objects is a negative sample.

    ``source`` is the address that the image is read from, signatures included: it is never written to the data set.
    ``choices`` are the answers about the whole image, to the label config's first task-level ``Choices``, ``texts``
    those to its first task-level ``TextArea``.
    ``coco_fields`` are fields of a COCO image stored by an import, with its ``license`` and its data set's ``info``.
    """

    image: Image
    objects: tuple[Object, ...] = ()
    source: str = ""
    choices: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    coco_fields: Mapping[str, Any] = {}


def image_id(task: int, slot: int = 0) -> int:
    """Return the id of an image: ``slot * 10**10 + task``, so that the first image has its task's id.

    Args:
        task: the task's id, from 1 and below ``IMAGE_SLOT``.
        slot: 0 for the first image of the task, counted over image tags and the items of their lists.

    Raises:
        OverflowError: the id is over 2**53, which JSON readers that use doubles cannot represent.
    """
    return _fits(slot * IMAGE_SLOT + task)


def object_id(task: int, ordinal: int) -> int:
    """Return the id of an object: ``task * 10**5 + ordinal``, independent of other tasks.

    It is never 0, which pycocotools uses for "no match".

    Args:
        task: the task's id.
        ordinal: the object's number in its task, from 1.

    Raises:
        OverflowError: the task has more than 99,999 objects, or the id is over 2**53.
    """
    if not 0 < ordinal < OBJECTS_A_TASK:
        raise OverflowError(f"object {ordinal} of task {task}")
    return _fits(task * OBJECTS_A_TASK + ordinal)


def _fits(number: int) -> int:
    if number > 2**53:
        raise OverflowError(f"the number {number} does not fit the 53 bits of a JSON number")
    return number
