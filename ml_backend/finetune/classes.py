"""Widen or narrow the class layers of an ONNX detector to other classes, and check that nothing else changed.

A class layer is a last convolution whose output channels hold one score per class: alone (YOLOX, v8), behind a box and
an objectness per anchor (v5), or before the bins of the box sides (NanoDet). Reshapes, splits and slices behind it
carry the number of channels as constants, which change with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ml_backend.detection.preprocess import prepare
from ml_backend.finetune.errors import NotTrainable
from ml_backend.finetune.graph import Array, Weights
from ml_backend.inference.detector import Detector
from ml_backend.training.feature_export import last_layers

# Probability of a new class at any candidate before training (focal loss, https://arxiv.org/abs/1708.02002, section 4).
PRIOR = 0.01

# Largest difference of an output that must not change.
SAME = 1e-5


def with_classes(detector: Detector, model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Copy a model with class layers for `names`; rows of classes that it knows are kept.

    A class that it does not know starts as the mean of all rows, with a bias of `PRIOR`.

    Args:
        detector: The loaded model.
        model: Its graph.
        names: The classes wanted, in their order.

    Raises:
        NotTrainable: No class layer is found, or other outputs change.
    """
    path, old = detector.path, detector.reader.classes or 0
    rows = source_rows(detector, names)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = Weights.of(copy)
    layers = _class_layers(copy, weights, detector)
    if not layers or not old:
        raise NotTrainable(path=path, reason=f"no convolution was found that gives the scores of its {old} classes")
    widths: dict[int, int] = {old: len(names)}
    done: set[str] = set()
    for node in layers:
        channels = _channels(weights, node)
        before, after, anchors = _blocks(channels, old, detector.layout) or (0, 0, 1)
        widths[channels] = anchors * (before + len(names) + after)
        order = _channel_order(rows, old, before=before, after=after, anchors=anchors)
        for name in node.input[1:]:
            tensor = weights.source(name)
            if tensor is None:
                raise NotTrainable(path=path, reason=f"the weights of its class layer {node.output[0]} are computed")
            if tensor.name + name in done:
                continue
            done.add(tensor.name + name)
            values = numpy_helper.to_array(tensor)
            bias = values.ndim == 1
            means = _class_means(values, old, before=before, after=after, anchors=anchors, bias=bias)
            weights.write(name, np.stack([values[at] if at >= 0 else means[-1 - at] for at in order]))
    for extra in (1, 4, 5):  # columns next to the scores in one tensor: objectness, box, both
        widths.setdefault(old + extra, len(names) + extra)
    _resize(copy, weights, layers, widths, old)
    set_metadata(copy, names=list(names))
    return copy


def class_tensors(detector: Detector, model: onnx.ModelProto) -> frozenset[str]:
    """Names of the stored tensors of the class layers; `with_classes` keeps them."""
    weights = Weights.of(model)
    layers = _class_layers(model, weights, detector)
    return frozenset(weights.read_from.get(name, name) for node in layers for name in node.input[1:])


def source_rows(detector: Detector, names: Sequence[str]) -> list[int]:
    """Class number of the model for each name; -1 where it has none, or where it is the background."""
    numbers = detector.names.indices or tuple(range(len(detector.names.names)))
    by_name = {detector.names.names[index].casefold(): number for number, index in enumerate(numbers) if index >= 0}
    return [by_name.get(name.casefold(), -1) for name in names]


def check_same(detector: Detector, before: onnx.ModelProto, after: onnx.ModelProto, names: Sequence[str]) -> None:
    """Check on a trial run that kept classes have their scores, and boxes are where they were.

    Raises:
        NotTrainable: They are not, or the graph does not run.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (detector.spec.height, detector.spec.width, 3), np.uint8)
    tensor = prepare(image, detector.spec).tensor[None]
    try:
        old, new = (run(model, tensor, detector.reader.outputs) for model in (before, after))
    except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
        reason = f"its class layers cannot be resized ({str(error).splitlines()[0][:200]})"
        raise NotTrainable(path=detector.path, reason=reason) from error
    rows = source_rows(detector, names)
    count = detector.reader.classes or 0
    for name in detector.reader.outputs:
        if not _same_values(old[name], new[name], rows, count):
            raise NotTrainable(
                path=detector.path, reason=f"its output {name} changes in more than its classes when these are resized"
            )


def run(model: onnx.ModelProto, tensor: Array, outputs: Sequence[str]) -> Mapping[str, Array]:
    """Run a model once by ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = next(entry.name for entry in session.get_inputs() if len(entry.shape) == 4)
    return dict(zip(outputs, session.run(list(outputs), {image: tensor}), strict=True))


