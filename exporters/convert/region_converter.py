"""Convert a region of a task to objects of the data set: one per label, clipped to the image."""

from collections.abc import Iterator

from exporters.convert.loss_recorder import LossRecorder
from exporters.convert.options import ConversionOptions
from exporters.model.accounting import Ledger
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
UNKNOWN_LABEL = "regions with a label that the label config does not have"


class RegionConverter:
    """Converts regions by the options of an export; new labels are added to ``classes``."""

    def __init__(self, rules: ConversionOptions, classes: ClassMap, ledger: Ledger) -> None:
        self._rules = rules
        self._classes = classes
        self._ledger = ledger

    def objects(
        self,
        region: Region,
        annotation: Annotation,
        image: Image,
        *,
        numbers: Iterator[int],
        saw: tuple[int, ...],
        losses: LossRecorder,
    ) -> list[Object]:
        """Return the objects of a region; none, and a recorded loss, if it cannot be in the data set.

        Args:
            region: The region.
            annotation: The annotation that it is part of.
            image: The image that it is drawn on.
            numbers: Yields the ordinals of new objects in the task, from 1.
            saw: In a consensus, the annotators who drew the region.
            losses: The losses of the task.
        """
        try:
            clipped = clip_to_image(region.geometry, *image.canvas)
            objects = self._label(region, clipped, annotation, task=image.task, numbers=numbers, saw=saw)
        except ShapeRejected as error:
            losses.region(annotation, region.id, str(error))
            return []
        if not objects:
            losses.region(annotation, region.id, "no label")
            return []
        self._ledger.kept["region"] += 1
        if clipped.repairs:
            self._ledger.repaired.update(clipped.repairs)
        if _has_negative_size(region):
            self._ledger.repaired[NEGATIVE_SIZE] += 1
        if len(objects) > 1:
            self._ledger.notes[SEVERAL_LABELS] += 1
        if self._rules.config and not self._rules.config_labels.issuperset(obj.label for obj in objects):
            self._ledger.notes[UNKNOWN_LABEL] += 1
        return objects

    def _label(
        self,
        region: Region,
        clipped: ClippedShape,
        annotation: Annotation,
        *,
        task: int,
        numbers: Iterator[int],
        saw: tuple[int, ...],
    ) -> list[Object]:
        """Return an object for each label of a region."""
        parent, hidden, is_keypoint = "", False, isinstance(region.geometry, KeyPoint)
        if is_keypoint:
            parent, hidden = region.result[0].parent_id or "", is_hidden(region)
        named = [label for label in region.labels if label.strip()]
        labels = dict.fromkeys(named if is_keypoint else map(self._classes.name, named))
        objects: list[Object] = []
        region_remarks = read_object_attributes(region)
        try:
            for label in labels:
                number = object_id(task, next(numbers))
                objects.append(
                    Object(
                        number,
                        0
                        if is_keypoint
                        else self._classes.id(label),  # a key point names a part of an object: no class
                        label,
                        region.geometry,
                        clipped.box,
                        clipped.area,
                        objects[0].id if objects else number,
                        CLIPPED in clipped.repairs,
                        clipped.outline,
                        region.id,
                        parent,
                        hidden,
                        annotation.id,
                        annotation.completed_by,
                        region.score,
                        region.attributes,
                        saw,
                        region_remarks,
                    )
                )
        except OverflowError as error:
            raise ShapeRejected("its number is too large") from error
        return objects


def _has_negative_size(region: Region) -> bool:
    if isinstance(region.geometry, Rectangle):
        fields = ("width", "height")
    elif isinstance(region.geometry, Ellipse):
        fields = ("radiusX", "radiusY")
    else:
        return False
    value = region.result[0].value  # it was read, so both are numbers
    return bool(value[fields[0]] < 0 or value[fields[1]] < 0)
