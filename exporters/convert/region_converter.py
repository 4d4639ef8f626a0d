"""From a region of a task to the objects that the data set has of it: one for each label, fitted in the image."""

from collections.abc import Iterator

from exporters.convert.loss_recorder import LossRecorder
from exporters.convert.options import Rules
from exporters.model.accounting import Ledger
from exporters.model.class_map import ClassMap
from exporters.model.clipping import CLIPPED, Fitted, Unfit, fit
from exporters.model.keypoints import is_hidden
from exporters.model.records import Image, Object, object_id
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.studio.region_attributes import remarks
from labelloop.labeling.studio.task import Annotation

NEGATIVE = "negative size turned round"
SEVERAL = "regions with several labels (an object for each label)"
UNKNOWN_LABEL = "regions with a label that the label config does not have"


class Labeller:
    """Makes objects by the rules of an export, whose classes are numbered so far as ``classes`` says."""

    def __init__(self, rules: Rules, classes: ClassMap, ledger: Ledger) -> None:
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
        """The objects of a region; none, and a loss, where it cannot be in the data set.

        Args:
            region: The region.
            annotation: The annotation that it is of.
            image: The image that it is drawn on.
            numbers: The places in the task of objects that are still to come, from 1.
            saw: Of a consensus: who marked the region.
            losses: Those of the task.
        """
        try:
            fitted = fit(region.geometry, *image.canvas)
            objects = self._label(region, fitted, annotation, task=image.task, numbers=numbers, saw=saw)
        except Unfit as unfit:
            losses.region(annotation, region.id, str(unfit))
            return []
        if not objects:
            losses.region(annotation, region.id, "no label")
            return []
        self._ledger.kept["region"] += 1
        if fitted.repairs:
            self._ledger.repaired.update(fitted.repairs)
        if _was_negative(region):
            self._ledger.repaired[NEGATIVE] += 1
        if len(objects) > 1:
            self._ledger.notes[SEVERAL] += 1
        if self._rules.config and not self._rules.config_labels.issuperset(each.label for each in objects):
            self._ledger.notes[UNKNOWN_LABEL] += 1
        return objects

    def _label(
        self,
        region: Region,
        fitted: Fitted,
        annotation: Annotation,
        *,
        task: int,
        numbers: Iterator[int],
        saw: tuple[int, ...],
    ) -> list[Object]:
        """An object for each label of a region; their numbers go on from those of the regions before it."""
        parent, hidden, point = "", False, isinstance(region.geometry, KeyPoint)
        if point:
            parent, hidden = region.result[0].parent_id or "", is_hidden(region)
        named = [label for label in region.labels if label.strip()]
        labels = dict.fromkeys(named if point else map(self._classes.name, named))
        objects: list[Object] = []
        said = remarks(region)
        try:
            for label in labels:
                number = object_id(task, next(numbers))
                objects.append(
                    Object(
                        number,
                        0 if point else self._classes.id(label),  # a key point names a part of an object: no class
                        label,
                        region.geometry,
                        fitted.box,
                        fitted.area,
                        objects[0].id if objects else number,
                        CLIPPED in fitted.repairs,
                        fitted.outline,
                        region.id,
                        parent,
                        hidden,
                        annotation.id,
                        annotation.completed_by,
                        region.score,
                        region.attributes,
                        saw,
                        said,
                    )
                )
        except OverflowError as error:
            raise Unfit("its number is too large") from error
        return objects


def _was_negative(region: Region) -> bool:
    if isinstance(region.geometry, Rectangle):
        fields = ("width", "height")
    elif isinstance(region.geometry, Ellipse):
        fields = ("radiusX", "radiusY")
    else:
        return False
    value = region.result[0].value  # it was read, so both are numbers
    return bool(value[fields[0]] < 0 or value[fields[1]] < 0)
