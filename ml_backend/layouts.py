"""Owns LAYOUTS: how the outputs of an ONNX detector are recognised and turned into boxes. The one table for a new one.

To add a layout, write a recogniser, an input and a decode, and add one line to `LAYOUTS`. Recognisers see the graph
and what a trial run on a grey photo gave, so that open dimensions are known and look-alikes can be told apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_backend.detections import Detections, Floats
from ml_backend.graph import Arrays, Graph, as_float32
from ml_backend.preprocess import InputSpec

DEFAULT_SIDE = 640
"""Pixels a side where a graph leaves its input's size open."""

YOLOX_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Layout:
    """One family of outputs.

    Attributes:
        recognise: Why the graph is of this layout, in words; None where it is not. Gets the graph and the trial run.
        spec: What the network wants to be shown. Raises ValueError where the graph's own words cannot be read.
        outputs: The names of the outputs that `decode` reads; no other is computed for nothing.
        classes: How many classes the outputs have.
        decode: One `Detections` a photo of the batch, in input pixels, of scores at or above the floor given.
        suppress_iou: Overlap above which two boxes of a class are one object; None where the graph suppresses.
    """

    recognise: Callable[[Graph, Arrays], str | None]
    spec: Callable[[Graph], InputSpec]
    outputs: Callable[[Graph], tuple[str, ...]]
    classes: Callable[[Arrays], int]
    decode: Callable[[Arrays, InputSpec, float], list[Detections]]
    suppress_iou: float | None = 0.45


def image_size(graph: Graph) -> tuple[int, int]:
    """(height, width) of the graph's input, `DEFAULT_SIDE` where it is open; channels first unless the last is 3."""
    shape = graph.image.shape if graph.image else (None, None, None, None)
    height, width = (shape[1], shape[2]) if shape[3] == 3 and shape[1] != 3 else (shape[2], shape[3])
    return height or DEFAULT_SIDE, width or DEFAULT_SIDE


def plain_spec(graph: Graph, **options: Any) -> InputSpec:
    """An input of the graph's own size, axes and type; pixel values 0..255 unless the options say otherwise."""
    height, width = image_size(graph)
    last = graph.image is not None and graph.image.shape[3] == 3 and graph.image.shape[1] != 3
    dtype = graph.image.dtype if graph.image else "float32"
    return InputSpec(height=height, width=width, layout="NHWC" if last else "NCHW", dtype=dtype, **options)


def best_class(boxes: Floats, scores: Floats, floor: float) -> Detections:
    """Each box with its best class: boxes (n, 4), scores (n, classes); those of at least the floor."""
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    keep = best >= floor
    return Detections(boxes[keep], best[keep], classes[keep].astype(np.int64))


# --- labelloop: named outputs boxes, objectness, scores; the input described in the metadata --------------------------

_LABELLOOP_OUTPUTS = ("boxes", "objectness", "scores")
_PLACEMENTS: Mapping[str, Any] = {"top-left": "top-left", "centre": "centre", "center": "centre", "stretch": "stretch"}
_RANGES = {"0..255": 1.0, "0..1": 1 / 255}


def _recognise_labelloop(graph: Graph, seen: Arrays) -> str | None:
    if not set(_LABELLOOP_OUTPUTS) <= set(seen) or "input" not in graph.metadata:
        return None
    boxes, objectness, scores = (seen[name] for name in _LABELLOOP_OUTPUTS)
    fits = boxes.ndim == 3 and boxes.shape[2] == 4 and scores.ndim == 3 and objectness.shape == boxes.shape[:2]
    return "outputs named boxes, objectness and scores" if fits and scores.shape[:2] == boxes.shape[:2] else None


