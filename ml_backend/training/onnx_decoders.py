"""Owns STANDARD: how boxes, objectness and scores of a layout are written as ONNX operations.

A learned model has the outputs of the layout `labelloop` whatever it was made from, so that it runs anywhere without
our decoding. To make another layout learnable, write its decoding as nodes here, the same arithmetic as in `layouts`.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ml_backend.detection.preprocess import InputSpec, prepare
from ml_backend.inference.detector import Detector
from ml_backend.layouts import image_size, yolox_grid
from ml_backend.layouts.base import grid, is_share
from ml_backend.layouts.gfl import STRIDES
from ml_backend.training.onnx_builder import Nodes

LEAST = 1e-9
"""Class scores are divided by the best of them, or by this where that is less."""


def _labelloop(nodes: Nodes, detector: Detector) -> None:
    """Has these outputs already."""
    del nodes, detector


def _yolox(nodes: Nodes, detector: Detector) -> None:
    """As `layouts._decode_yolox`: centre = (offset + cell) x stride, side = exp(raw) x stride."""
    cells, strides = yolox_grid(*image_size(detector.engine.graph))
    raw = nodes.cast(detector.reader.outputs[0], np.float32)
    stride = nodes.constant(strides)
    centre = nodes.add("Mul", nodes.add("Add", nodes.columns(raw, 0, 2), nodes.constant(cells)), stride)
    sides = nodes.add("Exp", nodes.add("Min", nodes.columns(raw, 2, 4), nodes.constant(np.array([20], np.float32))))
    boxes = _corners(nodes, centre, nodes.add("Mul", sides, stride))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 5), presence=nodes.columns(raw, 4, 5))


def _pixels(nodes: Nodes, detector: Detector) -> None:
    """Rows of centre x, centre y, width, height in pixels, objectness, class scores: YOLOX decoded, YOLOv5, v6, v7."""
    raw = nodes.cast(detector.reader.outputs[0], np.float32)
    boxes = _corners(nodes, nodes.columns(raw, 0, 2), nodes.columns(raw, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 5), presence=nodes.columns(raw, 4, 5))


def _yolov8(nodes: Nodes, detector: Detector) -> None:
    """Columns of centre x, centre y, width, height in pixels and class scores."""
    raw = nodes.transpose(nodes.cast(detector.reader.outputs[0], np.float32), (0, 2, 1))
    boxes = _corners(nodes, nodes.columns(raw, 0, 2), nodes.columns(raw, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 4))


def _nanodet(nodes: Nodes, detector: Detector) -> None:
    """As `layouts.gfl`: each side is the mean of a distribution over strides, from the middle of the anchor's cell."""
    spec, outputs = detector.spec, detector.reader.outputs
    half = len(outputs) // 2
    grey = prepare(np.full((256, 256, 3), 114, np.uint8), spec)
    seen = detector.engine.run([grey.tensor])
    scores = nodes.concat([nodes.cast(name, np.float32) for name in outputs[:half]], axis=1)
    if not all(is_share(seen[name]) for name in outputs[:half]):
        scores = nodes.add("Sigmoid", scores)
    raw = nodes.concat([nodes.cast(name, np.float32) for name in outputs[half:]], axis=1)
    bins = seen[outputs[half]].shape[2] // 4
    shares = nodes.add("Softmax", nodes.reshape(raw, (0, -1, 4, bins)), axis=3)
    mean = nodes.add("MatMul", shares, nodes.constant(np.arange(bins, dtype=np.float32)[:, None]))
    cells, steps = grid(spec.height, spec.width, STRIDES[half])
    away = nodes.add("Mul", nodes.reshape(mean, (0, -1, 4)), nodes.constant(steps))
    middle = nodes.constant((cells + np.float32(0.5)) * steps)
    low = nodes.add("Sub", middle, nodes.columns(away, 0, 2))
    high = nodes.add("Add", middle, nodes.columns(away, 2, 4))
    _finish(nodes, detector, nodes.concat([low, high], axis=2), _classes(nodes, detector, scores, 0))


def _detr(nodes: Nodes, detector: Detector) -> None:
    """Boxes as shares of the input's sides, and a logit a class: a sigmoid each, or a softmax with one for nothing."""
    spec = detector.spec
    named = {output: output for output in detector.reader.outputs}
    logits = nodes.cast(named.get("logits") or named["labels"], np.float32)
    shares = nodes.cast(named.get("pred_boxes") or named["dets"], np.float32)
    softmax = detector.layout == "detr-softmax"
    scores = nodes.add("Softmax", logits, axis=2) if softmax else nodes.add("Sigmoid", logits)
    sides = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
    scaled = nodes.add("Mul", shares, nodes.constant(sides))
    boxes = _corners(nodes, nodes.columns(scaled, 0, 2), nodes.columns(scaled, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, scores, 0))


