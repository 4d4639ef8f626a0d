"""Export a backbone with a fitted head as one plain ONNX model.

The outputs are those of the layout `labelloop`; `objectness` is 1, since the head's scores are complete. The head is
the arithmetic of `LinearHead` in double precision, so both return the same bits.
"""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import onnx

from ml_backend.detection.logits import PROB_EPS
from ml_backend.layouts.labelloop import CALIBRATIONS_KEY, EMBEDDINGS, TILES_KEY
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.linear_head import MAX_BOX_DELTA, MAX_LOGIT, MIN_SIDE, MIN_SPREAD, Doubles, LinearHead
from ml_backend.training.onnx_builder import GraphBuilder


def write_learned(path: Path, backbone: FrozenBackbone, head: LinearHead) -> None:
    """Write the model atomically.

    Args:
        path: The file, `.onnx`.
        backbone: The backbone that the head was fitted on.
        head: The last layer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    onnx.save(learned_model(backbone, head), partial)
    partial.replace(path)


def learned_model(backbone: FrozenBackbone, head: LinearHead) -> onnx.ModelProto:
    """Build the backbone's graph with the head in place of its last layer; features stay outputs."""
    nodes = GraphBuilder(onnx.load(backbone.detector.path), prefix="head")
    for name in ("boxes", "objectness", "scores"):
        nodes.rename_output(name, f"backbone.{name}")
    nodes.drop_outputs("boxes", "objectness", "scores")
    double = {
        name: nodes.cast(name, np.float64)
        for name in ("backbone.boxes", "backbone.objectness", "backbone.scores", EMBEDDINGS)
    }
    features = _feature_matrix(nodes, double, head)
    ends = np.cumsum(head.levels).tolist()
    logits = [
        _apply(nodes, nodes.rows(features, stop - size, stop), weights, bias)
        for size, stop, weights, bias in zip(head.levels, ends, head.weights, head.bias, strict=True)
    ]
    exponentials = nodes.add("Exp", nodes.add("Neg", _clip(nodes, nodes.concat(logits, axis=1), MAX_LOGIT)))
    unit = nodes.constant(np.ones(1))
    scores = nodes.add("Div", unit, nodes.add("Add", unit, exponentials))
    if head.backbone_classes:
        pretrained = nodes.add(
            "Gather", double["backbone.scores"], nodes.constant(np.array(head.backbone_classes, np.int64)), axis=2
        )
        objectness = nodes.reshape(double["backbone.objectness"], (0, -1, 1))
        scores = nodes.concat([scores, nodes.add("Mul", pretrained, objectness)], axis=2)
    nodes.cast(scores, np.float32, name="scores")
    if head.box_regressor is None:
        nodes.add("Identity", "backbone.boxes", name="boxes")
    else:
        deltas = _apply(nodes, features, head.box_regressor[:-1], head.box_regressor[-1])
        _apply_box_deltas(nodes, double["backbone.boxes"], deltas)
    zeros = nodes.add("Sub", "backbone.objectness", "backbone.objectness")
    nodes.add("Add", zeros, nodes.constant(np.ones(1, np.float32)), name="objectness")
    count = sum(head.levels)
    nodes.output("boxes", ("batch", count, 4))
    nodes.output("objectness", ("batch", count))
    nodes.output("scores", ("batch", count, len(head.names)))
    calibrations = [calibration and astuple(calibration) for calibration in head.calibrations]
    tiles = {TILES_KEY: head.tiles} if head.tiles > 1 else {}
    nodes.set_metadata(
        names=list(head.names), learned_from=backbone.version, **{CALIBRATIONS_KEY: calibrations}, **tiles
    )
    return nodes.build()


def _feature_matrix(nodes: GraphBuilder, double: dict[str, str], head: LinearHead) -> str:
    """`linear_head.feature_matrix` as nodes."""
    ends = np.cumsum(head.levels).tolist()
    parts = [
        _standardise(nodes, nodes.rows(double[EMBEDDINGS], stop - size, stop), size)
        for size, stop in zip(head.levels, ends, strict=True)
    ]
    sides = nodes.add("Log", _sides(nodes, double["backbone.boxes"]))
    bounds = (nodes.constant(np.array([bound])) for bound in (PROB_EPS, 1 - PROB_EPS))
    low, high = bounds
    probabilities = objectness = nodes.reshape(double["backbone.objectness"], (0, -1, 1))
    if head.prior_classes:
        prior_scores = nodes.add(
            "Gather", double["backbone.scores"], nodes.constant(np.array(head.prior_classes, np.int64)), axis=2
        )
        probabilities = nodes.concat([objectness, nodes.add("Mul", prior_scores, objectness)], axis=2)
    probabilities = nodes.add("Min", nodes.add("Max", probabilities, low), high)
    complement = nodes.add("Sub", nodes.constant(np.ones(1)), probabilities)
    logits = nodes.add("Log", nodes.add("Div", probabilities, complement))
    return nodes.concat([nodes.concat(parts, axis=1), sides, nodes.add("Mul", sides, sides), logits], axis=2)


def _sides(nodes: GraphBuilder, boxes: str) -> str:
    sides = nodes.add("Sub", nodes.columns(boxes, 2, 4), nodes.columns(boxes, 0, 2))
    return nodes.add("Max", sides, nodes.constant(np.array([MIN_SIDE])))


def _standardise(nodes: GraphBuilder, features: str, size: int) -> str:
    """`linear_head.standardise` as nodes; the mean is a product with a constant row, which every opset supports."""
    mean = nodes.constant(np.full((1, 1, size), 1 / size))
    centred = nodes.add("Sub", features, nodes.add("MatMul", mean, features))
    deviation = nodes.add("Sqrt", nodes.add("MatMul", mean, nodes.add("Mul", centred, centred)))
    return nodes.add("Div", centred, nodes.add("Add", deviation, nodes.constant(np.array([MIN_SPREAD]))))


def _apply(nodes: GraphBuilder, features: str, weights: Doubles, bias: Doubles) -> str:
    return nodes.add("Add", nodes.add("MatMul", features, nodes.constant(weights)), nodes.constant(bias))


def _clip(nodes: GraphBuilder, tensor: str, bound: float) -> str:
    """Clip to [-bound, bound]."""
    low, high = (nodes.constant(np.array([limit])) for limit in (-bound, bound))
    return nodes.add("Min", nodes.add("Max", tensor, low), high)


def _apply_box_deltas(nodes: GraphBuilder, boxes: str, deltas: str) -> None:
    """`linear_head.apply_box_deltas` as nodes."""
    bounded = _clip(nodes, deltas, MAX_BOX_DELTA)
    sides = _sides(nodes, boxes)
    two = nodes.constant(np.array([2.0]))
    middle = nodes.add("Div", nodes.add("Add", nodes.columns(boxes, 0, 2), nodes.columns(boxes, 2, 4)), two)
    centre = nodes.add("Add", middle, nodes.add("Mul", nodes.columns(bounded, 0, 2), sides))
    grown = nodes.add("Mul", sides, nodes.add("Exp", nodes.columns(bounded, 2, 4)))
    half = nodes.add("Div", grown, two)
    corners = nodes.concat([nodes.add("Sub", centre, half), nodes.add("Add", centre, half)], axis=2)
    nodes.cast(corners, np.float32, name="boxes")
