"""RoI features for graphs whose last layer cannot be refitted.

Graphs with built-in suppression (end-to-end YOLO, torchvision, SSD, ...) output few boxes of their known classes, and
no features. Candidates are these boxes plus a grid of boxes for missed objects; the features of each are the graph's
last feature maps averaged over it by RoIAlign (He et al. 2017, https://arxiv.org/abs/1703.06870).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import InputSpec
from ml_backend.inference.detector import Detector
from ml_backend.training.onnx_builder import GraphBuilder
from ml_backend.training.onnx_decoders import declare_outputs

# A tensor of a graph, and its shape (1, channels, rows, columns).
Map = tuple[str, tuple[int, ...]]

# Candidates from the graph's boxes, the first ones; fewer are padded with empty boxes.
ROWS = 300

# Sides of the grid's squares, relative to the input's shorter side.
GRID_SIDES = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75)

# Spacing of the grid, relative to the square's side.
STEP = 1 / 3

# Aspect ratios (width / height) of the boxes at each grid position, of equal area.
RATIOS = (0.6, 1.0, 1.67)

# Objectness of the grid's boxes, which the graph did not detect.
GRID_OBJECTNESS = 0.01

# Maximum number of pooled channels; the first map is always pooled.
CHANNELS = 384

# Minimum rows and columns of a feature map; smaller ones have no spatial information.
MIN_MAP_SIDE = 4

# RoIAlign bins along each side of a box: the position of the object in the box tells how to regress it; and samples per
# bin side.
BINS, SAMPLES = 2, 2

# Maximum length of a feature vector. Longer ones are reduced by a fixed random projection, which nearly preserves
# distances (Johnson and Lindenstrauss 1984) and shortens a fit from a minute to a second.
WIDTH = 256


def add_candidate_outputs(nodes: GraphBuilder, detector: Detector) -> tuple[int, ...]:
    """Add the outputs `boxes`, `objectness` and `scores` for the graph's final boxes and the grid.

    Args:
        nodes: Of the graph; its outputs are replaced.
        detector: Its layout is in `POSTPROCESSED`.

    Returns:
        Number of candidates of each kind: the levels of a head.
    """
    rows = _padded(nodes, POSTPROCESSED[detector.layout](nodes, detector))
    grid = grid_boxes(detector.spec)
    count, classes = len(grid), len(detector.names.names)
    boxes = nodes.concat([nodes.columns(rows, 0, 4), nodes.constant(grid[None])], axis=1)
    objectness = nodes.concat(
        [nodes.columns(rows, 4, 5), nodes.constant(np.full((1, count, 1), GRID_OBJECTNESS, np.float32))], axis=1
    )
    indices = detector.names.indices
    class_numbers = [indices.index(index) if indices is not None else index for index in range(classes)]
    is_class = nodes.add("Equal", nodes.columns(rows, 5, 6), nodes.constant(np.array(class_numbers, np.float32)))
    graph_scores = nodes.cast(is_class, np.float32)
    scores = nodes.concat([graph_scores, nodes.constant(np.zeros((1, count, classes), np.float32))], axis=1)
    declare_outputs(nodes, detector, boxes, objectness, scores)
    return ROWS, count


def add_pooled_features(nodes: GraphBuilder, maps: Sequence[Map], spec: InputSpec, *, count: int, name: str) -> int:
    """Add RoIAlign features of the boxes in the output `boxes`, as a tensor (1, count, width).

    Args:
        nodes: Of a graph with batch size 1.
        maps: Feature maps, with their shapes (1, channels, rows, columns).
        spec: Input format of the network.
        count: Number of boxes.
        name: Of the new tensor.

    Returns:
        The width.
    """
    boxes = nodes.reshape("boxes", (-1, 4))
    batch_indices = nodes.constant(np.zeros(count, np.int64))
    size: dict[str, Any] = {"output_height": BINS, "output_width": BINS, "sampling_ratio": SAMPLES}
    parts = []
    for source, shape in maps:
        size["spatial_scale"] = shape[3] / spec.width
        means = nodes.add("RoiAlign", nodes.cast(source, np.float32), boxes, batch_indices, **size)
        parts.append(nodes.reshape(means, (1, count, shape[1] * BINS * BINS)))
    width = sum(shape[1] for _, shape in maps) * BINS * BINS
    if width <= WIDTH:
        nodes.concat(parts, axis=2, name=name)
        return width
    projection = np.random.default_rng(0).normal(0, WIDTH**-0.5, (width, WIDTH)).astype(np.float32)
    nodes.add("MatMul", nodes.concat(parts, axis=2), nodes.constant(projection), name=name)
    return WIDTH


def feature_map_names(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[str]:
    """Names of the inputs of the convolutions nearest to the outputs, nearest first."""
    producer_of = {output: node for node in graph.node for output in node.output}
    names: dict[str, None] = {}
    queue, visited = list(outputs), set(outputs)
    while queue:
        node = producer_of.get(queue.pop(0))
        if node is None:
            continue
        if node.op_type == "Conv":
            names.setdefault(node.input[0])
            continue
        fresh = [tensor for tensor in node.input if tensor and tensor not in visited]
        visited.update(fresh)
        queue += fresh
    return list(names)


def select_feature_maps(shapes: Mapping[str, tuple[int, ...]]) -> list[Map]:
    """Select the feature maps to pool, one per size, finest first, from maps ordered by distance to the outputs."""
    sizes: dict[tuple[int, ...], Map] = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and min(shape[2:]) >= MIN_MAP_SIDE:
            sizes.setdefault(shape[2:], (name, shape))
    selected: list[Map] = []
    for _, feature_map in sorted(sizes.items(), reverse=True):
        if not selected or sum(shape[1] for _, shape in (*selected, feature_map)) <= CHANNELS:
            selected.append(feature_map)
    return selected


def grid_boxes(spec: InputSpec) -> Floats:
    """Boxes (n, 4) float32 on a grid over the input, in its pixels, as candidates for objects that the graph misses."""
    boxes: list[tuple[float, float, float, float]] = []
    for side in (min(spec.width, spec.height) * share for share in GRID_SIDES):
        centres = np.arange(side / 2, spec.width, side * STEP), np.arange(side / 2, spec.height, side * STEP)
        for ratio in RATIOS:
            half_width, half_height = side * ratio**0.5 / 2, side / ratio**0.5 / 2
            boxes += [
                (x - half_width, y - half_height, x + half_width, y + half_height)
                for y in centres[1]
                for x in centres[0]
            ]
    limits = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
    return np.clip(np.array(boxes, np.float32), 0, limits)


def _padded(nodes: GraphBuilder, rows: str) -> str:
    """Pad or cut rows (1, m, 6) to (1, `ROWS`, 6) with empty boxes of class -1."""
    empty = np.zeros((1, ROWS, 6), np.float32)
    empty[..., 5] = -1
    return nodes.rows(nodes.concat([rows, nodes.constant(empty)], axis=1), 0, ROWS)


def _end2end(nodes: GraphBuilder, detector: Detector) -> str:
    """Rows of box, score and class."""
    raw = nodes.reshape(nodes.cast(detector.reader.outputs[0], np.float32), (1, -1, _width(detector)))
    return nodes.columns(raw, 0, 6)


def _width(detector: Detector) -> int:
    shapes = {tensor.name: tensor.shape for tensor in detector.engine.graph.outputs}
    return shapes[detector.reader.outputs[0]][-1] or 6


def _yolov7(nodes: GraphBuilder, detector: Detector) -> str:
    """Rows of image index, box, and class and score; or score and class, where the first of both has fractions."""
    raw = nodes.reshape(nodes.cast(detector.reader.outputs[0], np.float32), (1, -1, 7))
    first = nodes.columns(raw, 5, 6)
    fractions = nodes.add("ReduceSum", nodes.add("Sub", first, nodes.add("Floor", first)), keepdims=1)
    orders = (nodes.constant(np.array([1, 2, 3, 4, *order], np.int64)) for order in ((5, 6), (6, 5)))
    rows = (nodes.add("Gather", raw, order, axis=2) for order in orders)
    return nodes.add("Where", nodes.add("Greater", fractions, nodes.constant(np.zeros(1, np.float32))), *rows)


def _parts(*, normalised: bool = False, yxyx: bool = False) -> Callable[[GraphBuilder, Detector], str]:
    """Boxes, class indices and scores as separate outputs.

    Args:
        normalised: Whether boxes are normalised by the input's sides.
        yxyx: Whether y comes before x.
    """

    def add(nodes: GraphBuilder, detector: Detector) -> str:
        tensors = (nodes.cast(name, np.float32) for name in detector.reader.outputs[:3])
        boxes, classes, scores = (
            nodes.reshape(name, (1, -1, last)) for name, last in zip(tensors, (4, 1, 1), strict=True)
        )
        if yxyx:
            boxes = nodes.add("Gather", boxes, nodes.constant(np.array([1, 0, 3, 2], np.int64)), axis=2)
        if normalised:
            spec = detector.spec
            sides = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
            boxes = nodes.add("Mul", boxes, nodes.constant(sides))
        return nodes.concat([boxes, scores, classes], axis=2)

    return add


# Layout of a graph with final boxes -> function that adds its rows (1, m, 6): box in input pixels, score, class.
POSTPROCESSED: Mapping[str, Callable[[GraphBuilder, Detector], str]] = {
    "end2end": _end2end,
    "yolov7-end2end": _yolov7,
    "rt-detr": _parts(),
    "tf-od": _parts(normalised=True, yxyx=True),
    "ssd": _parts(normalised=True),
    "torchvision": _parts(),
}
