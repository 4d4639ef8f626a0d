"""Owns STANDARD: how boxes, objectness and scores of a layout are written as ONNX operations.

A learned model has the outputs of the layout `labelloop` whatever it was made from, so that it runs anywhere without
our decoding. To make another layout learnable, write its decoding as nodes here, the same arithmetic as in `layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ml_backend.graph import Graph
from ml_backend.layouts import image_size, yolox_grid
from ml_backend.nodes import Nodes


def _labelloop(nodes: Nodes, graph: Graph, names: tuple[str, ...]) -> None:
    """Has these outputs already."""
    del nodes, graph, names


def _yolox(nodes: Nodes, graph: Graph, names: tuple[str, ...]) -> None:
    """As `layouts._decode_yolox`: centre = (offset + cell) x stride, side = exp(raw) x stride."""
    height, width = image_size(graph)
    cells, strides = yolox_grid(height, width)
    raw = nodes.cast(nodes.outputs[0], np.float32)
    stride = nodes.constant(strides)
    centre = nodes.add("Mul", nodes.add("Add", nodes.columns(raw, 0, 2), nodes.constant(cells)), stride)
    sides = nodes.add("Exp", nodes.add("Min", nodes.columns(raw, 2, 4), nodes.constant(np.array([20], np.float32))))
    half = nodes.add("Mul", sides, nodes.constant(strides / 2))
    nodes.concat([nodes.add("Sub", centre, half), nodes.add("Add", centre, half)], axis=2, name="boxes")
    nodes.reshape(nodes.columns(raw, 4, 5), (0, -1), name="objectness")
    nodes.columns(raw, 5, 5 + len(names), name="scores")
    nodes.drop_outputs(*nodes.outputs)
    nodes.output("boxes", ("batch", len(cells), 4))
    nodes.output("objectness", ("batch", len(cells)))
    nodes.output("scores", ("batch", len(cells), len(names)))
    size = {"size": [height, width], "layout": "NCHW"}
    nodes.tell(names=list(names), input={**size, "color": "BGR", "range": "0..255", "letterbox": "top-left, pad 114"})


STANDARD: Mapping[str, Callable[[Nodes, Graph, tuple[str, ...]], None]] = {"labelloop": _labelloop, "yolox": _yolox}
"""Layout -> what adds the outputs `boxes`, `objectness`, `scores` and the metadata of the layout `labelloop`."""
