"""Turn an ONNX detector into a torch module with differentiable boxes and scores, and write its weights back.

The decoding of a layout is appended to the graph as ONNX operations (`training.onnx_decoders`), so that every layout
gives the same three tensors. Parameters are matched to the tensors of the file by node and content, before training.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import prepare
from ml_backend.finetune.anchors import AnchorPoints, anchors_of
from ml_backend.finetune.classes import check_same, class_tensors, load_source, run, set_metadata, with_classes
from ml_backend.finetune.errors import NotTrainable, disk_errors_name
from ml_backend.finetune.graph import Weights, fuse_silu, open_batch, trainable_copy
from ml_backend.finetune.torch_parts import import_converter
from ml_backend.inference.detector import Detector, load_detector
from ml_backend.training.onnx_builder import GraphBuilder
from ml_backend.training.onnx_decoders import DECODERS

OUTPUTS = ("boxes", "objectness", "scores")

# Largest difference between torch and ONNX Runtime: of scores, and of boxes as a share of the input's side.
TOLERANCE = 1e-4

# The same after training, where weights and outputs are larger.
WRITTEN_TOLERANCE = 1e-3

# Operators of graphs that compute with integers.
QUANTISED = frozenset({"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv"})

# Layouts with an objectness of their own; elsewhere `onnx_decoders` derives it from the class scores.
OWN_OBJECTNESS = frozenset({"labelloop", "yolox", "yolox-decoded", "yolov5"})


@dataclass(frozen=True)
class TrainableDetector:
    """A detector as a torch module.

    Attributes:
        module: Maps images (b, 3, h, w) float32 to boxes (b, n, 4), objectness (b, n), scores (b, n, classes).
        source: The ONNX graph with the project's class layers, whose weights `write_back` replaces.
        detector: `source`, loaded.
        parameters: Torch parameters by the name of their tensor in `source`.
        anchors: Centre and stride of each candidate's cell.
        own_objectness: Whether objectness is trained apart from the class scores.
        batched: Whether several images may be run at once.
        difference: Largest difference between torch and ONNX Runtime before training.
        class_tensors: Names of the parameters of its class layers, which are trained first.
    """

    module: Any
    source: onnx.ModelProto
    detector: Detector
    parameters: Mapping[str, Any]
    anchors: AnchorPoints
    own_objectness: bool
    batched: bool
    difference: float
    class_tensors: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        return self.detector.names.names


def open_trainable(path: Path, names: Sequence[str], *, layout: str = "", folder: Path) -> TrainableDetector:
    """Open a model for training on other classes.

    Args:
        path: An ONNX detector.
        names: The classes to train, in their order.
        layout: Forced layout; empty: recognised.
        folder: Where the graph with new class layers is written.

    Raises:
        NotTrainable: The layout or the graph cannot be trained, or torch computes something else.
        ModelError: The model cannot be loaded.
    """
    original = load_detector(path, layout=layout, threads=1, allow_numbered=True)
    _require_trainable(original)
    model = load_source(path)
    if quantised := {node.op_type for node in model.graph.node} & QUANTISED:
        raise NotTrainable(path=path, reason=f"it is quantised ({min(quantised)}); give the float32 export")
    source = with_classes(original, model, names)
    check_same(original, model, source, names)
    file = folder / "source.onnx"
    onnx.save(source, file)
    detector = load_detector(file, layout=original.layout, threads=1)
    if detector.names.names != tuple(names):
        raise NotTrainable(path=path, reason=f"its class names come from {detector.names.source}, not its metadata")
    decoded = _decoded(detector, source)
    anchors = anchors_of(detector, path=path)
    graph = trainable_copy(decoded)
    fuse_silu(graph)
    opened = open_batch(graph)
    images = _trial_images(detector)
    try:
        expected = [run(decoded, image[None], OUTPUTS) for image in images]
    except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
        reason = f"its graph does not run with its boxes decoded ({str(error).splitlines()[0][:200]})"
        raise NotTrainable(path=path, reason=reason) from error
    module = _convert(opened, path)
    batched = _difference(module, images, expected, detector, together=True) <= TOLERANCE
    if not batched:
        module = _convert(graph, path)
    difference = _difference(module, images, expected, detector, together=False)
    if not difference <= TOLERANCE:
        raise NotTrainable(
            path=path, reason=f"torch computes other outputs than ONNX Runtime (difference {difference:.2g})"
        )
    parameters = _match(module, graph, source, path)
    first = class_tensors(original, model) & parameters.keys()
    return TrainableDetector(
        module, source, detector, parameters, anchors, original.layout in OWN_OBJECTNESS, batched, difference, first
    )


def _require_trainable(detector: Detector) -> None:
    path, layout = detector.path, detector.layout
    if "learned_from" in detector.engine.graph.metadata:
        parent = detector.engine.graph.metadata["learned_from"]
        raise NotTrainable(
            path=path, reason=f"it is a refit of {parent}; train that model, and the refit goes on upon the result"
        )
    if layout not in DECODERS or detector.provides != {"boxes"}:
        supported = "yolox, labelloop, yolov8, yolov5, nanodet"
        raise NotTrainable(path=path, reason=f"its layout is {layout!r}, and fine-tuning supports {supported}")
    if any(tensor.dtype.startswith("float16") for tensor in detector.engine.graph.inputs):
        raise NotTrainable(path=path, reason="its graph computes in float16; export it in float32")


def _decoded(detector: Detector, source: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the outputs boxes, objectness and scores alone."""
    nodes = GraphBuilder(source, prefix="train")
    DECODERS[detector.layout](nodes, detector)
    nodes.drop_outputs(*(name for name in nodes.outputs if name not in OUTPUTS))
    return nodes.build()


