"""Scan a data set before the import for the labels and shapes that its label config must have."""

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from labelloop.service.datasets import Category, DataSet, DatasetImage, DatasetProblem, ImageFiles, shape_of

# Called with (images done, total number of images or None if unknown).
Progress = Callable[[int, int | None], None]

# Order of the controls in a new label config; the tool of the first one is selected when a task is opened.
_CONTROL_ORDER = ("rectangle", "polygon", "mask", "ellipse", "vector", "keypoint")
_MASK_FOLDERS = ("segmentation", "mask", "panoptic")


class LabelConfigRequirements(msgspec.Struct, frozen=True):
    """The requirements and counts of a data set.

    Attributes:
        shapes: Shape (`rectangle`, `polygon`, `mask`, `ellipse`, `vector`, `keypoint`) -> labels of the objects with
            this shape.
        labels: All object classes in the data set's order, including unused ones.
        keypoint_names: The names of the key points, in order.
        hidden: Whether any key point is occluded.
        choices: The classes of whole images.
        texts: Whether any image has texts, such as captions.
        images: Number of images.
        objects: Number of objects.
        problems: Number of malformed items.
        categories: COCO's category ids and supercategories by label.
        skeleton: The edges between key points.
        unlabelled: Number of images without readable labels, imported without an annotation.
        empty: Number of labelled images without objects.
        unnamed: Number of images in the folder that have no labels and are not imported.
    """

    shapes: dict[str, tuple[str, ...]]
    labels: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()
    hidden: bool = False
    choices: tuple[str, ...] = ()
    texts: bool = False
    images: int = 0
    objects: int = 0
    problems: int = 0
    categories: Mapping[str, Category] = {}
    skeleton: tuple[tuple[str, str], ...] = ()
    unlabelled: int = 0
    empty: int = 0
    unnamed: int = 0


def scan(
    data: DataSet, *, crowds: bool = True, folder_images: ImageFiles | None = None, progress: Progress | None = None
) -> LabelConfigRequirements:
    """Read a data set once.

    Args:
        data: The data set.
        crowds: Whether crowds are imported and need a control.
        folder_images: The images of its folder, to count those without labels; None: not counted.
        progress: Called after each image.
    """
    shapes: dict[str, Counter[str]] = {}
    labels, choices = dict.fromkeys(data.labels), dict.fromkeys(data.choices)
    named: set[str] = set()
    hidden = texts = False
    image_count = objects = problems = unlabelled = empty = 0
    for item in data.images():
        if isinstance(item, DatasetProblem):
            problems += 1
            continue
        image_count += 1
        objects += len(item.objects)
        answers = item.choices or item.texts
        only_crowds = not crowds and not answers and bool(item.objects) and all(obj.crowd for obj in item.objects)
        unlabelled += only_crowds or not item.annotated
        empty += item.annotated and not (item.objects or answers)
        texts |= bool(item.texts)
        if folder_images is not None and (name := folder_images.find(item.name)):
            named.add(name)
        hidden |= _count_shapes(item, shapes, crowds=crowds)
        choices.update(dict.fromkeys(item.choices))
        if progress is not None:
            progress(image_count, None)
    used_labels = set().union(*shapes.values()) if shapes else set()
    labels.update(dict.fromkeys(sorted(used_labels)))
    return LabelConfigRequirements(
        shapes={
            shape: tuple(name for name in labels if name in shapes[shape])
            for shape in _CONTROL_ORDER
            if shape in shapes
        },
        labels=tuple(labels),
        keypoint_names=data.keypoint_names,
        hidden=hidden,
        choices=tuple(choices),
        texts=texts,
        images=image_count,
        objects=objects,
        problems=problems,
        categories=data.categories,
        skeleton=data.skeleton,
        unlabelled=unlabelled,
        empty=empty,
        unnamed=sum(name not in named and not _is_mask(name) for name in folder_images.names)
        if folder_images and named
        else 0,
    )


def _is_mask(name: str) -> bool:
    """Whether a folder in the name marks a mask image: ``SegmentationObject/``, ``masks/``."""
    return any(word in part.casefold() for part in name.split("/")[:-1] for word in _MASK_FOLDERS)


def _count_shapes(image: DatasetImage, shapes: dict[str, Counter[str]], *, crowds: bool) -> bool:
    """Count the shapes of an image; return whether it has an occluded key point."""
    for obj in image.objects:
        if obj.crowd and not crowds:
            continue
        shapes.setdefault(shape_of(obj.geometry), Counter())[obj.label] += 1
    return any(keypoint.hidden for obj in image.objects for keypoint in obj.keypoints)