def _same_values(old: Array, new: Array, rows: Sequence[int], count: int) -> bool:
    """Whether two outputs agree in all but the classes; the class axis is the one whose length differs."""
    if old.ndim != new.ndim:
        return False
    if old.shape == new.shape and (count != len(rows) or np.allclose(old, new, atol=SAME, rtol=SAME)):
        return bool(np.allclose(old, new, atol=SAME, rtol=SAME))
    axis = next((axis for axis in range(old.ndim) if old.shape[axis] != new.shape[axis]), None)
    if axis is None:  # as many classes as before: boxes and kept classes must be found where they were
        candidates = [axis for axis in range(1, old.ndim) if old.shape[axis] >= count]
        return any(_kept(old, new, rows, count, axis) for axis in candidates)
    return _kept(old, new, rows, count, axis)


def _kept(old: Array, new: Array, rows: Sequence[int], count: int, axis: int) -> bool:
    old, new = np.moveaxis(old, axis, -1), np.moveaxis(new, axis, -1)
    if old.shape[:-1] != new.shape[:-1] or old.shape[-1] - count != new.shape[-1] - len(rows):
        return False
    for first in {0, old.shape[-1] - count}:  # scores come first, or last
        rest = [np.delete(array, np.s_[first : first + n], axis=-1) for array, n in ((old, count), (new, len(rows)))]
        kept = [(first + at, first + index) for index, at in enumerate(rows) if at >= 0]
        pairs = [(old[..., a], new[..., b]) for a, b in kept]
        if all(np.allclose(a, b, atol=SAME, rtol=SAME) for a, b in [tuple(rest), *pairs]):
            return True
    return False


def _class_layers(model: onnx.ModelProto, weights: Weights, detector: Detector) -> list[onnx.NodeProto]:
    """The last convolutions that give class scores."""
    outputs = ("scores",) if detector.layout == "labelloop" else detector.reader.outputs
    layers = [
        node
        for node in last_layers(model.graph, outputs)
        if node.op_type == "Conv" and _blocks(_channels(weights, node), detector.reader.classes or 0, detector.layout)
    ]
    if detector.reader.classes == 1 and detector.layout.startswith("yolox"):
        return layers[1::2]  # the objectness has one channel too, and comes first
    return layers


def _channels(weights: Weights, node: onnx.NodeProto) -> int:
    value = weights.value(node.input[1])
    return 0 if value is None else int(value.shape[0])


def _blocks(channels: int, classes: int, layout: str) -> tuple[int, int, int] | None:
    """(channels before, and after, the classes of an anchor, anchors) of a class layer; None where it is none."""
    if channels == classes and layout != "yolov5":
        return 0, 0, 1
    if layout == "yolov5" and channels and channels % (classes + 5) == 0:
        return 5, 0, channels // (classes + 5)
    bins = channels - classes
    if layout in {"nanodet", "nanodet-single", "picodet"} and bins > 4 and bins % 4 == 0:
        return 0, bins, 1
    return None


def _channel_order(rows: Sequence[int], old: int, *, before: int, after: int, anchors: int) -> list[int]:
    """Old channel of each new channel; -1 - anchor for the mean of an anchor's class channels."""
    order: list[int] = []
    for anchor in range(anchors):
        first = anchor * (before + old + after)
        order += range(first, first + before)
        order += [first + before + row if row >= 0 else -1 - anchor for row in rows]
        order += range(first + before + old, first + before + old + after)
    return order


