"""Key points: their names and order from the label config, and which object each one belongs to."""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from exporters.model.records import Object
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Label, LabelConfig
from labelloop.labeling.studio.task import read_task

ALONE = "a key point that belongs to no region with an area"
UNKNOWN = "a key point whose label is no key point of the label config"
TWICE = "a second key point of its label on one object"
ONLY_ONE = "key points given to the image's only object"

WORD = b"keypointlabels"
"""What stands in a task's JSON wherever it has labelled key points."""
EDGES = "skeleton"
"""The attribute of ``KeyPointLabels`` that names the pairs of key points with a line between them, as JSON."""
HIDDEN = frozenset({"occluded", "hidden", "invisible", "not visible"})
"""Choices about a key point that say that it cannot be seen, but for letter case."""
_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])|(left|right)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}

Placed = tuple[float, float, int]
"""x and y in pixels; 2: it can be seen, 1: it is hidden, 0: it was not drawn (x and y are 0)."""


class Skeleton(msgspec.Struct, frozen=True):
    """The key points that an object can have, in the order in which the formats list them."""

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    """Pairs of places in ``names``, from 1, between which a line is drawn: COCO's ``skeleton``."""

    @classmethod
    def of(cls, config: LabelConfig | None) -> "Skeleton | None":
        """The labels of the config's ``KeyPointLabels``, as written there, or by ``model_index`` where all have one.

        ``None`` where there is no config, or none of it draws labelled key points.
        """
        controls = config.controls_of("KeyPointLabels") if config else ()
        labels = [label for control in controls for label in control.labels]
        indexes = [_index(label) for label in labels]
        if indexes and None not in indexes and len(set(indexes)) == len(indexes):
            labels = [label for _, label in sorted(zip(indexes, labels, strict=True), key=lambda pair: pair[0] or 0)]
        names = tuple(dict.fromkeys(label.stored for label in labels))
        pairs = [pair for control in controls for pair in _edges(control.attributes.get(EDGES, ""))]
        edges = [(names.index(a) + 1, names.index(b) + 1) for a, b in pairs if a in names and b in names]
        return cls(names, tuple(dict.fromkeys(edges))) if names else None

    @classmethod
    def used(cls, texts: Iterable[bytes | MalformedTask], known: Sequence[str] = ()) -> "Skeleton | None":
        """The labels of key points that tasks use, in the order in which they are met: where there is no label config.

        Args:
            texts: the JSON of each task.
            known: those of the data set so far, which keep their places.
        """
        names = dict.fromkeys(known)
        for text in texts:
            if not isinstance(text, bytes) or WORD not in text:
                continue
            try:
                task = read_task(text)
            except MalformedTask:
                continue  # told when it is exported
            for result in (result for annotation in task.annotations for result in annotation.results):
                labels = result.value.get("keypointlabels") if result.type == "keypointlabels" else None
                if isinstance(labels, list):
                    names |= dict.fromkeys(label for label in labels if isinstance(label, str) and label)
        return cls(tuple(names)) if names else None

    @property
    def flip(self) -> tuple[int, ...] | None:
        """For each key point the one it becomes in a mirrored image (Ultralytics' ``flip_idx``), by left and right.

        ``None`` where the names do not tell: a left one without its right one, or several and no sides at all.
        """
        places = {name.casefold(): place for place, name in enumerate(self.names)}
        found = [places.get(_mirrored(name).casefold()) for name in self.names]
        known = [place for place in found if place is not None]
        sided = any(place != own for own, place in enumerate(known))
        if len(known) < len(found) or not (sided or len(found) == 1) or len(set(known)) < len(known):
            return None
        return tuple(known)

    def join(self, objects: Sequence[Object]) -> "Joined":
        """Give each key point of an image to the object that it is a child of in Label Studio (``parentID``).

        Where no key point has a parent and the image has one object, they are that object's.
        """
        points = [each for each in objects if isinstance(each.geometry, KeyPoint)]
        owners = [each for each in objects if each.box is not None]
        by_region: dict[tuple[int | None, str], list[Object]] = {}
        for each in owners:
            by_region.setdefault((each.annotation, each.region), []).append(each)
        only = owners if len(by_region) == 1 and not any(each.parent for each in points) else []
        places: dict[int, list[Placed]] = {each.id: [(0.0, 0.0, 0)] * len(self.names) for each in owners}
        refused = []
        given = 0
        for each in points:
            heirs = only if not each.parent else by_region.get((each.annotation, each.parent), [])
            if not heirs:
                refused.append((each, ALONE))
            elif each.label not in self.names:
                refused.append((each, UNKNOWN))
            elif places[heirs[0].id][(place := self.names.index(each.label))][2]:
                refused.append((each, TWICE))
            else:
                given += not each.parent
                x, y, *_ = each.geometry.bounds
                for heir in heirs:
                    places[heir.id][place] = (x, y, 1 if each.hidden else 2)
        return Joined(places, tuple(refused), given)


class Joined(msgspec.Struct, frozen=True):
    """The key points of each object of an image (by the object's id), those that have none, and how many were guessed.

    ``given`` counts the key points without a parent that the image's only object got.
    """

    places: Mapping[int, Sequence[Placed]]
    refused: tuple[tuple[Object, str], ...] = ()
    given: int = 0


def is_hidden(region: Region) -> bool:
    """Whether a key point was answered to be out of sight: a per-region choice such as ``occluded`` or ``hidden``."""
    return any(str(answer).casefold() in HIDDEN for answers in region.attributes.values() for answer in answers)


def _edges(text: str) -> list[tuple[str, str]]:
    try:
        return msgspec.json.decode(text, type=list[tuple[str, str]]) if text else []
    except msgspec.DecodeError:
        return []


def _index(label: Label) -> int | None:
    text = label.attributes.get("model_index", "")
    return int(text) if text.isdecimal() else None


def _mirrored(name: str) -> str:
    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _OTHER[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE.sub(other, name, count=1)
