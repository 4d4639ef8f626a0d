"""Rewrite an ONNX detector so that it also outputs its candidate features.

`export_features` returns a graph with the outputs of the layout `labelloop` and a fourth one, `embeddings` (batch, n,
d): for each candidate box, the input vector of the detector's own last layer. The layer is found by walking back from
the outputs through element-wise and reshaping operations to the first convolution or linear layer (Wang et al. 2020,
https://arxiv.org/abs/2003.06957, refit nothing else). Where classes and boxes have separate towers, the features of
both are concatenated, with those of their common stem.

A further output holds features of the whole image, see `image_features`. Graphs without candidates that can be trained,
such as classifiers, get that output alone, in addition to their own. A graph without a feature map gets those of the
embedded model, see `lent_features`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import structlog
from onnx import helper, numpy_helper

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken, NotLearnable
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.inference.run_limit import RunLimit
from ml_backend.layouts.labelloop import EMBEDDINGS
from ml_backend.training.image_features import FeatureTensor, add_image_features, backbone_maps, select_maps
from ml_backend.training.lent_features import add_lent_features
from ml_backend.training.onnx_builder import GraphBuilder
from ml_backend.training.onnx_decoders import DECODERS
from ml_backend.training.roi_features import (
    POSTPROCESSED,
    add_candidate_outputs,
    add_pooled_features,
    feature_map_names,
    select_feature_maps,
)

log = structlog.get_logger(__name__)

# Metadata key of an exported graph: number of candidates per level, in their order, as a JSON list.
LEVELS = "labelloop.levels"

# Why a graph has no features of images of its own.
NO_MAP = "it has no feature map that describes a whole image"

LEARNED_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
# Operations without learned weights that may lie between the last layer and the outputs.
PASS_THROUGH = frozenset(
    {
        "Add", "Cast", "Clip", "Concat", "Div", "Exp", "Flatten", "Gather", "Identity", "Mul", "Reshape", "Sigmoid",
        "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """A tensor with one feature vector per candidate: (batch, d, h, w) or (batch, n, d)."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        """Whether the candidates lie on a grid."""
        return len(self.shape) == 4

    @property
    def candidates(self) -> int:
        """Candidates per image."""
        return self.shape[2] * self.shape[3] if self.is_map else self.shape[1]

    @property
    def width(self) -> int:
        """Length of the feature vector."""
        return self.shape[1] if self.is_map else self.shape[2]


def last_layers(graph: onnx.GraphProto, outputs: Iterable[str]) -> tuple[onnx.NodeProto, ...]:
    """Find the learned layers nearest to the outputs, in the order of the candidates.

    A graph concatenates its levels from first to last, so the order of traversal is that of the candidates.
    """
    producer_of = producers(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"
    }
    layers: dict[str, onnx.NodeProto] = {}
    visited: set[str] = set()

    def walk(name: str) -> None:
        node = producer_of.get(name)
        if node is None or name in visited:
            return
        visited.add(name)
        if node.op_type == "Conv" and _is_expectation(constants.get(node.input[1])):
            walk(node.input[0])
        elif node.op_type in LEARNED_LAYERS and any(
            source in constants or _is_constant(source, producer_of) for source in node.input[1:]
        ):
            layers.setdefault(node.output[0], node)
        elif node.op_type in PASS_THROUGH:
            for source in node.input:
                walk(source)

    for output in outputs:
        walk(output)
    return tuple(layers.values())


def producers(graph: onnx.GraphProto) -> Mapping[str, onnx.NodeProto]:
    """Map each tensor to the node that outputs it."""
    return {output: node for node in graph.node for output in node.output}


def nearest_common_tensor(graph: onnx.GraphProto, first: str, second: str) -> str | None:
    """The last tensor that both depend on; None where one depends on the other."""
    producer_of = producers(graph)
    ancestors = [_ancestors(tensor, producer_of) for tensor in (first, second)]
    if first in ancestors[1] or second in ancestors[0]:
        return None
    shared = ancestors[0] & ancestors[1]
    for node in reversed(graph.node):
        for output in node.output:
            if output in shared:
                return str(output)
    return None


def export_features(detector: Detector) -> onnx.ModelProto:
    """Build the graph with the outputs `boxes`, `objectness`, `scores`, `embeddings` and, if any, image features.

    Where no layer can be refitted, or the layout outputs final boxes, `embeddings` are RoI features.

    Args:
        detector: A detector whose layout is in `DECODERS` or `POSTPROCESSED`.

    Raises:
        NotLearnable: The graph has neither a layer to refit nor a feature map, or its layout has no decoder.
        ModelBroken: The file cannot be read.
    """
    path, layout = detector.path, detector.layout
    model = _load(detector)
    if reason := not_learnable_reason(detector):
        raise NotLearnable(path=path, reason=reason)
    tensors = _image_tensors(detector, model)
    if layout in POSTPROCESSED:
        return _with_roi_features(detector, model, tensors)
    nodes = GraphBuilder(model, prefix="features")
    outputs = [output.name for output in model.graph.output]
    layers = last_layers(model.graph, outputs if EMBEDDINGS in outputs else detector.reader.outputs)
    try:
        columns, boxes_per_cell = _columns(detector, model, layers)
    except NotLearnable:
        if EMBEDDINGS in outputs:
            raise
        return _with_roi_features(detector, model, tensors)
    nodes.set_metadata(**{LEVELS: [level.candidates for level in columns[0] for _ in range(boxes_per_cell)]})
    if EMBEDDINGS not in outputs:
        DECODERS[layout](nodes, detector)
        nodes.concat([_flat(nodes, levels, boxes_per_cell) for levels in columns], axis=2, name=EMBEDDINGS)
        nodes.output(EMBEDDINGS, ("batch", "candidates", sum(levels[0].width for levels in columns)))
    _add_optional_features_of_images(nodes, detector, tensors)
    return nodes.build()


def export_image_features(detector: Detector) -> onnx.ModelProto:
    """Build the graph with its own outputs and image features: for models whose boxes cannot be trained.

    Args:
        detector: Of any layout.

    Raises:
        NotLearnable: The graph has no feature map to pool, and cannot be given those of the embedded model.
        ModelBroken: The file cannot be read.
    """
    model = _load(detector)
    nodes = GraphBuilder(model, prefix="features")
    _add_features_of_images(nodes, detector, _image_tensors(detector, model))
    return nodes.build()


def no_image_features(detector: Detector) -> str:
    """Why a model has no features of images of its own; empty where it has."""
    if detector.engine.graph.image_features:
        return ""
    return "" if _image_tensors(detector, _load(detector)) else NO_MAP


def _add_features_of_images(nodes: GraphBuilder, detector: Detector, tensors: Sequence[FeatureTensor]) -> None:
    """Add the features of images: of the graph itself, else of the embedded model."""
    if tensors or detector.engine.graph.image_features:
        add_image_features(nodes, tensors)
        return
    lender = load_detector(embedded_model(), threads=1)
    model = _load(lender)
    maps = _image_tensors(lender, model)
    add_lent_features(nodes, detector, lender, model, maps, reason=NO_MAP)


def _add_optional_features_of_images(nodes: GraphBuilder, detector: Detector, tensors: Sequence[FeatureTensor]) -> None:
    """Add the features of images to a graph whose boxes can be trained; it is of use without them too."""
    try:
        _add_features_of_images(nodes, detector, tensors)
    except NotLearnable as error:
        log.warning(
            "image_features_missing", model=detector.version, reason=error.reason,
            effect="boxes are learned, answers about images are not",
        )  # fmt: skip


def _load(detector: Detector) -> onnx.ModelProto:
    try:
        return onnx.load(detector.path)
    except Exception as error:  # protobuf's errors have no base class of their own
        raise ModelBroken(path=detector.path, reason=f"it cannot be read ({type(error).__name__})") from error


def _image_tensors(detector: Detector, model: onnx.ModelProto) -> list[FeatureTensor]:
    """Tensors whose pooled values describe the image; none where the graph has none."""
    if detector.provides == {"classes"}:
        layers = last_layers(model.graph, detector.reader.outputs)
        inputs = [layer.input[0] for layer in layers[:1]]
        shapes = _shapes(detector, model, inputs) if inputs else {}
        return [(name, shape) for name, shape in shapes.items() if len(shape) in {2, 4}]
    maps = backbone_maps(model.graph)
    return select_maps(maps, _inferred_shapes(detector, model, maps.names) if maps.names else {}, detector.spec)


def _inferred_shapes(detector: Detector, model: onnx.ModelProto, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of feature maps for an image of the detector's size: inferred, or from a trial run where that fails."""
    spec = detector.spec
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]  # exporters write wrong ones
    for tensor in sized.graph.input:
        dimensions = tensor.type.tensor_type.shape.dim
        if len(dimensions) == 4:
            rows, columns = (1, 2) if spec.layout == "NHWC" else (2, 3)
            dimensions[0].dim_value, dimensions[rows].dim_value, dimensions[columns].dim_value = (
                1,
                spec.height,
                spec.width,
            )
    try:
        inferred = onnx.shape_inference.infer_shapes(sized)
    except Exception:  # noqa: BLE001 - onnx raises errors that derive from Exception alone
        return _shapes(detector, model, names)
    dims_of = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    shapes = {name: tuple(side.dim_value for side in dims_of[name]) for name in names if name in dims_of}
    complete = {name: shape for name, shape in shapes.items() if all(shape)}
    return complete if len(complete) == len(names) else _shapes(detector, model, names)


