"""Layouts of graphs with final detections: boxes, labels and scores as separate outputs in any order.

torchvision, RT-DETR / D-FINE / DEIM with `orig_target_sizes`, SSD, the TensorFlow Object Detection API, and
PaddleDetection's rows. Outputs are assigned by shape and dtype, not by position.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.class_names import Background
from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.masks import Segment
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    OutputReader,
    in_unit_range,
    input_sides,
    is_standard_image,
    plain_spec,
)
from ml_backend.layouts.plausibility import are_normalised


@dataclass(frozen=True)
class Roles:
    """Output names by role; `masks` is empty without masks."""

    boxes: str
    labels: str
    scores: str
    masks: str = ""


def roles_of(outputs: Arrays) -> Roles | None:
    """Assign roles: boxes end in 4 values; labels are integers by dtype, name or value; scores are the rest."""
    boxes = [name for name, array in outputs.items() if array.ndim in {2, 3} and array.shape[-1] == 4]
    rank = max((outputs[name].ndim for name in boxes), default=0)
    boxes = [name for name in boxes if outputs[name].ndim == rank]  # labels and scores of four detections also end in 4
    if len(boxes) > 1:
        boxes = [name for name in boxes if "box" in name.lower() and "raw" not in name.lower()]
    if len(boxes) != 1:
        return None
    count = outputs[boxes[0]].shape[:-1]
    flat = [name for name, array in outputs.items() if name != boxes[0] and array.shape == count]
    labels = [name for name in flat if np.issubdtype(outputs[name].dtype, np.integer)]
    if not labels:
        labels = [name for name in flat if any(word in name.lower() for word in ("class", "label"))]
    if not labels:
        labels = [name for name in flat if outputs[name].size and not in_unit_range(outputs[name])]
    scores = [name for name in flat if name not in labels and np.issubdtype(outputs[name].dtype, np.floating)]
    if len(scores) > 1:
        scores = [name for name in scores if "score" in name.lower()]
    if len(labels) != 1 or len(scores) != 1:
        return None
    masks = [
        name for name, array in outputs.items() if array.ndim == len(count) + 3 and array.shape[: len(count)] == count
    ]
    return Roles(boxes[0], labels[0], scores[0], masks[0] if len(masks) == 1 and len(count) == 1 else "")


def _decode(
    roles: Roles, arrays: Arrays, spec: InputSpec, floor: float, *, yxyx: bool = False, scale: Floats | None = None
) -> list[Detections]:
    """Decode one `Detections` per image; arrays without a batch axis are one image."""
    boxes, labels, scores = arrays[roles.boxes], arrays[roles.labels], arrays[roles.scores]
    if boxes.ndim == 2:
        boxes, labels, scores = boxes[None], labels[None], scores[None]
    detections = []
    for box, label, score in zip(as_float32(boxes), labels, as_float32(scores), strict=True):
        keep = np.flatnonzero(score >= floor)
        corners = box[keep][:, [1, 0, 3, 2]] if yxyx else box[keep]
        corners = corners * scale if scale is not None else corners
        classes = np.rint(label[keep]).astype(np.int64)
        segments = _segments(arrays[roles.masks], keep, corners, spec) if roles.masks else None
        detections.append(Detections(np.asarray(corners, np.float32), score[keep], classes, segments=segments))
    return detections


def _segments(
    masks: npt.NDArray[Any], keep: npt.NDArray[np.int64], boxes: Floats, spec: InputSpec
) -> tuple[Segment, ...]:
    """Masks of torchvision's Mask R-CNN: (n, 1, h, w), the probability of each pixel of the input."""
    size = (spec.height, spec.width)
    mask_boxes = [(box[0], box[1], box[2], box[3]) for box in boxes.tolist()]
    return tuple(
        Segment(as_float32(masks[row, 0]), None, 0.5, box, size)
        for row, box in zip(keep.tolist(), mask_boxes, strict=True)
    )


def _reader(
    options: Callable[[Graph, Arrays], dict[str, Any]],
    *,
    spare: Background,
    yxyx: bool = False,
    normalised: bool = False,
) -> Callable[[Graph, Arrays], OutputReader]:
    def read(graph: Graph, outputs: Arrays) -> OutputReader:
        roles = roles_of(outputs)
        if roles is None:
            raise ValueError("it has no outputs of boxes (n, 4), whole class numbers (n) and scores (n)")
        spec = plain_spec(graph, **options(graph, outputs))
        scale = input_sides(spec) if normalised else None
        names = tuple(name for name in (roles.boxes, roles.labels, roles.scores, roles.masks) if name)
        return OutputReader(
            spec,
            None,
            lambda arrays, floor: _decode(roles, arrays, spec, floor, yxyx=yxyx, scale=scale),
            names,
            provides=frozenset({"boxes", "masks"} if roles.masks else {"boxes"}),
            background="none" if is_standard_image(graph) else spare,  # Custom Vision starts at 0, without a background
            suppress_iou=None,
            single_image=outputs[roles.boxes].ndim == 2,
        )

    return read


