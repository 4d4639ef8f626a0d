"""Layouts of YOLO heads without built-in suppression: v5 to v7, and v8 to v12 with masks, keypoints or rotated boxes.

The metadata (`task`, `names`, `kpt_shape`) decides where it exists, else a grid of the right size does. Keypoints and
rotated boxes look like additional classes there, so their layout must be named.
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
    OutputReader,
    class_count,
    cxcywh_to_xyxy,
    grid_strides,
    image_size,
    in_unit_range,
    metadata_value,
    plain_spec,
    single_output,
)  # fmt: skip
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.yolox import decode_pixels


def ultralytics_spec(graph: Graph) -> InputSpec:
    """Input format of Ultralytics models: RGB in 0..1, centred in grey padding."""
    return plain_spec(graph, scale=1 / 255, placement="centre")


# --- v5, v6, v7: [batch, anchors, 5 + classes], three anchors per cell (v6: one, its objectness always 1) -------------


def _recognise_v5(graph: Graph, outputs: Arrays) -> str | None:
    array = single_output(outputs, 3)
    if array is None or array.shape[2] < 6 or class_count(graph) not in {None, array.shape[2] - 5}:
        return None
    size = image_size(graph)
    strides = grid_strides(*size, array.shape[1], anchors_per_cell=3)
    if strides:
        return f"one grid of {array.shape[1]} anchors, three per cell at strides {', '.join(map(str, strides))}"
    if grid_strides(*size, array.shape[1]) and np.all(array[..., 4] == 1):
        return f"one grid of {array.shape[1]} anchors whose objectness is always 1 (YOLOv6)"
    return None


def _read_v5(graph: Graph, outputs: Arrays) -> OutputReader:
    name, array = single_rank3(outputs)
    if array.shape[2] < 6:
        raise ValueError("its rows are shorter than a box, an objectness and one class")
    return OutputReader(
        ultralytics_spec(graph),
        array.shape[2] - 5,
        lambda arrays, floor: decode_pixels(arrays[name], floor),
        (name,),
    )


# --- v8 to v12 and later: [batch, 4 + classes + more, anchors], no objectness ----------------------------------------


def _recognise_v8(task: str) -> Callable[[Graph, Arrays], str | None]:
    def recognise(graph: Graph, outputs: Arrays) -> str | None:
        arrays = [array for array in outputs.values() if array.ndim == 3]
        if len(arrays) != 1 or not grid_strides(*image_size(graph), arrays[0].shape[2]):
            return None
        array, protos = arrays[0], protos_of(outputs)
        declared = graph.metadata.get("task")
        if declared is None and (protos is not None) == (task == "segment") and task in {"detect", "segment"}:
            if not in_unit_range(array[:, 4:]) and protos is None:
                raise Misfit(
                    f"{array.shape[1]} values per anchor would be a box and {array.shape[1] - 4} classes, and some of "
                    f"these are {as_float32(array[:, 4:]).max():.3g}: keypoints, angles or logits; metadata `task` and "
                    "`kpt_shape` would tell"
                )
            declared = task
        if declared != task or len(outputs) != (2 if task == "segment" else 1):
            return None
        count = _classes_v8(task, graph, outputs)
        if count < 1 or class_count(graph) not in {None, count}:
            return None
        evidence = "the metadata says task" if "task" in graph.metadata else "its shape is that of the task"
        return f"{evidence} {task}; {array.shape[2]} anchors, {array.shape[1]} values each"

    return recognise


def _classes_v8(task: str, graph: Graph, outputs: Arrays) -> int:
    _, array = single_rank3(outputs)
    extra = {"detect": 0, "obb": 1, "pose": 0, "segment": 0}[task]
    if task == "segment":
        protos = protos_of(outputs)
        if protos is None:
            raise ValueError("it has no output of mask prototypes [batch, c, h, w]")
        extra = protos[1].shape[1]
    if task == "pose":
        points, values = keypoint_shape(graph, array.shape[1] - 5)
        extra = points * values
    return int(array.shape[1]) - 4 - extra


def _read_v8(task: str) -> Callable[[Graph, Arrays], OutputReader]:
    def read(graph: Graph, outputs: Arrays) -> OutputReader:
        name, array = single_rank3(outputs)
        count = _classes_v8(task, graph, outputs)
        if count < 1 or array.shape[1] >= array.shape[2]:
            raise ValueError("it has no output [batch, 4 + classes + more, anchors] with room for a class")
        spec = ultralytics_spec(graph)
        protos = protos_of(outputs) if task == "segment" else None
        shape = keypoint_shape(graph, array.shape[1] - 5) if task == "pose" else (0, 0)
        task_columns = TaskColumns(task, shape, (spec.height, spec.width))

        def decode(arrays: Arrays, floor: float) -> list[Detections]:
            planes = as_float32(arrays[protos[0]]) if protos else [None] * len(arrays[name])
            return [
                _decode_v8(task_columns, as_float32(columns), plane, count, floor)
                for columns, plane in zip(arrays[name], planes, strict=True)
            ]

        names = (name, protos[0]) if protos else (name,)
        return OutputReader(spec, count, decode, names, provides=provides(task), keypoints=shape[0])

    return read


def _decode_v8(
    task_columns: TaskColumns, columns: Floats, planes: Floats | None, count: int, floor: float
) -> Detections:
    """Decode the transposed output: centre x, centre y, width, height, class scores, then the task's columns."""
    classes = columns[4 : 4 + count].argmax(axis=0)
    scores = columns[4 : 4 + count].max(axis=0)
    keep = np.flatnonzero(scores >= floor)
    rows = np.ascontiguousarray(columns[:, keep].T)
    plain = Detections(cxcywh_to_xyxy(rows[:, :4]), scores[keep], classes[keep].astype(np.int64))
    return task_columns.attach(plain, rows, 4 + count, planes)


