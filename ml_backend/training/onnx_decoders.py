"""Box decoding of each layout as ONNX operations.

A trained model has the outputs of the layout `labelloop` whatever its backbone, so it runs anywhere without our
decoding. To support another layout, write its decoding as nodes here, with the arithmetic of `layouts`.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ml_backend.detection.preprocess import InputSpec, prepare
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import Detector
from ml_backend.layouts import image_size, yolox_grid
from ml_backend.layouts.base import grid, in_unit_range
from ml_backend.layouts.gfl import STRIDES
from ml_backend.training.onnx_builder import GraphBuilder

# Class scores are divided by the best one, or by this where it is smaller.
MIN_OBJECTNESS = 1e-9


def _labelloop(nodes: GraphBuilder, detector: Detector) -> None:
    """Leave the graph unchanged: it has these outputs."""
    del nodes, detector


def _yolox(nodes: GraphBuilder, detector: Detector) -> None:
    """Decode as `layouts.yolox`: centre = (offset + cell) x stride, side = exp(raw) x stride."""
    cells, strides = yolox_grid(*image_size(detector.engine.graph))
    raw = nodes.cast(detector.reader.outputs[0], np.float32)
    stride = nodes.constant(strides)
    centre = nodes.add("Mul", nodes.add("Add", nodes.columns(raw, 0, 2), nodes.constant(cells)), stride)
    sides = nodes.add("Exp", nodes.add("Min", nodes.columns(raw, 2, 4), nodes.constant(np.array([20], np.float32))))
    boxes = _corners(nodes, centre, nodes.add("Mul", sides, stride))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 5), objectness=nodes.columns(raw, 4, 5))


def _pixels(nodes: GraphBuilder, detector: Detector) -> None:
    """Rows of centre x, centre y, width, height in pixels, objectness, class scores: YOLOX decoded, YOLOv5, v6, v7."""
    raw = nodes.cast(detector.reader.outputs[0], np.float32)
    boxes = _corners(nodes, nodes.columns(raw, 0, 2), nodes.columns(raw, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 5), objectness=nodes.columns(raw, 4, 5))


def _yolov8(nodes: GraphBuilder, detector: Detector) -> None:
    """Columns of centre x, centre y, width, height in pixels and class scores."""
    raw = nodes.transpose(nodes.cast(detector.reader.outputs[0], np.float32), (0, 2, 1))
    boxes = _corners(nodes, nodes.columns(raw, 0, 2), nodes.columns(raw, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 4))


def _nanodet(nodes: GraphBuilder, detector: Detector) -> None:
    """Decode as `layouts.gfl`: sides are means of distributions over strides, from the centre of the anchor's cell."""
    spec, outputs = detector.spec, detector.reader.outputs
    half = len(outputs) // 2
    grey = prepare(np.full((256, 256, 3), 114, np.uint8), spec)
    trial_outputs = detector.engine.run([grey.tensor])
    if trial_outputs[outputs[0]].ndim == 2:
        raise NotLearnable(path=detector.path, reason="its outputs have no batch axis")
    scores = nodes.concat([nodes.cast(name, np.float32) for name in outputs[:half]], axis=1)
    if not all(in_unit_range(trial_outputs[name]) for name in outputs[:half]):
        scores = nodes.add("Sigmoid", scores)
    raw = nodes.concat([nodes.cast(name, np.float32) for name in outputs[half:]], axis=1)
    bins = trial_outputs[outputs[half]].shape[2] // 4
    distribution = nodes.add("Softmax", nodes.reshape(raw, (0, -1, 4, bins)), axis=3)
    mean = nodes.add("MatMul", distribution, nodes.constant(np.arange(bins, dtype=np.float32)[:, None]))
    cells, steps = grid(spec.height, spec.width, STRIDES[half])
    distances = nodes.add("Mul", nodes.reshape(mean, (0, -1, 4)), nodes.constant(steps))
    centres = nodes.constant((cells + np.float32(0.5)) * steps)
    low = nodes.add("Sub", centres, nodes.columns(distances, 0, 2))
    high = nodes.add("Add", centres, nodes.columns(distances, 2, 4))
    _finish(nodes, detector, nodes.concat([low, high], axis=2), _classes(nodes, detector, scores, 0))


def _detr(nodes: GraphBuilder, detector: Detector) -> None:
    """Decode normalised boxes, and logits through a softmax with a no-object class or through sigmoids."""
    spec = detector.spec
    outputs = {output: output for output in detector.reader.outputs}
    logits = nodes.cast(outputs.get("logits") or outputs["labels"], np.float32)
    normalised = nodes.cast(outputs.get("pred_boxes") or outputs["dets"], np.float32)
    softmax = detector.layout == "detr-softmax"
    scores = nodes.add("Softmax", logits, axis=2) if softmax else nodes.add("Sigmoid", logits)
    sides = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
    scaled = nodes.add("Mul", normalised, nodes.constant(sides))
    boxes = _corners(nodes, nodes.columns(scaled, 0, 2), nodes.columns(scaled, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, scores, 0))