def not_learnable_reason(detector: Detector) -> str:
    """Why the layout does not support training; empty where it does."""
    layout = detector.layout
    if layout in POSTPROCESSED and detector.provides != {"boxes"}:
        extra = ", ".join(sorted(detector.provides - {"boxes"}))
        return f"it predicts {extra}, and training supports boxes only"
    if layout not in DECODERS and layout not in POSTPROCESSED:
        supported = ", ".join((*DECODERS, *POSTPROCESSED))
        return f"training does not support the layout {layout!r}; supported: {supported}"
    return ""


def _with_roi_features(detector: Detector, model: onnx.ModelProto, tensors: Sequence[FeatureTensor]) -> onnx.ModelProto:
    """Build the graph with RoI features; it takes one image per run."""
    outputs, graph = detector.reader.outputs, detector.engine.graph
    fixed = graph.image.shape[0] if graph.image and graph.batched else None
    if fixed not in {None, 1}:
        raise NotLearnable(
            path=detector.path, reason=f"its batch is fixed to {fixed} images, and RoI features need a batch of 1"
        )
    names = feature_map_names(model.graph, outputs)
    maps = select_feature_maps(_shapes(detector, model, names)) if names else []
    if not maps:
        raise NotLearnable(path=detector.path, reason="no convolution or linear layer was found before its outputs")
    nodes = GraphBuilder(model, prefix="features")
    if detector.layout in POSTPROCESSED:
        levels = add_candidate_outputs(nodes, detector)
    else:
        DECODERS[detector.layout](nodes, detector)
        levels = (_shapes(detector, nodes.model, ["boxes"])["boxes"][1],)
    nodes.fix_batch_to_one()
    nodes.set_metadata(**{LEVELS: list(levels)})
    width = add_pooled_features(nodes, maps, detector.spec, count=sum(levels), name=EMBEDDINGS)
    nodes.output(EMBEDDINGS, ("batch", "candidates", width))
    _add_optional_features_of_images(nodes, detector, tensors)
    return nodes.build()


