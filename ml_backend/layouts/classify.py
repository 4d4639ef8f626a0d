"""Owns the layout of classifiers: one score a class for the whole photo."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, Reader, is_share, only, plain_spec, softmax


def _recognise_classify(graph: Graph, seen: Arrays) -> str | None:
    array = only(seen, 2)
    if array is None or graph.metadata.get("task") != "classify":
        return None
    return "the metadata says task classify; one score a class"


def _read_classify(graph: Graph, seen: Arrays) -> Reader:
    array = only(seen, 2)
    if array is None:
        raise ValueError("it has no single output [batch, classes]")
    name = next(iter(seen))
    spec = plain_spec(graph, scale=1 / 255, placement="crop")

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        found = []
        for row in as_float32(arrays[name]):
            # The graph ends in a softmax or before it; what sums to 1 went through it.
            scores = row if is_share(row) and abs(float(row.sum()) - 1) < 0.02 else softmax(row)
            keep = np.flatnonzero(scores >= floor)
            whole = np.tile(np.array([0, 0, spec.width, spec.height], np.float32), (len(keep), 1))
            found.append(Detections(whole, scores[keep], keep.astype(np.int64)))
        return found

    return Reader(spec, array.shape[1], decode, (name,), gives=frozenset({"classes"}), suppress_iou=None)


CLASSIFY = Layout(_recognise_classify, _read_classify)
