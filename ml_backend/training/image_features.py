"""Frozen features of whole images: pooled feature maps of a graph's own backbone, as one more output.

The maps are those of the backbone before any upsampling: the one with the most channels at a stride of 16 or more, and
the widest one at half its stride. They are reduced to their mean over the image, the first one also to its maximum, so
that the cost is negligible and the features come with the boxes in one run. A classifier has its own: the input of its
last layer.
"""

from collections.abc import Mapping, Sequence

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


def candidate_names(graph: onnx.GraphProto) -> list[str]:
    """Inputs of the convolutions before any upsampling, in the order of the graph."""
    upsampled: set[str] = set()
    names: dict[str, None] = {}
    constants = {tensor.name for tensor in graph.initializer} | {tensor.name for tensor in graph.input}
    for node in graph.node:
        if node.op_type in UPSAMPLING or any(source in upsampled for source in node.input):
            upsampled.update(node.output)
        elif node.op_type == "Conv" and node.input[0] not in constants:
            names.setdefault(node.input[0])
    return list(names)


def select_maps(shapes: Mapping[str, tuple[int, ...]], spec: InputSpec) -> list[FeatureTensor]:
    """Select the feature maps to pool, deepest first; none where the graph has no map of a suitable size.

    Args:
        shapes: Shapes of `candidate_names`, in the order of the graph.
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
    last = _widest(deep)
    side = last[1][2:]
    before = [item for item in maps if abs(item[1][2] - 2 * side[0]) <= 1 and abs(item[1][3] - 2 * side[1]) <= 1]
    return [last, _widest(before)] if before else [last]


def add_image_features(nodes: GraphBuilder, tensors: Sequence[FeatureTensor]) -> int:
    """Add the output `IMAGE_FEATURES` (b, g) float32; returns g."""
    parts: list[str] = []
    width = 0
    for name, shape in tensors:
        if len(shape) == 4:
            operations = ("GlobalAveragePool", "GlobalMaxPool")[: 1 if parts else 2]
            pooled = [nodes.add(operation, name) for operation in operations]
            parts += [nodes.to_float32(nodes.add("Flatten", tensor, axis=1)) for tensor in pooled]
            width += len(operations) * shape[1]
        else:
            parts.append(nodes.to_float32(nodes.add("Flatten", name, axis=1)))
            width += shape[1]
    nodes.concat(parts, axis=1, name=IMAGE_FEATURES)
    nodes.output(IMAGE_FEATURES, ("batch", width))
    return width


def _widest(maps: Sequence[FeatureTensor]) -> FeatureTensor:
    """The map with the most channels, of equals the last."""
    return max(reversed(maps), key=lambda item: item[1][1])
