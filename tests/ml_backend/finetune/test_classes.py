"""Class layers are widened and narrowed; boxes, objectness and the scores of kept classes stay."""

import numpy as np
import onnx
import pytest

from ml_backend.finetune.classes import PRIOR, check_same, run, set_metadata, with_classes
from ml_backend.finetune.errors import NotTrainable
from ml_backend.finetune.graph import Weights, fuse_silu, open_batch, trainable_copy
from ml_backend.inference.detector import embedded_model, load_detector
from tests.ml_backend.finetune.graphs import small_yolox

CASES = (["c2", "new"], ["c0", "c1", "c2"], ["x", "C1", "y", "z", "c0"])


@pytest.mark.parametrize("names", CASES)
@pytest.mark.parametrize("half", [False, True])
def test_kept_classes_and_boxes_stay(tmp_path, names, half):
    path = small_yolox(tmp_path / "small.onnx", half=half)
    detector, model = load_detector(path, layout="yolox"), onnx.load(path)
    changed = with_classes(detector, model, names)
    check_same(detector, model, changed, names)
    image = np.random.default_rng(1).random((1, 3, 64, 64), np.float32) * 255
    [old], [new] = run(model, image, ["output"]).values(), run(changed, image, ["output"]).values()
    assert new.shape == (1, 84, 5 + len(names))
    np.testing.assert_allclose(new[..., :5], old[..., :5], atol=1e-6)
    for index, name in enumerate(names):
        if name.casefold() in {"c0", "c1", "c2"}:
            np.testing.assert_allclose(new[..., 5 + index], old[..., 5 + int(name[1])], atol=1e-6)


def test_one_class_is_widened_though_the_objectness_has_one_channel_too(tmp_path):
    path = small_yolox(tmp_path / "small.onnx", classes=1)
    detector, model = load_detector(path, layout="yolox"), onnx.load(path)
    changed = with_classes(detector, model, ["new", "c0", "more"])
    check_same(detector, model, changed, ["new", "c0", "more"])
    image = np.random.default_rng(1).random((1, 3, 64, 64), np.float32) * 255
    [old], [new] = run(model, image, ["output"]).values(), run(changed, image, ["output"]).values()
    np.testing.assert_allclose(new[..., [0, 1, 2, 3, 4, 6]], old, atol=1e-6)


def test_a_model_with_the_new_classes_is_loaded_with_their_names(tmp_path):
    path = small_yolox(tmp_path / "small.onnx")
    detector = load_detector(path, layout="yolox")
    onnx.save(with_classes(detector, onnx.load(path), ["a", "b"]), tmp_path / "out.onnx")
    assert load_detector(tmp_path / "out.onnx", layout="yolox").names.names == ("a", "b")


@pytest.mark.parametrize("count", [2, 20, 33])
def test_the_embedded_model_takes_any_number_of_classes(count):
    detector = load_detector(embedded_model(), threads=1)
    model, names = onnx.load(embedded_model()), [f"n{index}" for index in range(count)]
    changed = with_classes(detector, model, names)
    check_same(detector, model, changed, names)
    image = np.zeros((1, 3, 416, 416), np.float32)
    scores = run(changed, image, ["scores"])["scores"]
    assert scores.shape[2] == count
    assert np.median(scores) < 20 * PRIOR  # new classes start rare


def test_another_change_is_noticed(tmp_path):
    path = small_yolox(tmp_path / "small.onnx")
    detector, model = load_detector(path, layout="yolox"), onnx.load(path)
    changed = with_classes(detector, model, ["c0", "c1"])
    weights = Weights.of(changed)
    weights.write("box0.w", weights.value("box0.w") + 1)
    with pytest.raises(NotTrainable, match="changes in more than its classes"):
        check_same(detector, model, changed, ["c0", "c1"])


@pytest.mark.parametrize("half", [False, True])
def test_the_graph_for_training_computes_the_same(tmp_path, half):
    model = onnx.load(small_yolox(tmp_path / "small.onnx", half=half))
    image = np.random.default_rng(2).random((1, 3, 64, 64), np.float32)
    copy = trainable_copy(model)
    assert not {node.op_type for node in copy.graph.node} & {"Cast", "Constant"}
    np.testing.assert_array_equal(run(copy, image, ["output"])["output"], run(model, image, ["output"])["output"])


def test_an_open_batch_gives_each_image_its_own_outputs(tmp_path):
    model = open_batch(onnx.load(small_yolox(tmp_path / "small.onnx")))
    images = np.random.default_rng(2).random((2, 3, 64, 64), np.float32)
    both = run(model, images, ["output"])["output"]
    assert both.shape[0] == 2
    for index in range(2):
        single = run(model, images[index : index + 1], ["output"])["output"]
        np.testing.assert_allclose(both[index], single[0], atol=1e-5)


def test_gated_values_become_one_operator(tmp_path):
    model = trainable_copy(onnx.load(small_yolox(tmp_path / "small.onnx")))
    before = len(model.graph.node)
    fuse_silu(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Swish") == 9
    assert len(kinds) == before - 9
    assert kinds.count("Sigmoid") == 6  # of objectness and classes


def test_metadata_is_added_beside_what_was_there(tmp_path):
    model = onnx.load(small_yolox(tmp_path / "small.onnx"))
    set_metadata(model, license="MIT", facts={"a": 1})
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["facts"] == '{"a": 1}'
    assert entries["license"] == "MIT"
    assert "names" in entries
