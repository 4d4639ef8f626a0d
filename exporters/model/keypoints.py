"""Key points: their names and order from the label config, and their assignment to objects."""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from exporters.model.records import Object
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, Label, LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.labeling.studio.values import GEOMETRIES

ORPHAN_KEYPOINT = "a key point that belongs to no region with an area"
UNKNOWN_KEYPOINT = "a key point whose label is no key point of the label config"
DUPLICATE_KEYPOINT = "a second key point of its label on one object"
GIVEN_TO_ONLY_OBJECT = "key points given to the image's only object"

# Occurs in the JSON of every task with labelled key points, of ``KeyPointLabels`` and of ``KeyPoint``.
KEYPOINT_TOKEN = b"keypoint"
# Attribute of ``KeyPointLabels`` or ``Labels``: pairs of key point names with a line between them, as JSON.
EDGES = "skeleton"
# Per-region choices that mark a key point as not visible, compared case-insensitively.
HIDDEN = frozenset({"occluded", "hidden", "invisible", "not visible"})
_SIDE_WORD = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])|(left|right)", re.IGNORECASE)
_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}

# x and y in pixels, and COCO visibility: 2 visible, 1 hidden, 0 not drawn (x and y are 0).
KeypointXYV = tuple[float, float, int]


class Skeleton(msgspec.Struct, frozen=True):
    """The key points of an object, in the order of the formats.

    ``edges`` are pairs of 1-based indices into ``names``: COCO's ``skeleton``.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_config(cls, config: LabelConfig | None) -> "Skeleton | None":
        """Read the labels that only name key points, in the config's order, or by ``model_index`` if all have one.

        They are those of ``KeyPointLabels``, and of ``Labels`` that ``KeyPoint`` alone draws.

        Returns:
            ``None`` without a config or without labelled key points.
        """
        controls = [control for control in config.controls.values() if names_points(config, control)] if config else []
        labels = [label for control in controls for label in control.labels]
        indexes = [_model_index(label) for label in labels]
        if indexes and None not in indexes and len(set(indexes)) == len(indexes):
            labels = [label for _, label in sorted(zip(indexes, labels, strict=True), key=lambda pair: pair[0] or 0)]
        names = tuple(dict.fromkeys(label.stored for label in labels))
        pairs = [pair for control in controls for pair in _parse_edges(control.attributes.get(EDGES, ""))]
        edges = [(names.index(a) + 1, names.index(b) + 1) for a, b in pairs if a in names and b in names]
        return cls(names, tuple(dict.fromkeys(edges))) if names else None

    @classmethod
    def from_tasks(cls, texts: Iterable[bytes | MalformedTask], existing: Sequence[str] = ()) -> "Skeleton | None":
        """Collect the key point labels used in tasks, in order of occurrence: for sources without a label config.

        Args:
            texts: the JSON of each task.
            existing: the key points of the data set, which keep their indices.
        """
        names = dict.fromkeys(existing)
        for text in texts:
            if not isinstance(text, bytes) or KEYPOINT_TOKEN not in text:
                continue
            try:
                task = read_task(text)
            except MalformedTask:
                continue  # reported when it is exported
            for annotation in task.annotations:
                points = {result.id for result in annotation.results if result.type == "keypoint"}
                for result in annotation.results:
                    of_point = result.type == "keypointlabels" or (result.type == "labels" and result.id in points)
                    labels = result.value.get(result.type) if of_point else None
                    if isinstance(labels, list):
                        names |= dict.fromkeys(label for label in labels if isinstance(label, str) and label)
        return cls(tuple(names)) if names else None

    @property
    def flip_indices(self) -> tuple[int, ...] | None:
        """For each key point the index of its left-right counterpart (Ultralytics' ``flip_idx``), by name.

        ``None`` if the names do not determine it: an unpaired side, or several key points without any side.
        """
        by_name = {name.casefold(): index for index, name in enumerate(self.names)}
        counterparts = [by_name.get(_mirrored(name).casefold()) for name in self.names]
        indices = [index for index in counterparts if index is not None]
        has_sides = any(index != own for own, index in enumerate(indices))
        if (
            len(indices) < len(counterparts)
            or not (has_sides or len(counterparts) == 1)
            or len(set(indices)) < len(indices)
        ):
            return None
        return tuple(indices)

    def assign(self, objects: Sequence[Object]) -> "KeypointAssignment":
        """Assign each key point of an image to its parent object in Label Studio (``parentID``).

        If no key point has a parent and the image has one object, they are assigned to that object.
        """
        points = [obj for obj in objects if isinstance(obj.geometry, KeyPoint)]
        owners = [obj for obj in objects if obj.box is not None]
        by_region: dict[tuple[int | None, str], list[Object]] = {}
        for obj in owners:
            by_region.setdefault((obj.annotation, obj.region), []).append(obj)
        sole_object = owners if len(by_region) == 1 and not any(obj.parent for obj in points) else []
        by_object: dict[int, list[KeypointXYV]] = {obj.id: [(0.0, 0.0, 0)] * len(self.names) for obj in owners}
        refused = []
        inferred = 0
        for obj in points:
            targets = sole_object if not obj.parent else by_region.get((obj.annotation, obj.parent), [])
            if not targets:
                refused.append((obj, ORPHAN_KEYPOINT))
            elif obj.label not in self.names:
                refused.append((obj, UNKNOWN_KEYPOINT))
            elif by_object[targets[0].id][(index := self.names.index(obj.label))][2]:
                refused.append((obj, DUPLICATE_KEYPOINT))
            else:
                inferred += not obj.parent
                x, y, *_ = obj.geometry.bounds
                for target in targets:
                    by_object[target.id][index] = (x, y, 1 if obj.hidden else 2)
        return KeypointAssignment(by_object, tuple(refused), inferred)


class KeypointAssignment(msgspec.Struct, frozen=True):
    """The key points of each object of an image.

    Attributes:
        by_object: Object id -> a key point for each name of the skeleton.
        refused: Key points without an object, with the reason.
        inferred: The number of key points without a parent, assigned to the image's only object.
    """

    by_object: Mapping[int, Sequence[KeypointXYV]]
    refused: tuple[tuple[Object, str], ...] = ()
    inferred: int = 0


def names_points(config: LabelConfig, control: Control) -> bool:
    """Whether the labels of a control name key points alone, and are no classes."""
    if control.type != "labels":
        return control.type == "keypointlabels"
    return shapes_of(config, control) == {"keypoint"}


def shapes_of(config: LabelConfig, control: Control) -> frozenset[str]:
    """Types of the shapes without labels on the images of a control, which draw the labels of ``Labels``."""
    return frozenset(
        other.type
        for other in config.controls.values()
        if other.type in GEOMETRIES and not other.type.endswith("labels") and {*other.to_names} & {*control.to_names}
    )


def is_hidden(region: Region) -> bool:
    """Whether a per-region choice such as ``occluded`` or ``hidden`` marks the key point as not visible."""
    return any(str(answer).casefold() in HIDDEN for answers in region.attributes.values() for answer in answers)


def _parse_edges(text: str) -> list[tuple[str, str]]:
    try:
        return msgspec.json.decode(text, type=list[tuple[str, str]]) if text else []
    except msgspec.DecodeError:
        return []


def _model_index(label: Label) -> int | None:
    text = label.attributes.get("model_index", "")
    return int(text) if text.isdecimal() else None


def _mirrored(name: str) -> str:
    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _OPPOSITE[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE_WORD.sub(other, name, count=1)
