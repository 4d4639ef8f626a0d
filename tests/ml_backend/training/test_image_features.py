"""Frozen features of images and boxes come with the boxes in one run, and are the same in training and serving."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.training.backbone import CandidateFeatures, open_backbone
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.feature_export import export_image_features
from ml_backend.training.image_features import BackboneMaps, backbone_maps, select_maps
from ml_backend.training.linear_head import LinearHead, head_detector
from ml_backend.training.onnx_export import write_learned
from ml_backend.training.region_features import region_embeddings, region_rows
from tests.drawn import draw_shapes


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return open_backbone(embedded_model(), folder=tmp_path_factory.mktemp("backbones"), threads=1)


@pytest.fixture(scope="module")
def image():
    return draw_shapes(1, ("Disc", "Square"))[0]


def classifier(path, *, channels=6, classes=3):
    """A convolution, its mean over the image, and a linear layer: a classifier with names in its metadata."""
    rng = np.random.default_rng(0)
    weights = {
        "conv.w": rng.normal(size=(channels, 3, 4, 4)), "fc.w": rng.normal(size=(channels, classes)),
        "fc.b": np.zeros(classes),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "conv.w"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", classes])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in (("task", "classify"), ("names", str([f"c{index}" for index in range(classes)]))):
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_detections_carry_the_features_of_their_candidates(backbone, image):
    prepared = prepare(image, backbone.spec)
    [features] = backbone.extract_features([prepared])
    [detections] = backbone.detector.detect([prepared], floor=0.05)
    assert len(detections)
    assert (detections.image_features == features.image_features).all()
    known = {row.tobytes() for row in features.embeddings}
    assert all(row.tobytes() in known for row in detections.embeddings)
    assert detections[detections.scores > 1].embeddings.shape == (0, features.embeddings.shape[1])


def test_learned_models_and_their_heads_give_the_same_features(backbone, image, tmp_path):
    width = backbone.extract_features([prepare(image, backbone.spec)])[0].embeddings.shape[1]
    rng = np.random.default_rng(0)
    head = LinearHead(("Disc",), backbone.levels, rng.normal(size=(len(backbone.levels), width + 5, 1)) / width,
                      np.full((len(backbone.levels), 1), -1.0))  # fmt: skip
    write_learned(tmp_path / "learned.onnx", backbone, head)
    learned = load_detector(tmp_path / "learned.onnx", threads=1)
    [exported], [direct] = (
        detector.detect([prepare(image, detector.spec)], floor=0.1)
        for detector in (learned, head_detector(backbone, head, version="direct"))
    )
    assert len(exported)
    for name in ("boxes", "scores", "embeddings", "image_features"):
        assert np.array_equal(getattr(exported, name), getattr(direct, name)), name


def test_drawn_boxes_get_the_features_of_the_detection_that_they_confirm(backbone, image):
    prepared = prepare(image, backbone.spec)
    [features] = backbone.extract_features([prepared])
    rows = region_rows(features, np.array([[0, 0, 50, 50], [-90, -90, -50, -50]], np.float32))
    assert rows.shape == (2,)
    box = prepared.fit.boxes(features.boxes[[int(features.objectness.argmax())]])
    assert np.array_equal(region_embeddings(features, box)[0], features.embeddings[features.objectness.argmax()])
    assert region_embeddings(features, np.zeros((0, 4), np.float32)).shape == (0, features.embeddings.shape[1])


def test_a_classifier_gives_the_input_of_its_last_layer(tmp_path):
    path = classifier(tmp_path / "flowers.onnx")
    backbone = open_backbone(path, folder=tmp_path / "backbones", threads=1)
    assert backbone.levels == ()
    assert "classes" in backbone.no_boxes or "classify" in backbone.no_boxes
    prepared = prepare(np.random.default_rng(1).integers(0, 255, (40, 40, 3)).astype(np.uint8), backbone.spec)
    [features] = backbone.extract_features([prepared])
    assert (len(features), features.image_features.shape) == (0, (6,))
    assert region_embeddings(features, np.zeros((2, 4), np.float32)).shape == (2, 0)
    own, ours = load_detector(path, threads=1), load_detector(backbone.detector.path, threads=1)
    [before], [after] = (detector.detect([prepared], floor=0.0) for detector in (own, ours))
    assert np.array_equal(before.scores, after.scores)
    assert ours.layout == own.layout == "classify"
    assert np.array_equal(after.image_features, features.image_features)


def test_a_graph_without_feature_maps_has_no_features(labelloop_model):
    with pytest.raises(NotLearnable, match="no feature map that describes a whole image"):
        export_image_features(load_detector(labelloop_model()))


def test_the_maps_before_the_neck_are_pooled(backbone):
    sizes = {
        "early": (900, 104), "skip": (50, 26), "middle": (90, 26), "wide": (400, 13), "last": (300, 13), "dot": (9, 1),
    }  # fmt: skip
    shapes = {name: (1, channels, side, side) for name, (channels, side) in sizes.items()}
    for skips, neck, names in (
        ((), True, ["last", "middle"]), ((), False, ["wide", "middle"]), (("skip",), True, ["last", "skip"]),
    ):  # fmt: skip
        found = BackboneMaps(tuple(shapes), frozenset(skips), neck)
        assert [name for name, _ in select_maps(found, shapes, backbone.spec)] == names
        assert select_maps(found, {"early": shapes["early"]}, backbone.spec) == []


def test_the_included_model_pools_the_last_blocks_of_two_strides():
    found = backbone_maps(onnx.load(embedded_model()).graph)
    assert found.neck
    assert "_blocks.15/_project_conv" in found.names[-1]
    assert any("_blocks.10/Add" in name for name in found.skips)


def test_image_features_are_kept_on_disk(tmp_path, backbone, image):
    [features] = backbone.extract_features([prepare(image, backbone.spec)])
    cache = FeatureCache(tmp_path, max_bytes=2**30)
    first, again = (cache.get("k", lambda: features) for _ in range(2))
    assert np.array_equal(first.image_features, again.image_features)
    assert np.allclose(first.image_features, features.image_features, rtol=1e-3, atol=1e-3)
    bare = CandidateFeatures(features.boxes, features.objectness, features.scores, features.embeddings, features.fit)
    assert [cache.get("bare", lambda: bare).image_features for _ in range(2)] == [None, None]
