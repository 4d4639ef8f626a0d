"""Layouts of YOLO heads without suppression: end-to-end models (v10, v26, `nms=True`) and Ultralytics' RT-DETR."""

import numpy as np

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    Layout,
    OutputReader,
    class_count,
    cxcywh_to_xyxy,
    grid_strides,
    image_size,
    in_unit_range,
    input_sides,
    is_whole,
    plain_spec,
    single_output,
)
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.ultralytics import (
    TaskColumns,
    keypoint_shape,
    protos_of,
    provides,
    single_rank3,
    ultralytics_spec,
)

# --- end to end: [batch, n, 6 + extra]: x_min, y_min, x_max, y_max, score, class, then the task's columns -------------


def _recognise_end2end(graph: Graph, outputs: Arrays) -> str | None:
    arrays = [array for array in outputs.values() if array.ndim == 3]
    if len(arrays) != 1 or arrays[0].shape[2] < 6 or arrays[0].shape[1] > 1000:
        return None
    array, task = arrays[0], graph.metadata.get("task", "detect")
    if array.shape[2] != 6 + _extra_columns(task, graph, outputs) or grid_strides(*image_size(graph), array.shape[1]):
        return None
    rows = as_float32(array).reshape(-1, array.shape[2])
    upright = task == "obb" or bool(np.all(rows[:, 2:4] >= rows[:, :2]))
    if not (upright and _is_scored(rows)):
        return None
    return f"{array.shape[1]} rows of box, score and integer class: the graph suppresses duplicates"


def _is_scored(rows: Floats) -> bool:
    """Whether rows have a score in column 4 and a class number in column 5; -1 is padding."""
    return in_unit_range(rows[:, 4]) and is_whole(rows[:, 5]) and bool(np.all(rows[:, 5] >= -1))


def _extra_columns(task: str, graph: Graph, outputs: Arrays) -> int:
    array = next(array for array in outputs.values() if array.ndim == 3)
    if task == "segment":
        protos = protos_of(outputs)
        return protos[1].shape[1] if protos else -1
    if task == "pose":
        try:
            points, values = keypoint_shape(graph, array.shape[2] - 6)
        except ValueError:
            return -1
        return points * values
    return 1 if task == "obb" else 0


def _read_end2end(graph: Graph, outputs: Arrays) -> OutputReader:
    name, array = single_rank3(outputs)
    task = graph.metadata.get("task", "detect")
    if array.shape[2] != 6 + _extra_columns(task, graph, outputs):
        raise ValueError(f"its rows are not a box, a score, a class and the columns of the task {task}")
    spec = ultralytics_spec(graph)
    protos = protos_of(outputs) if task == "segment" else None
    shape = keypoint_shape(graph, array.shape[2] - 6) if task == "pose" else (0, 0)
    task_columns = TaskColumns(task, shape, (spec.height, spec.width))

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        planes = as_float32(arrays[protos[0]]) if protos else [None] * len(arrays[name])
        detections = []
        for rows, plane in zip(as_float32(arrays[name]), planes, strict=True):
            if not _is_scored(rows):  # the rows of the trial run may have been empty
                raise Misfit("its rows are not a box, a score and a class number")
            rows = rows[(rows[:, 4] >= floor) & (rows[:, 5] >= 0)]  # noqa: PLW2901 - the same rows, fewer
            # Rotated boxes are centre and sides, others x_min, y_min, x_max, y_max.
            plain = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
            detections.append(task_columns.attach(plain, rows, 6, plane))
        return detections

    names = (name, protos[0]) if protos else (name,)
    return OutputReader(spec, None, decode, names, provides=provides(task), suppress_iou=None, keypoints=shape[0])


# --- RT-DETR by Ultralytics: [batch, n, 4 + classes], normalised centre and sides ------------------------------------


def _recognise_rtdetr(graph: Graph, outputs: Arrays) -> str | None:
    array = single_output(outputs, 3)
    if array is None or array.shape[1] > 1000 or array.shape[2] - 4 != class_count(graph) or not in_unit_range(array):
        return None
    return f"{array.shape[1]} queries of a normalised box and one score per class of the metadata"


def _read_rtdetr(graph: Graph, outputs: Arrays) -> OutputReader:
    name, array = single_rank3(outputs)
    if array.shape[2] < 5:
        raise ValueError("its rows are shorter than a box and one class")
    spec = plain_spec(graph, scale=1 / 255, placement="stretch")

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        detections = []
        for rows in as_float32(arrays[name]):
            scores = rows[:, 4:].max(axis=1)
            keep = scores >= floor
            boxes = cxcywh_to_xyxy(rows[keep, :4] * input_sides(spec))
            detections.append(Detections(boxes, scores[keep], rows[keep, 4:].argmax(axis=1).astype(np.int64)))
        return detections

    return OutputReader(spec, array.shape[2] - 4, decode, (name,), suppress_iou=None)


END2END = Layout(_recognise_end2end, _read_end2end)
RTDETR_ULTRALYTICS = Layout(_recognise_rtdetr, _read_rtdetr)
