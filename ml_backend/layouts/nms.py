"""Layouts of exports with suppression: rows whose output spells its columns, rows of seven, and TensorRT's outputs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    Layout,
    OutputReader,
    in_unit_range,
    input_sides,
    is_whole,
    plain_spec,
    single_output,
)
from ml_backend.layouts.plausibility import Misfit, are_normalised
from ml_backend.layouts.postprocessed import Roles, roles_of
from ml_backend.layouts.ultralytics import ultralytics_spec

# --- rows whose output's name spells the columns, such as batchno_classid_score_x1y1x2y2 (PINTO's model zoo) ----------

# Column -> its number of values. Columns of other names may follow these.
_COLUMNS = {"batchno": 1, "classid": 1, "label": 1, "score": 1, "x1y1x2y2": 4, "xyxy": 4}


def _spelled(outputs: Arrays) -> tuple[str, dict[str, int]] | None:
    """The output whose name spells its columns, and the first column of "image", "class", "score" and "box"."""
    roles = {"batchno": "image", "classid": "class", "label": "class", "x1y1x2y2": "box", "xyxy": "box"}
    for name, array in outputs.items():
        columns: dict[str, int] = {}
        first = 0
        for word in name.lower().split("_"):
            if word not in _COLUMNS:
                break
            columns[roles.get(word, word)] = first
            first += _COLUMNS[word]
        if columns.keys() >= {"class", "score", "box"} and array.ndim in {2, 3} and array.shape[-1] >= first:
            return name, columns
    return None


def _recognise_spelled(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    spelled = _spelled(outputs)
    return f"the name of the output {spelled[0]} spells its columns" if spelled else None


def _read_spelled(graph: Graph, outputs: Arrays) -> OutputReader:
    spelled = _spelled(outputs)
    if spelled is None:
        raise ValueError("it has no output whose name spells its columns, as batchno_classid_score_x1y1x2y2")
    name, columns = spelled
    flat = outputs[name].ndim == 2
    # The models of this zoo take OpenCV's pixels, some normalised: their inputs say so.
    raw = "image" in columns or (graph.image is not None and "bgr" in graph.image.name.lower())
    options: Any = {"color": "BGR"} if raw else {"scale": 1 / 255}
    spec = plain_spec(graph, placement="stretch", **options)
    box = slice(columns["box"], columns["box"] + 4)
    boxes = as_float32(outputs[name])[..., box].reshape(-1, 4)
    normalised = are_normalised(boxes) if boxes.any() else not flat
    scale = input_sides(spec) if normalised else np.ones(4, np.float32)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        table = as_float32(arrays[name])
        if flat and "image" in columns:
            table = table[table[:, columns["image"]] == 0]
        detections = []
        for rows in table[None] if flat else table:
            kept = rows[rows[:, columns["score"]] >= floor]
            classes = np.rint(kept[:, columns["class"]]).astype(np.int64)
            detections.append(Detections(kept[:, box] * scale, kept[:, columns["score"]], classes))
        return detections

    return OutputReader(spec, None, decode, (name,), suppress_iou=None, single_image=flat)


# --- [n, 7]: image, x_min, y_min, x_max, y_max, class, score (YOLOv7 `--end2end`); or score, class (YOLO-NAS) ---------


def _recognise_rows(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    array = single_output(outputs, 2)
    if array is None or array.shape[1] != 7:
        return None
    try:
        class_, _ = _class_and_score(as_float32(array))
    except Misfit:
        return None
    order = {5: "class and score, as of YOLOv7", 6: "score and class, as of YOLO-NAS"}[class_]
    return f"rows of seven: image index, box, {order if len(array) else 'class and score in the order that rows show'}"


def _class_and_score(rows: Floats) -> tuple[int, int]:
    """Columns of the class and of the score, by their values: class numbers are whole, scores lie in 0..1.

    Raises:
        Misfit: Neither order fits.
    """
    for class_, score in ((5, 6), (6, 5)):
        if is_whole(rows[:, [0, class_]]) and (rows[:, [0, class_]] >= 0).all() and in_unit_range(rows[:, score]):
            return class_, score
    raise Misfit("its rows of seven are not image index, box, and class and score in any order")


def _read_rows(graph: Graph, outputs: Arrays) -> OutputReader:
    array = single_output(outputs, 2)
    if array is None or array.shape[1] != 7:
        raise ValueError("it has no single output [n, 7] of image, box, class and score")
    name = next(iter(outputs))

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        rows = as_float32(arrays[name])
        class_, score = _class_and_score(rows)
        rows = rows[(rows[:, 0] == 0) & (rows[:, score] >= floor)]  # a fixed batch is padded with empty images
        return [Detections(rows[:, 1:5], rows[:, score], rows[:, class_].astype(np.int64))]

    return OutputReader(ultralytics_spec(graph), None, decode, (name,), suppress_iou=None, single_image=True)


# --- TensorRT's EfficientNMS and BatchedNMS, and YOLO-NAS: counts, and padded boxes, scores and classes ---------------

_COUNTS = ("num_det", "num_pred")


def _parts(outputs: Arrays) -> tuple[str, Roles] | None:
    counts = [name for name, array in outputs.items() if _is_count(name, array)]
    if len(counts) != 1:
        return None
    roles = roles_of({name: array for name, array in outputs.items() if name != counts[0]})
    # The TensorFlow Object Detection API outputs counts too, but its boxes are y first and its classes start at 1.
    if roles is None or roles.masks or outputs[roles.boxes].ndim != 3 or "detection_boxes" in roles.boxes.lower():
        return None
    return counts[0], roles


def _is_count(name: str, array: npt.NDArray[Any]) -> bool:
    return any(word in name.lower() for word in _COUNTS) and array.ndim > 0 and array.size == len(array)


def _recognise_plugin(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    parts = _parts(outputs)
    return f"an output {parts[0]} with boxes {parts[1].boxes}, as TensorRT's NMS or YOLO-NAS" if parts else None


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


SPELLED_COLUMNS = Layout(_recognise_spelled, _read_spelled, pixels_vary=True)
YOLOV7_END2END = Layout(_recognise_rows, _read_rows)
TENSORRT_NMS = Layout(_recognise_plugin, _read_plugin)
