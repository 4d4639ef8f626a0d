"""Layout of DBNet text detectors (https://arxiv.org/abs/1911.08947), as PaddleOCR's: one map of text probabilities."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats, bounds_of
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    OutputReader,
    image_size,
    in_unit_range,
    metadata_value,
    plain_spec,
    single_output,
)

# Post-processing of PaddleOCR's DBPostProcess: threshold of pixels, factor of the boxes' growth, smallest side in
# pixels of the map, and most boxes.
PIXEL_THRESHOLD, UNCLIP, MIN_SIDE, MAX_BOXES = 0.3, 1.5, 3.0, 1000

# Side of the input where the graph leaves it open: PaddleOCR's `limit_side_len`.
SIDE = 960


def _map_of(graph: Graph, outputs: Arrays) -> npt.NDArray[np.float32] | None:
    array = single_output(outputs, 4)
    if array is None or array.shape[1] not in {1, 3} or array.shape[2:] != image_size(graph):
        return None
    return as_float32(array)


def _recognise(graph: Graph, outputs: Arrays) -> str | None:
    array = _map_of(graph, outputs)
    if array is None or not in_unit_range(array):
        return None
    # Masks of other networks look alike; DBNet's head ends in two transposed convolutions and a sigmoid.
    operators = graph.nodes.path_to(next(iter(outputs)), most=12)
    head = [name for name in operators if name not in {"Identity", "Cast", "Add", "BatchNormalization", "Relu"}]
    if array.shape[1] == 3 and head[:1] == ["Concat"]:  # exports in training mode: with the threshold and binary maps
        head = head[1:]
    elif array.shape[1] == 3:
        return None
    if head[:3] != ["Sigmoid", "ConvTranspose", "ConvTranspose"]:
        return None
    return "a map of probabilities after two transposed convolutions and a sigmoid: DBNet's head of text"


def _read(graph: Graph, outputs: Arrays) -> OutputReader:
    array = _map_of(graph, outputs)
    if array is None:
        raise ValueError("it has no single map [batch, 1, height, width] of the input's size")
    name = next(iter(outputs))
    spec = plain_spec(graph, color="BGR", pad=0, **IMAGENET)
    fixed = graph.image is not None and None not in graph.image.shape[-2:]
    if not fixed and not metadata_value(graph, "imgsz") and "input" not in graph.metadata:
        spec = replace(spec, height=SIDE, width=SIDE)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        return [text_boxes(plane[0], floor) for plane in as_float32(arrays[name])]

    return OutputReader(
        spec, 1, decode, (name,), provides=frozenset({"boxes", "turned"}), suppress_iou=None, names=("text",)
    )  # fmt: skip


def text_boxes(plane: Floats, floor: float) -> Detections:
    """Turned boxes of text regions, from a map of probabilities (h, w) of the input's size.

    Each connected region above `PIXEL_THRESHOLD` becomes its smallest turned box, whose score is the mean probability
    inside, grown by `UNCLIP` times area / perimeter on each side.
    """
    import cv2

    binary = (plane > PIXEL_THRESHOLD).astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    rows, scores = [], []
    for contour in contours[:MAX_BOXES]:
        (cx, cy), (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < MIN_SIDE:
            continue
        score = _score(plane, cv2.boxPoints(((cx, cy), (width, height), angle)))
        if score < floor:
            continue
        if angle > 45:  # as little turned as possible
            width, height, angle = height, width, angle - 90
        grow = 2 * UNCLIP * width * height / (2 * (width + height))
        if min(width, height) + grow < MIN_SIDE + 2:
            continue
        rows.append((cx, cy, width + grow, height + grow, np.radians(angle)))
        scores.append(score)
    rotated = np.array(rows, np.float32).reshape(-1, 5)
    return Detections(
        bounds_of(rotated), np.array(scores, np.float32), np.zeros(len(rows), np.int64), rotated=rotated
    )  # fmt: skip


def _score(plane: Floats, corners: npt.NDArray[Any]) -> float:
    """Mean probability inside four corners."""
    import cv2

    height, width = plane.shape
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, [width - 1, height - 1])
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, [width - 1, height - 1])
    mask = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), np.uint8)
    cv2.fillPoly(mask, [(corners - low).astype(np.int32)], 1)
    part = plane[low[1] : high[1] + 1, low[0] : high[0] + 1]
    return float(part[mask > 0].mean()) if mask.any() else 0.0


DBNET = Layout(_recognise, _read)
