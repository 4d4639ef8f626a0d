"""Owns region features: what a graph whose last layer cannot be refitted sees of each box.

Graphs that suppress by themselves (end-to-end YOLO, torchvision, SSD, ...) give few boxes with the classes that they
know, and say nothing of what lies behind. Their boxes, and a grid of boxes for what they overlook, become the
candidates; the features of each are the mean of the graph's last feature maps over it, as RoIAlign has it (He et al.
2017, https://arxiv.org/abs/1703.06870). A head on these is learned as on any others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import InputSpec
from ml_backend.inference.detector import Detector
from ml_backend.training.onnx_builder import Nodes
from ml_backend.training.onnx_decoders import declare

Map = tuple[str, tuple[int, ...]]
"""A tensor of a graph, and its shape (1, channels, rows, columns)."""

ROWS = 300
"""Boxes of the graph that are candidates, the first ones; where there are fewer, empty boxes fill up."""

SHARES = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75)
"""Sides of the grid's squares, of the input's shorter side."""

STEP = 1 / 3
"""How far neighbours of the grid lie apart, of their side."""

RATIOS = (0.6, 1.0, 1.67)
"""Width by height of the boxes at each place, of the same area."""

UNSEEN = 0.01
"""Objectness of the grid's boxes: the graph said nothing of them."""

CHANNELS = 384
"""Of all feature maps that are pooled, at most; the first is taken in any case."""

SMALLEST_MAP = 4
"""Cells a side; smaller maps show the photo, not a place on it."""

BINS, SAMPLES = 2, 2
"""Parts along each side of a box whose means are features of their own, since where in the box an object lies says how
the box is to be moved; and points along each side of a part at which a map is read."""

WIDTH = 256
"""Numbers a candidate, at most. More are mixed by chance, always alike, which keeps how far candidates lie apart
(Johnson and Lindenstrauss 1984): a fit takes a second instead of a minute, and finds more."""


def add_regions(nodes: Nodes, detector: Detector) -> tuple[int, ...]:
    """Adds the outputs `boxes`, `objectness` and `scores` of a graph that finishes its work, and of the grid.

    Args:
        nodes: Of the graph; its outputs are replaced.
        detector: Its layout is in `FINISHED`.

    Returns:
        How many candidates there are of each kind: the levels of a head.
    """
    rows = _filled(nodes, FINISHED[detector.layout](nodes, detector))
    grid = grid_boxes(detector.spec)
    count, classes = len(grid), len(detector.names.names)
    boxes = nodes.concat([nodes.columns(rows, 0, 4), nodes.constant(grid[None])], axis=1)
    presence = nodes.concat(
        [nodes.columns(rows, 4, 5), nodes.constant(np.full((1, count, 1), UNSEEN, np.float32))], axis=1
    )
    places = detector.names.places
    numbers = [places.index(one) if places is not None else one for one in range(classes)]
    is_class = nodes.add("Equal", nodes.columns(rows, 5, 6), nodes.constant(np.array(numbers, np.float32)))
    known = nodes.cast(is_class, np.float32)
    scores = nodes.concat([known, nodes.constant(np.zeros((1, count, classes), np.float32))], axis=1)
    declare(nodes, detector, boxes, presence, scores)
    return ROWS, count


def add_pooled(nodes: Nodes, maps: Sequence[Map], spec: InputSpec, *, count: int, name: str) -> int:
    """Adds what feature maps show of each of the boxes in the output `boxes`, as a tensor (1, count, width).

    Args:
        nodes: Of a graph that takes one photo a run.
        maps: Tensors of the graph, with their shapes (1, channels, rows, columns).
        spec: What the graph is shown.
        count: How many boxes.
        name: Of the new tensor.

    Returns:
        The width.
    """
    boxes = nodes.reshape("boxes", (-1, 4))
    photo = nodes.constant(np.zeros(count, np.int64))
    size: dict[str, Any] = {"output_height": BINS, "output_width": BINS, "sampling_ratio": SAMPLES}
    parts = []
    for source, shape in maps:
        size["spatial_scale"] = shape[3] / spec.width
        means = nodes.add("RoiAlign", nodes.cast(source, np.float32), boxes, photo, **size)
        parts.append(nodes.reshape(means, (1, count, shape[1] * BINS * BINS)))
    width = sum(shape[1] for _, shape in maps) * BINS * BINS
    if width <= WIDTH:
        nodes.concat(parts, axis=2, name=name)
        return width
    mixed = np.random.default_rng(0).normal(0, WIDTH**-0.5, (width, WIDTH)).astype(np.float32)
    nodes.add("MatMul", nodes.concat(parts, axis=2), nodes.constant(mixed), name=name)
    return WIDTH