def _recognise_sized(graph: Graph, outputs: Arrays) -> str | None:
    if not any(tensor.name == "orig_target_sizes" for tensor in graph.inputs) or roles_of(outputs) is None:
        return None
    return "an input orig_target_sizes, and outputs of labels, boxes and scores"


def _recognise_tf(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    roles = roles_of(outputs)
    if roles is None or "detection_boxes" not in roles.boxes.lower():
        return None
    return "outputs named detection_boxes, detection_classes and detection_scores"


def _recognise_ssd(graph: Graph, outputs: Arrays) -> str | None:
    roles = roles_of(outputs)
    if roles is None or _is_sized(graph) or not are_normalised(as_float32(outputs[roles.boxes]).reshape(-1, 4)):
        return None
    return f"boxes {roles.boxes} normalised by the input, labels {roles.labels}, scores {roles.scores}"


def _recognise_torchvision(graph: Graph, outputs: Arrays) -> str | None:
    roles = roles_of(outputs)
    if roles is None or _is_sized(graph):
        return None
    unit = "pixels" if as_float32(outputs[roles.boxes]).any() else "pixels (assumed: the trial run had no boxes)"
    return f"boxes {roles.boxes} in {unit}, labels {roles.labels}, scores {roles.scores}, assigned by shape and dtype"


def _is_sized(graph: Graph) -> bool:
    return any(tensor.name == "orig_target_sizes" for tensor in graph.inputs)


# --- PaddleDetection: rows of class, score, x_min, y_min, x_max, y_max, and the number of rows of each image ----------


def _paddle(outputs: Arrays) -> tuple[str, str] | None:
    rows = [name for name, array in outputs.items() if array.ndim == 2 and array.shape[1] == 6]
    counts = [name for name, array in outputs.items() if array.ndim == 1 and np.issubdtype(array.dtype, np.integer)]
    return (rows[0], counts[0] if counts else "") if len(rows) == 1 and len(outputs) <= 2 else None


def _recognise_paddle(graph: Graph, outputs: Arrays) -> str | None:
    roles = _paddle(outputs)
    if roles is None or not any(tensor.name == "scale_factor" for tensor in graph.inputs):
        return None
    return "an input scale_factor, and rows of class, score and box"


def _read_paddle(graph: Graph, outputs: Arrays) -> OutputReader:
    roles = _paddle(outputs)
    if roles is None:
        raise ValueError("it has no output (n, 6) of class, score and box")
    rows, counts = roles
    spec = plain_spec(graph, placement="stretch", **IMAGENET)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        table = as_float32(arrays[rows])
        ends: Any = np.cumsum(arrays[counts])[:-1] if counts else []
        detections = []
        for part in np.split(table, ends):
            selected = part[(part[:, 1] >= floor) & (part[:, 0] >= 0)]
            detections.append(Detections(selected[:, 2:6], selected[:, 1], selected[:, 0].astype(np.int64)))
        return detections

    names = (rows, counts) if counts else (rows,)
    return OutputReader(spec, None, decode, names, suppress_iou=None, single_image=True)


def _ssd_options(graph: Graph, outputs: Arrays) -> dict[str, Any]:
    """uint8 inputs take raw pixels; float inputs take ImageNet normalisation."""
    del outputs
    raw = graph.image is not None and graph.image.dtype == "uint8"
    return {"placement": "stretch", **({} if raw else IMAGENET)}


RT_DETR = Layout(_recognise_sized, _reader(lambda _g, _s: {"scale": 1 / 255, "placement": "stretch"}, spare="none"))
TF_OD = Layout(
    _recognise_tf, _reader(lambda _g, _s: {"placement": "stretch"}, spare="first", yxyx=True, normalised=True)
)
SSD = Layout(_recognise_ssd, _reader(_ssd_options, spare="first", normalised=True), pixels_vary=True)
TORCHVISION = Layout(_recognise_torchvision, _reader(lambda _g, _s: {"scale": 1 / 255, "pad": 0}, spare="first"))
PADDLE = Layout(_recognise_paddle, _read_paddle, pixels_vary=True)
