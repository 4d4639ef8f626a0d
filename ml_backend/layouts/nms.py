"""Layouts of YOLO exports with a suppression plugin: YOLOv7's rows, and TensorRT's four outputs."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, OutputReader, input_sides, single_output
from ml_backend.layouts.postprocessed import Roles, roles_of
from ml_backend.layouts.ultralytics import ultralytics_spec

# --- YOLOv7 `--end2end` for ONNX Runtime: [n, 7]: image, x_min, y_min, x_max, y_max, class, score ---------------------


def _recognise_rows(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    array = single_output(outputs, 2)
    if array is None or array.shape[1] != 7:
        return None
    rows = as_float32(array)
    integers = bool(np.all(rows[:, [0, 5]] == np.round(rows[:, [0, 5]])) and np.all(rows[:, [0, 5]] >= 0))
    if not integers or not bool(np.all((rows[:, 6] >= 0) & (rows[:, 6] <= 1))):
        return None
    return "rows of seven: image index, box, class and score (YOLOv7 end to end)"


def _read_rows(graph: Graph, outputs: Arrays) -> OutputReader:
    array = single_output(outputs, 2)
    if array is None or array.shape[1] != 7:
        raise ValueError("it has no single output [n, 7] of image, box, class and score")
    name = next(iter(outputs))

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        rows = as_float32(arrays[name])
        rows = rows[(rows[:, 0] == 0) & (rows[:, 6] >= floor)]  # a fixed batch is padded with empty images
        return [Detections(rows[:, 1:5], rows[:, 6], rows[:, 5].astype(np.int64))]

    return OutputReader(ultralytics_spec(graph), None, decode, (name,), suppress_iou=None, single_image=True)


# --- TensorRT's EfficientNMS and BatchedNMS: counts, and padded boxes, scores and classes -----------------------------


def _parts(outputs: Arrays) -> tuple[str, Roles] | None:
    counts = [name for name, array in outputs.items() if "num_det" in name.lower() and array.size == len(array)]
    if len(counts) != 1:
        return None
    roles = roles_of({name: array for name, array in outputs.items() if name != counts[0]})
    # The TensorFlow Object Detection API outputs counts too, but its boxes are y first and its classes start at 1.
    if roles is None or roles.masks or outputs[roles.boxes].ndim != 3 or "detection_boxes" in roles.boxes.lower():
        return None
    return counts[0], roles


def _recognise_plugin(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    parts = _parts(outputs)
    return f"an output {parts[0]} with boxes {parts[1].boxes}, as in TensorRT's NMS plugins" if parts else None


def _read_plugin(graph: Graph, outputs: Arrays) -> OutputReader:
    parts = _parts(outputs)
    if parts is None:
        raise ValueError("it has no outputs num_dets (b, 1), boxes (b, n, 4), scores (b, n) and classes (b, n)")
    count_name, roles = parts
    spec = ultralytics_spec(graph)
    boxes = as_float32(outputs[roles.boxes])
    scale = input_sides(spec) if boxes.any() and np.abs(boxes).max() <= 2 else np.ones(4, np.float32)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        detections = []
        for index, valid in enumerate(arrays[count_name].reshape(-1).astype(np.int64).tolist()):
            scores = as_float32(arrays[roles.scores][index, :valid])
            keep = np.flatnonzero(scores >= floor)
            corners = as_float32(arrays[roles.boxes][index, :valid])[keep] * scale
            classes = np.rint(arrays[roles.labels][index, :valid][keep]).astype(np.int64)
            detections.append(Detections(corners, scores[keep], classes))
        return detections

    return OutputReader(spec, None, decode, (count_name, roles.boxes, roles.labels, roles.scores), suppress_iou=None)


YOLOV7_END2END = Layout(_recognise_rows, _read_rows)
TENSORRT_NMS = Layout(_recognise_plugin, _read_plugin)
