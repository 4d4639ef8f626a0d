"""Convert a region of a task to objects of the data set: one per label, clipped to the image."""

from collections.abc import Iterable

import msgspec

from exporters.convert.options import ConversionOptions
from exporters.convert.tally import Tally, TaskLosses
from exporters.model.class_map import ClassMap
from exporters.model.clipping import CLIPPED, ClippedShape, ShapeRejected, clip_to_image
from exporters.model.keypoints import is_hidden
from exporters.model.records import Image, Object, object_id
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.region_attributes import read_object_attributes
from labelloop.labeling.studio.task import Annotation

NEGATIVE_SIZE = "negative size turned round"
SEVERAL_LABELS = "regions with several labels (an object for each label)"
NO_LABEL = "no label"
UNKNOWN_LABEL = "regions with a label that the label config does not have"
# The tally of a region without any of these.
KEPT = Tally.count("kept", "region")


class ConvertedRegion(msgspec.Struct, frozen=True):
    """The outcome of a region.

    Attributes:
        tally: Its counts and losses.
        objects: Its objects; none if it cannot be in the data set.
        numbers: How many object numbers of the task it uses up.
    """

    tally: Tally
    objects: tuple[Object, ...] = ()
    numbers: int = 0


class RegionConverter:
    """Converts regions by the options of an export; new labels are added to ``classes``."""

    def __init__(self, rules: ConversionOptions, classes: ClassMap) -> None:
        self._rules = rules
        self._classes = classes

    def convert(
        self,
        region: Region,
        annotation: Annotation,
        image: Image,
        *,
        first: int,
        annotators: tuple[int, ...],
        losses: TaskLosses,
    ) -> ConvertedRegion:
        """Return the outcome of a region on a placed image.

        Args:
            region: The region.
            annotation: The annotation that it is part of.
            image: The image that it is drawn on.
            first: The number of its first object in the task, from 1.
            annotators: In a consensus, the annotators who drew the region.
            losses: Makes the tally of a region that is left out.
        """
        try:
            clipped = clip_to_image(region.geometry, *image.canvas)
        except ShapeRejected as error:
            return ConvertedRegion(losses.region(annotation, region.id, str(error)))
        labels = distinct_labels(region.labels, None if isinstance(region.geometry, KeyPoint) else self._classes)
        if not labels:
            return ConvertedRegion(losses.region(annotation, region.id, NO_LABEL))
        try:
            objects = self._objects(
                region, clipped, annotation, labels, task=image.task, first=first, annotators=annotators
            )
        except OverflowError:
            tally = losses.region(annotation, region.id, "its number is too large")
            return ConvertedRegion(tally, numbers=len(labels))
        return ConvertedRegion(self._kept(region, clipped, objects), objects, len(labels))

    def _objects(
        self,
        region: Region,
        clipped: ClippedShape,
        annotation: Annotation,
        labels: tuple[str, ...],
        *,
        task: int,
        first: int,
        annotators: tuple[int, ...],
    ) -> tuple[Object, ...]:
        """Return an object for each label of a region.

        Raises:
            OverflowError: The number of one is too large.
        """
        parent, hidden, is_keypoint = "", False, isinstance(region.geometry, KeyPoint)
        if is_keypoint:
            parent, hidden = region.result[0].parent_id or "", is_hidden(region)
        remarks = read_object_attributes(region)
        region_number = object_id(task, first)
        return tuple(
            [
                Object(
                    object_id(task, ordinal),
                    0 if is_keypoint else self._classes.id(label),  # a key point names a part of an object: no class
                    label,
                    region.geometry,
                    clipped.box,
                    clipped.area,
                    region_number,
                    CLIPPED in clipped.repairs,
                    clipped.outline,
                    region.id,
                    parent,
                    hidden,
                    annotation.id,
                    annotation.completed_by,
                    region.score,
                    region.attributes,
                    annotators,
                    remarks,
                )
                for ordinal, label in enumerate(labels, first)
            ]
        )

    def _kept(self, region: Region, clipped: ClippedShape, objects: tuple[Object, ...]) -> Tally:
        """Return the tally of a region that is in the data set."""
        counters = [("repaired", repair) for repair in clipped.repairs]
        if _has_negative_size(region):
            counters.append(("repaired", NEGATIVE_SIZE))
        if len(objects) > 1:
            counters.append(("notes", SEVERAL_LABELS))
        if self._rules.config and not self._rules.config_labels.issuperset([obj.label for obj in objects]):
            counters.append(("notes", UNKNOWN_LABEL))
        return Tally((*KEPT.lines, *[(counter, 1) for counter in counters])) if counters else KEPT


def distinct_labels(labels: Iterable[str], classes: ClassMap | None) -> tuple[str, ...]:
    """Return the classes of a region, each once; without a class map, as for a key point, its names."""
    named = [label for label in labels if label.strip()]
    return tuple(dict.fromkeys(map(classes.name, named) if classes else named))


def _has_negative_size(region: Region) -> bool:
    if isinstance(region.geometry, Rectangle):
        fields = ("width", "height")
    elif isinstance(region.geometry, Ellipse):
        fields = ("radiusX", "radiusY")
    else:
        return False
    value = region.result[0].value  # it was read, so both are numbers
    return bool(value[fields[0]] < 0 or value[fields[1]] < 0)