def _class_means(values: Array, old: int, *, before: int, after: int, anchors: int, bias: bool) -> list[Array]:
    """The mean class channel of each anchor; as a bias, the logit of `PRIOR`."""
    blocks = values.reshape(anchors, before + old + after, *values.shape[1:])[:, before : before + old]
    if bias:
        return [np.asarray(np.log(PRIOR / (1 - PRIOR)), values.dtype)] * anchors
    return list(blocks.mean(axis=1).astype(values.dtype))


def _resize(
    model: onnx.ModelProto, weights: Weights, layers: Sequence[onnx.NodeProto], widths: Mapping[int, int], old: int
) -> None:
    """Change the constants of reshapes, splits and slices behind the class layers."""
    downstream = {node.output[0] for node in layers}
    merged = dict(widths)
    written: set[str] = set()
    made = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if not downstream & set(node.input):
            continue
        downstream |= set(node.output)
        if node.op_type == "Concat":
            _note_concat(model, weights, node, merged, old)
        for attribute in node.attribute:
            if node.op_type == "Split" and attribute.name == "split":
                attribute.ints[:] = [merged.get(side, side) for side in attribute.ints]
        constants = {"Reshape": node.input[1:2], "Split": node.input[1:2], "Slice": node.input[1:3]}
        for name in (name for read in constants.get(node.op_type, ()) for name in _stored_behind(read, weights, made)):
            sides = weights.value(name)
            if sides is not None and name not in written:
                written.add(name)
                # One class: a side of 1 is the batch, not the classes, but for the parts of a split.
                kept = {1} if old == 1 and node.op_type != "Split" else set()
                new = [int(side) if int(side) in kept else merged.get(int(side), int(side)) for side in sides.ravel()]
                weights.write(name, np.array(new).reshape(sides.shape))
    for output in model.graph.output:
        dimensions = output.type.tensor_type.shape.dim
        for dimension in list(dimensions)[1:]:
            if dimension.dim_value in merged and dimension.dim_value > 1:
                dimension.dim_value = merged[dimension.dim_value]
    del model.graph.value_info[:]
    names = {tensor.name: tensor for tensor in model.graph.initializer}
    for entry in model.graph.input:  # IR version 3 lists initializers as inputs, with their shapes
        if entry.name in names:
            for dimension, side in zip(entry.type.tensor_type.shape.dim, names[entry.name].dims, strict=True):
                dimension.dim_value = side


def _stored_behind(name: str, weights: Weights, made: Mapping[str, onnx.NodeProto]) -> list[str]:
    """Constants that a shape is put together from."""
    if weights.source(name) is not None:
        return [name]
    node = made.get(name)
    if node is None or node.op_type not in {"Concat", "Unsqueeze", "Cast", "Squeeze"}:
        return []
    sources = node.input if node.op_type == "Concat" else node.input[:1]
    return [found for source in sources for found in _stored_behind(source, weights, made)]


def _note_concat(
    model: onnx.ModelProto, weights: Weights, node: onnx.NodeProto, widths: dict[int, int], old: int
) -> None:
    """Note the width of boxes, distances and scores that are concatenated by channel (v8: 4 x bins + classes)."""
    producers = {output: other for other in model.graph.node for output in other.output}
    channels = []
    for name in node.input:
        producer = producers.get(name)
        while producer is not None and producer.op_type in {"Sigmoid", "Identity"}:
            producer = producers.get(producer.input[0])
        channels.append(_channels(weights, producer) if producer is not None and producer.op_type == "Conv" else 0)
    new = [widths.get(width, width) for width in channels]
    if all(channels):  # the layers themselves are resized already
        classes = widths[old]
        before = sum(old if width == classes else width for width in channels)
        widths[before] = sum(channels) if classes in channels else sum(new)


def set_metadata(model: onnx.ModelProto, **entries: object) -> None:
    """Add metadata, as JSON where a value is not a string."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    known |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}
    del model.metadata_props[:]
    for key, value in known.items():
        model.metadata_props.add(key=key, value=value)


def load_source(path: Path) -> onnx.ModelProto:
    """Read a model file.

    Raises:
        NotTrainable: It cannot be read.
    """
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's errors have no base class of their own
        raise NotTrainable(path=path, reason=f"it cannot be read ({type(error).__name__})") from error