@dataclass(frozen=True)
class TaskColumns:
    """Task-specific columns behind each box.

    Attributes:
        task: An Ultralytics task.
        shape: (keypoints, values per keypoint) of `pose`.
        size: (height, width) of the input in pixels.
    """

    task: str
    shape: tuple[int, int]
    size: tuple[int, int]

    def attach(self, plain: Detections, rows: Floats, at: int, planes: Floats | None) -> Detections:
        """Attach the task's outputs to boxes.

        Args:
            plain: The boxes.
            rows: (n, columns) float32 of the raw output.
            at: First task-specific column.
            planes: (c, h, w) float32 mask prototypes of `segment`.
        """
        if self.task == "obb":
            rotated = np.concatenate([rows[:, :4], rows[:, at : at + 1]], axis=1)
            return replace(plain, boxes=bounds_of(rotated), rotated=rotated)
        if self.task == "pose":
            count, values = self.shape
            points: Floats = rows[:, at : at + count * values].reshape(len(rows), count, values)
            if values == 2:  # exports without visibility: every point counts
                points = np.concatenate([points, np.ones((len(rows), count, 1), np.float32)], axis=2)
            return replace(plain, keypoints=points)
        if self.task == "segment" and planes is not None:
            # Prototype masks are logits: above 0, the pixel is more likely inside than outside.
            mask_boxes = [(box[0], box[1], box[2], box[3]) for box in plain.boxes.tolist()]
            segments = (
                Segment(planes, row[at : at + len(planes)], 0.0, box, self.size)
                for row, box in zip(rows, mask_boxes, strict=True)
            )
            return replace(plain, segments=tuple(segments))
        return plain


def provides(task: str) -> frozenset[str]:
    """Outputs of a model of this task besides boxes."""
    return frozenset({"boxes", *{"obb": ["turned"], "segment": ["masks"], "pose": ["keypoints"]}.get(task, [])})


def keypoint_shape(graph: Graph, room: int) -> tuple[int, int]:
    """(keypoints, values per keypoint) from the metadata's `kpt_shape`, else from the columns left by one class."""
    shape = metadata_value(graph, "kpt_shape")
    if isinstance(shape, list | tuple) and len(shape) == 2 and shape[1] in {2, 3}:
        return int(shape[0]), int(shape[1])
    if room < 3 or room % 3:
        raise ValueError(
            "its metadata has no `kpt_shape`, and its rows are not one class and keypoints of three values"
        )
    return room // 3, 3


def single_rank3(outputs: Arrays) -> tuple[str, npt.NDArray[Any]]:
    """The only output of three dimensions, with its name.

    Raises:
        ValueError: There is none, or several.
    """
    matches = [(name, array) for name, array in outputs.items() if array.ndim == 3]
    if len(matches) != 1:
        raise ValueError("it does not have exactly one output of three dimensions")
    return matches[0]


def protos_of(outputs: Arrays) -> tuple[str, npt.NDArray[Any]] | None:
    """The mask prototypes (batch, c, h, w), with their name; None without a single output of four dimensions."""
    matches = [(name, array) for name, array in outputs.items() if array.ndim == 4]
    return matches[0] if len(matches) == 1 else None


YOLOV5 = Layout(_recognise_v5, _read_v5)
YOLOV8 = {task: Layout(_recognise_v8(task), _read_v8(task)) for task in ("detect", "segment", "pose", "obb")}
