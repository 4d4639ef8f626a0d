"""Layout of FastestDet: one map [batch, 5 + classes, rows, columns], one box per cell."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.logits import expit
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    Layout,
    OutputReader,
    best_class,
    class_count,
    cxcywh_to_xyxy,
    image_size,
    in_unit_range,
    input_sides,
    plain_spec,
    single_output,
)
from ml_backend.layouts.plausibility import Misfit


def _recognise(graph: Graph, outputs: Arrays) -> str | None:
    array = single_output(outputs, 4)
    if array is None or array.shape[1] < 6 or class_count(graph) not in {None, array.shape[1] - 5}:
        return None
    height, width = image_size(graph)
    if array.shape[2:] != (height // 16, width // 16) or not (
        in_unit_range(array[:, :1]) and in_unit_range(array[:, 5:])
    ):
        return None
    if in_unit_range(array[:, 1:5]):
        raise Misfit(f"all {array.shape[1]} planes lie in 0..1, and four of them should be raw box values")
    return f"one map of {array.shape[2]} x {array.shape[3]} cells at stride 16: objectness, box and class scores"


def _read(graph: Graph, outputs: Arrays) -> OutputReader:
    array = single_output(outputs, 4)
    if array is None or array.shape[1] < 6:
        raise ValueError("it has no single output [batch, 5 + classes, rows, columns]")
    name = next(iter(outputs))
    # The reference code stretches the image; letterboxing detects more (bench/layouts.py).
    spec = plain_spec(graph, color="BGR", scale=1 / 255)
    scale = input_sides(spec)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        """Decode one map per image.

        Centre = cell + tanh and sides = sigmoid, both relative to the input; score = objectness^0.6 x class^0.4.
        """
        detections = []
        for planes in as_float32(arrays[name]):
            rows, columns = planes.shape[1:]
            best = planes[5:].max(axis=0)
            scores = np.maximum(planes[0], 0) ** 0.6 * np.maximum(best, 0) ** 0.4
            y, x = np.nonzero(scores >= floor)
            cells = planes[:, y, x].T
            centre = (np.stack([x, y], axis=1) + np.tanh(cells[:, 1:3])) / [columns, rows]
            side = expit(cells[:, 3:5])
            boxes = cxcywh_to_xyxy(np.concatenate([centre, side], axis=1) * scale)
            class_scores = (np.maximum(cells[:, :1], 0) ** 0.6) * np.maximum(cells[:, 5:], 0) ** 0.4
            detections.append(best_class(boxes, np.asarray(class_scores, np.float32), floor))
        return detections

    return OutputReader(spec, array.shape[1] - 5, decode, (name,))


FASTESTDET = Layout(_recognise, _read)
