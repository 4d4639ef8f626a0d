"""Owns the layouts of YOLO heads that leave suppression to us: v5 (v6, v7) and v8 to v12 with masks, points and angles.

The metadata (`task`, `names`, `kpt_shape`) decides where it is there. Without it a grid of the right size does; for
keypoints and turned boxes, which look like more classes, the layout must be named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats, bounds_of
from ml_backend.detection.masks import Segment
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    Layout,
    Reader,
    from_centre,
    grid_strides,
    image_size,
    is_share,
    named,
    only,
    plain_spec,
    told,
)  # fmt: skip
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.yolox import decode_pixels


def ultralytics_spec(graph: Graph) -> InputSpec:
    """RGB in 0..1, the photo in the middle of grey."""
    return plain_spec(graph, scale=1 / 255, placement="centre")


# --- v5, v6, v7: [batch, anchors, 5 + classes], three anchors a cell (v6: one, its objectness always 1) ---------------


def _recognise_v5(graph: Graph, seen: Arrays) -> str | None:
    array = only(seen, 3)
    if array is None or array.shape[2] < 6 or named(graph) not in {None, array.shape[2] - 5}:
        return None
    size = image_size(graph)
    strides = grid_strides(*size, array.shape[1], each=3)
    if strides:
        return f"one grid of {array.shape[1]} anchors, three a cell at strides {', '.join(map(str, strides))}"
    if grid_strides(*size, array.shape[1]) and np.all(array[..., 4] == 1):
        return f"one grid of {array.shape[1]} anchors whose objectness is always 1 (YOLOv6)"
    return None


def _read_v5(graph: Graph, seen: Arrays) -> Reader:
    name, array = rank3(seen)
    if array.shape[2] < 6:
        raise ValueError("its rows are shorter than a box, an objectness and one class")
    return Reader(
        ultralytics_spec(graph),
        array.shape[2] - 5,
        lambda arrays, floor: decode_pixels(arrays[name], floor),
        (name,),
    )


# --- v8 to v12 and later: [batch, 4 + classes + more, anchors], no objectness ----------------------------------------


def _recognise_v8(task: str) -> Callable[[Graph, Arrays], str | None]:
    def recognise(graph: Graph, seen: Arrays) -> str | None:
        arrays = [array for array in seen.values() if array.ndim == 3]
        if len(arrays) != 1 or not grid_strides(*image_size(graph), arrays[0].shape[2]):
            return None
        array, protos = arrays[0], protos_of(seen)
        said = graph.metadata.get("task")
        if said is None and (protos is not None) == (task == "segment") and task in {"detect", "segment"}:
            if not is_share(array[:, 4:]) and protos is None:
                raise Misfit(
                    f"{array.shape[1]} numbers a place would be a box and {array.shape[1] - 4} classes, and some of "
                    f"these are {as_float32(array[:, 4:]).max():.3g}: points, angles or logits; metadata `task` and "
                    "`kpt_shape` would say"
                )
            said = task
        if said != task or len(seen) != (2 if task == "segment" else 1):
            return None
        count = _classes_v8(task, graph, seen)
        if count < 1 or named(graph) not in {None, count}:
            return None
        told_by = "the metadata says task" if "task" in graph.metadata else "its shape is that of the task"
        return f"{told_by} {task}; {array.shape[2]} anchors, {array.shape[1]} numbers each"

    return recognise


def _classes_v8(task: str, graph: Graph, seen: Arrays) -> int:
    _, array = rank3(seen)
    more = {"detect": 0, "obb": 1, "pose": 0, "segment": 0}[task]
    if task == "segment":
        protos = protos_of(seen)
        if protos is None:
            raise ValueError("it has no output of mask prototypes [batch, c, h, w]")
        more = protos[1].shape[1]
    if task == "pose":
        points, numbers = keypoint_shape(graph, array.shape[1] - 5)
        more = points * numbers
    return int(array.shape[1]) - 4 - more


def _read_v8(task: str) -> Callable[[Graph, Arrays], Reader]:
    def read(graph: Graph, seen: Arrays) -> Reader:
        name, array = rank3(seen)
        count = _classes_v8(task, graph, seen)
        if count < 1 or array.shape[1] >= array.shape[2]:
            raise ValueError("it has no output [batch, 4 + classes + more, anchors] with room for a class")
        spec = ultralytics_spec(graph)
        protos = protos_of(seen) if task == "segment" else None
        shape = keypoint_shape(graph, array.shape[1] - 5) if task == "pose" else (0, 0)
        more = More(task, shape, (spec.height, spec.width))

        def decode(arrays: Arrays, floor: float) -> list[Detections]:
            planes = as_float32(arrays[protos[0]]) if protos else [None] * len(arrays[name])
            return [
                _decode_v8(more, as_float32(one), plane, count, floor)
                for one, plane in zip(arrays[name], planes, strict=True)
            ]

        outputs = (name, protos[0]) if protos else (name,)
        return Reader(spec, count, decode, outputs, gives=gives(task), points=shape[0])

    return read


def _decode_v8(more: More, columns: Floats, planes: Floats | None, count: int, floor: float) -> Detections:
    """Rows of the transposed output: centre x, centre y, width, height, class scores, then what the task adds."""
    classes = columns[4 : 4 + count].argmax(axis=0)
    scores = columns[4 : 4 + count].max(axis=0)
    keep = np.flatnonzero(scores >= floor)
    rows = np.ascontiguousarray(columns[:, keep].T)
    plain = Detections(from_centre(rows[:, :4]), scores[keep], classes[keep].astype(np.int64))
    return more.to(plain, rows, 4 + count, planes)


@dataclass(frozen=True)
class More:
    """What a task adds to each box.

    Attributes:
        task: One of Ultralytics'.
        shape: (points, numbers a point) of `pose`.
        size: (height, width) of the input in pixels.
    """

    task: str
    shape: tuple[int, int]
    size: tuple[int, int]

    def to(self, plain: Detections, rows: Floats, at: int, planes: Floats | None) -> Detections:
        """The boxes with what stands in each row from the column `at` on; `planes` are the mask prototypes."""
        if self.task == "obb":
            turned = np.concatenate([rows[:, :4], rows[:, at : at + 1]], axis=1)
            return replace(plain, boxes=bounds_of(turned), turned=turned)
        if self.task == "pose":
            count, numbers = self.shape
            points: Floats = rows[:, at : at + count * numbers].reshape(len(rows), count, numbers)
            if numbers == 2:  # exports without visibility: every point counts
                points = np.concatenate([points, np.ones((len(rows), count, 1), np.float32)], axis=2)
            return replace(plain, keypoints=points)
        if self.task == "segment" and planes is not None:
            # A prototype mask is a logit: above 0 the model holds the pixel for more likely inside than outside.
            cut = [(box[0], box[1], box[2], box[3]) for box in plain.boxes.tolist()]
            found = (
                Segment(planes, row[at : at + len(planes)], 0.0, box, self.size)
                for row, box in zip(rows, cut, strict=True)
            )
            return replace(plain, segments=tuple(found))
        return plain


def gives(task: str) -> frozenset[str]:
    """What a model of this task gives beside boxes."""
    return frozenset({"boxes", *{"obb": ["turned"], "segment": ["masks"], "pose": ["keypoints"]}.get(task, [])})


def keypoint_shape(graph: Graph, room: int) -> tuple[int, int]:
    """(points, numbers a point): the metadata's `kpt_shape`, else as many points of three as one class leaves room."""
    shape = told(graph, "kpt_shape")
    if isinstance(shape, list | tuple) and len(shape) == 2 and shape[1] in {2, 3}:
        return int(shape[0]), int(shape[1])
    if room < 3 or room % 3:
        raise ValueError("its metadata has no `kpt_shape`, and its rows are not one class and points of three numbers")
    return room // 3, 3


def rank3(seen: Arrays) -> tuple[str, npt.NDArray[Any]]:
    found = [(name, array) for name, array in seen.items() if array.ndim == 3]
    if len(found) != 1:
        raise ValueError("it has not exactly one output of three dimensions")
    return found[0]


def protos_of(seen: Arrays) -> tuple[str, npt.NDArray[Any]] | None:
    found = [(name, array) for name, array in seen.items() if array.ndim == 4]
    return found[0] if len(found) == 1 else None


YOLOV5 = Layout(_recognise_v5, _read_v5)
YOLOV8 = {task: Layout(_recognise_v8(task), _read_v8(task)) for task in ("detect", "segment", "pose", "obb")}
