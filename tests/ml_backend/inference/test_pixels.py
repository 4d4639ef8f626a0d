"""Images are shown as the graph and its files say: its first operators, channels, types, and image processors."""

import json
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import LayoutFileError, ModelBroken, UnknownLayout
from ml_backend.inference.detector import load_detector, model_version
from ml_backend.training.feature_export import export_image_features

NAMES = ["cat", "dog", "cow"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ((0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def classifier(tmp_path):
    """classifier(operators, shape) -> a file whose logits are the means of the channels after the operators."""

    def make(operators=(), *, shape=(1, 3, 8, 8), dtype=TensorProto.FLOAT, name="images", names=NAMES, last="Mul"):
        nodes, weights = [helper.make_node("Cast", [name], ["t0"], to=TensorProto.FLOAT)], []
        for number, (kind, value) in enumerate(operators):
            array = np.asarray(value, np.float32)
            weights.append(
                numpy_helper.from_array(array.reshape(1, -1, 1, 1) if array.size > 1 else array, f"c{number}")
            )
            nodes.append(helper.make_node(kind, [f"t{number}", f"c{number}"], [f"t{number + 1}"]))
        channels, axes = (shape[1] or 3, [2, 3]) if (shape[1] or 3) < 8 else (3, [1, 2])
        weights.append(numpy_helper.from_array(np.array(axes), "axes"))
        weights.append(numpy_helper.from_array(np.ones((1, max(3, channels)), np.float32), "head"))
        nodes.append(helper.make_node("ReduceMean", [f"t{len(operators)}", "axes"], ["mean"], keepdims=0))
        if last == "Mul":
            nodes.append(helper.make_node("Mul", ["mean", "head"], ["logits"]))
        else:
            nodes += [helper.make_node("Mul", ["mean", "head"], ["raw"]), helper.make_node(last, ["raw"], ["logits"])]
        graph = helper.make_graph(
            nodes, "tiny", [helper.make_tensor_value_info(name, dtype, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, max(3, channels)])], weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {"names": json.dumps(names)})
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return make


INSIDE = {
    # operators at the start: factor on 0..255 and colour order that follow
    "nothing": ((), (1 / 255, "RGB", *IMAGENET)),
    "over 255": ([("Div", 255)], (1.0, "RGB", *PLAIN)),
    "ImageNet of 0..1": ([("Sub", IMAGENET[0]), ("Div", IMAGENET[1])], (1 / 255, "RGB", *PLAIN)),
    "ImageNet of 0..255, BGR": (
        [("Sub", [103.53, 116.28, 123.675]), ("Mul", [0.0174, 0.0175, 0.0171])], (1.0, "BGR", *PLAIN),
    ),
    "-1..1 from 0..255": ([("Mul", 1 / 127.5), ("Sub", 1)], (1.0, "RGB", *PLAIN)),
    "-1..1 from 0..1": ([("Mul", 2), ("Add", -1)], (1 / 255, "RGB", *PLAIN)),
    "Caffe's mean": ([("Sub", [104, 117, 123])], (1.0, "BGR", *PLAIN)),
    "0..1 enlarged": ([("Mul", 255)], (1 / 255, "RGB", *PLAIN)),
}  # fmt: skip


@pytest.mark.parametrize("which", INSIDE)
def test_normalisation_inside_the_graph_is_not_repeated(which, classifier, tmp_path):
    operators, expected = INSIDE[which]
    model = classifier(operators)
    for _ in range(2):  # the second time from the cache
        detector = load_detector(model, cache_folder=tmp_path / "cache")
        spec = detector.spec
        assert ("pixels as its first operators say" in detector.why) is bool(operators)
        assert (spec.scale, spec.color, spec.mean, spec.std) == expected


def test_constants_in_another_file_are_read(classifier):
    model = classifier([("Div", 255)])
    graph = onnx.load(model)
    weight = next(weight for weight in graph.graph.initializer if weight.name == "c0")
    model.with_name("model.onnx.data").write_bytes(weight.raw_data)
    set_external_data(weight, "model.onnx.data")
    weight.ClearField("raw_data")
    model.write_bytes(graph.SerializeToString())
    assert load_detector(model).spec.scale == 1.0


@pytest.mark.parametrize("last", ["Sigmoid", "Mul"])
def test_probabilities_after_a_sigmoid_stay_whatever_their_sum(last, classifier):
    # On the trial's grey image three values of 1/3: probabilities after a Sigmoid, else logits that sum to 1 by chance.
    grey = 114 / 255
    shift = math.log(0.5) - grey if last == "Sigmoid" else 1 / 3 - grey
    model = classifier([("Add", shift)], last=last)
    model.with_name("model.layout.toml").write_text('format = 1\nlayout = "classifier"\n[input]\nrange = "0..1"\n')
    detector = load_detector(model)
    white = prepare(np.full((8, 8, 3), 255, np.uint8), detector.spec)
    expected = 1 / (1 + math.exp(-1 - shift)) if last == "Sigmoid" else 1 / 3
    np.testing.assert_allclose(detector.detect([white], floor=0.0)[0].scores, expected, atol=1e-3)


def test_one_probability_is_that_of_the_second_of_two_classes(classifier):
    model = classifier([("Add", 1.0)], last="Sigmoid", names=["cat", "dog"])
    graph = onnx.load(model)
    head = next(weight for weight in graph.graph.initializer if weight.name == "head")
    head.CopyFrom(numpy_helper.from_array(np.ones((3, 1), np.float32), "head"))
    next(node for node in graph.graph.node if node.output[0] == "raw").op_type = "MatMul"
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(graph, model)
    model.with_name("model.layout.toml").write_text('format = 1\nlayout = "classifier"\n[input]\nrange = "0..1"\n')
    detector = load_detector(model)
    [detections] = detector.detect([prepare(np.zeros((8, 8, 3), np.uint8), detector.spec)], floor=0.0)
    dog = 1 / (1 + math.exp(-3))
    assert dict(zip(detections.classes.tolist(), detections.scores.tolist(), strict=True)) == pytest.approx(
        {0: 1 - dog, 1: dog}, abs=1e-4
    )


@pytest.mark.parametrize("last", ["Sigmoid", "Mul"])
def test_independent_classes_need_a_sigmoid(last, classifier):
    model = classifier(name="pixel_values", last=last)
    model.with_name("config.json").write_text('{"problem_type": "multi_label_classification"}')
    if last == "Sigmoid":
        assert load_detector(model).layout == "classifier"
        return
    with pytest.raises(UnknownLayout, match=r"multi_label_classification.*sigmoid as its last operator"):
        load_detector(model)


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 3, None, None), 224), ((None, None, 32, 32), 32), ((1, 3, 48, None), 224)]
)
def test_open_sides_of_a_classifier_are_224_whatever_else_is_said(shape, side, classifier):
    model = classifier(shape=shape)
    assert load_detector(model).spec.width == side
    model.with_name("model.layout.toml").write_text('format = 1\nlayout = "classifier"\n[input]\nrange = "0..1"\n')
    spec = load_detector(model).spec
    assert (spec.height, spec.width) == (shape[2] or side, side)


