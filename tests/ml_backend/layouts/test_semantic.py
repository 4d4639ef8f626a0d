"""Classes of pixels: every form is recognised, and decided at the image's resolution like a plain reference."""

import cv2
import numpy as np
import onnx
import pytest

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import NamesMissing, UnknownLayout
from ml_backend.inference.detector import load_detector
from ml_backend.layouts import semantic

HEIGHT, WIDTH = 64, 96
NAMES = ["sky", "road", "car"]


@pytest.fixture
def regions_of(make_onnx):
    """regions_of(outputs, names) -> {class: mask of an image of 120 x 200}."""

    def make(outputs, names=NAMES, size=(120, 200)):
        detector = load_detector(make_onnx(outputs, metadata={"names": names}, shape=("batch", 3, HEIGHT, WIDTH)))
        assert (detector.layout, detector.provides) == ("semantic", {"semantic"})
        image = prepare(np.zeros((*size, 3), np.uint8), detector.spec)
        [detections] = detector.detect([image], floor=0.1)
        masks = {}
        for class_, segment in zip(detections.classes.tolist(), detections.segments, strict=True):
            pixels, (left, top, right, bottom) = segment.crop()
            masks[detector.names.names[class_]] = np.zeros(size, bool)
            masks[detector.names.names[class_]][top:bottom, left:right] = pixels
        return masks

    return make


def planes(seed=0, classes=3, side=4):
    """Smooth logits (classes, HEIGHT / side, WIDTH / side)."""
    noise = np.random.default_rng(seed).normal(0, 4, (classes, 5, 7)).astype(np.float32)
    return np.stack([cv2.resize(plane, (WIDTH // side, HEIGHT // side)) for plane in noise])


def enlarged(logits, size=(120, 200)):
    return np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in logits])


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_logits_are_decided_at_the_resolution_of_the_image(side, regions_of):
    logits = planes(side=side)
    truth = enlarged(logits).argmax(axis=0)
    masks = regions_of({"out": logits[None]})
    for index, name in enumerate(NAMES):
        assert (masks[name] != (truth == index)).mean() < 0.01


@pytest.mark.parametrize("keepdims", [0, 1])
def test_class_numbers_keep_their_places(keepdims, make_onnx):
    logits = planes(side=1)
    path = make_onnx({"logits": logits[None]}, metadata={"names": NAMES}, shape=("batch", 3, HEIGHT, WIDTH))
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["logits"], ["map"], axis=1, keepdims=keepdims))
    del model.graph.output[:]
    sides = ["batch", 1, HEIGHT, WIDTH] if keepdims else ["batch", HEIGHT, WIDTH]
    model.graph.output.append(onnx.helper.make_tensor_value_info("map", onnx.TensorProto.INT64, sides))
    onnx.save(model, path)
    detector = load_detector(path)
    [found] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=0.3)
    for class_, segment in zip(found.classes.tolist(), found.segments, strict=True):
        pixels, (left, top, right, bottom) = segment.crop()
        assert (pixels == (logits.argmax(axis=0) == class_)[top:bottom, left:right]).all()
    assert sorted(found.classes.tolist()) == [0, 1, 2]


def test_background_is_dropped_where_it_has_no_name(regions_of):
    logits = planes(classes=4)
    masks = regions_of({"logits": logits[None]})
    truth = enlarged(logits).argmax(axis=0)
    assert (masks["sky"] != (truth == 1)).mean() < 0.01


@pytest.mark.parametrize("kind", ["logits", "probabilities", "deep supervision"])
def test_one_channel_is_one_class(kind, regions_of):
    logits = planes(classes=1, side=1)
    array = logits if kind == "logits" else 1 / (1 + np.exp(-logits))
    outputs = {"d0": array[None], "d1": array[None] * 0} if kind == "deep supervision" else {"d0": array[None]}
    truth = enlarged(array)[0] > (0 if kind == "logits" else 0.5)
    assert (regions_of(outputs, ["road"])["road"] != truth).mean() < 0.01


def test_classes_after_a_sigmoid_may_overlap_and_may_be_missing(make_onnx):
    logits = planes(side=1)
    logits[2] = -9
    file = make_onnx(
        {"out": logits[None]}, metadata={"names": NAMES}, shape=("batch", 3, HEIGHT, WIDTH), last="Sigmoid"
    )
    detector = load_detector(file)
    assert "3 independent classes" in detector.why
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=0.1)
    assert sorted(detections.classes.tolist()) == [0, 1]
    for class_, segment in zip(detections.classes.tolist(), detections.segments, strict=True):
        pixels, (left, top, right, bottom) = segment.crop()
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = pixels
        assert (mask == (logits[class_] > 0)).all()


def test_logits_of_a_convolution_are_logits_in_any_range(make_onnx):
    """One channel of 0.2: a probability of 0.2 would be outside, a logit of 0.2 is inside."""
    plane = np.full((1, 1, HEIGHT, WIDTH), 0.2)
    found = {}
    for head in ("Identity", "Conv"):
        options = {"metadata": {"names": ["a"]}, "shape": ("batch", 3, HEIGHT, WIDTH)}
        file = make_onnx({"out": plane}, name=f"{head}.onnx", last="Identity", **options)
        model = onnx.load(file)
        model.graph.node[-1].op_type = head
        if head == "Conv":
            model.graph.node[-1].input.append("kernel")
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "kernel")
            )  # fmt: skip
        onnx.save(model, file)
        detector = load_detector(file)
        [found[head]] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=0.1)
    assert len(found["Identity"]) == 0
    assert found["Conv"].scores.tolist() == pytest.approx([1 / (1 + np.exp(-0.2))], rel=1e-4)


def test_heads_of_two_classes_are_a_class_each(regions_of):
    heads = {"lanes": planes(1, 2, 1)[None], "drivable": planes(2, 2, 1)[None]}
    masks = regions_of(heads, ["lane", "drivable area"])
    for name, head in zip(("lane", "drivable area"), heads.values(), strict=True):
        assert (masks[name] != (enlarged(head[0]).argmax(axis=0) == 1)).mean() < 0.02


def test_an_image_above_the_limit_is_decided_smaller(regions_of, monkeypatch):
    monkeypatch.setattr(semantic, "MAX_MAP_PIXELS", 3000)
    logits = planes()
    masks = regions_of({"out": logits[None]})
    truth = enlarged(logits).argmax(axis=0)
    assert all((masks[name] != (truth == index)).mean() < 0.05 for index, name in enumerate(NAMES))


def test_maps_without_names_are_refused(make_onnx):
    with pytest.raises(NamesMissing):
        load_detector(make_onnx({"heat": planes()[None]}, shape=("batch", 3, HEIGHT, WIDTH)))


def test_several_maps_of_many_classes_are_refused(make_onnx):
    outputs = {"a": planes()[None], "b": planes(1)[None]}
    with pytest.raises(UnknownLayout, match="2 maps of 3 classes"):
        load_detector(make_onnx(outputs, metadata={"names": NAMES}, shape=("batch", 3, HEIGHT, WIDTH)))


def test_images_made_by_a_network_are_not_classes(make_onnx):
    image = np.random.default_rng(1).uniform(0, 255, (1, 3, HEIGHT, WIDTH))
    with pytest.raises(UnknownLayout, match="it makes images"):
        load_detector(make_onnx({"out": image}, metadata={"names": NAMES}, shape=("batch", 3, HEIGHT, WIDTH)))
