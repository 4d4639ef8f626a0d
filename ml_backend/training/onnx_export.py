"""Owns the learned model as a file: a backbone and a fitted head in one plain ONNX that runs anywhere.

The outputs are those of the layout `labelloop`; `objectness` is 1, since the head's own scores are complete. The head
is written as the arithmetic of `head.Head`, in double precision, so that its answers are the same to the bit.
"""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import onnx

from ml_backend.detection.box_voting import PROB_EPS
from ml_backend.layouts.labelloop import LINES
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.feature_export import EMBEDDINGS
from ml_backend.training.linear_head import LEAST_SPREAD, MOST_ODDS, MOST_SHIFT, SMALLEST_SIDE, Doubles, Head
from ml_backend.training.onnx_builder import Nodes


def write_learned(path: Path, backbone: FrozenBackbone, head: Head) -> None:
    """Writes the model; the file appears whole or not at all.

    Args:
        path: The file, `.onnx`.
        backbone: What the head was fitted on.
        head: The last layer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    onnx.save(learned_model(backbone, head), partial)
    partial.replace(path)


def learned_model(backbone: FrozenBackbone, head: Head) -> onnx.ModelProto:
    """The graph of the backbone with the head in place of its last layer; `embeddings` stays an output."""
    nodes = Nodes(onnx.load(backbone.detector.path), prefix="head")
    for name in ("boxes", "objectness", "scores"):
        nodes.rename_output(name, f"backbone.{name}")
    nodes.drop_outputs("boxes", "objectness", "scores")
    double = {
        name: nodes.cast(name, np.float64)
        for name in ("backbone.boxes", "backbone.objectness", "backbone.scores", EMBEDDINGS)
    }
    seen = _describe(nodes, double, head)
    ends = np.cumsum(head.levels).tolist()
    odds = [
        _apply(nodes, nodes.rows(seen, stop - size, stop), weights, bias)
        for size, stop, weights, bias in zip(head.levels, ends, head.weights, head.bias, strict=True)
    ]
    powers = nodes.add("Exp", nodes.add("Neg", _between(nodes, nodes.concat(odds, axis=1), MOST_ODDS)))
    one = nodes.constant(np.ones(1))
    chances = nodes.add("Div", one, nodes.add("Add", one, powers))
    if head.known:
        kept = nodes.add("Gather", double["backbone.scores"], nodes.constant(np.array(head.known, np.int64)), axis=2)
        presence = nodes.reshape(double["backbone.objectness"], (0, -1, 1))
        chances = nodes.concat([chances, nodes.add("Mul", kept, presence)], axis=2)
    nodes.cast(chances, np.float32, name="scores")
    if head.shift is None:
        nodes.add("Identity", "backbone.boxes", name="boxes")
    else:
        shift = _apply(nodes, seen, head.shift[:-1], head.shift[-1])
        _move(nodes, double["backbone.boxes"], shift)
    whole = nodes.add("Sub", "backbone.objectness", "backbone.objectness")
    nodes.add("Add", whole, nodes.constant(np.ones(1, np.float32)), name="objectness")
    count = sum(head.levels)
    nodes.output("boxes", ("batch", count, 4))
    nodes.output("objectness", ("batch", count))
    nodes.output("scores", ("batch", count, len(head.names)))
    lines = [line and astuple(line) for line in head.lines]
    nodes.tell(names=list(head.names), learned_from=backbone.version, **{LINES: lines})
    return nodes.close()


def _describe(nodes: Nodes, double: dict[str, str], head: Head) -> str:
    """`head.describe`."""
    ends = np.cumsum(head.levels).tolist()
    parts = [
        _standardise(nodes, nodes.rows(double[EMBEDDINGS], stop - size, stop), size)
        for size, stop in zip(head.levels, ends, strict=True)
    ]
    sides = nodes.add("Log", _sides(nodes, double["backbone.boxes"]))
    certain = (nodes.constant(np.array([bound])) for bound in (PROB_EPS, 1 - PROB_EPS))
    low, high = certain
    chances = presence = nodes.reshape(double["backbone.objectness"], (0, -1, 1))
    if head.prior:
        told = nodes.add("Gather", double["backbone.scores"], nodes.constant(np.array(head.prior, np.int64)), axis=2)
        chances = nodes.concat([presence, nodes.add("Mul", told, presence)], axis=2)
    chances = nodes.add("Min", nodes.add("Max", chances, low), high)
    absence = nodes.add("Sub", nodes.constant(np.ones(1)), chances)
    odds = nodes.add("Log", nodes.add("Div", chances, absence))
    return nodes.concat([nodes.concat(parts, axis=1), sides, nodes.add("Mul", sides, sides), odds], axis=2)


def _sides(nodes: Nodes, boxes: str) -> str:
    sides = nodes.add("Sub", nodes.columns(boxes, 2, 4), nodes.columns(boxes, 0, 2))
    return nodes.add("Max", sides, nodes.constant(np.array([SMALLEST_SIDE])))


def _standardise(nodes: Nodes, part: str, size: int) -> str:
    """`head.standardise`; a mean is a product with a row of ones, whose form is the same in every opset."""
    mean = nodes.constant(np.full((1, 1, size), 1 / size))
    away = nodes.add("Sub", part, nodes.add("MatMul", mean, part))
    deviation = nodes.add("Sqrt", nodes.add("MatMul", mean, nodes.add("Mul", away, away)))
    return nodes.add("Div", away, nodes.add("Add", deviation, nodes.constant(np.array([LEAST_SPREAD]))))


def _apply(nodes: Nodes, seen: str, weights: Doubles, bias: Doubles) -> str:
    return nodes.add("Add", nodes.add("MatMul", seen, nodes.constant(weights)), nodes.constant(bias))


def _between(nodes: Nodes, tensor: str, bound: float) -> str:
    """Cut to [-bound, bound]."""
    low, high = (nodes.constant(np.array([one])) for one in (-bound, bound))
    return nodes.add("Min", nodes.add("Max", tensor, low), high)


def _move(nodes: Nodes, boxes: str, shift: str) -> None:
    """`head.move`."""
    bounded = _between(nodes, shift, MOST_SHIFT)
    sides = _sides(nodes, boxes)
    two = nodes.constant(np.array([2.0]))
    middle = nodes.add("Div", nodes.add("Add", nodes.columns(boxes, 0, 2), nodes.columns(boxes, 2, 4)), two)
    centre = nodes.add("Add", middle, nodes.add("Mul", nodes.columns(bounded, 0, 2), sides))
    grown = nodes.add("Mul", sides, nodes.add("Exp", nodes.columns(bounded, 2, 4)))
    half = nodes.add("Div", grown, two)
    corners = nodes.concat([nodes.add("Sub", centre, half), nodes.add("Add", centre, half)], axis=2)
    nodes.cast(corners, np.float32, name="boxes")