def test_versions_with_features_of_images_are_shown_the_same_pixels(classifier, tmp_path):
    detector = load_detector(classifier([("Div", 255)], shape=(1, 3, 64, 64)))
    onnx.save(export_image_features(detector), tmp_path / "version.onnx")
    again = load_detector(tmp_path / "version.onnx")
    assert (again.layout, again.spec) == (detector.layout, detector.spec)
    assert again.engine.graph.image_features


def test_layout_file_overrides_the_operators(classifier):
    model = classifier([("Div", 255)])
    model.with_name("model.layout.toml").write_text('format = 1\nlayout = "classifier"\n[input]\nrange = "0..1"\n')
    assert load_detector(model).spec.scale == 1 / 255


def test_one_channel_is_luma(classifier):
    detector = load_detector(classifier(shape=(1, 1, 8, 8)))
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 1] = 200
    tensor = prepare(image, detector.spec).tensor
    assert tensor.shape == (1, 8, 8)
    np.testing.assert_allclose(tensor, 200 * 0.587 / 255, atol=2e-3)
    assert len(detector.detect([prepare(image, detector.spec)], floor=0.0)[0]) == 3


def test_grey_for_three_channels_is_refused_with_the_file_to_correct(classifier):
    model = classifier()
    sidecar = model.with_name("model.layout.toml")
    sidecar.write_text('format = 1\nlayout = "classifier"\n[input]\ncolor = "GRAY"\n')
    with pytest.raises(ModelBroken, match="says GRAY, and its graph takes 3 channels") as error:
        load_detector(model)
    assert str(sidecar) in error.value.fix


def test_four_channels_are_refused_in_words(classifier):
    with pytest.raises(ModelBroken, match="4 channels, and images have 3"):
        load_detector(classifier(shape=(1, 4, 8, 8)))


