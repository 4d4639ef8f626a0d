"""Owns the frozen features of a detector: any graph whose head is convolutional or linear, made to give them out.

`expose` rewrites an ONNX detector so that it has the outputs of the layout `labelloop` and a fourth one, `embeddings`
(batch, n, d): for each of its n candidate boxes the vector that the detector's own last layer looks at. They are found
by walking back from the outputs through operations that only move or squash numbers until a convolution or a linear
layer is met: its input is what it looks at (Wang et al. 2020, https://arxiv.org/abs/2003.06957, refit nothing else).
Where classes and boxes have towers of their own, the features of both are taken, and of the stem from which they part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken, NotLearnable
from ml_backend.inference.detector import Detector
from ml_backend.inference.run_limit import RunLimit
from ml_backend.training.onnx_builder import Nodes
from ml_backend.training.onnx_decoders import STANDARD
from ml_backend.training.roi_features import FINISHED, add_pooled, add_regions, chosen_maps, map_names

EMBEDDINGS = "embeddings"
LEVELS = "labelloop.levels"
"""Metadata of an exposed graph: how many candidates each level of its head has, in their order, as a JSON list."""

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
MOVES = frozenset(
    {
        "Add", "Cast", "Clip", "Concat", "Div", "Exp", "Flatten", "Gather", "Identity", "Mul", "Reshape", "Sigmoid",
        "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""What may lie between the last layer and the outputs: nothing of it is learned, constants apart."""


