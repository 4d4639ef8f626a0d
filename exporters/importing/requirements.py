"""What a data set needs of a labelling interface, found by reading it once through before anything is written."""

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from labelloop.service.datasets import Category, DataSet, LabelledPhoto, Photos, Problem, shape_of

Progress = Callable[[int, int | None], None]
"""Called with (photos done, photos in all or None where it is not known)."""


_ORDER = ("rectangle", "polygon", "mask")
"""Of the controls in a new interface: the first one's tool is at hand when a task is opened."""


_MASKS = ("segmentation", "mask", "panoptic")


class LabelConfigRequirements(msgspec.Struct, frozen=True):
    """What must be there to hold a data set.

    Attributes:
        shapes: Shape (`rectangle`, `polygon`, `mask`) -> the labels that are drawn so.
        labels: Every class of objects, in the data set's order, whether it is drawn or not.
        joints: The key points, in order.
        hidden: Whether any of them is out of sight.
        choices: Classes of photos as a whole.
        photos: How many photos there are.
        objects: How many objects.
        problems: How many things are malformed.
        categories: COCO's numbers and supercategories of the labels.
        skeleton: The pairs of key points with a line between them.
        unlabelled: Photos that come in without an annotation: nothing is said of them that could be read.
        empty: Photos that have nothing on them.
        unnamed: Photos in the folder that the labels do not name, and that are not imported.
    """

    shapes: dict[str, tuple[str, ...]]
    labels: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    hidden: bool = False
    choices: tuple[str, ...] = ()
    photos: int = 0
    objects: int = 0
    problems: int = 0
    categories: Mapping[str, Category] = {}
    skeleton: tuple[tuple[str, str], ...] = ()
    unlabelled: int = 0
    empty: int = 0
    unnamed: int = 0


def scan(
    data: DataSet, *, crowds: bool = True, beside: Photos | None = None, progress: Progress | None = None
) -> LabelConfigRequirements:
    """Reads a data set through; without ``crowds`` their shapes need no place; ``beside``: the photos of its folder."""
    shapes: dict[str, Counter[str]] = {}
    labels, choices = dict.fromkeys(data.labels), dict.fromkeys(data.choices)
    named: set[str] = set()
    hidden = False
    photos = objects = problems = unlabelled = empty = 0
    for each in data.photos():
        if isinstance(each, Problem):
            problems += 1
            continue
        photos += 1
        objects += len(each.drawn)
        only_crowds = not crowds and not each.choices and bool(each.drawn) and all(one.crowd for one in each.drawn)
        unlabelled += only_crowds or not each.annotated
        empty += each.annotated and not each.drawn and not each.choices
        if beside is not None and (name := beside.find(each.name)):
            named.add(name)
        hidden |= _look(each, shapes, crowds=crowds)
        choices.update(dict.fromkeys(each.choices))
        if progress is not None:
            progress(photos, None)
    drawn = set().union(*shapes.values()) if shapes else set()
    labels.update(dict.fromkeys(sorted(drawn)))
    return LabelConfigRequirements(
        shapes={shape: tuple(name for name in labels if name in shapes[shape]) for shape in _ORDER if shape in shapes},
        labels=tuple(labels),
        joints=data.joints,
        hidden=hidden,
        choices=tuple(choices),
        photos=photos,
        objects=objects,
        problems=problems,
        categories=data.categories,
        skeleton=data.skeleton,
        unlabelled=unlabelled,
        empty=empty,
        unnamed=sum(name not in named and not _is_mask(name) for name in beside.names) if beside and named else 0,
    )


def _is_mask(name: str) -> bool:
    """Whether one of an image's folders says that it is labels: ``SegmentationObject/``, ``masks/``."""
    return any(word in part.casefold() for part in name.split("/")[:-1] for word in _MASKS)


def _look(photo: LabelledPhoto, shapes: dict[str, Counter[str]], *, crowds: bool) -> bool:
    """Counts the photo's shapes; whether it has a key point that is out of sight."""
    for each in photo.drawn:
        if each.crowd and not crowds:
            continue
        shapes.setdefault(shape_of(each.geometry), Counter())[each.label] += 1
    return any(joint.hidden for each in photo.drawn for joint in each.joints)