def test_whole_numbers_are_raw_pixels(classifier):
    spec = load_detector(classifier(shape=(1, 8, 8, 3), dtype=TensorProto.UINT8)).spec
    assert (spec.layout, spec.dtype, spec.scale) == ("NHWC", "uint8", 1.0)
    white = prepare(np.full((8, 8, 3), 255, np.uint8), spec).tensor
    assert white.dtype == np.uint8
    assert white.min() == 255


def test_whole_numbers_are_never_scaled(classifier):
    model = classifier(dtype=TensorProto.UINT8)
    sidecar = model.with_name("model.layout.toml")
    sidecar.write_text('format = 1\nlayout = "classifier"\n[input]\nrange = "0..1"\n')
    assert load_detector(model).spec.scale == 1.0
    sidecar.write_text('format = 1\nlayout = "classifier"\n[input]\nmean = [0.5, 0.5, 0.5]\n')
    with pytest.raises(ModelBroken, match="takes whole numbers"):
        load_detector(model)
    boxes = '[boxes]\noutput = "logits"\nformat = "corners"\n[scores]\noutput = "logits"\n'
    sidecar.write_text(f'format = 1\n[input]\nrange = "-1..1"\n{boxes}')
    with pytest.raises(LayoutFileError, match="takes whole numbers"):
        load_detector(model)


PROCESSORS = {
    "ViT": (
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224, "width": 224}},
        (1 / 255, "RGB", (0.5,) * 3, (0.5,) * 3, "stretch"),
    ),
    "ResNet": (
        {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1]), "size": {"shortest_edge": 224},
         "crop_pct": 0.875},
        (1 / 255, "RGB", *IMAGENET, "crop"),
    ),
    "RT-DETR": (
        {"do_normalize": False, "image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])},
        (1 / 255, "RGB", *PLAIN, "stretch"),
    ),
    "MobileViT": (
        {"do_flip_channel_order": True, "do_center_crop": True, "crop_size": 224, "do_normalize": False},
        (1 / 255, "BGR", *PLAIN, "crop"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", PROCESSORS)
def test_image_processor_of_hugging_face_is_followed(which, classifier):
    words, expected = PROCESSORS[which]
    model = classifier(name="pixel_values")
    before = model_version(model)
    assert "assumed: preprocessor_config.json next to it, or `[input]` of a layout file" in load_detector(model).why
    model.with_name("preprocessor_config.json").write_text(json.dumps(words))
    detector = load_detector(model)
    spec = detector.spec
    assert (spec.scale, spec.color, spec.mean, spec.std, spec.placement) == expected
    assert "preprocessor_config.json" in detector.why
    assert detector.version == model_version(model) != before


def test_image_processor_of_another_model_is_not_followed(classifier):
    model = classifier(name="images")
    model.with_name("preprocessor_config.json").write_text('{"do_normalize": false}')
    assert load_detector(model).spec.mean == IMAGENET[0]


def test_wrong_image_processor_of_another_model_is_not_read(classifier):
    model = classifier(name="images")
    model.with_name("preprocessor_config.json").write_text('{"rescale_factor": 0.1}')
    assert load_detector(model).layout == "classifier"


WRONG_PROCESSORS = (
    "[1]", "{", '{"rescale_factor": 0.1}', '{"image_mean": [1, 2], "image_std": 1}', '{"size": 100000}',
    '{"do_normalize": true}', '{"image_mean": 0, "image_std": 0}', '{"size": {"height": "a", "width": 1}}',
)  # fmt: skip


@pytest.mark.parametrize("text", WRONG_PROCESSORS)
def test_wrong_image_processors_are_refused(text, classifier):
    model = classifier(name="pixel_values")
    model.with_name("preprocessor_config.json").write_text(text)
    with pytest.raises(ModelBroken, match=r"preprocessor_config\.json cannot be followed"):
        load_detector(model)


def test_failure_on_an_open_size_names_the_fix(classifier):
    model = classifier(shape=(1, 3, None, None))
    graph = onnx.load(model)
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3, 32, 32), np.float32), "fixed"))
    graph.graph.node[0].output[0] = "cast"
    graph.graph.node.insert(1, helper.make_node("Add", ["cast", "fixed"], ["t0"]))
    onnx.save(graph, model)
    with pytest.raises(ModelBroken, match="leaves its input size open, and fails on 640 x 640") as error:
        load_detector(model)
    assert "`size`" in error.value.fix
    sized = 'format = 1\nlayout = "classifier"\n[input]\nsize = [32, 32]\n'
    model.with_name("model.layout.toml").write_text(sized)
    assert load_detector(model).spec.height == 32