def map_names(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[str]:
    """What the convolutions nearest to the outputs look at, whatever lies between; the nearest first."""
    made_by = {output: node for node in graph.node for output in node.output}
    found: dict[str, None] = {}
    waiting, seen = list(outputs), set(outputs)
    while waiting:
        node = made_by.get(waiting.pop(0))
        if node is None:
            continue
        if node.op_type == "Conv":
            found.setdefault(node.input[0])
            continue
        fresh = [one for one in node.input if one and one not in seen]
        seen.update(fresh)
        waiting += fresh
    return list(found)


def chosen_maps(shapes: Mapping[str, tuple[int, ...]]) -> list[Map]:
    """Of feature maps by name, nearest to the outputs first, those that are pooled: one a size, fine ones first."""
    sizes: dict[tuple[int, ...], Map] = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and min(shape[2:]) >= SMALLEST_MAP:
            sizes.setdefault(shape[2:], (name, shape))
    kept: list[Map] = []
    for _, one in sorted(sizes.items(), reverse=True):
        if not kept or sum(shape[1] for _, shape in (*kept, one)) <= CHANNELS:
            kept.append(one)
    return kept


def grid_boxes(spec: InputSpec) -> Floats:
    """Boxes (n, 4) over the input, in its pixels: for objects of which the graph gives no box."""
    boxes: list[tuple[float, float, float, float]] = []
    for side in (min(spec.width, spec.height) * share for share in SHARES):
        middles = np.arange(side / 2, spec.width, side * STEP), np.arange(side / 2, spec.height, side * STEP)
        for ratio in RATIOS:
            across, down = side * ratio**0.5 / 2, side / ratio**0.5 / 2
            boxes += [(x - across, y - down, x + across, y + down) for y in middles[1] for x in middles[0]]
    limits = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
    return np.clip(np.array(boxes, np.float32), 0, limits)


def _filled(nodes: Nodes, rows: str) -> str:
    """Rows (1, m, 6) -> (1, `ROWS`, 6): cut off, or filled up with empty boxes of no class."""
    empty = np.zeros((1, ROWS, 6), np.float32)
    empty[..., 5] = -1
    return nodes.rows(nodes.concat([rows, nodes.constant(empty)], axis=1), 0, ROWS)


def _end2end(nodes: Nodes, detector: Detector) -> str:
    """Rows of a box, a score and a class."""
    raw = nodes.reshape(nodes.cast(detector.reader.outputs[0], np.float32), (1, -1, _width(detector)))
    return nodes.columns(raw, 0, 6)


def _width(detector: Detector) -> int:
    shapes = {tensor.name: tensor.shape for tensor in detector.engine.graph.outputs}
    return shapes[detector.reader.outputs[0]][-1] or 6


def _yolov7(nodes: Nodes, detector: Detector) -> str:
    """Rows of the photo's number, a box, a class and a score."""
    raw = nodes.reshape(nodes.cast(detector.reader.outputs[0], np.float32), (1, -1, 7))
    return nodes.add("Gather", raw, nodes.constant(np.array([1, 2, 3, 4, 6, 5], np.int64)), axis=2)


def _parts(*, shares: bool = False, yxyx: bool = False) -> Callable[[Nodes, Detector], str]:
    """Boxes, class numbers and scores as outputs of their own.

    Args:
        shares: Whether boxes are shares of the input's sides.
        yxyx: Whether y comes before x.
    """

    def add(nodes: Nodes, detector: Detector) -> str:
        named = (nodes.cast(name, np.float32) for name in detector.reader.outputs[:3])
        boxes, numbers, scores = (
            nodes.reshape(name, (1, -1, last)) for name, last in zip(named, (4, 1, 1), strict=True)
        )
        if yxyx:
            boxes = nodes.add("Gather", boxes, nodes.constant(np.array([1, 0, 3, 2], np.int64)), axis=2)
        if shares:
            spec = detector.spec
            sides = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
            boxes = nodes.add("Mul", boxes, nodes.constant(sides))
        return nodes.concat([boxes, scores, numbers], axis=2)

    return add


FINISHED: Mapping[str, Callable[[Nodes, Detector], str]] = {
    "end2end": _end2end,
    "yolov7-end2end": _yolov7,
    "rt-detr": _parts(),
    "tf-od": _parts(shares=True, yxyx=True),
    "ssd": _parts(shares=True),
    "torchvision": _parts(),
}
"""Layout of a graph that finishes its work -> what adds its rows (1, m, 6): a box in input pixels, score, class."""