def _convert(graph: onnx.ModelProto, path: Path) -> Any:
    converter = import_converter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = converter(graph).eval()
            for node in graph.graph.node:
                if node.op_type == "Swish":  # torch's kernel keeps one tensor for the backward pass instead of three
                    setattr(module, module.mapping[node.output[0]], torch.nn.SiLU())
            return module.to(memory_format=torch.channels_last)
    except Exception as error:  # the converter raises whatever it meets
        reason = f"onnx2pytorch cannot convert it ({type(error).__name__}: {str(error)[:200]})"
        raise NotTrainable(path=path, reason=reason) from error


def _trial_images(detector: Detector) -> list[npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    shape = (detector.spec.height, detector.spec.width, 3)
    return [prepare(rng.integers(0, 256, shape, np.uint8), detector.spec).tensor for _ in range(2)]


def _difference(
    module: Any,
    images: Sequence[npt.NDArray[Any]],
    expected: Sequence[Mapping[str, Floats]],
    detector: Detector,
    *,
    together: bool,
) -> float:
    """Largest difference to ONNX Runtime; infinite where torch fails.

    Derived objectness is the best class score, and the scores are divided by it: where it is small, the rounding of a
    sigmoid becomes a large difference of the quotient. Their product is compared then.
    """
    batches = [np.stack(images)] if together else [image[None] for image in images]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs = [dict(zip(OUTPUTS, module(torch.from_numpy(batch)), strict=True)) for batch in batches]
    except Exception:  # noqa: BLE001 - whatever the converted graph meets, it cannot be trained so
        return float("inf")
    side = max(detector.spec.height, detector.spec.width)
    computed = {name: torch.cat([outputs[name] for outputs in runs]).numpy() for name in OUTPUTS}
    reference = {name: np.concatenate([outputs[name] for outputs in expected]) for name in OUTPUTS}
    if any(computed[name].shape != reference[name].shape for name in OUTPUTS):
        return float("inf")
    if detector.layout not in OWN_OBJECTNESS:
        for outputs in (computed, reference):
            outputs["scores"] = outputs["objectness"][..., None] * outputs["scores"]
    worst = 0.0
    for name in OUTPUTS:
        got, wanted = computed[name], reference[name]
        scale = np.maximum(np.abs(wanted), side) if name == "boxes" else 1  # far boxes of unlikely candidates are large
        worst = max(worst, float((np.abs(got - wanted) / scale).max()))
    return worst


def _match(module: Any, graph: onnx.ModelProto, source: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Match parameters to stored tensors, node by node, by content; share those that several nodes read.

    Raises:
        NotTrainable: A parameter has no tensor of its content.
    """
    weights = Weights.of(source)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    captures: dict[str, Any] = {}
    matched: set[int] = set()
    for node in graph.graph.node:
        layer = getattr(module, module.mapping[node.output[0]], None)
        if not isinstance(layer, torch.nn.Module):
            continue
        for owner in layer.modules():
            for attribute, parameter in list(owner._parameters.items()):  # noqa: SLF001 - shared below
                if parameter is None:
                    continue
                content = parameter.detach().numpy()
                name = next(
                    (name for name in node.input if name in values and np.array_equal(values[name], content)), None
                )
                if not any(weights.source(read) for read in node.input):  # a constant of the decoding
                    parameter.requires_grad_(False)
                    matched.add(id(parameter))
                    continue
                if name is None or weights.source(name) is None:
                    continue
                key = weights.read_from.get(name, name)
                if key in captures:
                    owner._parameters[attribute] = captures[key]  # noqa: SLF001
                captures.setdefault(key, parameter)
                matched.add(id(captures[key]))
    lost = [name for name, parameter in module.named_parameters() if id(parameter) not in matched]
    if lost or not captures:
        raise NotTrainable(path=path, reason=f"{len(lost)} of its parameters have no tensor in the file ({lost[:3]})")
    return captures


def trained_model(trained: TrainableDetector, state: Mapping[str, Any], *, path: Path) -> tuple[onnx.ModelProto, float]:
    """Build the source graph with trained weights; verified by ONNX Runtime.

    Args:
        trained: The detector.
        state: Parameters by tensor name: those of `trained`, or their running average.
        path: The model that was trained, for messages.

    Returns:
        The model, and the largest difference between its outputs and torch's.

    Raises:
        NotTrainable: Its outputs differ from torch's.
    """
    model = onnx.ModelProto()
    model.CopyFrom(trained.source)
    weights = Weights.of(model)
    for name, parameter in state.items():
        weights.write(name, parameter.detach().cpu().float().numpy())
    module = trained.module.to("cpu")
    with torch.no_grad():
        for name, parameter in trained.parameters.items():  # as stored: float16 files round
            stored = np.array(weights.value(name), np.float32)
            parameter.copy_(torch.from_numpy(stored).reshape(parameter.shape))
    images = _trial_images(trained.detector)
    decoded = _decoded(trained.detector, model)
    expected = [run(decoded, image[None], OUTPUTS) for image in images]
    difference = _difference(module, images, expected, trained.detector, together=False)
    if not difference <= WRITTEN_TOLERANCE:
        raise NotTrainable(path=path, reason=f"the trained weights give {difference:.2g} other outputs in ONNX Runtime")
    return model, difference


def save_model(model: onnx.ModelProto, file: Path, **metadata: object) -> None:
    """Write a model with metadata, atomically.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    set_metadata(model, **metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors_name(file):
        descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(model.SerializeToString())
            partial.chmod(0o644)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
