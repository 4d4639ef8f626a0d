"""Owns the layouts of YOLO exports whose graph suppresses by a plugin: YOLOv7's rows, TensorRT's four outputs."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, Reader, only, sides
from ml_backend.layouts.postprocessed import Roles, roles_of
from ml_backend.layouts.ultralytics import ultralytics_spec

# --- YOLOv7 `--end2end` for ONNX Runtime: [n, 7]: photo, x_min, y_min, x_max, y_max, class, score ---------------------


def _recognise_rows(graph: Graph, seen: Arrays) -> str | None:
    del graph
    array = only(seen, 2)
    if array is None or array.shape[1] != 7:
        return None
    rows = as_float32(array)
    whole = bool(np.all(rows[:, [0, 5]] == np.round(rows[:, [0, 5]])) and np.all(rows[:, [0, 5]] >= 0))
    if not whole or not bool(np.all((rows[:, 6] >= 0) & (rows[:, 6] <= 1))):
        return None
    return "rows of seven: the photo's number, a box, a class and a score (YOLOv7's end to end)"


def _read_rows(graph: Graph, seen: Arrays) -> Reader:
    array = only(seen, 2)
    if array is None or array.shape[1] != 7:
        raise ValueError("it has no single output [n, 7] of photo, box, class and score")
    name = next(iter(seen))

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        rows = as_float32(arrays[name])
        rows = rows[(rows[:, 0] == 0) & (rows[:, 6] >= floor)]  # a fixed batch is filled up with empty photos
        return [Detections(rows[:, 1:5], rows[:, 6], rows[:, 5].astype(np.int64))]

    return Reader(ultralytics_spec(graph), None, decode, (name,), suppress_iou=None, alone=True)


# --- TensorRT's EfficientNMS and BatchedNMS: how many, and boxes, scores and classes filled up behind them ------------


def _parts(seen: Arrays) -> tuple[str, Roles] | None:
    counts = [name for name, array in seen.items() if "num_det" in name.lower() and array.size == len(array)]
    if len(counts) != 1:
        return None
    roles = roles_of({name: array for name, array in seen.items() if name != counts[0]})
    # The TensorFlow Object Detection API counts too, but its boxes are y first and its numbers begin with 1.
    if roles is None or roles.masks or seen[roles.boxes].ndim != 3 or "detection_boxes" in roles.boxes.lower():
        return None
    return counts[0], roles


def _recognise_plugin(graph: Graph, seen: Arrays) -> str | None:
    del graph
    found = _parts(seen)
    return f"an output {found[0]} beside boxes {found[1].boxes}, as TensorRT's suppression gives" if found else None


def _read_plugin(graph: Graph, seen: Arrays) -> Reader:
    found = _parts(seen)
    if found is None:
        raise ValueError("it has no outputs num_dets (b, 1), boxes (b, n, 4), scores (b, n) and classes (b, n)")
    count, roles = found
    spec = ultralytics_spec(graph)
    boxes = as_float32(seen[roles.boxes])
    scale = sides(spec) if boxes.any() and np.abs(boxes).max() <= 2 else np.ones(4, np.float32)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        detections = []
        for place, many in enumerate(arrays[count].reshape(-1).astype(np.int64).tolist()):
            scores = as_float32(arrays[roles.scores][place, :many])
            keep = np.flatnonzero(scores >= floor)
            corners = as_float32(arrays[roles.boxes][place, :many])[keep] * scale
            classes = np.rint(arrays[roles.labels][place, :many][keep]).astype(np.int64)
            detections.append(Detections(corners, scores[keep], classes))
        return detections

    return Reader(spec, None, decode, (count, roles.boxes, roles.labels, roles.scores), suppress_iou=None)


YOLOV7_END2END = Layout(_recognise_rows, _read_rows)
TENSORRT_NMS = Layout(_recognise_plugin, _read_plugin)