def _labelloop_spec(graph: Graph) -> InputSpec:
    """The metadata `input`: {"size": [h, w], "color": "RGB", "range": "0..255", "letterbox": "top-left, pad 114"}."""
    try:
        told = json.loads(graph.metadata["input"])
        height, width = (int(side) for side in told["size"])
        placement, _, pad = str(told.get("letterbox", "top-left")).partition(", pad ")
        return InputSpec(
            height=height,
            width=width,
            layout={"NCHW": "NCHW", "NHWC": "NHWC"}[told.get("layout", "NCHW")],  # type: ignore[arg-type]
            color={"RGB": "RGB", "BGR": "BGR"}[told.get("color", "RGB")],  # type: ignore[arg-type]
            placement=_PLACEMENTS[placement.strip()],
            pad=int(pad or 114),
            scale=_RANGES[told.get("range", "0..255")],
            dtype=graph.image.dtype if graph.image else "float32",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its metadata `input` cannot be read ({error!r})") from None


def _decode_labelloop(seen: Arrays, spec: InputSpec, floor: float) -> list[Detections]:
    """Score of a detection = objectness x class score; boxes are input pixels already."""
    del spec
    boxes, objectness, scores = (as_float32(seen[name]) for name in _LABELLOOP_OUTPUTS)
    found = []
    for box, presence, score in zip(boxes, objectness, scores, strict=True):
        likely = np.flatnonzero(
            presence >= floor
        )  # a class score is at most 1: what is left out cannot reach the floor
        found.append(best_class(box[likely], presence[likely, None] * score[likely], floor))
    return found


# --- yolox: one raw grid [batch, anchors, 5 + classes]; https://arxiv.org/abs/2107.08430, section 2 -------------------


def _yolox_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Top-left cell (n, 2) as x, y and stride (n, 1) of each anchor, strides from fine to coarse, rows first."""
    cells, strides = [], []
    for stride in YOLOX_STRIDES:
        rows, columns = height // stride, width // stride
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((rows * columns, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _recognise_yolox(graph: Graph, seen: Arrays) -> str | None:
    if len(seen) != 1:
        return None
    array = next(iter(seen.values()))
    height, width = image_size(graph)
    anchors = sum((height // stride) * (width // stride) for stride in YOLOX_STRIDES)
    if array.ndim != 3 or array.shape[1] != anchors or array.shape[2] < 6:
        return None
    # An export that decodes in the graph has the same shape, but centres in pixels; a raw centre is an offset in cells.
    if float(np.abs(array[..., :2]).max()) > min(height, width) / 4:
        return None
    return f"one raw grid of {anchors} anchors at strides 8, 16 and 32"


def _decode_yolox(seen: Arrays, spec: InputSpec, floor: float) -> list[Detections]:
    """Centre = (offset + cell) x stride, side = exp(raw) x stride, score = objectness x best class score."""
    cells, strides = _yolox_grid(spec.height, spec.width)
    found = []
    for raw in as_float32(next(iter(seen.values()))):
        likely = np.flatnonzero(raw[:, 4] >= floor)
        row = raw[likely]
        centre = (row[:, :2] + cells[likely]) * strides[likely]
        half = np.exp(np.minimum(row[:, 2:4], 20)) * strides[likely] / 2  # e^20: no overflow, far beyond any photo
        boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
        found.append(best_class(boxes, row[:, 4:5] * row[:, 5:], floor))
    return found


LAYOUTS: Mapping[str, Layout] = {
    "labelloop": Layout(
        recognise=_recognise_labelloop,
        spec=_labelloop_spec,
        outputs=lambda _: _LABELLOOP_OUTPUTS,
        classes=lambda seen: int(seen["scores"].shape[2]),
        decode=_decode_labelloop,
    ),
    "yolox": Layout(
        recognise=_recognise_yolox,
        spec=lambda graph: plain_spec(graph, color="BGR"),
        outputs=lambda graph: (graph.outputs[0].name,),
        classes=lambda seen: int(next(iter(seen.values())).shape[2]) - 5,
        decode=_decode_yolox,
    ),
}
"""Layout by name, tried in this order; the first that recognises a graph decodes it."""
