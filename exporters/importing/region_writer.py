"""From a photo's objects to Label Studio's results: which control draws each, under which label, with which id."""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from exporters.importing.label_config import controls_of, flag_choices, hidden_choice
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from labelloop.labeling.studio.region_attributes import CROWD, Remarks, flag_of, meta_of
from labelloop.labeling.studio.regions import to_results
from labelloop.service.datasets import Keypoint, LabelledObject, LabelledPhoto, Problem, shape_of

POINT_WIDTH = 0.5
"""How wide a key point is drawn, in percent of the photo's width: Label Studio's own default is near it."""

NO_PLACE = "the labelling interface has no place for it"
INCOMPLETE = "photos whose annotation lacks objects that cannot be read: --incomplete skip leaves it away"
WHOLE = "photos without an annotation, as some of their objects cannot be read (--incomplete skip)"
AS_SEEN = "key points that are out of sight, imported as seen: no per-region choice says it"


class Placed(msgspec.Struct, frozen=True):
    """What a photo becomes in Label Studio.

    Attributes:
        results: Regions and choices, each with an id.
        regions: How many of them are objects.
        score: The least sure of a model's objects; None where no score is given.
        annotated: Whether this is an annotation. It is none, rather than an empty one, where the data set says nothing
            of the photo, or where nothing of what it says could be taken.
    """

    results: list[dict[str, Any]]
    regions: int
    score: float | None = None
    annotated: bool = True

    @property
    def ids(self) -> frozenset[str]:
        """The ids of the regions: they tell what was imported from what was drawn since."""
        return frozenset(result["id"] for result in self.results if "id" in result)


