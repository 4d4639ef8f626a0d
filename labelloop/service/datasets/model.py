"""The inner form of a data set that somebody else made: photos, and what is drawn on them in pixels."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from labelloop.labeling.geometry.shapes import Geometry, Mask, Rectangle
from labelloop.labeling.studio.region_attributes import NONE, Remarks


class Keypoint(msgspec.Struct, frozen=True, gc=False):
    """A key point of an object: which one it is, where (pixels), and whether it is out of sight."""

    name: str
    x: float
    y: float
    hidden: bool = False


class LabelledObject(msgspec.Struct, frozen=True, gc=False):
    """One object on a photo.

    Attributes:
        geometry: Its shape, in pixels.
        label: Its class.
        score: How sure a model is of it; None where a person drew it.
        joints: Its key points, those that were drawn.
        crowd: It is many objects under one shape (COCO's ``iscrowd``).
        remarks: Its flags and attributes, and fields that only its own format knows.
    """

    geometry: Geometry
    label: str
    score: float | None = None
    joints: tuple[Keypoint, ...] = ()
    crowd: bool = False
    remarks: Remarks = NONE


class LabelledPhoto(msgspec.Struct, frozen=True):
    """A photo and everything that the data set says about it.

    Attributes:
        name: Its name in the data set, with ``/``: ``val/a.jpg``.
        width: In pixels; 0 where nothing of it needs the size and the data set does not tell.
        height: In pixels.
        drawn: The objects on it.
        choices: The classes of the photo as a whole.
        score: How sure a model is of those classes; None where a person chose them.
        address: Where the data set says that the photo lies (http or s3); empty where it does not.
        task: The task of Label Studio that it is, where the data set tells.
        split: ``train``, ``val`` or ``test``, where the data set tells by a list; else its name may (``val/a.jpg``).
        about: Further fields of a COCO image, with its ``license`` and the ``info`` of its file.
        labelled: Whether the data set says what is on it; not where there is no label file. Where it does and nothing
            is drawn, nothing is on it.
        unread: How many of its objects cannot be read, or 1 for a label file of which nothing can; each is a `Problem`.
    """

    name: str
    width: int = 0
    height: int = 0
    drawn: tuple[LabelledObject, ...] = ()
    choices: tuple[str, ...] = ()
    score: float | None = None
    address: str = ""
    task: int | None = None
    split: str = ""
    about: Mapping[str, Any] = {}
    labelled: bool = True
    unread: int = 0

    @property
    def annotated(self) -> bool:
        """Whether what was read is an annotation. What cannot be read is never an empty one."""
        return self.labelled and bool(self.drawn or self.choices or not self.unread)


class Problem(msgspec.Struct, frozen=True):
    """Something of the data set that was left out: where it is, and what is wrong with it.

    ``failed``: it is wrong in itself; else nothing is, and it was not asked for.
    """

    item: str
    reason: str
    failed: bool = True


class Category(msgspec.Struct, frozen=True):
    """What COCO says of a class beside its name."""

    id: int
    supercategory: str = ""


Shape = Literal["rectangle", "polygon", "mask"]


class DataSet(msgspec.Struct, frozen=True):
    """A data set that was opened.

    Attributes:
        format: The name of its reader.
        labels: The classes of objects, in the data set's own order (of COCO's ids, of YOLO's numbers).
        joints: The names of key points, in order.
        choices: The classes of photos as a whole.
        photos: Reads it, a photo at a time, from the beginning at each call; what is malformed comes as a `Problem`.
        notes: What was assumed about it, for a person.
        counts: Notes about many things of one kind, with how many there are.
        categories: COCO's categories by the names of the classes.
        skeleton: The pairs of key points with a line between them.
    """

    format: str
    photos: Callable[[], Iterator[LabelledPhoto | Problem]]
    labels: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = {}
    categories: Mapping[str, Category] = {}
    skeleton: tuple[tuple[str, str], ...] = ()


def shape_of(geometry: Geometry) -> Shape:
    """What draws it in Label Studio: a rectangle, a brush for a mask, a polygon for any other outline."""
    if isinstance(geometry, Rectangle):
        return "rectangle"
    return "mask" if isinstance(geometry, Mask) else "polygon"
