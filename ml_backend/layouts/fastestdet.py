"""Owns the layout of FastestDet: one map [batch, 5 + classes, rows, columns], one box a cell."""

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import (
    Layout,
    Reader,
    best_class,
    from_centre,
    image_size,
    is_share,
    named,
    only,
    plain_spec,
    sides,
)
from ml_backend.layouts.plausibility import Misfit


def _recognise(graph: Graph, seen: Arrays) -> str | None:
    array = only(seen, 4)
    if array is None or array.shape[1] < 6 or named(graph) not in {None, array.shape[1] - 5}:
        return None
    height, width = image_size(graph)
    if array.shape[2:] != (height // 16, width // 16) or not (is_share(array[:, :1]) and is_share(array[:, 5:])):
        return None
    if is_share(array[:, 1:5]):
        raise Misfit(f"all {array.shape[1]} planes lie in 0..1, and four of them would be a box's raw numbers")
    return f"one map of {array.shape[2]} x {array.shape[3]} cells at stride 16: presence, box and class scores"


def _read(graph: Graph, seen: Arrays) -> Reader:
    array = only(seen, 4)
    if array is None or array.shape[1] < 6:
        raise ValueError("it has no single output [batch, 5 + classes, rows, columns]")
    name = next(iter(seen))
    # Its own program stretches the photo; with its proportions kept it finds more (bench/layouts.py).
    spec = plain_spec(graph, color="BGR", scale=1 / 255)
    scale = sides(spec)

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        """Score = presence^0.6 x class^0.4; centre = cell + tanh, sides = sigmoid, both as shares of the input."""
        found = []
        for planes in as_float32(arrays[name]):
            rows, columns = planes.shape[1:]
            best = planes[5:].max(axis=0)
            scores = np.maximum(planes[0], 0) ** 0.6 * np.maximum(best, 0) ** 0.4
            y, x = np.nonzero(scores >= floor)
            cell = planes[:, y, x].T
            centre = (np.stack([x, y], axis=1) + np.tanh(cell[:, 1:3])) / [columns, rows]
            side = 1 / (1 + np.exp(-cell[:, 3:5]))
            boxes = from_centre(np.concatenate([centre, side], axis=1) * scale)
            powers = (np.maximum(cell[:, :1], 0) ** 0.6) * np.maximum(cell[:, 5:], 0) ** 0.4
            found.append(best_class(boxes, np.asarray(powers, np.float32), floor))
        return found

    return Reader(spec, array.shape[1] - 5, decode, (name,))


FASTESTDET = Layout(_recognise, _read)
