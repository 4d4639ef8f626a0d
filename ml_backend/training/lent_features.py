"""Features of whole images for a graph that has none of its own: those of the embedded model, as a second branch.

A quantised graph, or one without convolutions, has no feature map to pool. Its input, which every detector gets anyway,
is converted to that of the embedded model; the backbone of the embedded model then gives its maps in the same run. So
versions learned on such a graph are single files, and are served, swapped and rolled back like any other.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from ml_backend.detection.onnx_graph import Graph
from ml_backend.detection.preprocess import InputSpec
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import Detector
from ml_backend.training.image_features import FeatureTensor, add_image_features
from ml_backend.training.onnx_builder import GraphBuilder

# Metadata key of a graph whose features of images are those of the embedded model: why it has none of its own.
LENT = "labelloop.lent"

# Prefix of the tensors of the embedded model.
PREFIX = "labelloop.lender."

# Lowest opset whose operations are those of the branch.
MIN_OPSET = 11

# Shorter side in pixels below which the embedded model's convolutions have nothing left to read.
MIN_SIDE = 64


def add_lent_features(
    nodes: GraphBuilder,
    detector: Detector,
    lender: Detector,
    model: onnx.ModelProto,
    tensors: Sequence[FeatureTensor],
    *,
    reason: str,
) -> None:
    """Add the backbone of another model, and its features of the image as an output.

    Args:
        nodes: The graph that gets them.
        detector: Its model.
        lender: The model whose backbone is added.
        model: The lender's graph.
        tensors: The lender's maps that are pooled.
        reason: Why the graph has no features of its own; kept in its metadata.

    Raises:
        NotLearnable: The opset of the graph is too old.
    """
    opset = next((entry.version for entry in nodes.model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    if opset < MIN_OPSET:
        raise NotLearnable(
            path=detector.path,
            reason=f"{reason}, and its opset {opset} is too old for the features of the embedded model",
        )
    graph = detector.engine.graph
    assert graph.image is not None
    assert lender.engine.graph.image is not None
    pixels = _pixels(nodes, graph, detector.spec)
    seen = _shown_to(nodes, pixels, lender.spec, detector.spec)
    names = _append_backbone(nodes, model, lender.engine.graph.image.name, seen, [name for name, _ in tensors])
    add_image_features(nodes, [(names[name], shape) for name, shape in tensors])
    nodes.set_metadata(**{LENT: reason})


def _pixels(nodes: GraphBuilder, graph: Graph, spec: InputSpec) -> str:
    """Add the input as RGB of 0 to 255, (b, 3, h, w) float32."""
    assert graph.image is not None
    tensor = nodes.to_float32(graph.image.name)
    if not graph.batched:
        tensor = nodes.reshape(tensor, (1, *(-1 if side is None else side for side in graph.image.shape)))
    if graph.channels_last:
        tensor = nodes.transpose(tensor, (0, 3, 1, 2))
    tensor = nodes.add("Mul", tensor, nodes.constant(_per_channel(spec.std)))
    tensor = nodes.add("Add", tensor, nodes.constant(_per_channel(spec.mean)))
    tensor = nodes.add("Div", tensor, nodes.constant(np.array(spec.scale, np.float32)))
    return _swapped(nodes, tensor) if spec.color == "BGR" else tensor


def _shown_to(nodes: GraphBuilder, pixels: str, spec: InputSpec, shown: InputSpec) -> str:
    """Resize pixels of the input format `shown` to the longer side of `spec`, and normalise them as it says.

    Very long inputs, such as those of lines of text, become larger: their shorter side has at least `MIN_SIDE` pixels.
    """
    sides = shown.height, shown.width
    scale = max(max(spec.height, spec.width) / max(sides), MIN_SIDE / min(sides))
    # A little more than the side: the runtime rounds the product down.
    scales = [(round(side * scale) + 0.25) / side for side in sides]
    no_region, scaled = (nodes.constant(np.array(values, np.float32)) for values in ([], [1, 1, *scales]))
    tensor = nodes.add("Resize", pixels, no_region, scaled, mode="linear", coordinate_transformation_mode="half_pixel")
    if spec.color == "BGR":
        tensor = _swapped(nodes, tensor)
    tensor = nodes.add("Mul", tensor, nodes.constant(np.array(spec.scale, np.float32)))
    tensor = nodes.add("Sub", tensor, nodes.constant(_per_channel(spec.mean)))
    return nodes.add("Div", tensor, nodes.constant(_per_channel(spec.std)))


def _append_backbone(
    nodes: GraphBuilder, model: onnx.ModelProto, image: str, seen: str, outputs: Sequence[str]
) -> dict[str, str]:
    """Append the operations that lead to `outputs` of a model, with `seen` as its input; return their names."""
    needed = set(outputs)
    chosen = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            chosen.append(node)
            needed |= set(node.input)
    names = {image: seen}
    for tensor in model.graph.initializer:
        if tensor.name in needed:
            copied = nodes.model.graph.initializer.add()
            copied.CopyFrom(tensor)
            copied.name = names[tensor.name] = f"{PREFIX}{tensor.name}"
    for node in reversed(chosen):
        names |= {output: f"{PREFIX}{output}" for output in node.output if output}
        added = nodes.model.graph.node.add()
        added.CopyFrom(node)
        added.name = f"{PREFIX}{node.name or node.output[0]}"
        added.input[:] = [names.get(name, name) for name in node.input]
        added.output[:] = [names.get(name, name) for name in node.output]
    return {name: names[name] for name in outputs}


def _per_channel(values: Sequence[float]) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(values, np.float32).reshape(1, 3, 1, 1)


def _swapped(nodes: GraphBuilder, tensor: str) -> str:
    return nodes.add("Gather", tensor, nodes.constant(np.array([2, 1, 0], np.int64)), axis=1)
