"""Owns the layouts of YOLO heads that need no suppression: end to end (v10, v26, `nms=True`), Ultralytics' RT-DETR."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
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
    sides,
)
from ml_backend.layouts.ultralytics import More, gives, keypoint_shape, protos_of, rank3, ultralytics_spec

# --- end to end: [batch, n, 6 + more]: x_min, y_min, x_max, y_max, score, class, then what the task adds -------------


def _recognise_end2end(graph: Graph, seen: Arrays) -> str | None:
    arrays = [array for array in seen.values() if array.ndim == 3]
    if len(arrays) != 1 or arrays[0].shape[2] < 6 or arrays[0].shape[1] > 1000:
        return None
    array, task = arrays[0], graph.metadata.get("task", "detect")
    if array.shape[2] != 6 + _more_end2end(task, graph, seen) or grid_strides(*image_size(graph), array.shape[1]):
        return None
    rows = as_float32(array).reshape(-1, array.shape[2])
    whole = bool(np.all(rows[:, 5] == np.round(rows[:, 5])) and np.all(rows[:, 5] >= -1))
    upright = task == "obb" or bool(np.all(rows[:, 2:4] >= rows[:, :2]))
    if not (whole and upright and is_share(rows[:, 4])):
        return None
    return f"{array.shape[1]} rows of a box, a score and a whole class number: the graph suppresses itself"


def _more_end2end(task: str, graph: Graph, seen: Arrays) -> int:
    array = next(array for array in seen.values() if array.ndim == 3)
    if task == "segment":
        protos = protos_of(seen)
        return protos[1].shape[1] if protos else -1
    if task == "pose":
        try:
            points, numbers = keypoint_shape(graph, array.shape[2] - 6)
        except ValueError:
            return -1
        return points * numbers
    return 1 if task == "obb" else 0


def _read_end2end(graph: Graph, seen: Arrays) -> Reader:
    name, array = rank3(seen)
    task = graph.metadata.get("task", "detect")
    if array.shape[2] != 6 + _more_end2end(task, graph, seen):
        raise ValueError(f"its rows are not a box, a score, a class and what the task {task} adds")
    spec = ultralytics_spec(graph)
    protos = protos_of(seen) if task == "segment" else None
    shape = keypoint_shape(graph, array.shape[2] - 6) if task == "pose" else (0, 0)
    more = More(task, shape, (spec.height, spec.width))

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        planes = as_float32(arrays[protos[0]]) if protos else [None] * len(arrays[name])
        found = []
        for rows, plane in zip(as_float32(arrays[name]), planes, strict=True):
            rows = rows[(rows[:, 4] >= floor) & (rows[:, 5] >= 0)]  # noqa: PLW2901 - the same rows, fewer
            # Boxes are centre and sides where they are turned, corners elsewhere.
            plain = Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
            found.append(more.to(plain, rows, 6, plane))
        return found

    outputs = (name, protos[0]) if protos else (name,)
    return Reader(spec, None, decode, outputs, gives=gives(task), suppress_iou=None, points=shape[0])


# --- RT-DETR by Ultralytics: [batch, n, 4 + classes], normalised centre and sides ------------------------------------


def _recognise_rtdetr(graph: Graph, seen: Arrays) -> str | None:
    array = only(seen, 3)
    if array is None or array.shape[1] > 1000 or array.shape[2] - 4 != named(graph) or not is_share(array):
        return None
    return f"{array.shape[1]} queries of a normalised box and as many scores as the metadata names classes"


def _read_rtdetr(graph: Graph, seen: Arrays) -> Reader:
    name, array = rank3(seen)
    if array.shape[2] < 5:
        raise ValueError("its rows are shorter than a box and one class")
    spec = plain_spec(graph, scale=1 / 255, placement="stretch")

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        found = []
        for rows in as_float32(arrays[name]):
            scores = rows[:, 4:].max(axis=1)
            keep = scores >= floor
            boxes = from_centre(rows[keep, :4] * sides(spec))
            found.append(Detections(boxes, scores[keep], rows[keep, 4:].argmax(axis=1).astype(np.int64)))
        return found

    return Reader(spec, array.shape[2] - 4, decode, (name,), suppress_iou=None)


END2END = Layout(_recognise_end2end, _read_end2end)
RTDETR_ULTRALYTICS = Layout(_recognise_rtdetr, _read_rtdetr)