class RegionWriter:
    """Places photos' objects into one project's interface.

    Args:
        config: The interface.
        image: The image tag that shows the photos.
        crowds: Whether an object that is many (COCO's ``iscrowd``) is imported as one.
        whole: Whether a photo of which some objects cannot be read gets no annotation at all.
        tell: Called with what was left out.
    """

    def __init__(
        self,
        config: LabelConfig,
        image: ObjectTag,
        *,
        crowds: bool,
        tell: Callable[[Problem], None],
        whole: bool = False,
    ) -> None:
        self._config = config
        self._image = image.name
        self._crowds = crowds
        self._whole = whole
        self._tell = tell
        self._hidden = hidden_choice(config, image.name)
        self._flags = flag_choices(config, image.name)
        self._asked = {
            control.name: frozenset(label.stored for label in control.labels)
            for control in config.controls_of("Choices")
            if control.per_region and image.name in control.to_names
        }
        self._controls = {
            kind: controls_of(config, kind, image.name) for kind in ("rectangle", "polygon", "mask", "joint", "choice")
        }
        self.notes: Counter[str] = Counter()

    def place(self, photo: LabelledPhoto, identity: str) -> Placed:
        """A photo's results. Their ids follow from the photo and what is on it, so a second import knows them again.

        Args:
            photo: With its size, where anything is drawn on it.
            identity: What tells the photo from every other.
        """
        made = hashlib.blake2b(identity.encode(), digest_size=8)
        made.update(msgspec.json.encode(_told(photo)))
        name = made.hexdigest()[:10]
        results: list[dict[str, Any]] = []
        regions = 0
        for number, each in enumerate(photo.drawn):
            if each.crowd and not self._crowds:
                why = f"a crowd of {each.label!r} is left out (--crowds takes it as one)"
                self._tell(Problem(photo.name, why, failed=False))
                continue
            found = self._object(photo, each, f"{name}{number}")
            regions += bool(found)
            results += found
        results += self._choices(photo, f"{name}c")
        if not results and not self._crowds and any(each.crowd for each in photo.drawn):
            self._tell(Problem(photo.name, "only crowds are on it: it comes in without an annotation", failed=False))
        scores = [each.score for each in photo.drawn if each.score is not None]
        left_out = any(each.crowd for each in photo.drawn) and not self._crowds
        annotated = photo.annotated and bool(results or not left_out) and not (self._whole and photo.unread)
        if photo.unread and photo.annotated:
            self.notes[WHOLE if self._whole else INCOMPLETE] += 1
        return Placed(results, regions, min(scores) if scores else photo.score, annotated)

    def _object(self, photo: LabelledPhoto, each: LabelledObject, name: str) -> list[dict[str, Any]]:
        kind = shape_of(each.geometry)
        found = self._label(kind, each.label)
        if found is None:
            self._tell(Problem(photo.name, f"a {kind} of {each.label!r}: {NO_PLACE}"))
            return []
        control, label = found
        said, answers = self._answered(_noted(each))
        region = Region(
            each.geometry,
            (label,),
            name,
            control.name,
            self._image,
            kind if control.type == "labels" else control.type,
            each.score,
            0,
            photo.width,
            photo.height,
            attributes=answers,
        )
        if control.type == "labels":
            region = msgspec.structs.replace(region, type={"mask": "brush"}.get(kind, kind))
        results = to_results(region, config=self._config)
        if meta := meta_of(said):
            results[0]["meta"] = meta
        for place, joint in enumerate(each.joints):
            results += self._joint(photo, joint, f"{name}k{place}", name)
        return results

    def _answered(self, said: Remarks) -> tuple[Remarks, dict[str, tuple[str, ...]]]:
        """What of it is answered by per-region choices of the interface, and what is left for the region's meta."""
        answers: dict[str, tuple[str, ...]] = {}
        left = set()
        for flag in sorted(said.flags):
            control, choice = self._flags.get(flag, (None, ""))
            if control is None or (control.name in answers and control.attributes.get("choice") != "multiple"):
                left.add(flag)
            else:
                answers[control.name] = (*answers.get(control.name, ()), choice)
        attributes = {}
        for name, value in said.attributes.items():
            given = tuple(value if isinstance(value, list) else [value])
            known = self._asked.get(name, frozenset())
            if given and name not in answers and all(isinstance(each, str) and each in known for each in given):
                answers[name] = given
            else:
                attributes[name] = value
        return msgspec.structs.replace(said, flags=frozenset(left), attributes=attributes), answers

    def _joint(self, photo: LabelledPhoto, joint: Keypoint, name: str, parent: str) -> list[dict[str, Any]]:
        found = self._label("joint", joint.name)
        if found is None:
            self._tell(Problem(photo.name, f"a key point {joint.name!r}: {NO_PLACE}"))
            return []
        control, label = found
        answers: dict[str, tuple[str, ...]] = {}
        if joint.hidden and self._hidden is None:
            self.notes[AS_SEEN] += 1
        elif joint.hidden and self._hidden is not None:
            answers = {self._hidden[0]: (self._hidden[1],)}
        region = Region(
            KeyPoint(joint.x, joint.y, POINT_WIDTH * photo.width / 100),
            (label,),
            name,
            control.name,
            self._image,
            control.type,
            None,
            0,
            photo.width,
            photo.height,
            attributes=answers,
        )
        results = to_results(region, config=self._config)
        for result in results:
            result["parentID"] = parent
        return results

    def _choices(self, photo: LabelledPhoto, name: str) -> list[dict[str, Any]]:
        results = []
        for number, choice in enumerate(photo.choices):
            found = self._label("choice", choice)
            if found is None:
                self._tell(Problem(photo.name, f"the class {choice!r}: {NO_PLACE}"))
                continue
            control, stored = found
            result = {
                "id": f"{name}{number}",
                "from_name": control.name,
                "to_name": self._image,
                "type": "choices",
                "value": {"choices": [stored]},
            }
            results.append(result if photo.score is None else result | {"score": photo.score})
        return results

    def _label(self, kind: str, label: str) -> tuple[Control, str] | None:
        for control in self._controls[kind]:
            stored = control.label_for(label)
            if stored is not None:
                return control, stored
        return None


def _told(photo: LabelledPhoto) -> Any:
    """What a photo's ids follow from: everything that is on it, but not its name, which other data sets spell anew.

    Attributes do not count: the ids of a data set that was imported before they were kept stay what they are.
    """
    drawn = [
        {
            "geometry": each.geometry,
            "label": each.label,
            "score": each.score,
            "joints": each.joints,
            "crowd": each.crowd,
            "detail": ", ".join(flag for flag in ("difficult", "truncated", "occluded") if flag in each.remarks.flags),
        }
        for each in photo.drawn
    ]
    return [drawn, photo.choices]


def _noted(each: LabelledObject) -> Remarks:
    """What is said of an object, with its attributes that are flags among the flags."""
    said = each.remarks
    flags = {name for name, value in said.attributes.items() if value is True and flag_of(name) == name}
    attributes = {name: value for name, value in said.attributes.items() if name not in flags}
    crowd = {CROWD} if each.crowd else set()
    return msgspec.structs.replace(said, flags=said.flags | flags | crowd, attributes=attributes)
