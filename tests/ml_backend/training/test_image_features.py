"""Frozen features of images and boxes come with the boxes in one run, and are the same in training and serving."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import structlog
from onnx import TensorProto, helper, numpy_helper

from ml_backend.detection.onnx_graph import IMAGE_FEATURES, Graph, Tensor
from ml_backend.detection.preprocess import InputSpec, prepare
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.layouts.labelloop import EMBEDDINGS
from ml_backend.training import feature_export
from ml_backend.training.backbone import CandidateFeatures, open_backbone
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.feature_export import (
    NO_MAP,
    _image_tensors,
    export_features,
    export_image_features,
    no_image_features,
)
from ml_backend.training.image_features import BackboneMaps, backbone_maps, select_maps
from ml_backend.training.lent_features import LENT, add_lent_features
from ml_backend.training.linear_head import LinearHead, head_detector
from ml_backend.training.onnx_builder import GraphBuilder
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


def lent_to(spec, image):
    """Features of an image that a graph of nothing but an input of this format is lent."""
    size = (spec.height, spec.width)
    sides = (3, *size) if spec.layout == "NCHW" else (*size, 3)
    seen = helper.make_tensor_value_info("image", helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), ["b", *sides])
    graph = helper.make_model(
        helper.make_graph([], "bare", [seen], []), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    read = Graph((Tensor("image", (None, *sides), spec.dtype),), ())
    detector = SimpleNamespace(spec=spec, engine=SimpleNamespace(graph=read), path=None)
    lender = load_detector(embedded_model(), threads=1)
    nodes = GraphBuilder(graph, prefix="features")
    maps = _image_tensors(lender, onnx.load(embedded_model()))
    add_lent_features(nodes, detector, lender, onnx.load(embedded_model()), maps, reason=NO_MAP)
    session = onnxruntime.InferenceSession(nodes.build().SerializeToString())
    [lent] = session.run([IMAGE_FEATURES], {"image": prepare(image, spec).tensor[None]})
    return lent


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("dtype", "color"), [("float32", "BGR"), ("uint8", "RGB")])
def test_a_graph_without_feature_maps_gets_those_of_the_embedded_model(backbone, layout, dtype, color):
    from skimage import data

    image = data.astronaut()
    spec = InputSpec(320, 320, layout=layout, color=color, dtype=dtype)
    if dtype == "float32":
        spec = replace(spec, scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    lent = lent_to(spec, image)
    [features] = backbone.extract_features([prepare(image, backbone.spec)])
    assert lent.shape == (1, len(features.image_features))
    alike = np.dot(lent[0], features.image_features)
    assert alike / np.linalg.norm(lent) / np.linalg.norm(features.image_features) > 0.97


def test_long_inputs_are_large_enough_for_the_embedded_model(image):
    assert np.isfinite(lent_to(InputSpec(32, 640), image)).all()


def test_versions_without_feature_maps_say_whose_features_they_have(labelloop_model, tmp_path):
    detector = load_detector(labelloop_model(), threads=1)
    assert no_image_features(detector) == NO_MAP
    backbone = open_backbone(detector.path, folder=tmp_path, threads=1)
    assert backbone.lent == NO_MAP
    image = np.random.default_rng(1).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    [features] = backbone.extract_features([prepare(image, backbone.spec)])
    assert features.image_features.any()
    onnx.save(export_image_features(detector), tmp_path / "version.onnx")
    version = load_detector(tmp_path / "version.onnx", threads=1)
    assert version.engine.graph.metadata[LENT] == NO_MAP
    [before], [after] = (one.detect([prepare(image, one.spec)], floor=0.0) for one in (detector, version))
    assert np.array_equal(before.boxes, after.boxes)
    assert np.array_equal(after.image_features, features.image_features)


def test_a_graph_of_an_old_opset_has_no_features(labelloop_model):
    detector = load_detector(labelloop_model(), threads=1)
    model = onnx.load(detector.path)
    model.opset_import[0].version = 10
    lender = load_detector(embedded_model(), threads=1)
    with pytest.raises(NotLearnable, match="its opset 10 is too old"):
        add_lent_features(GraphBuilder(model, prefix="features"), detector, lender, model, [], reason=NO_MAP)


def test_boxes_are_learned_where_features_of_images_cannot_be_lent(monkeypatch):
    detector = load_detector(embedded_model(), threads=1)

    def too_old(*_args):
        raise NotLearnable(path=detector.path, reason="its opset 10 is too old")

    monkeypatch.setattr(feature_export, "_add_features_of_images", too_old)
    with structlog.testing.capture_logs() as logged:
        outputs = [output.name for output in export_features(detector).graph.output]
    assert EMBEDDINGS in outputs
    assert IMAGE_FEATURES not in outputs
    assert [(entry["event"], entry["reason"]) for entry in logged] == [
        ("image_features_missing", "its opset 10 is too old")
    ]


def test_lent_features_replace_graphs_and_features_of_earlier_releases(labelloop_model, tmp_path, backbone):
    detector = load_detector(labelloop_model(), threads=1)
    outdated = tmp_path / f"{detector.version}.features2.onnx"
    outdated.write_bytes(b"without features of images")
    lent = open_backbone(detector.path, folder=tmp_path, threads=1)
    assert not outdated.exists()
    assert lent.image_outputs
    assert lent.cache_key != lent.version
    assert backbone.cache_key == backbone.version


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