def _columns(
    detector: Detector, model: onnx.ModelProto, layers: Sequence[onnx.NodeProto]
) -> tuple[list[list[Feature]], int]:
    """Find the features to concatenate, each as a list of levels in candidate order; and the boxes per cell.

    Where a cell has several boxes (YOLOv5's anchors), each anchor has weights of its own in the last layer, and a row
    of its own in the head: anchors count as levels.
    """
    path = detector.path
    inputs = list(dict.fromkeys(layer.input[0] for layer in layers))
    if not inputs:
        raise NotLearnable(path=path, reason="no convolution or linear layer was found before its outputs")
    forks = dict.fromkeys(
        fork
        for index, first in enumerate(inputs)
        for second in inputs[index + 1 :]
        if (fork := nearest_common_tensor(model.graph, first, second)) is not None
    )
    shapes = _shapes(detector, model, [*inputs, *forks, detector.reader.outputs[0]])
    levels: dict[tuple[int, ...], list[str]] = {}
    for name in inputs:
        shape = shapes[name]
        levels.setdefault(shape[2:] if len(shape) == 4 else shape[1:2], []).append(name)
    width = min(len(level) for level in levels.values())
    columns = [[Feature(level[index], shapes[level[index]]) for level in levels.values()] for index in range(width)]
    stems = [_stem(model.graph, level, shapes) for level in levels.values()]
    if width > 1 and all(stems):
        columns.append([stem for stem in stems if stem])
    uniform = [column for column in columns if len({feature.width for feature in column}) == 1]
    if not uniform:
        raise NotLearnable(path=path, reason="its levels have features of different widths")
    return uniform, _boxes_per_cell(detector, uniform[0], shapes[detector.reader.outputs[0]])


