"""Owns the layout of YOLOv5's and v7's heads as they leave the network: one map a level, anchors not applied yet.

Each is [batch, 3, rows, columns, 5 + classes] or [batch, 3 x (5 + classes), rows, columns]. What an anchor's sides are
is in no shape: the metadata `anchors` says it (pixels, a list a level), else YOLOv5's own for COCO are taken.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    Layout,
    Reader,
    best_class,
    from_centre,
    image_size,
    is_share,
    level_sizes,
    named,
    sigmoid,
    told,
)
from ml_backend.layouts.plausibility import Misfit
from ml_backend.layouts.ultralytics import ultralytics_spec

MOST_LIKELY, LIKELY_SHARE = 2.5, 0.2
"""Classes that may be likely at one place, and the share of all of them: a file of YOLOv5-face has 6.2 to 7.4 of 11
(`python -m bench layouts_found`)."""

EACH = 3
"""Anchors a cell."""

STRIDES = {3: (8, 16, 32), 4: (8, 16, 32, 64)}

ANCHORS = {
    3: ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    4: (
        (19, 27, 44, 40, 38, 94), (96, 68, 86, 152, 180, 137), (140, 301, 303, 264, 238, 542),
        (436, 615, 739, 380, 925, 792),
    ),
}  # fmt: skip
"""Width and height in pixels of each anchor, level by level: YOLOv5's for P5 and P6 models, fitted to COCO."""


def _maps(graph: Graph, seen: Arrays) -> tuple[str, ...] | None:
    """Names of the outputs from fine to coarse."""
    strides = STRIDES.get(len(seen))
    if strides is None:
        return None
    names = []
    for size in level_sizes(*image_size(graph), strides):
        fitting = [name for name, array in seen.items() if _size(graph, array) == size]
        if len(fitting) != 1:
            return None
        names.append(fitting[0])
    widths = {_width(seen[name]) for name in names}
    return tuple(names) if len(widths) == 1 and widths.pop() >= 6 else None


def _size(graph: Graph, array: npt.NDArray[Any]) -> tuple[int, int] | None:
    if array.ndim == 5 and array.shape[1] == EACH:
        return array.shape[2], array.shape[3]
    # Maps of other families look alike: here the names of the classes have to say how many numbers there are.
    if array.ndim == 4 and array.shape[1] == EACH * (5 + (named(graph) or -5)):
        return array.shape[2], array.shape[3]
    return None


def _width(array: npt.NDArray[Any]) -> int:
    return int(array.shape[4]) if array.ndim == 5 else int(array.shape[1]) // EACH


def _anchors(graph: Graph, levels: int) -> tuple[npt.NDArray[np.float32], str]:
    """(levels, 3, 2) pixels, and where they are from."""
    said = told(graph, "anchors")
    if said == "":
        return np.array(ANCHORS[levels], np.float32).reshape(levels, EACH, 2), "YOLOv5's own anchors"
    try:
        return np.array(said, np.float32).reshape(levels, EACH, 2), "the metadata's anchors"
    except (ValueError, TypeError):
        raise ValueError(f"its metadata `anchors` is no list of {levels} x {EACH} pairs of pixels") from None


def _recognise(graph: Graph, seen: Arrays) -> str | None:
    names = _maps(graph, seen)
    if names is None:
        return None
    source = _anchors(graph, len(names))[1]
    if named(graph) != _width(seen[names[0]]) - 5:
        _check_classes([seen[name] for name in names])
    return f"{len(names)} maps of {EACH} anchors a cell and {_width(seen[names[0]])} numbers each; {source}"


def _check_classes(maps: Sequence[npt.NDArray[Any]]) -> None:
    """What follows the objectness must look like scores of classes where nothing names these.

    YOLOv5-face, YOLOv7-pose and models of number plates have coordinates of points there. Of classes at most one or two
    are likely at a place; coordinates, read as logits, are all likely by half.

    Raises:
        Misfit: They are no scores of classes.
    """
    rows = np.concatenate(
        [np.moveaxis(as_float32(one), 4, -1).reshape(-1, one.shape[4]) for one in maps if one.ndim == 5]
    )
    classes = rows.shape[1] - 5
    if is_share(rows[:, :5]) != is_share(rows[:, 5:]):
        raise Misfit(
            f"of the {rows.shape[1]} numbers an anchor the first five went through a sigmoid and the others did not, "
            f"or the reverse: those are no scores of {classes} classes"
        )
    likely = rows[:, 5:] if is_share(rows) else sigmoid(rows[:, 5:])
    many = float(likely.sum(axis=1).mean())
    if many > max(MOST_LIKELY, LIKELY_SHARE * classes):
        raise Misfit(
            f"its {rows.shape[1]} numbers an anchor would be a box, an objectness and {classes} classes, of which "
            f"{many:.1f} are likely at every place of a grey photo: they are points, as YOLOv5-face has them, or others"
        )


def _read(graph: Graph, seen: Arrays) -> Reader:
    names = _maps(graph, seen)
    if names is None:
        raise ValueError("it has no maps [batch, 3, rows, columns, 5 + classes], one a level of strides 8, 16, 32")
    strides = STRIDES[len(names)]
    anchors, _ = _anchors(graph, len(names))
    squashed = all(is_share(seen[name]) for name in names)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        levels = [
            _level(as_float32(arrays[name]), stride, anchor, squashed=squashed)
            for name, stride, anchor in zip(names, strides, anchors, strict=True)
        ]
        found = []
        for rows in np.concatenate(levels, axis=1):
            likely = rows[rows[:, 4] >= floor]
            found.append(best_class(from_centre(likely[:, :4]), likely[:, 4:5] * likely[:, 5:], floor))
        return found

    return Reader(ultralytics_spec(graph), _width(seen[names[0]]) - 5, decode, names)


def _level(maps: Floats, stride: int, anchor: Floats, *, squashed: bool) -> Floats:
    """(b, n, 5 + classes): centre = (2 s - 0.5 + cell) x stride, sides = (2 s)^2 x anchor, s the sigmoid."""
    if maps.ndim == 4:
        count, _, rows, columns = maps.shape
        maps = maps.reshape(count, EACH, -1, rows, columns).transpose(0, 1, 3, 4, 2)
    shares = maps.copy() if squashed else sigmoid(maps)
    y, x = np.mgrid[: maps.shape[2], : maps.shape[3]].astype(np.float32)
    cells = np.stack([x, y], axis=-1)
    shares[..., :2] = (2 * shares[..., :2] - 0.5 + cells) * stride
    shares[..., 2:4] = (2 * shares[..., 2:4]) ** 2 * anchor[:, None, None]
    return np.asarray(shares.reshape(len(maps), -1, maps.shape[4]), np.float32)


YOLOV5_HEADS = Layout(_recognise, _read)
