"""Layouts of raw heads of YOLO families: YOLOv8's maps of distances, and Yolo-FastestV2's two levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import class_count, image_size, in_unit_range, level_sizes, metadata_value
from ml_backend.layouts.faces import declared_layout, doubtful
from ml_backend.layouts.layout_file import (
    Anchors,
    Boxes,
    Input,
    Keypoints,
    LayoutFile,
    Objectness,
    Scores,
    Suppression,
)
from ml_backend.layouts.plausibility import Misfit

_STRIDES = (8, 16, 32)

# Bins of each side of a box in YOLOv8's heads.
_BINS = 16


# --- YOLOv8 without its decoding: three maps of 4 x 16 bins, class logits and keypoints -------------------------------


def _yolov8_heads(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    sizes = level_sizes(*image_size(graph), _STRIDES)
    names = []
    for size in sizes:
        matching = [name for name, array in outputs.items() if array.ndim == 4 and array.shape[2:] == size]
        if len(matching) != 1:
            return None
        names.append(matching[0])
    widths = {outputs[name].shape[1] for name in names}
    classes, shape = class_count(graph), metadata_value(graph, "kpt_shape")
    if len(outputs) != 3 or len(widths) != 1 or classes is None:
        return None
    points, values = shape if isinstance(shape, list | tuple) and len(shape) == 2 else (0, 0)
    first = 4 * _BINS
    if widths.pop() != first + classes + points * values:
        return None
    maps = tuple(names)
    keypoints = None
    if points:
        keypoints = Keypoints(
            output=maps, columns=(first + classes, first + classes + points * values), format="yolov8-pose",
            values=3 if values == 3 else 2, activation="sigmoid",
        )  # fmt: skip
    file = LayoutFile(
        input=Input(color="RGB", range="0..1", letterbox="centre", pad=114),
        anchors=Anchors(strides=_STRIDES),
        boxes=Boxes(output=maps, columns=(0, first), format="distances", unit="strides", bins=_BINS),
        scores=Scores(output=maps, columns=(first, first + classes), activation="sigmoid"),
        keypoints=keypoints,
    )
    also = f" and {points} points" if points else ""
    return file, f"three maps of 4 x {_BINS} bins, the {classes} classes of the metadata{also}: YOLOv8 without decoding"


# --- Yolo-FastestV2: box, objectness and class scores of three anchors at strides 16 and 32 ---------------------------

# Fitted to COCO (https://github.com/dog-qiuqiu/Yolo-FastestV2).
FASTESTV2_ANCHORS = (
    ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)), ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
)  # fmt: skip


def _yolo_fastestv2(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    height, width = image_size(graph)
    strides = (16, 32)
    sizes = level_sizes(height, width, strides)
    names = []
    for size in sizes:
        matching = [name for name, array in outputs.items() if array.ndim == 4 and array.shape[1:3] == size]
        if len(matching) != 1:
            return None
        names.append(matching[0])
    widths = {outputs[name].shape[3] for name in names}
    if len(outputs) != 2 or len(widths) != 1:
        return None
    count = widths.pop()
    if count < 16:
        return None
    rows = np.concatenate([as_float32(outputs[name]).reshape(-1, count) for name in names])
    classes = rows[:, 15:]
    if not in_unit_range(rows) or not np.allclose(classes.sum(axis=1), 1, atol=0.02):
        return None
    sizes_of_anchors, reason = _anchors(graph)
    maps = tuple(names)
    file = LayoutFile(
        input=Input(color="BGR", range="0..1", letterbox="stretch"),
        anchors=Anchors(strides=strides, sizes=sizes_of_anchors),
        boxes=Boxes(output=maps, columns=(0, 12), axes="BHWC", format="yolov5", activation="none"),
        objectness=Objectness(output=maps, columns=(12, 15), axes="BHWC"),
        scores=Scores(output=maps, columns=(15, count), axes="BHWC", shared=True),
        suppression=Suppression(iou=0.4),
    )
    why = "two maps of three boxes, three objectnesses and shared class scores that sum to 1 (Yolo-FastestV2)"
    if not reason:
        raise doubtful("its anchors are not in the file, and training fits them to its images", file, why)
    return file, f"{why}; the metadata's anchors"


def _anchors(graph: Graph) -> tuple[Any, bool]:
    declared = metadata_value(graph, "anchors")
    if declared == "":
        return FASTESTV2_ANCHORS, False
    try:
        pairs = np.array(declared, float).reshape(2, 3, 2)
    except (ValueError, TypeError):
        raise Misfit("its metadata `anchors` is not a list of 2 x 3 pairs of pixels") from None
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in pairs), True


YOLOV8_HEADS = declared_layout(_yolov8_heads)
YOLO_FASTESTV2 = declared_layout(_yolo_fastestv2)