@dataclass(frozen=True)
class Feature:
    """A tensor inside a graph that holds a vector a candidate: (batch, d, h, w), or (batch, n, d)."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        """Whether the candidates lie on a grid."""
        return len(self.shape) == 4

    @property
    def candidates(self) -> int:
        """How many candidates of one photo it describes."""
        return self.shape[2] * self.shape[3] if self.is_map else self.shape[1]

    @property
    def width(self) -> int:
        """Numbers a candidate."""
        return self.shape[1] if self.is_map else self.shape[2]


def last_layers(graph: onnx.GraphProto, outputs: Iterable[str]) -> tuple[onnx.NodeProto, ...]:
    """The learned layers nearest to these outputs, in the order in which the outputs are put together.

    That order is the one of the candidates: a graph lays its levels side by side from first to last.
    """
    made_by = producers(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"
    }
    found: dict[str, onnx.NodeProto] = {}
    seen: set[str] = set()

    def walk(name: str) -> None:
        node = made_by.get(name)
        if node is None or name in seen:
            return
        seen.add(name)
        if node.op_type == "Conv" and _takes_mean(constants.get(node.input[1])):
            walk(node.input[0])
        elif node.op_type in LAYERS and any(one in constants or _is_constant(one, made_by) for one in node.input[1:]):
            found.setdefault(node.output[0], node)
        elif node.op_type in MOVES:
            for one in node.input:
                walk(one)

    for output in outputs:
        walk(output)
    return tuple(found.values())


def producers(graph: onnx.GraphProto) -> Mapping[str, onnx.NodeProto]:
    """Tensor -> the node that makes it."""
    return {output: node for node in graph.node for output in node.output}


def fork_of(graph: onnx.GraphProto, first: str, second: str) -> str | None:
    """The last tensor that both depend on, itself made by the graph; None where one depends on the other."""
    made_by = producers(graph)
    above = [_ancestors(one, made_by) for one in (first, second)]
    if first in above[1] or second in above[0]:
        return None
    shared = above[0] & above[1]
    for node in reversed(graph.node):
        for output in node.output:
            if output in shared:
                return str(output)
    return None


def expose(detector: Detector) -> onnx.ModelProto:
    """The detector with the outputs `boxes`, `objectness`, `scores` and `embeddings`.

    Where no layer of it can be refitted, or its layout gives finished boxes, `embeddings` are region features.

    Args:
        detector: Any detector whose layout is in `STANDARD` or `FINISHED`.

    Raises:
        NotLearnable: There is neither a layer to refit nor a feature map, or boxes of its layout cannot be written as
            nodes.
        ModelBroken: The file cannot be read.
    """
    path, layout = detector.path, detector.layout
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors have no base class of their own
        raise ModelBroken(path, f"it cannot be read ({type(error).__name__})") from error
    if reason := unlearnable(detector):
        raise NotLearnable(path, reason)
    if layout in FINISHED:
        return _by_regions(detector, model)
    nodes = Nodes(model, prefix="features")
    told = [output.name for output in model.graph.output]
    layers = last_layers(model.graph, told if EMBEDDINGS in told else detector.reader.outputs)
    try:
        columns, each = _columns(detector, model, layers)
    except NotLearnable:
        if EMBEDDINGS in told:
            raise
        return _by_regions(detector, model)
    nodes.tell(**{LEVELS: [level.candidates for level in columns[0] for _ in range(each)]})
    if EMBEDDINGS not in told:
        STANDARD[layout](nodes, detector)
        nodes.concat([_flat(nodes, levels, each) for levels in columns], axis=2, name=EMBEDDINGS)
        nodes.output(EMBEDDINGS, ("batch", "candidates", sum(levels[0].width for levels in columns)))
    return nodes.close()


def unlearnable(detector: Detector) -> str:
    """Why nothing can be learned on a model, as far as its layout says; empty where the layout allows it."""
    layout = detector.layout
    if layout in FINISHED and detector.gives != {"boxes"}:
        more = ", ".join(sorted(detector.gives - {"boxes"}))
        return f"it gives {more}, and what is learned gives boxes alone"
    if layout not in STANDARD and layout not in FINISHED:
        known = ", ".join((*STANDARD, *FINISHED))
        return f"boxes of the layout {layout!r} cannot be learned from; known: {known}"
    return ""


def _by_regions(detector: Detector, model: onnx.ModelProto) -> onnx.ModelProto:
    """The detector with region features; it takes one photo a run."""
    outputs, graph = detector.reader.outputs, detector.engine.graph
    fixed = graph.image.shape[0] if graph.image and graph.batched else None
    if fixed not in {None, 1}:
        raise NotLearnable(detector.path, f"it takes {fixed} photos a run, and region features are of one")
    names = map_names(model.graph, outputs)
    maps = chosen_maps(_shapes(detector, model, names)) if names else []
    if not maps:
        raise NotLearnable(detector.path, "no convolution or linear layer was found in front of its outputs")
    nodes = Nodes(model, prefix="features")
    if detector.layout in FINISHED:
        levels = add_regions(nodes, detector)
    else:
        STANDARD[detector.layout](nodes, detector)
        levels = (_shapes(detector, nodes.model, ["boxes"])["boxes"][1],)
    nodes.take_one()
    nodes.tell(**{LEVELS: list(levels)})
    width = add_pooled(nodes, maps, detector.spec, count=sum(levels), name=EMBEDDINGS)
    nodes.output(EMBEDDINGS, ("batch", "candidates", width))
    return nodes.close()


def _columns(
    detector: Detector, model: onnx.ModelProto, layers: Sequence[onnx.NodeProto]
) -> tuple[list[list[Feature]], int]:
    """The features that are put side by side, of each its levels in the order of the candidates; and boxes a cell.

    Where a cell has several boxes (YOLOv5's anchors), each has weights of its own in the last layer, and a row of its
    own in the head: they are levels too, anchor after anchor.
    """
    path = detector.path
    inputs = list(dict.fromkeys(layer.input[0] for layer in layers))
    if not inputs:
        raise NotLearnable(path, "no convolution or linear layer was found in front of its outputs")
    forks = dict.fromkeys(
        fork
        for index, first in enumerate(inputs)
        for second in inputs[index + 1 :]
        if (fork := fork_of(model.graph, first, second)) is not None
    )
    shapes = _shapes(detector, model, [*inputs, *forks, detector.reader.outputs[0]])
    levels: dict[tuple[int, ...], list[str]] = {}
    for name in inputs:
        shape = shapes[name]
        levels.setdefault(shape[2:] if len(shape) == 4 else shape[1:2], []).append(name)
    width = min(len(one) for one in levels.values())
    columns = [[Feature(one[index], shapes[one[index]]) for one in levels.values()] for index in range(width)]
    stems = [_stem(model.graph, one, shapes) for one in levels.values()]
    if width > 1 and all(stems):
        columns.append([stem for stem in stems if stem])
    kept = [column for column in columns if len({feature.width for feature in column}) == 1]
    if not kept:
        raise NotLearnable(path, "its levels have features of different widths")
    return kept, _boxes_a_cell(detector, kept[0], shapes[detector.reader.outputs[0]])


def _boxes_a_cell(detector: Detector, levels: Sequence[Feature], output: tuple[int, ...]) -> int:
    """How many boxes each vector answers."""
    if detector.layout != "yolov5":
        return 1
    cells = sum(level.candidates for level in levels)
    if output[1] % cells:
        raise NotLearnable(detector.path, f"its {output[1]} boxes do not lie on the {cells} cells of its last layers")
    return output[1] // cells


def _stem(graph: onnx.GraphProto, level: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Feature | None:
    if len(level) < 2:
        return None
    fork = fork_of(graph, level[0], level[1])
    if fork is None or fork not in shapes or shapes[fork][2:] != shapes[level[0]][2:]:
        return None
    return Feature(fork, shapes[fork])


def _shapes(detector: Detector, model: onnx.ModelProto, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes that a trial run gives; what exporters write down is often missing or wrong."""
    import onnxruntime

    path, spec = detector.path, detector.spec
    trial = onnx.ModelProto()
    trial.CopyFrom(model)
    known = {output.name for output in trial.graph.output}
    trial.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(trial.SerializeToString(), options)
        graph = detector.engine.graph
        grey = prepare(np.full((256, 256, 3), 114, np.uint8), spec).tensor
        count = (graph.image.shape[0] or 1) if graph.image and graph.batched else 1
        shown = np.stack([grey] * count) if graph.batched else grey
        fed = {graph.image.name: shown} if graph.image else {}
        arrays = RunLimit().run(session, names, {**fed, **graph.feeds(spec.height, spec.width, count)})
    except Exception as error:  # ONNX Runtime raises a family of its own that derives from Exception alone
        raise ModelBroken(path, f"its features cannot be computed: {str(error).splitlines()[0][:200]}") from error
    return {name: array.shape for name, array in zip(names, arrays, strict=True)}


def _flat(nodes: Nodes, levels: list[Feature], each: int) -> str:
    """(batch, n, d) of features that lie on maps, level after level, `each` times each."""
    flat = [
        nodes.transpose(nodes.reshape(one.name, (0, 0, -1)), (0, 2, 1)) if one.is_map else one.name for one in levels
    ]
    return nodes.cast(nodes.concat([one for one in flat for _ in range(each)], axis=1), np.float32)


def _ancestors(name: str, made_by: Mapping[str, onnx.NodeProto]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        node = made_by.get(waiting.pop())
        for one in node.input if node is not None else ():
            if one not in found and one in made_by and made_by[one].op_type != "Constant":
                found.add(one)
                waiting.append(one)
    return found


def _takes_mean(weights: onnx.TensorProto | None) -> bool:
    """Whether a convolution only takes the mean of a distribution over 0, 1, 2, ...: nothing of it was learned."""
    if weights is None or list(weights.dims)[:1] != [1] or list(weights.dims)[2:] != [1, 1]:
        return False
    values = numpy_helper.to_array(weights).ravel()
    return len(values) > 1 and bool(np.array_equal(values, np.arange(len(values))))


def _is_constant(name: str, made_by: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes of initializers and constants alone (weights that are cast when loaded, for instance)."""
    node = made_by.get(name)
    while node is not None and node.op_type in {"Cast", "Identity", "DequantizeLinear", "Transpose"}:
        if not node.input or node.input[0] not in made_by:
            return True
        node = made_by[node.input[0]]
    return node is not None and node.op_type == "Constant"
