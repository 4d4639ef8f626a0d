"""Layout of raw YOLOv5 and v7 heads: one map per level, anchors not applied yet.

Each map is [batch, 3, rows, columns, 5 + classes] or [batch, 3 x (5 + classes), rows, columns]. Anchor sizes are not in
the shapes: the metadata `anchors` has them (pixels, one list per level), else YOLOv5's COCO anchors are used.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
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
    level_sizes,
    metadata_value,
)
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.ultralytics import ultralytics_spec

# Maximum mean number of likely classes per anchor, absolute and as a share of all classes: files of YOLOv5-face have
# 6.2 to 7.4 of 11 (`python -m bench layouts_found`).
MAX_LIKELY_CLASSES, MAX_LIKELY_SHARE = 2.5, 0.2

# Anchors per cell.
ANCHORS_PER_CELL = 3

STRIDES = {3: (8, 16, 32), 4: (8, 16, 32, 64)}

# Width and height in pixels of each anchor, level by level: YOLOv5's for P5 and P6 models, fitted to COCO.
ANCHORS = {
    3: ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    4: (
        (19, 27, 44, 40, 38, 94), (96, 68, 86, 152, 180, 137), (140, 301, 303, 264, 238, 542),
        (436, 615, 739, 380, 925, 792),
    ),
}  # fmt: skip


def _maps(graph: Graph, outputs: Arrays) -> tuple[str, ...] | None:
    """Output names, finest level first."""
    strides = STRIDES.get(len(outputs))
    if strides is None:
        return None
    names = []
    for size in level_sizes(*image_size(graph), strides):
        matching = [name for name, array in outputs.items() if _size(graph, array) == size]
        if len(matching) != 1:
            return None
        names.append(matching[0])
    widths = {_width(outputs[name]) for name in names}
    return tuple(names) if len(widths) == 1 and widths.pop() >= 6 else None


def _size(graph: Graph, array: npt.NDArray[Any]) -> tuple[int, int] | None:
    if array.ndim == 5 and array.shape[1] == ANCHORS_PER_CELL:
        return array.shape[2], array.shape[3]
    # Maps of other families have the same rank: the number of class names must match.
    if array.ndim == 4 and array.shape[1] == ANCHORS_PER_CELL * (5 + (class_count(graph) or -5)):
        return array.shape[2], array.shape[3]
    return None


def _width(array: npt.NDArray[Any]) -> int:
    return int(array.shape[4]) if array.ndim == 5 else int(array.shape[1]) // ANCHORS_PER_CELL


def _anchors(graph: Graph, levels: int) -> tuple[npt.NDArray[np.float32], str]:
    """Anchors (levels, 3, 2) in pixels, and their source."""
    declared = metadata_value(graph, "anchors")
    if declared == "":
        return np.array(ANCHORS[levels], np.float32).reshape(levels, ANCHORS_PER_CELL, 2), "YOLOv5's own anchors"
    try:
        return np.array(declared, np.float32).reshape(levels, ANCHORS_PER_CELL, 2), "the metadata's anchors"
    except (ValueError, TypeError):
        raise ValueError(
            f"its metadata `anchors` is not a list of {levels} x {ANCHORS_PER_CELL} pairs of pixels"
        ) from None


def _recognise(graph: Graph, outputs: Arrays) -> str | None:
    names = _maps(graph, outputs)
    if names is None:
        return None
    source = _anchors(graph, len(names))[1]
    if class_count(graph) != _width(outputs[names[0]]) - 5:
        _check_classes([outputs[name] for name in names])
    if "anchors" not in graph.metadata:
        source = f"{source}, because {_own_anchors(graph)}"
    width = _width(outputs[names[0]])
    return f"{len(names)} maps of {ANCHORS_PER_CELL} anchors per cell and {width} values each; {source}"


def _own_anchors(graph: Graph) -> str:
    """Why the anchors are YOLOv5's.

    Raises:
        Misfit: They may be others: YOLOv7's heads have the same shapes.
    """
    weights = graph.nodes.weights
    if any(re.match(r"model\.\d+\.(ia|im)\.", name) for name in weights):
        raise Misfit("its weights are named like YOLOv7's, whose anchors differ; metadata `anchors` would tell")
    if any(re.match(r"model\.(24|33)\.m\.", name) for name in weights):
        return "its weights are named like YOLOv5's"
    if "names" in graph.metadata:
        return "YOLOv5's exporter writes names"
    raise Misfit("its anchors are not in the file, and nothing says that they are YOLOv5's")


def _check_classes(maps: Sequence[npt.NDArray[Any]]) -> None:
    """Check unnamed classes: the values behind the objectness must look like class scores.

    YOLOv5-face, YOLOv7-pose and number-plate models have keypoint coordinates there. At most one or two classes are
    likely per anchor; coordinates, read as logits, are all about half likely.

    Raises:
        Misfit: The values are not class scores.
    """
    rows = np.concatenate(
        [
            np.moveaxis(as_float32(level_map), 4, -1).reshape(-1, level_map.shape[4])
            for level_map in maps
            if level_map.ndim == 5
        ]
    )
    classes = rows.shape[1] - 5
    if in_unit_range(rows[:, :5]) != in_unit_range(rows[:, 5:]):
        raise Misfit(
            f"of the {rows.shape[1]} values per anchor, only the first five or only the others went through a sigmoid: "
            f"those are not scores of {classes} classes"
        )
    likely = rows[:, 5:] if in_unit_range(rows) else expit(rows[:, 5:])
    likely_count = float(likely.sum(axis=1).mean())
    if likely_count > max(MAX_LIKELY_CLASSES, MAX_LIKELY_SHARE * classes):
        raise Misfit(
            f"its {rows.shape[1]} values per anchor would be a box, an objectness and {classes} classes, of which "
            f"{likely_count:.1f} are likely at every anchor of a grey image: they are keypoints, as in YOLOv5-face, "
            "or other values"
        )


def _read(graph: Graph, outputs: Arrays) -> OutputReader:
    names = _maps(graph, outputs)
    if names is None:
        raise ValueError("it has no maps [batch, 3, rows, columns, 5 + classes], one per level of strides 8, 16, 32")
    strides = STRIDES[len(names)]
    anchors, _ = _anchors(graph, len(names))
    activated = all(in_unit_range(outputs[name]) for name in names)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        levels = [
            _level(as_float32(arrays[name]), stride, anchor, activated=activated)
            for name, stride, anchor in zip(names, strides, anchors, strict=True)
        ]
        detections = []
        for rows in np.concatenate(levels, axis=1):
            likely = rows[rows[:, 4] >= floor]
            detections.append(best_class(cxcywh_to_xyxy(likely[:, :4]), likely[:, 4:5] * likely[:, 5:], floor))
        return detections

    return OutputReader(ultralytics_spec(graph), _width(outputs[names[0]]) - 5, decode, names)


def _level(maps: Floats, stride: int, anchor: Floats, *, activated: bool) -> Floats:
    """Decode to (b, n, 5 + classes): centre = (2 s - 0.5 + cell) x stride, sides = (2 s)^2 x anchor, s the sigmoid."""
    if maps.ndim == 4:
        count, _, rows, columns = maps.shape
        maps = maps.reshape(count, ANCHORS_PER_CELL, -1, rows, columns).transpose(0, 1, 3, 4, 2)
    values = maps.copy() if activated else expit(maps)
    y, x = np.mgrid[: maps.shape[2], : maps.shape[3]].astype(np.float32)
    cells = np.stack([x, y], axis=-1)
    values[..., :2] = (2 * values[..., :2] - 0.5 + cells) * stride
    values[..., 2:4] = (2 * values[..., 2:4]) ** 2 * anchor[:, None, None]
    return np.asarray(values.reshape(len(maps), -1, maps.shape[4]), np.float32)


YOLOV5_HEADS = Layout(_recognise, _read)
