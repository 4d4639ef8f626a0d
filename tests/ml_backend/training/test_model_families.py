"""Small detectors of several families can be trained on: same boxes, features of their last layers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import load_detector
from ml_backend.training.backbone import open_backbone
from ml_backend.training.examples import Example
from ml_backend.training.onnx_export import write_learned
from tests.ml_backend.training.heads import fit_head

SIDE = 64
STRIDES = (8, 16, 32)


class Net:
    """Builds a graph operation by operation, with random weights."""

    def __init__(self, seed=0):
        self.nodes, self.constants, self.count = [], [], 0
        self.rng = np.random.default_rng(seed)

    def constant(self, value):
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"k{self.count}"))
        return f"k{self.count}"

    def add(self, operation, *inputs, name="", outputs=1, **attributes):
        self.count += 1
        names = [name or f"t{self.count}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operation, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def weights(self, *shape, spread=0.4):
        return self.constant(self.rng.normal(0, spread, shape).astype(np.float32))

    def conv(self, source, wide, out, *, bias=0.0, name=""):
        shift = self.constant(np.full(out, bias, np.float32))
        return self.add("Conv", source, self.weights(out, wide, 1, 1), shift, name=name)

    def level(self, stride):
        """The features of a level: 6 channels that depend on the pixels."""
        scaled = self.add("Mul", "images", self.constant(np.array([0.02], np.float32)))
        pooled = self.add("AveragePool", scaled, kernel_shape=[stride] * 2, strides=[stride] * 2)
        return self.add("Tanh", self.conv(pooled, 3, 6))

    def tower(self, source, out=5, name=""):
        return self.add("Tanh", self.conv(source, 6, out), name=name)

    def shaped(self, source, *shape):
        return self.add("Reshape", source, self.constant(np.array(shape)))

    def save(self, path, outputs, **metadata):
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "small",
            [info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=str(value))
        onnx.save(model, path)
        return path


def cells(strides=STRIDES):
    """Cell centres (n, 2) and strides (n, 1), by a plain loop."""
    rows = [(x + 0.5, y + 0.5, s) for s in strides for y in range(SIDE // s) for x in range(SIDE // s)]
    table = np.array(rows, np.float32)
    return table[:, :2], table[:, 2:]


def yolov8(path):
    """Boxes are distributions over four bins, averaged by a convolution; class towers have other widths."""
    net = Net()
    levels = []
    for index, stride in enumerate(STRIDES):
        stem = net.level(stride)
        box = net.conv(net.tower(stem, name=f"box{index}"), 5, 16)
        score = net.conv(net.tower(stem, name=f"class{index}"), 5, 2, bias=-1)
        levels.append(net.shaped(net.add("Concat", box, score, axis=1), 1, 18, -1))
    split = net.constant(np.array([16, 2]))
    boxes, scores = net.add("Split", net.add("Concat", *levels, axis=2), split, outputs=2, axis=1)
    distribution = net.add("Softmax", net.add("Transpose", net.shaped(boxes, 1, 4, 4, -1), perm=[0, 2, 1, 3]), axis=1)
    mean = net.add("Conv", distribution, net.constant(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)))
    sides = net.shaped(mean, 1, 4, -1)
    low, high = net.add("Split", sides, net.constant(np.array([2, 2])), outputs=2, axis=1)
    centres, steps = (net.constant(values.T[None]) for values in cells())
    start, end = net.add("Sub", centres, low), net.add("Add", centres, high)
    centre = net.add("Div", net.add("Add", start, end), net.constant(np.array([2], np.float32)))
    boxes = net.add("Mul", net.add("Concat", centre, net.add("Sub", end, start), axis=1), steps)
    net.add("Concat", boxes, net.add("Sigmoid", scores), name="output0", axis=1)
    return net.save(path, ["output0"], names="{0: 'a', 1: 'b'}", task="detect"), ("box", "class")


def yolov5(path):
    """One convolution per level for three anchors per cell."""
    net = Net()
    flat = []
    for index, stride in enumerate(STRIDES):
        raw = net.conv(net.tower(net.level(stride), name=f"neck{index}"), 5, 21, bias=0.3)
        wide = SIDE // stride
        rows = net.add("Transpose", net.shaped(raw, 1, 3, 7, wide, wide), perm=[0, 1, 3, 4, 2])
        activated = net.add("Sigmoid", net.shaped(rows, 1, -1, 7))
        scale = net.constant(np.array([SIDE, SIDE, stride * 4, stride * 4, 1, 1, 1], np.float32))
        flat.append(net.add("Mul", activated, scale))
    net.add("Concat", *flat, name="output", axis=1)
    return net.save(path, ["output"], names="['a', 'b']"), ("neck",)


def nanodet(path):
    """Six outputs: scores and distances of each level, from one convolution that is split."""
    net = Net()
    names = []
    for index, stride in enumerate(STRIDES):
        both = net.conv(net.tower(net.level(stride), name=f"tower{index}"), 5, 34, bias=-0.5)
        split = net.constant(np.array([2, 32]))
        scores, distances = net.add("Split", both, split, outputs=2, axis=1)
        for kind, tensor, wide in (("cls", net.add("Sigmoid", scores), 2), ("dis", distances, 32)):
            net.add("Transpose", net.shaped(tensor, 1, wide, -1), name=f"{kind}{index}", perm=[0, 2, 1])
            names.append(f"{kind}{index}")
    return net.save(path, sorted(names), names="['a', 'b']"), ("tower",)


def detr(path):
    """Queries instead of cells: a linear layer for classes, a small network for boxes."""
    net = Net()
    tokens = net.add("Transpose", net.shaped(net.level(16), 1, 6, -1), perm=[0, 2, 1])
    hidden = net.add("Tanh", net.add("MatMul", tokens, net.weights(6, 5)), name="hidden0")
    shift = net.constant(np.array([-1, -1], np.float32))
    net.add("Add", net.add("MatMul", hidden, net.weights(5, 2)), shift, name="logits")
    inner = net.add("Relu", net.add("MatMul", hidden, net.weights(5, 5)), name="inner0")
    net.add("Sigmoid", net.add("MatMul", inner, net.weights(5, 4)), name="pred_boxes")
    return net.save(path, ["logits", "pred_boxes"], names="['a', 'b']"), ("hidden", "inner")


# Layout -> function that writes the model and names the inputs of its last layers, and the head's levels.
FAMILIES = {
    "yolov8": (yolov8, (64, 16, 4)),
    "yolov5": (yolov5, (64, 64, 64, 16, 16, 16, 4, 4, 4)),
    "nanodet": (nanodet, (64, 16, 4)),
    "detr-sigmoid": (detr, (16,)),
}


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    build, levels = FAMILIES[request.param]
    path, features = build(tmp_path / "small.onnx")
    backbone = open_backbone(path, folder=tmp_path, layout=request.param)
    assert backbone.levels == levels
    return path, features, request.param, backbone


@pytest.fixture
def photos(family):
    rng = np.random.default_rng(3)
    grounds = (np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))) for _ in range(3))
    return [prepare(ground.astype(np.uint8), family[3].spec) for ground in grounds]


def test_backbone_detects_the_same_as_the_model(family, photos):
    path, _, layout, backbone = family
    plain = load_detector(path, layout=layout)
    assert backbone.names == plain.names.names
    assert backbone.spec == plain.spec
    for photo in photos:
        outputs = plain.engine.run([photo.tensor], plain.reader.outputs)
        [original] = (detections.to_image(photo.fit) for detections in plain.reader.decode(outputs, 0.2))
        detector = backbone.detector
        [exported] = (
            detections.to_image(photo.fit)
            for detections in detector.reader.decode(detector.engine.run([photo.tensor], detector.reader.outputs), 0.2)
        )
        assert len(original) > 3
        np.testing.assert_allclose(exported.boxes, original.boxes, atol=1e-3)
        np.testing.assert_allclose(exported.scores, original.scores, rtol=1e-5)
        np.testing.assert_array_equal(exported.classes, original.classes)


def test_features_are_the_inputs_of_the_last_layers(family, photos):
    path, features, _, backbone = family
    model = onnx.load(path)
    tensors = sorted({name for node in model.graph.node for name in node.output if name[:-1] in features})
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    arrays = session.run(tensors, {"images": photos[0].tensor[None]})
    [candidates] = backbone.extract_features(photos[:1])
    repeats = len(backbone.levels) // len({name[-1] for name in tensors})
    for name in features:
        levels = [array[0] for key, array in zip(tensors, arrays, strict=True) if key[:-1] == name]
        rows = [level.reshape(5, -1).T if level.ndim == 3 else level for level in levels]
        expected = np.concatenate([level for level in rows for _ in range(repeats)])
        matches = [
            column
            for column in range(candidates.embeddings.shape[1] - 4)
            if np.allclose(candidates.embeddings[:, column : column + 5], expected, atol=1e-5)
        ]
        assert matches, name


def test_exported_model_equals_the_head_bitwise(family, photos, tmp_path):
    backbone = family[3]
    candidates = backbone.extract_features(photos[:1]) + backbone.extract_features(photos[1:2])
    examples = [
        Example(image_candidates, np.clip(image_candidates.boxes[[3, 9]], 0, SIDE), ("new", "a"))
        for image_candidates in candidates
    ]
    backbone_classes = [("a", 0), ("b", 1)]
    head = fit_head(
        examples, levels=backbone.levels, trainer="logistic", refit_boxes=True, backbone_classes=backbone_classes
    )
    write_learned(tmp_path / "learned.onnx", backbone, head)
    detector = load_detector(tmp_path / "learned.onnx")
    assert detector.layout == "labelloop"
    raw = detector.engine.run([photos[2].tensor], ["boxes", "scores"])
    boxes, scores = head.score_candidates(backbone.extract_features(photos[2:])[0])
    np.testing.assert_array_equal(raw["scores"][0], scores)
    np.testing.assert_array_equal(raw["boxes"][0], boxes)