def _boxes_per_cell(detector: Detector, levels: Sequence[Feature], output: tuple[int, ...]) -> int:
    """Number of boxes per feature vector."""
    if detector.layout != "yolov5":
        return 1
    cells = sum(level.candidates for level in levels)
    if output[1] % cells:
        raise NotLearnable(
            path=detector.path, reason=f"its {output[1]} boxes are no multiple of the {cells} cells of its last layers"
        )
    return output[1] // cells


def _stem(graph: onnx.GraphProto, level: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Feature | None:
    if len(level) < 2:
        return None
    fork = nearest_common_tensor(graph, level[0], level[1])
    if fork is None or fork not in shapes or shapes[fork][2:] != shapes[level[0]][2:]:
        return None
    return Feature(fork, shapes[fork])


def _shapes(detector: Detector, model: onnx.ModelProto, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes from a trial run; exporters often leave them out or write wrong ones."""
    import onnxruntime

    path, spec = detector.path, detector.spec
    trial = onnx.ModelProto()
    trial.CopyFrom(model)
    existing = {output.name for output in trial.graph.output}
    trial.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in existing)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(trial.SerializeToString(), options)
        graph = detector.engine.graph
        grey = prepare(np.full((256, 256, 3), 114, np.uint8), spec).tensor
        count = (graph.image.shape[0] or 1) if graph.image and graph.batched else 1
        batch = np.stack([grey] * count) if graph.batched else grey
        feeds = {graph.image.name: batch} if graph.image else {}
        arrays = RunLimit().run(session, names, {**feeds, **graph.auxiliary_feeds(spec.height, spec.width, count)})
    except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
        raise ModelBroken(
            path=path, reason=f"its features cannot be computed: {str(error).splitlines()[0][:200]}"
        ) from error
    return {name: array.shape for name, array in zip(names, arrays, strict=True)}


def _flat(nodes: GraphBuilder, levels: list[Feature], boxes_per_cell: int) -> str:
    """Flatten features on maps to (batch, n, d), level after level, each `boxes_per_cell` times."""
    flat = [
        nodes.transpose(nodes.reshape(level.name, (0, 0, -1)), (0, 2, 1)) if level.is_map else level.name
        for level in levels
    ]
    return nodes.cast(nodes.concat([level for level in flat for _ in range(boxes_per_cell)], axis=1), np.float32)


def _ancestors(name: str, producer_of: Mapping[str, onnx.NodeProto]) -> set[str]:
    ancestors: set[str] = set()
    stack = [name]
    while stack:
        node = producer_of.get(stack.pop())
        for source in node.input if node is not None else ():
            if source not in ancestors and source in producer_of and producer_of[source].op_type != "Constant":
                ancestors.add(source)
                stack.append(source)
    return ancestors


def _is_expectation(weights: onnx.TensorProto | None) -> bool:
    """Whether a convolution is the fixed expectation over bins 0, 1, 2, ... (DFL): it has no learned weights."""
    if weights is None or list(weights.dims)[:1] != [1] or list(weights.dims)[2:] != [1, 1]:
        return False
    values = numpy_helper.to_array(weights).ravel()
    return len(values) > 1 and bool(np.array_equal(values, np.arange(len(values))))


def _is_constant(name: str, producer_of: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor is computed from initializers and constants only, such as weights that are cast on load."""
    node = producer_of.get(name)
    while node is not None and node.op_type in {"Cast", "Identity", "DequantizeLinear", "Transpose"}:
        if not node.input or node.input[0] not in producer_of:
            return True
        node = producer_of[node.input[0]]
    return node is not None and node.op_type == "Constant"
