"""Convert the objects of an image to Label Studio results: control, label and region id of each."""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from exporters.importing.label_config import CONTROL_TAGS, controls_of, flag_choices, hidden_choice
from labelloop.labeling.geometry.shapes import KeyPoint
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from labelloop.labeling.studio.region_attributes import CROWD, ObjectAttributes, flag_of, to_meta
from labelloop.labeling.studio.writing import to_results
from labelloop.service.datasets import DatasetImage, DatasetProblem, Keypoint, LabelledObject, shape_of

# Width of a drawn key point in percent of the image width, close to Label Studio's default.
POINT_WIDTH = 0.5

NO_CONTROL = "the label config has no control for it"
INCOMPLETE = "images whose annotation lacks unreadable objects: --incomplete skip leaves the annotation out"
SKIPPED_INCOMPLETE = "images without an annotation, since some of their objects cannot be read (--incomplete skip)"
OCCLUSION_LOST = "occluded key points, imported as visible: the label config has no per-region choice for it"


class TaskResults(msgspec.Struct, frozen=True):
    """The Label Studio results of an image.

    Attributes:
        results: Regions and choices, each with an id.
        regions: Number of regions that are objects.
        score: The lowest confidence of the objects; None without scores.
        annotated: Whether the results form an annotation. False, rather than an empty annotation, if the image is
            unlabelled or none of its labels could be imported.
    """

    results: list[dict[str, Any]]
    regions: int
    score: float | None = None
    annotated: bool = True

    @property
    def ids(self) -> frozenset[str]:
        """The ids of the results, which distinguish imported regions from those drawn later."""
        return frozenset(result["id"] for result in self.results if "id" in result)