def _rt_detr(nodes: Nodes, detector: Detector) -> None:
    """Rows of a centre and sides as shares of the input's, and class scores: RT-DETR by Ultralytics."""
    spec = detector.spec
    raw = nodes.cast(detector.reader.outputs[0], np.float32)
    sides = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
    scaled = nodes.add("Mul", nodes.columns(raw, 0, 4), nodes.constant(sides))
    boxes = _corners(nodes, nodes.columns(scaled, 0, 2), nodes.columns(scaled, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 4))


def _fastestdet(nodes: Nodes, detector: Detector) -> None:
    """As `layouts.fastestdet`: centre = cell + tanh, sides = sigmoid; score = presence^0.6 x class^0.4."""
    spec = detector.spec
    planes = nodes.cast(detector.reader.outputs[0], np.float32)
    cells, steps = grid(spec.height, spec.width, (16,))
    width = 5 + len(detector.names.places or detector.names.names)
    raw = nodes.transpose(nodes.reshape(planes, (0, width, -1)), (0, 2, 1))
    centre = nodes.add("Mul", nodes.add("Add", nodes.add("Tanh", nodes.columns(raw, 1, 3)), nodes.constant(cells)),
                       nodes.constant(steps))  # fmt: skip
    scale = nodes.constant(np.array([spec.width, spec.height], np.float32))
    sides = nodes.add("Mul", nodes.add("Sigmoid", nodes.columns(raw, 3, 5)), scale)
    presence, classes = (
        nodes.add("Pow", nodes.add("Relu", part), nodes.constant(np.array([power], np.float32)))
        for part, power in ((nodes.columns(raw, 0, 1), 0.6), (_classes(nodes, detector, raw, 5), 0.4))
    )
    _finish(nodes, detector, _corners(nodes, centre, sides), classes, presence=presence)


def _corners(nodes: Nodes, centre: str, sides: str) -> str:
    half = nodes.add("Mul", sides, nodes.constant(np.array([0.5], np.float32)))
    return nodes.concat([nodes.add("Sub", centre, half), nodes.add("Add", centre, half)], axis=2)


def _classes(nodes: Nodes, detector: Detector, raw: str, first: int) -> str:
    """The class scores, which begin at a column, in the order of the names; what stands for no class goes."""
    names = detector.names
    places = range(len(names.names)) if names.places is None else map(names.places.index, range(len(names.names)))
    chosen = np.array([first + place for place in places], np.int64)
    return nodes.add("Gather", raw, nodes.constant(chosen), axis=2)


def _finish(nodes: Nodes, detector: Detector, boxes: str, scores: str, *, presence: str = "") -> None:
    """Declares the outputs. Where a layout has no objectness, the best class score of a box is it."""
    if not presence:
        presence = nodes.greatest(scores)
        scores = nodes.add("Div", scores, nodes.add("Max", presence, nodes.constant(np.array([LEAST], np.float32))))
    declare(nodes, detector, boxes, presence, scores)


def declare(nodes: Nodes, detector: Detector, boxes: str, presence: str, scores: str) -> None:
    """Has the graph the outputs and the metadata of the layout `labelloop`, and no others.

    Args:
        nodes: Of the graph.
        detector: What it is, for its names and its input.
        boxes: (batch, n, 4) corners in input pixels.
        presence: (batch, n, 1).
        scores: (batch, n, classes) in the order of the names.
    """
    nodes.drop_outputs(*nodes.outputs)
    for name in ("boxes", "objectness", "scores"):
        nodes.free(name)  # finished graphs call their own outputs so
    nodes.add("Identity", boxes, name="boxes")
    nodes.reshape(presence, (0, -1), name="objectness")
    nodes.add("Identity", scores, name="scores")
    nodes.output("boxes", ("batch", "candidates", 4))
    nodes.output("objectness", ("batch", "candidates"))
    nodes.output("scores", ("batch", "candidates", len(detector.names.names)))
    nodes.tell(names=list(detector.names.names), input=_input(detector.spec))


def _input(spec: InputSpec) -> dict[str, object]:
    """The metadata `input` that `layouts.told_spec` reads as this."""
    told: dict[str, object] = {
        "size": [spec.height, spec.width],
        "layout": spec.layout,
        "color": spec.color,
        "range": "0..255" if spec.scale == 1 else "0..1",
        "letterbox": f"{spec.placement}, pad {spec.pad}",
    }
    if any(spec.mean) or spec.std != (1, 1, 1):
        told |= {"mean": list(spec.mean), "std": list(spec.std)}
    return told


STANDARD: Mapping[str, Callable[[Nodes, Detector], None]] = {
    "labelloop": _labelloop,
    "yolox": _yolox,
    "yolox-decoded": _pixels,
    "yolov5": _pixels,
    "yolov8": _yolov8,
    "nanodet": _nanodet,
    "fastestdet": _fastestdet,
    "rt-detr-ultralytics": _rt_detr,
    "detr-softmax": _detr,
    "detr-sigmoid": _detr,
    "rf-detr": _detr,
}
"""Layout -> what adds the outputs `boxes`, `objectness`, `scores` and the metadata of the layout `labelloop`."""