def _rt_detr(nodes: GraphBuilder, detector: Detector) -> None:
    """Decode rows of normalised centre and sides, and class scores: RT-DETR by Ultralytics."""
    spec = detector.spec
    raw = nodes.cast(detector.reader.outputs[0], np.float32)
    sides = np.array([spec.width, spec.height, spec.width, spec.height], np.float32)
    scaled = nodes.add("Mul", nodes.columns(raw, 0, 4), nodes.constant(sides))
    boxes = _corners(nodes, nodes.columns(scaled, 0, 2), nodes.columns(scaled, 2, 4))
    _finish(nodes, detector, boxes, _classes(nodes, detector, raw, 4))


def _fastestdet(nodes: GraphBuilder, detector: Detector) -> None:
    """Decode as `layouts.fastestdet`: centre = cell + tanh, sides = sigmoid; score = objectness^0.6 x class^0.4."""
    spec = detector.spec
    planes = nodes.cast(detector.reader.outputs[0], np.float32)
    cells, steps = grid(spec.height, spec.width, (16,))
    width = 5 + len(detector.names.indices or detector.names.names)
    raw = nodes.transpose(nodes.reshape(planes, (0, width, -1)), (0, 2, 1))
    centre = nodes.add("Mul", nodes.add("Add", nodes.add("Tanh", nodes.columns(raw, 1, 3)), nodes.constant(cells)),
                       nodes.constant(steps))  # fmt: skip
    scale = nodes.constant(np.array([spec.width, spec.height], np.float32))
    sides = nodes.add("Mul", nodes.add("Sigmoid", nodes.columns(raw, 3, 5)), scale)
    objectness, classes = (
        nodes.add("Pow", nodes.add("Relu", part), nodes.constant(np.array([power], np.float32)))
        for part, power in ((nodes.columns(raw, 0, 1), 0.6), (_classes(nodes, detector, raw, 5), 0.4))
    )
    _finish(nodes, detector, _corners(nodes, centre, sides), classes, objectness=objectness)


def _corners(nodes: GraphBuilder, centre: str, sides: str) -> str:
    half = nodes.add("Mul", sides, nodes.constant(np.array([0.5], np.float32)))
    return nodes.concat([nodes.add("Sub", centre, half), nodes.add("Add", centre, half)], axis=2)


def _classes(nodes: GraphBuilder, detector: Detector, raw: str, first: int) -> str:
    """Gather the class scores from column `first` on, in the order of the names, without the background."""
    names = detector.names
    indices = range(len(names.names)) if names.indices is None else map(names.indices.index, range(len(names.names)))
    columns = np.array([first + index for index in indices], np.int64)
    return nodes.add("Gather", raw, nodes.constant(columns), axis=2)


def _finish(nodes: GraphBuilder, detector: Detector, boxes: str, scores: str, *, objectness: str = "") -> None:
    """Declare the outputs. Without objectness, a box's best class score takes its place."""
    if not objectness:
        objectness = nodes.reduce_max(scores)
        scores = nodes.add(
            "Div", scores, nodes.add("Max", objectness, nodes.constant(np.array([MIN_OBJECTNESS], np.float32)))
        )
    declare_outputs(nodes, detector, boxes, objectness, scores)


def declare_outputs(nodes: GraphBuilder, detector: Detector, boxes: str, objectness: str, scores: str) -> None:
    """Replace the graph's outputs and metadata by those of the layout `labelloop`.

    Args:
        nodes: Of the graph.
        detector: Provides class names and input format.
        boxes: (batch, n, 4) x_min, y_min, x_max, y_max in pixels of the input.
        objectness: (batch, n, 1).
        scores: (batch, n, classes) in the order of the names.
    """
    nodes.drop_outputs(*nodes.outputs)
    for name in ("boxes", "objectness", "scores"):
        nodes.release_name(name)  # graphs with final boxes may use these output names
    nodes.add("Identity", boxes, name="boxes")
    nodes.reshape(objectness, (0, -1), name="objectness")
    nodes.add("Identity", scores, name="scores")
    nodes.output("boxes", ("batch", "candidates", 4))
    nodes.output("objectness", ("batch", "candidates"))
    nodes.output("scores", ("batch", "candidates", len(detector.names.names)))
    nodes.set_metadata(names=list(detector.names.names), input=_input(detector.spec))


def _input(spec: InputSpec) -> dict[str, object]:
    """Build the metadata `input` that `layouts.apply_input_metadata` reads."""
    signed = spec.scale == 1 / 127.5  # 0..2, from which 1 is subtracted
    mean = [value - signed for value in spec.mean]
    description: dict[str, object] = {
        "size": [spec.height, spec.width],
        "layout": spec.layout,
        "color": spec.color,
        "range": "-1..1" if signed else "0..255" if spec.scale == 1 else "0..1",
        "letterbox": f"{spec.placement}, pad {spec.pad}",
    }
    if any(mean) or spec.std != (1, 1, 1):
        description |= {"mean": mean, "std": list(spec.std)}
    return description


# Layout -> function that adds the outputs `boxes`, `objectness`, `scores` and the metadata of the layout `labelloop`.
DECODERS: Mapping[str, Callable[[GraphBuilder, Detector], None]] = {
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
