"""The last layer is found in graphs of several families, and its inputs are in the order of the candidates."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import load_detector
from ml_backend.training.backbone import open_backbone
from ml_backend.training.feature_export import export_features, last_layers


def weights(name, *shape, seed=0):
    return numpy_helper.from_array(np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32), name)


def yolox(path, *, classes=3, side=64):
    """A small YOLOX: three levels with a stem and two towers each, one last layer per output, one raw grid."""
    nodes, constants, levels = [], [], []
    for index, stride in enumerate((8, 16, 32)):
        pooled = f"pooled{index}"
        nodes.append(
            helper.make_node("AveragePool", ["images"], [pooled], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        for name, source, wide in (("stem", pooled, 3), ("cls", f"stem{index}", 4), ("reg", f"stem{index}", 4)):
            constants.append(weights(f"{name}{index}.w", 4, wide, 1, 1, seed=index))
            nodes.append(helper.make_node("Conv", [source, f"{name}{index}.w"], [f"{name}{index}.c"]))
            nodes.append(helper.make_node("Tanh", [f"{name}{index}.c"], [f"{name}{index}"]))
        for name, source, wide in (("box", "reg", 4), ("obj", "reg", 1), ("class", "cls", classes)):
            constants.append(weights(f"{name}{index}.w", wide, 4, 1, 1, seed=9 + index))
            nodes.append(helper.make_node("Conv", [f"{source}{index}", f"{name}{index}.w"], [f"{name}{index}.c"]))
        activated = (f"{name}{index}" for name in ("obj", "class"))
        nodes.extend(helper.make_node("Sigmoid", [f"{name_}.c"], [f"{name_}.s"]) for name_ in activated)
        parts = [f"box{index}.c", f"obj{index}.s", f"class{index}.s"]
        nodes.append(helper.make_node("Concat", parts, [f"level{index}"], axis=1))
        constants.append(numpy_helper.from_array(np.array([0, 5 + classes, -1]), f"flat{index}.shape"))
        nodes.append(helper.make_node("Reshape", [f"level{index}", f"flat{index}.shape"], [f"flat{index}"]))
        levels.append(f"flat{index}")
    nodes.append(helper.make_node("Concat", levels, ["together"], axis=2))
    nodes.append(helper.make_node("Transpose", ["together"], ["output"], perm=[0, 2, 1]))
    count = sum((side // stride) ** 2 for stride in (8, 16, 32))
    graph = helper.make_graph(
        nodes,
        "yolox",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, count, 5 + classes])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    model.metadata_props.add(key="names", value=str([f"c{index}" for index in range(classes)]))
    onnx.save(model, path)
    return path


@pytest.fixture
def photo():
    return np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def test_features_are_in_the_order_of_the_boxes(tmp_path, photo):
    backbone = open_backbone(yolox(tmp_path / "small.onnx"), folder=tmp_path, layout="yolox")
    assert backbone.levels == (64, 16, 4)
    prepared = prepare(photo, backbone.spec)
    [candidates] = backbone.extract_features([prepared])
    assert candidates.embeddings.shape == (84, 12)
    model = onnx.load(tmp_path / "small.onnx")
    names = [f"{name}{index}" for name in ("reg", "cls", "stem") for index in range(3)]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    import onnxruntime

    arrays = onnxruntime.InferenceSession(model.SerializeToString()).run(names, {"images": prepared.tensor[None]})
    maps = dict(zip(names, arrays, strict=True))
    for column, name in enumerate(("reg", "cls", "stem")):
        expected = np.concatenate([maps[f"{name}{index}"][0].reshape(4, -1).T for index in range(3)])
        np.testing.assert_allclose(candidates.embeddings[:, 4 * column : 4 * column + 4], expected, atol=1e-6)


def test_onnx_decoding_equals_the_layout(tmp_path, photo):
    file = yolox(tmp_path / "small.onnx")
    plain = load_detector(file, layout="yolox")
    backbone = open_backbone(file, folder=tmp_path, layout="yolox")
    assert backbone.names == ("c0", "c1", "c2")
    [exported], [original] = (
        detector.detect([prepare(photo, detector.spec)], floor=0.2) for detector in (backbone.detector, plain)
    )
    assert len(original) > 0
    np.testing.assert_allclose(exported.boxes, original.boxes, atol=1e-3)
    np.testing.assert_allclose(exported.scores, original.scores, rtol=1e-5)


def test_linear_layer_is_found_before_bias_and_sigmoid():
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "detr",
        [info("x", TensorProto.FLOAT, [1, 300, 8])],
        [info("scores", TensorProto.FLOAT, [1, 300, 5])],
        [weights("w", 8, 5), weights("b", 5)],
    )
    assert [layer.input[0] for layer in last_layers(graph, ["scores"])] == ["hidden"]


def test_attention_is_not_a_last_layer():
    """A product of two computed tensors has no weights to refit, and the search does not continue before it."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("MatMul", ["y", "x"], ["scores"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [info("x", TensorProto.FLOAT, [4, 4])],
        [info("scores", TensorProto.FLOAT, [4, 4])],
    )
    assert last_layers(graph, ["scores"]) == ()


def test_model_without_a_last_layer_raises(labelloop_model):
    with pytest.raises(NotLearnable, match="no convolution or linear layer"):
        export_features(load_detector(labelloop_model()))
