"""Layouts of graphs with final detections: boxes, labels and scores as separate outputs in any order.

torchvision, RT-DETR / D-FINE / DEIM with `orig_target_sizes`, SSD, the TensorFlow Object Detection API, TensorFlow
Lite's detection operator, and PaddleDetection's rows. Outputs are assigned by shape and dtype, not by position.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.class_names import BACKGROUND_NAMES, Background, parse_names
from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.masks import Segment
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    OutputReader,
    class_count,
    image_size,
    input_sides,
    is_standard_image,
    is_whole,
    plain_spec,
)
from ml_backend.layouts.plausibility import Misfit, are_normalised

# Weights of torchvision's detectors, whose class numbers start at 1: 0 is the background.
_TORCHVISION_WEIGHTS = re.compile(
    r"(^|\.)(rpn\.head|head\.(classification|regression)_head|backbone\.(body|fpn|features|extra))\."
)
# Outputs of the SSD in ONNX's model zoo, whose class numbers start at 1 too.
_ZOO_SSD = {"bboxes", "labels", "scores"}


@dataclass(frozen=True)
class Roles:
    """Output names by role; `masks` and `keypoints` are empty without them."""

    boxes: str
    labels: str
    scores: str
    masks: str = ""
    keypoints: str = ""


def roles_of(outputs: Arrays) -> Roles | None:
    """Assign roles: boxes end in 4 values; labels are integers by dtype, name or value; scores are the rest.

    Masks (n, 1, h, w) and keypoints (n, k, 3) have a row for each box of one image.
    """
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
        labels = [name for name in flat if outputs[name].size and is_whole(outputs[name])]
    scores = [name for name in flat if name not in labels and np.issubdtype(outputs[name].dtype, np.floating)]
    if len(scores) > 1:
        scores = [name for name in scores if "score" in name.lower()]
    if len(labels) != 1 or len(scores) != 1:
        return None
    return Roles(
        boxes[0],
        labels[0],
        scores[0],
        masks=_with_rows(outputs, count, lambda sides: len(sides) == 3),
        keypoints=_with_rows(outputs, count, lambda sides: len(sides) == 2 and sides[1] == 3),
    )


def _with_rows(outputs: Arrays, count: tuple[int, ...], fits: Callable[[tuple[int, ...]], bool]) -> str:
    """The only output of one image whose rows have sides that fit; empty where there is none, or several."""
    names = [name for name, array in outputs.items() if array.shape[:1] == count and fits(array.shape[1:])]
    return names[0] if len(names) == 1 else ""


def first_class(graph: Graph, outputs: Arrays, roles: Roles) -> Background | None:
    """Whether class numbers start at 0 ("none"), or at 1 behind a background ("first"); None: the file does not tell.

    Signs are ONNX's image metadata (Custom Vision starts at 0), numbers of the trial run, and torchvision's weights.
    """
    numbers = outputs[roles.labels][outputs[roles.scores] > 0]
    if is_standard_image(graph) or (numbers.size and numbers.min() < 1):
        return "none"
    names = parse_names(graph.metadata["names"]) if class_count(graph) else ()
    if names and (names[0].casefold() in BACKGROUND_NAMES or (numbers.size and numbers.max() >= len(names))):
        return "first"
    if set(outputs) == _ZOO_SSD or any(map(_TORCHVISION_WEIGHTS.search, graph.nodes.weights)):
        return "first"
    return None


def _check_first_class(graph: Graph, outputs: Arrays, roles: Roles) -> None:
    if first_class(graph, outputs, roles) is None:
        raise Misfit(
            "nothing in the file tells whether its class numbers start at 0, or at 1 behind a background: if they "
            "start at 1, name this layout; if at 0, write a layout file with `first = 0` in `[classes]`"
        )


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
        keypoints = as_float32(arrays[roles.keypoints])[keep] if roles.keypoints else None
        detections.append(
            Detections(np.asarray(corners, np.float32), score[keep], classes, segments=segments, keypoints=keypoints)
        )
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
        if roles.masks and outputs[roles.masks].shape[2:] != image_size(graph):
            roles = replace(roles, masks="")  # masks within their boxes, as Detectron2's
        spec = plain_spec(graph, **options(graph, outputs))
        scale = input_sides(spec) if normalised else None
        more = {"masks": roles.masks, "keypoints": roles.keypoints}
        return OutputReader(
            spec,
            None,
            lambda arrays, floor: _decode(roles, arrays, spec, floor, yxyx=yxyx, scale=scale),
            (roles.boxes, roles.labels, roles.scores, *filter(None, more.values())),
            provides=frozenset({"boxes", *(kind for kind, name in more.items() if name)}),
            background=spare if spare == "none" else first_class(graph, outputs, roles) or spare,
            suppress_iou=None,
            single_image=outputs[roles.boxes].ndim == 2,
            keypoints=outputs[roles.keypoints].shape[1] if roles.keypoints else 0,
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


def _recognise_tflite(graph: Graph, outputs: Arrays) -> str | None:
    roles = roles_of(outputs)
    if roles is None or not graph.channels_last or len(outputs) != 4 or not _is_normalised(outputs[roles.boxes]):
        return None
    if [array.size for name, array in outputs.items() if name not in {roles.boxes, roles.labels, roles.scores}] != [1]:
        return None
    return (
        f"boxes {roles.boxes}, y first, classes {roles.labels}, scores {roles.scores} and their count, of an input "
        "with channels last: TensorFlow Lite's detection operator"
    )


def _recognise_ssd(graph: Graph, outputs: Arrays) -> str | None:
    roles = roles_of(outputs)
    if roles is None or _is_sized(graph) or not _is_normalised(outputs[roles.boxes]):
        return None
    if graph.channels_last:
        raise Misfit("nothing in the file tells whether x or y comes first in its boxes: a layout file (`order`) does")
    _check_first_class(graph, outputs, roles)
    return f"boxes {roles.boxes} normalised by the input, labels {roles.labels}, scores {roles.scores}"


def _recognise_torchvision(graph: Graph, outputs: Arrays) -> str | None:
    roles = roles_of(outputs)
    if roles is None or _is_sized(graph) or _is_normalised(outputs[roles.boxes]):
        return None
    _check_first_class(graph, outputs, roles)
    unit = "pixels" if as_float32(outputs[roles.boxes]).any() else "pixels (assumed: the trial run had no boxes)"
    return f"boxes {roles.boxes} in {unit}, labels {roles.labels}, scores {roles.scores}, assigned by shape and dtype"


def _is_normalised(boxes: npt.NDArray[Any]) -> bool:
    """Whether there are boxes, and they can only be normalised; padding is zeros."""
    return bool(boxes.any()) and are_normalised(as_float32(boxes).reshape(-1, 4))


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
TFLITE_DETECTION = Layout(
    _recognise_tflite,
    _reader(
        lambda _g, _s: {"placement": "stretch", "scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0)},
        spare="none", yxyx=True, normalised=True,
    ),
    pixels_vary=True,
)  # fmt: skip
SSD = Layout(_recognise_ssd, _reader(_ssd_options, spare="first", normalised=True), pixels_vary=True)
TORCHVISION = Layout(_recognise_torchvision, _reader(lambda _g, _s: {"scale": 1 / 255, "pad": 0}, spare="first"))
PADDLE = Layout(_recognise_paddle, _read_paddle, pixels_vary=True)
