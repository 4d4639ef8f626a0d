"""Layouts of image classifiers: one score per class.

`classify` is Ultralytics', whose metadata says so. `classifier` is recognised by its only output, (batch, classes) or
(batch, classes, 1, 1), as timm, torchvision, transformers and Keras export; a single value after a sigmoid is the
probability of the second of two classes, as of Keras. Embeddings have the same shape, so the classes must be named; see
`ml_backend.detection.class_names`.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    OutputReader,
    class_count,
    in_unit_range,
    last_operator,
    plain_spec,
    single_output,
    softmax,
)
from ml_backend.layouts.image_processor import IMAGE_INPUT
from ml_backend.layouts.plausibility import Misfit

# Sides of the input where a classifier's graph and files leave them open, pixels.
OPEN_SIDE = 224

# Largest deviation of the sum of probabilities from 1.
SUM_TOLERANCE = 0.02


def _recognise_classify(graph: Graph, outputs: Arrays) -> str | None:
    array = single_output(outputs, 2)
    if array is None or graph.metadata.get("task") != "classify":
        return None
    return "the metadata says task classify; one score per class"


def _recognise_classifier(graph: Graph, outputs: Arrays) -> str | None:
    name, row = _row_of(graph, outputs)
    if row is None or "task" in graph.metadata or len(outputs[name]) != 1:
        return None
    if len(row) < 2:
        return "one probability, of the second of two classes" if _is_binary(graph, name, row) else None
    if _is_multi_label(graph) and last_operator(graph, name) != "Sigmoid":
        raise Misfit(
            "its config.json says that its classes are independent of each other (multi_label_classification), and the "
            "graph ends in logits: export it with a sigmoid as its last operator"
        )
    return f"one value for each of {len(row)} classes"


def _is_binary(graph: Graph, name: str, row: npt.NDArray[Any]) -> bool:
    return len(row) == 1 and last_operator(graph, name) == "Sigmoid" and in_unit_range(row)


def _row_of(graph: Graph, outputs: Arrays) -> tuple[str, npt.NDArray[Any] | None]:
    """The only output (1, classes), also with two axes of length 1 before or after the classes; else None.

    Of several outputs, such as logits and features, it is the only one with as many values as the metadata has names.
    """
    rows = [(name, row) for name, array in outputs.items() if (row := _row(array)) is not None]
    if len(outputs) > 1:
        has_boxes = any(array.ndim > 1 and array.shape[-1] == 4 for array in outputs.values())
        rows = [(name, row) for name, row in rows if len(row) == class_count(graph) and not has_boxes]
    return rows[0] if len(rows) == 1 else ("", None)


def _row(array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    if not np.issubdtype(array.dtype, np.floating) or not array.size:
        return None
    if array.ndim == 2 or (array.ndim == 4 and (array.shape[2:] == (1, 1) or array.shape[1:3] == (1, 1))):
        row: npt.NDArray[Any] = array.reshape(len(array), -1)[0]
        return row
    return None


def _read_classify(graph: Graph, outputs: Arrays) -> OutputReader:
    return _reader(graph, outputs, {"scale": 1 / 255, "placement": "crop"})


def _read_classifier(graph: Graph, outputs: Arrays) -> OutputReader:
    if graph.channels_last:  # Keras: stretched, and its normalisation is most often in the graph
        return _reader(graph, outputs, {"scale": 1 / 255, "placement": "stretch"})
    return _reader(graph, outputs, {**IMAGENET, "placement": "crop"})


def _reader(graph: Graph, outputs: Arrays, options: dict[str, Any]) -> OutputReader:
    name, row = _row_of(graph, outputs)
    if row is None:
        raise ValueError("it has no single output [batch, classes]")
    spec = plain_spec(graph, **options)
    if graph.image is not None and not _says_size(graph):
        height, width = graph.image.shape[-3:-1] if graph.channels_last else graph.image.shape[-2:]
        spec = replace(spec, height=height or OPEN_SIDE, width=width or OPEN_SIDE)
    last, binary = last_operator(graph, name), _is_binary(graph, name, row)
    # After a Sigmoid they are independent probabilities, of several classes at once, which may sum to 1 by chance.
    probabilities = last in {"Sigmoid", "Softmax"} and in_unit_range(row)

    def decode(outputs: Arrays, floor: float) -> list[Detections]:
        detections = []
        values = as_float32(outputs[name])
        for row in values.reshape(len(values), -1):
            # Graphs end before or after the softmax; scores that sum to 1 are after it.
            if binary:
                scores = np.concatenate([1 - row, row])
            elif probabilities or (in_unit_range(row) and _sums_to_one(row)):
                scores = row
            else:
                scores = softmax(row)
            keep = np.flatnonzero(scores >= floor)
            boxes = np.tile(np.array([0, 0, spec.width, spec.height], np.float32), (len(keep), 1))
            detections.append(Detections(boxes, scores[keep], keep.astype(np.int64)))
        return detections

    count = 2 if binary else len(row)
    return OutputReader(spec, count, decode, (name,), provides=frozenset({"classes"}), suppress_iou=None)


def _says_size(graph: Graph) -> bool:
    return "imgsz" in graph.metadata or "size" in json.loads(graph.metadata.get("input", "{}"))


def _is_multi_label(graph: Graph) -> bool:
    """Whether the `config.json` of a Hugging Face export says that its classes are independent of each other."""
    named = graph.image is not None and graph.image.name == IMAGE_INPUT
    config = graph.path.with_name("config.json") if named and graph.path is not None else None
    if config is None or not config.is_file():
        return False
    try:
        words = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(words, dict) and words.get("problem_type") == "multi_label_classification"


def _sums_to_one(row: Floats) -> bool:
    return abs(float(as_float32(row).sum()) - 1) < SUM_TOLERANCE


CLASSIFY = Layout(_recognise_classify, _read_classify)
CLASSIFIER = Layout(_recognise_classifier, _read_classifier, pixels_vary=True)
