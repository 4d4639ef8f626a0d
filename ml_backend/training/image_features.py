"""Frozen features of whole images: pooled feature maps of a graph's own backbone, as one more output.

The maps are those that the neck of a detector starts from: the last input of a convolution before the first upsampling,
and the last one at half its stride. A graph without a neck gives its widest map. Each is reduced to its mean and its
maximum over the image, so that the cost is negligible and the features come with the boxes in one run. A classifier has
its own: the input of its last layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from ml_backend.detection.onnx_graph import IMAGE_FEATURES
from ml_backend.detection.preprocess import InputSpec
from ml_backend.training.onnx_builder import GraphBuilder

# A tensor of a graph, and its shape: (b, channels, rows, columns), or (b, d).
FeatureTensor = tuple[str, tuple[int, ...]]

# Operations that upsample: what depends on them belongs to the neck of a detector.
UPSAMPLING = frozenset({"Resize", "Upsample", "ConvTranspose", "DepthToSpace"})

# Minimum rows and columns of a feature map.
MIN_MAP_SIDE = 3

# Least stride of the deepest map.
MIN_STRIDE = 16

# Most channels of a pooled map.
MAX_CHANNELS = 4096


@dataclass(frozen=True)
class BackboneMaps:
    """Tensors of a graph that may describe the image.

    Attributes:
        names: Inputs of the convolutions that the first upsampling depends on, in the order of the graph; of all
            convolutions where nothing is upsampled.
        skips: Those of them that the neck takes too.
        neck: Whether something is upsampled.
    """

    names: tuple[str, ...]
    skips: frozenset[str]
    neck: bool


def backbone_maps(graph: onnx.GraphProto) -> BackboneMaps:
    """Find the inputs of the convolutions before the first upsampling."""
    first = next((node for node in graph.node if node.op_type in UPSAMPLING), None)
    needed = {first.input[0]} if first is not None else {output.name for output in graph.output}
    constants = {tensor.name for tensor in graph.initializer} | {tensor.name for tensor in graph.input}
    names: dict[str, None] = {}
    others: set[str] = set()
    for node in reversed(graph.node):
        own = bool(needed & set(node.output))
        if own:
            needed.update(node.input)
        if node.op_type == "Conv" and node.input[0] not in constants:
            if own:
                names.setdefault(node.input[0])
            else:
                others.add(node.input[0])
    skips = frozenset(others & needed)
    order = [output for node in graph.node for output in node.output if output in names or output in skips]
    return BackboneMaps(tuple(order), skips, first is not None)


def select_maps(found: BackboneMaps, shapes: Mapping[str, tuple[int, ...]], spec: InputSpec) -> list[FeatureTensor]:
    """Select the feature maps to pool, deepest first; none where the graph has no map of a suitable size.

    Args:
        found: Tensors of the graph.
        shapes: Their shapes, in the order of the graph.
        spec: Input format of the network.
    """
    maps = [
        (name, shape)
        for name, shape in shapes.items()
        if len(shape) == 4 and min(shape[2:]) >= MIN_MAP_SIDE and shape[1] <= MAX_CHANNELS
    ]
    deep = [item for item in maps if max(spec.height / item[1][2], spec.width / item[1][3]) >= MIN_STRIDE]
    if not deep:
        return []
    # Of the maps of a graph without a neck, the last may belong to a head.
    last = deep[-1] if found.neck else max(reversed(deep), key=lambda item: item[1][1])
    rows, columns = last[1][2:]
    before = [item for item in maps if abs(item[1][2] - 2 * rows) <= 1 and abs(item[1][3] - 2 * columns) <= 1]
    selected = [item for item in before if item[0] in found.skips] or before
    return [last, selected[-1]] if selected else [last]


def add_image_features(nodes: GraphBuilder, tensors: Sequence[FeatureTensor]) -> None:
    """Add the output `IMAGE_FEATURES` (b, g) float32; a graph that has it, such as a learned version, keeps it."""
    if any(output.name == IMAGE_FEATURES for output in nodes.model.graph.output):
        return
    parts: list[str] = []
    width = 0
    for name, shape in tensors:
        if len(shape) == 4:
            pooled = [nodes.add(operation, name) for operation in ("GlobalAveragePool", "GlobalMaxPool")]
            parts += [nodes.to_float32(nodes.add("Flatten", tensor, axis=1)) for tensor in pooled]
            width += 2 * shape[1]
        else:
            parts.append(nodes.to_float32(nodes.add("Flatten", name, axis=1)))
            width += shape[1]
    nodes.concat(parts, axis=1, name=IMAGE_FEATURES)
    nodes.output(IMAGE_FEATURES, ("batch", width))