class RegionWriter:
    """Converts the objects of images to the results of one project.

    Args:
        config: The label config.
        image: The image tag that shows the images.
        crowds: Import a crowd (COCO's ``iscrowd``) as one object.
        report: Called with each item that was left out.
        skip_incomplete: Import no annotation for an image with unreadable objects.
    """

    def __init__(
        self,
        config: LabelConfig,
        image: ObjectTag,
        *,
        crowds: bool,
        report: Callable[[DatasetProblem], None],
        skip_incomplete: bool = False,
    ) -> None:
        self._config = config
        self._image = image.name
        self._crowds = crowds
        self._skip_incomplete = skip_incomplete
        self._report = report
        self._hidden_choice = hidden_choice(config, image.name)
        self._flag_choices = flag_choices(config, image.name)
        self._region_choices = {
            control.name: frozenset(label.stored for label in control.labels)
            for control in config.controls_of("Choices")
            if control.per_region and image.name in control.to_names
        }
        self._controls = {kind: controls_of(config, kind, image.name) for kind in CONTROL_TAGS}
        self.notes: Counter[str] = Counter()

    def write(self, image: DatasetImage, identity: str) -> TaskResults:
        """Convert an image. The result ids are a hash of identity and content, so a second import recognises them.

        Args:
            image: The image, with its size if it has objects.
            identity: The unique id of the image.
        """
        digest = hashlib.blake2b(identity.encode(), digest_size=8)
        digest.update(msgspec.json.encode(_content(image)))
        id_prefix = digest.hexdigest()[:10]
        results: list[dict[str, Any]] = []
        regions = 0
        for index, obj in enumerate(image.objects):
            if obj.crowd and not self._crowds:
                reason = f"a crowd of {obj.label!r} is left out (--crowds imports it as one object)"
                self._report(DatasetProblem(image.name, reason, failed=False))
                continue
            object_results = self._object(image, obj, f"{id_prefix}{index}")
            regions += bool(object_results)
            results += object_results
        results += self._choices(image, f"{id_prefix}c")
        results += self._texts(image, f"{id_prefix}t")
        if not results and not self._crowds and any(obj.crowd for obj in image.objects):
            self._report(DatasetProblem(image.name, "it has only crowds: imported without an annotation", failed=False))
        scores = [obj.score for obj in image.objects if obj.score is not None]
        crowds_skipped = any(obj.crowd for obj in image.objects) and not self._crowds
        annotated = (
            image.annotated and bool(results or not crowds_skipped) and not (self._skip_incomplete and image.unread)
        )
        if image.unread and image.annotated:
            self.notes[SKIPPED_INCOMPLETE if self._skip_incomplete else INCOMPLETE] += 1
        return TaskResults(results, regions, min(scores) if scores else image.score, annotated)

    def _object(self, image: DatasetImage, obj: LabelledObject, region_id: str) -> list[dict[str, Any]]:
        kind = shape_of(obj.geometry)
        match = self._label(kind, obj.label)
        if match is None:
            self._report(DatasetProblem(image.name, f"a {kind} of {obj.label!r}: {NO_CONTROL}"))
            return []
        control, label = match
        remaining, answers = self._answer_choices(_object_attributes(obj))
        geometry = obj.geometry
        if isinstance(geometry, KeyPoint):
            geometry = KeyPoint(geometry.x, geometry.y, POINT_WIDTH * image.width / 100)
        region = Region(
            geometry,
            (label,),
            region_id,
            control.name,
            self._image,
            kind if control.type == "labels" else control.type,
            obj.score,
            0,
            image.width,
            image.height,
            attributes=answers,
        )
        if control.type == "labels":
            region = msgspec.structs.replace(region, type={"mask": "brush"}.get(kind, kind))
        results = to_results(region, config=self._config)
        if meta := to_meta(remaining):
            results[0]["meta"] = meta
        for index, keypoint in enumerate(obj.keypoints):
            results += self._keypoint(image, keypoint, f"{region_id}k{index}", region_id)
        return results

    def _answer_choices(
        self, object_attributes: ObjectAttributes
    ) -> tuple[ObjectAttributes, dict[str, tuple[str, ...]]]:
        """Split attributes into answers of per-region choices, and the rest for the region's meta."""
        answers: dict[str, tuple[str, ...]] = {}
        unanswered = set()
        for flag in sorted(object_attributes.flags):
            control, choice = self._flag_choices.get(flag, (None, ""))
            if control is None or (control.name in answers and control.attributes.get("choice") != "multiple"):
                unanswered.add(flag)
            else:
                answers[control.name] = (*answers.get(control.name, ()), choice)
        attributes = {}
        for name, value in object_attributes.attributes.items():
            values = tuple(value if isinstance(value, list) else [value])
            choices = self._region_choices.get(name, frozenset())
            if values and name not in answers and all(isinstance(item, str) and item in choices for item in values):
                answers[name] = values
            else:
                attributes[name] = value
        return msgspec.structs.replace(object_attributes, flags=frozenset(unanswered), attributes=attributes), answers

    def _keypoint(self, image: DatasetImage, keypoint: Keypoint, region_id: str, parent: str) -> list[dict[str, Any]]:
        match = self._label("keypoint", keypoint.name)
        if match is None:
            self._report(DatasetProblem(image.name, f"a key point {keypoint.name!r}: {NO_CONTROL}"))
            return []
        control, label = match
        answers: dict[str, tuple[str, ...]] = {}
        if keypoint.hidden and self._hidden_choice is None:
            self.notes[OCCLUSION_LOST] += 1
        elif keypoint.hidden and self._hidden_choice is not None:
            answers = {self._hidden_choice[0]: (self._hidden_choice[1],)}
        region = Region(
            KeyPoint(keypoint.x, keypoint.y, POINT_WIDTH * image.width / 100),
            (label,),
            region_id,
            control.name,
            self._image,
            control.type,
            None,
            0,
            image.width,
            image.height,
            attributes=answers,
        )
        results = to_results(region, config=self._config)
        for result in results:
            result["parentID"] = parent
        return results

    def _choices(self, image: DatasetImage, id_prefix: str) -> list[dict[str, Any]]:
        results = []
        for index, choice in enumerate(image.choices):
            match = self._label("choice", choice)
            if match is None:
                self._report(DatasetProblem(image.name, f"the class {choice!r}: {NO_CONTROL}"))
                continue
            control, stored = match
            result = {
                "id": f"{id_prefix}{index}",
                "from_name": control.name,
                "to_name": self._image,
                "type": "choices",
                "value": {"choices": [stored]},
            }
            results.append(result if image.score is None else result | {"score": image.score})
        return results

    def _texts(self, image: DatasetImage, region_id: str) -> list[dict[str, Any]]:
        """The texts of an image as one answer to the label config's first text area."""
        if not image.texts:
            return []
        controls = self._controls["text"]
        if not controls:
            self._report(DatasetProblem(image.name, f"{len(image.texts)} texts: {NO_CONTROL}"))
            return []
        return [
            {
                "id": region_id,
                "from_name": controls[0].name,
                "to_name": self._image,
                "type": "textarea",
                "value": {"text": list(image.texts)},
            }
        ]

    def _label(self, kind: str, label: str) -> tuple[Control, str] | None:
        for control in self._controls[kind]:
            stored = control.label_for(label)
            if stored is not None:
                return control, stored
        return None


def _content(image: DatasetImage) -> Any:
    """The content that the result ids are hashed from: the objects, but not the name of the image, which may differ.

    Attributes are excluded, so that ids are the same as those of imports by older versions.
    """
    objects = [
        {
            "geometry": obj.geometry,
            "label": obj.label,
            "score": obj.score,
            "joints": obj.keypoints,
            "crowd": obj.crowd,
            "detail": ", ".join(flag for flag in ("difficult", "truncated", "occluded") if flag in obj.remarks.flags),
        }
        for obj in image.objects
    ]
    return [objects, image.choices, image.texts] if image.texts else [objects, image.choices]


def _object_attributes(obj: LabelledObject) -> ObjectAttributes:
    """The attributes of an object, with boolean attributes that are flags moved to the flags."""
    object_attributes = obj.remarks
    flags = {name for name, value in object_attributes.attributes.items() if value is True and flag_of(name) == name}
    attributes = {name: value for name, value in object_attributes.attributes.items() if name not in flags}
    crowd = {CROWD} if obj.crowd else set()
    return msgspec.structs.replace(
        object_attributes, flags=object_attributes.flags | flags | crowd, attributes=attributes
    )
