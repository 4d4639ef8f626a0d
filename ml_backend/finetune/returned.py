"""Check a model that was trained elsewhere: its weights are taken into our own copy of the graph, nothing else is.

The file comes from another machine. It is parsed as ONNX (protobuf; nothing is unpickled or executed), and must have
the nodes and the tensors of the graph that was handed out, with the project's class layers. What is served is our own
graph with the weights that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from labelloop.service.errors import LabelloopError
from ml_backend.finetune.classes import load_source, with_classes
from ml_backend.finetune.graph import Weights
from ml_backend.inference.detector import load_detector


class ReturnedModelRefused(LabelloopError):
    """A trainer handed back something else than the model with new weights."""

    code = "returned_model_refused"
    status = 422
    message = "The model that the trainer handed back is refused: {reason}."
    fix = "Run `labelloop trainer` in the same version as the ML backend; nothing of the file is served."
    reason: str


def with_returned_weights(parent: Path, returned: bytes, names: Sequence[str], *, layout: str = "") -> onnx.ModelProto:
    """Build the parent's graph with the project's classes and the weights of a returned file.

    Args:
        parent: The model that was handed out.
        returned: The file that came back.
        names: The project's classes, in their order.
        layout: Forced layout of the parent; empty: recognised.

    Raises:
        ReturnedModelRefused: The file is no such model.
        ModelError: The parent cannot be loaded.
    """
    model = with_classes(
        load_detector(parent, layout=layout, threads=1, allow_numbered=True), load_source(parent), names
    )
    try:
        other = onnx.load_model_from_string(returned)
    except Exception as error:  # protobuf's errors have no base class of their own
        raise ReturnedModelRefused(reason=f"it is not ONNX ({type(error).__name__})") from error
    if len(other.graph.node) != len(model.graph.node):
        raise ReturnedModelRefused(reason=f"it has {len(other.graph.node)} nodes, not {len(model.graph.node)}")
    for ours, theirs in zip(model.graph.node, other.graph.node, strict=True):
        if _signature(ours) != _signature(theirs):
            raise ReturnedModelRefused(reason=f"its node {theirs.name or theirs.op_type!r} differs")
    own, new = Weights.of(model), Weights.of(other)
    if own.stored.keys() != new.stored.keys():
        odd = sorted(own.stored.keys() ^ new.stored.keys())[:3]
        raise ReturnedModelRefused(reason=f"its tensors differ: {', '.join(odd)}")
    for name, tensor in own.stored.items():
        _take(own, name, tensor, new.stored[name])
    return model


def _signature(node: onnx.NodeProto) -> tuple[object, ...]:
    """All of a node but the values of a constant, which are compared as tensors."""
    attributes = sorted(
        (entry.name, entry.SerializeToString(deterministic=True)) for entry in node.attribute if not entry.HasField("t")
    )
    return node.op_type, node.domain, tuple(node.input), tuple(node.output), tuple(attributes)


def _take(own: Weights, name: str, ours: onnx.TensorProto, theirs: onnx.TensorProto) -> None:
    """Take the values of one tensor."""
    if theirs.external_data or theirs.data_location == onnx.TensorProto.EXTERNAL:
        raise ReturnedModelRefused(reason=f"its tensor {name} lies in another file")
    if ours.data_type != theirs.data_type or list(ours.dims) != list(theirs.dims):
        raise ReturnedModelRefused(reason=f"its tensor {name} has another shape or type")
    try:
        before, after = numpy_helper.to_array(ours), numpy_helper.to_array(theirs)
    except Exception as error:  # numpy and onnx raise what a truncated tensor gives
        raise ReturnedModelRefused(reason=f"its tensor {name} cannot be read") from error
    if before.shape != after.shape:
        raise ReturnedModelRefused(reason=f"its tensor {name} has another shape")
    if not np.issubdtype(before.dtype, np.floating):
        if not np.array_equal(before, after):
            raise ReturnedModelRefused(reason=f"its tensor {name}, which is not trained, differs")
        return
    if not np.isfinite(after).all():
        raise ReturnedModelRefused(reason=f"its tensor {name} has values that are not finite")
    own.write(name, after)
