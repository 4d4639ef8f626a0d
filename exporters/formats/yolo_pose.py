"""YOLO pose: a box and the key points of each object.

Format: https://docs.ultralytics.com/datasets/pose/: ``class x y width height`` and then ``px py visibility`` for each
key point of ``kpt_shape``, in shares of the image. Visibility as in COCO: 0 not drawn, 1 hidden, 2 seen.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from exporters.errors import BadOption
from exporters.formats.base import NO_AREA, Job, repeated, shape_name
from exporters.formats.yolo import YoloRows, crowds, quoted, row_of, shares
from exporters.model.clipping import is_upright
from exporters.model.keypoints import ONLY_ONE, Placed
from exporters.model.records import Box, Image, Item, Object
from labelloop.labeling.geometry.shapes import KeyPoint

WITHOUT = "object without key points -> all of them not drawn"


class YoloPose(YoloRows):
    """Writes every object with as many key points as the label config has, so that rows have one length."""

    name: ClassVar[str] = "yolo-pose"

    def __init__(self, job: Job) -> None:
        if job.skeleton is None:
            raise BadOption(
                "--format", self.name, "it with a label config that has KeyPointLabels: they are the key points"
            )
        super().__init__(job)
        self._skeleton = job.skeleton

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """An image's rows; key points of no object and other shapes without an area are given back."""
        image = item.image
        joined = self._skeleton.join(item.objects)
        converted[ONLY_ONE] += joined.given
        held = [each for each in item.objects if each.box is not None and not each.crowd]
        rows = [
            f"{each.class_id - 1} {self._pose(each, each.box, image, joined.places[each.id], converted)}\n"
            for each in held
            if each.box is not None
        ]
        lines = [each for each in item.objects if each.box is None and not isinstance(each.geometry, KeyPoint)]
        dropped = [*joined.refused, *((each, NO_AREA) for each in lines), *crowds(item), *repeated(held, rows)]
        return self._page(image, list(dict.fromkeys(rows))), dropped

    def _pose(self, each: Object, box: Box, image: Image, places: Sequence[Placed], converted: Counter[str]) -> str:
        if not is_upright(each.geometry):
            converted[f"{shape_name(each)} -> box"] += 1
        if not any(seen for *_, seen in places):
            converted[WITHOUT] += 1
        width, height = image.canvas
        points = (f"{row_of((x / width, y / height))} {seen}" for x, y, seen in places)
        return " ".join((shares(box, width, height), *points))

    def _sheet(self) -> list[str]:
        names, flip = self._skeleton.names, self._skeleton.flip
        lines = [f"kpt_shape: [{len(names)}, 3]", f"kpt_names: {{{self._names(names)}}}"]
        if flip is not None:  # without it Ultralytics mirrors no image, which is right where nobody knows the sides
            lines.append(f"flip_idx: {list(flip)}")
        return lines

    def _names(self, names: Sequence[str]) -> str:
        listed = ", ".join(quoted(name) for name in names)
        return ", ".join(f"{number}: [{listed}]" for number in range(len(self.job.classes)))
