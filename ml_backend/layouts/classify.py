"""Layout of image classifiers: one score per class."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, OutputReader, in_unit_range, plain_spec, single_output, softmax


def _recognise_classify(graph: Graph, outputs: Arrays) -> str | None:
    array = single_output(outputs, 2)
    if array is None or graph.metadata.get("task") != "classify":
        return None
    return "the metadata says task classify; one score per class"


def _read_classify(graph: Graph, outputs: Arrays) -> OutputReader:
    array = single_output(outputs, 2)
    if array is None:
        raise ValueError("it has no single output [batch, classes]")
    name = next(iter(outputs))
    spec = plain_spec(graph, scale=1 / 255, placement="crop")

    def decode(outputs: Arrays, floor: float) -> list[Detections]:
        detections = []
        for row in as_float32(outputs[name]):
            # Graphs end before or after the softmax; scores that sum to 1 are after it.
            scores = row if in_unit_range(row) and abs(float(row.sum()) - 1) < 0.02 else softmax(row)
            keep = np.flatnonzero(scores >= floor)
            boxes = np.tile(np.array([0, 0, spec.width, spec.height], np.float32), (len(keep), 1))
            detections.append(Detections(boxes, scores[keep], keep.astype(np.int64)))
        return detections

    return OutputReader(spec, array.shape[1], decode, (name,), provides=frozenset({"classes"}), suppress_iou=None)


CLASSIFY = Layout(_recognise_classify, _read_classify)
