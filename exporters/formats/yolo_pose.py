"""YOLO pose: a box and the key points of each object.

Format: https://docs.ultralytics.com/datasets/pose/: ``class x y width height`` and then ``px py visibility`` for each
key point of ``kpt_shape``, in shares of the image. Visibility as in COCO: 0 not drawn, 1 hidden, 2 visible.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from exporters.errors import BadOption
from exporters.formats.base import NO_AREA, FormatContext, duplicates, shape_name
from exporters.formats.yolo import YoloRows, box_row, format_row, reject_crowds, yaml_quoted
from exporters.model.clipping import is_axis_aligned
from exporters.model.keypoints import GIVEN_TO_ONLY_OBJECT, KeypointXYV
from exporters.model.records import Box, Image, Item, Object
from labelloop.labeling.geometry.shapes import KeyPoint

WITHOUT = "object without key points -> all of them not drawn"


class YoloPose(YoloRows):
    """Writes every object with all key points of the label config, so that all rows have one length."""

    name: ClassVar[str] = "yolo-pose"

    def __init__(self, context: FormatContext) -> None:
        if context.skeleton is None:
            raise BadOption(
                "--format", self.name, "it with a label config that has KeyPointLabels: they are the key points"
            )
        super().__init__(context)
        self._skeleton = context.skeleton

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode an image's rows; key points without an object and other shapes without an area are rejected."""
        image = item.image
        assignment = self._skeleton.assign(item.objects)
        converted[GIVEN_TO_ONLY_OBJECT] += assignment.inferred
        boxed = [obj for obj in item.objects if obj.box is not None and not obj.crowd]
        rows = [
            f"{obj.class_id - 1} {self._pose(obj, obj.box, image, assignment.by_object[obj.id], converted)}\n"
            for obj in boxed
            if obj.box is not None
        ]
        no_area = [obj for obj in item.objects if obj.box is None and not isinstance(obj.geometry, KeyPoint)]
        dropped = [
            *assignment.refused,
            *((obj, NO_AREA) for obj in no_area),
            *reject_crowds(item),
            *duplicates(boxed, rows),
        ]
        return self._page(image, list(dict.fromkeys(rows))), dropped

    def _pose(
        self, obj: Object, box: Box, image: Image, keypoints: Sequence[KeypointXYV], converted: Counter[str]
    ) -> str:
        if not is_axis_aligned(obj.geometry):
            converted[f"{shape_name(obj)} -> box"] += 1
        if not any(visibility for *_, visibility in keypoints):
            converted[WITHOUT] += 1
        width, height = image.canvas
        points = (f"{format_row((x / width, y / height))} {visibility}" for x, y, visibility in keypoints)
        return " ".join((box_row(box, width, height), *points))

    def _sheet(self) -> list[str]:
        names, flip = self._skeleton.names, self._skeleton.flip_indices
        lines = [f"kpt_shape: [{len(names)}, 3]", f"kpt_names: {{{self._names(names)}}}"]
        if flip is not None:  # without it Ultralytics does not mirror images
            lines.append(f"flip_idx: {list(flip)}")
        return lines

    def _names(self, names: Sequence[str]) -> str:
        listed = ", ".join(yaml_quoted(name) for name in names)
        return ", ".join(f"{number}: [{listed}]" for number in range(len(self.context.classes)))
