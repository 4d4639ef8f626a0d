"""The in-memory form of a third-party data set: images with labelled objects in pixel coordinates."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from labelloop.labeling.geometry.shapes import Ellipse, Geometry, KeyPoint, Mask, Rectangle, Vector
from labelloop.labeling.studio.region_attributes import NO_OBJECT_ATTRIBUTES, ObjectAttributes


class Keypoint(msgspec.Struct, frozen=True, gc=False):
    """A key point of an object: its name, its position in pixels, and whether it is occluded."""

    name: str
    x: float
    y: float
    hidden: bool = False


class LabelledObject(msgspec.Struct, frozen=True, gc=False):
    """One object on an image.

    Attributes:
        geometry: Its shape in pixels.
        label: Its class.
        score: The model's confidence; None for an annotation.
        keypoints: Its labelled key points.
        crowd: Whether it is a group of objects in one shape (COCO's ``iscrowd``).
        remarks: Flags, attributes and format-specific fields.
    """

    geometry: Geometry
    label: str
    score: float | None = None
    keypoints: tuple[Keypoint, ...] = ()
    crowd: bool = False
    remarks: ObjectAttributes = NO_OBJECT_ATTRIBUTES


class DatasetImage(msgspec.Struct, frozen=True):
    """An image and its labels.

    Attributes:
        name: Its name in the data set, with ``/``: ``val/a.jpg``.
        width: In pixels; 0 if unknown and not needed.
        height: In pixels; 0 if unknown and not needed.
        objects: Its labelled objects.
        choices: The classes of the whole image.
        texts: Texts about the whole image, such as captions.
        score: The model's confidence in those classes; None for an annotation.
        url: Its http or s3 address in the data set; empty if none.
        task: Its task id in Label Studio, if the data set has it.
        split: ``train``, ``val`` or ``test`` if the data set lists it; its name may give it too (``val/a.jpg``).
        about: Further fields of a COCO image, with its ``license`` and the ``info`` of its file.
        labelled: Whether the data set has labels for it. A labelled image without objects is a negative; an image
            without label file is unlabelled.
        unread: Number of objects that cannot be read, or 1 for an unreadable label file; each is a `DatasetProblem`.
    """

    name: str
    width: int = 0
    height: int = 0
    objects: tuple[LabelledObject, ...] = ()
    choices: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    score: float | None = None
    url: str = ""
    task: int | None = None
    split: str = ""
    about: Mapping[str, Any] = {}
    labelled: bool = True
    unread: int = 0

    @property
    def annotated(self) -> bool:
        """Whether the labels form an annotation; an image whose labels all failed to read does not count as empty."""
        return self.labelled and bool(self.objects or self.choices or self.texts or not self.unread)


class DatasetProblem(msgspec.Struct, frozen=True):
    """An item of the data set that was left out.

    Attributes:
        item: Its location, such as a file and a line.
        reason: Why it was left out.
        failed: True if the item is invalid; False if it was excluded on request.
    """

    item: str
    reason: str
    failed: bool = True


class Category(msgspec.Struct, frozen=True):
    """COCO's id and supercategory of a class."""

    id: int
    supercategory: str = ""


Shape = Literal["rectangle", "polygon", "mask", "ellipse", "vector", "keypoint"]


class DataSet(msgspec.Struct, frozen=True):
    """An opened data set.

    Attributes:
        format: The name of its reader.
        labels: The object classes in the data set's order (COCO's ids, YOLO's indices).
        keypoint_names: The names of the key points, in order.
        choices: The classes of whole images.
        images: Iterates over the images from the start at each call; malformed items are yielded as `DatasetProblem`.
        notes: Assumptions made about the data set, for the user.
        counts: Notes with the number of items they apply to.
        categories: COCO's categories by class name.
        skeleton: The edges between key points, as pairs of names.
    """

    format: str
    images: Callable[[], Iterator[DatasetImage | DatasetProblem]]
    labels: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = {}
    categories: Mapping[str, Category] = {}
    skeleton: tuple[tuple[str, str], ...] = ()


def shape_of(geometry: Geometry) -> Shape:
    """The Label Studio shape of a geometry: polygon for any outline that has no shape of its own."""
    return next((shape for kind, shape in _SHAPES.items() if isinstance(geometry, kind)), "polygon")


_SHAPES: Mapping[type, Shape] = {
    Rectangle: "rectangle",
    Mask: "mask",
    Ellipse: "ellipse",
    Vector: "vector",
    KeyPoint: "keypoint",
}
