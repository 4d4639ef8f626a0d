"""Every layout is recognised, and decoded like an independent plain loop."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken, NamesMissing, UnknownLayout
from ml_backend.inference.detector import load_detector
from ml_backend.layouts import LAYOUTS
from tests.ml_backend.family_cases import FAMILY_CASES, FAMILY_VARIANTS
from tests.ml_backend.layout_cases import CASES as SHAPE_CASES
from tests.ml_backend.layout_cases import FLOOR, HEIGHT, NAMES, VARIANTS, WIDTH, yolox

CASES = {**SHAPE_CASES, **FAMILY_CASES}
MODELS = {**{name: (name, case) for name, case in CASES.items()}, **VARIANTS, **FAMILY_VARIANTS}


def test_every_layout_has_a_case():
    assert set(CASES) == set(LAYOUTS)


@pytest.fixture
def build(make_onnx):
    """build(case, **options) -> the model file."""
    return lambda case, **options: make_onnx(case.outputs, **{**case.options, **options})


@pytest.mark.parametrize("which", MODELS)
def test_models_are_recognised_and_decoded_like_a_plain_loop(which, build):
    layout, make = MODELS[which]
    case = make()
    detector = load_detector(build(case))
    assert detector.layout == layout
    assert len(detector.why) > 20
    outputs = detector.engine.run([np.zeros(blank(detector.spec), detector.spec.dtype)], detector.reader.outputs)
    [detections] = detector.reader.decode(outputs, FLOOR)
    detections = detector.map_classes(detections)
    expected = [entry for entry in case.expected if entry[1] >= FLOOR]
    assert len(detections) == len(expected) > (0 if layout == "classify" else 1) - (layout == "classifier")
    assert len(expected) < len(case.expected)
    np.testing.assert_allclose(detections.boxes, [entry[0] for entry in expected], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(detections.scores, [entry[1] for entry in expected], rtol=1e-4)
    names = tuple(case.options["metadata"]["names"]) if layout == "labelloop" else detector.names.names
    assert names == detector.names.names
    assert detections.classes.tolist() == [entry[2] for entry in expected]
    if "keypoints" in detector.provides:
        np.testing.assert_allclose(detections.keypoints, [entry[3] for entry in expected], rtol=1e-5, atol=1e-4)
    if "turned" in detector.provides:
        np.testing.assert_allclose(detections.rotated, [entry[3] for entry in expected], rtol=1e-5)


def blank(spec):
    return (spec.height, spec.width, 3) if spec.layout == "NHWC" else (3, spec.height, spec.width)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_layouts_return_one_result_per_image_for_any_batch(name, batch, build):
    case = CASES[name]()
    shape = case.options.get("shape", (0, 3, HEIGHT, WIDTH))
    if not case.batched and batch == 4:
        batch = 1  # its outputs have no batch axis
    detector = load_detector(build(case, shape=(batch, *shape[1:])))
    photo = prepare(np.zeros((32, 48, 3), np.uint8), detector.spec)
    photos = [photo] * min(detector.batch, 3)
    results = detector.detect(photos, floor=0.3)
    assert len(results) == len(photos)
    assert all(len(detections) == len(results[0]) for detections in results)
    assert list(results[0].scores) == sorted(results[0].scores, reverse=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_support_open_sizes_and_float16_inputs(name, build):
    case = CASES[name]()
    last = case.options.get("shape", ())[3:] == (3,)
    metadata = {**case.options["metadata"], "imgsz": f"[{HEIGHT}, {WIDTH}]"}
    shape = (1, "h", "w", 3) if last else (1, 3, "h", "w")
    detector = load_detector(build(case, shape=shape, dtype=TensorProto.FLOAT16, metadata=metadata))
    assert detector.layout == name
    assert (detector.spec.height, detector.spec.width, detector.spec.dtype) == (HEIGHT, WIDTH, "float16")
    [detections] = detector.detect([prepare(np.zeros((32, 48, 3), np.uint8), detector.spec)], floor=0.3)
    assert len(detections)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_support_float16_outputs(name, build):
    case = CASES[name]()
    halves = {
        key: value if np.issubdtype((value := np.asarray(array)).dtype, np.integer) else value.astype(np.float16)
        for key, array in case.outputs.items()
    }
    detector = load_detector(build(dataclasses.replace(case, outputs=halves)))
    assert detector.layout == name
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    assert len(detections)
    assert (detections.boxes.dtype, detections.scores.dtype) == (np.float32, np.float32)


ASSUMED = {
    "classifier", "detr-sigmoid", "detr-softmax", "mmdeploy", "paddle", "semantic", "spelled-columns", "ssd",
    "tflite-detection",
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_pixels_that_vary_within_a_layout_are_said_to_be_assumed(name, build):
    case = CASES[name]()
    path = build(case)
    for forced in ("", name):
        assert ("images is assumed: `[input]` of a layout file" in load_detector(path, layout=forced).why) == (
            name in ASSUMED
        )
    if name in ASSUMED:
        path = build(case, metadata={**case.options["metadata"], "input": '{"range": "0..1"}'})
        assert "assumed" not in load_detector(path).why


@pytest.mark.parametrize("name", LAYOUTS)
def test_forced_layout_rejects_other_outputs(name, build, make_onnx):
    case = CASES[name]()
    assert load_detector(build(case), layout=name).why.startswith("asked for")
    with pytest.raises(UnknownLayout, match=f"not of the layout '{name}'"):
        load_detector(make_onnx({"x": np.zeros((1, 2, 3, 4, 5))}, metadata={"names": NAMES}), layout=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_input_metadata_overrides_the_format(name, build):
    case = CASES[name]()
    description = {
        "size": [HEIGHT, WIDTH],
        "color": "BGR",
        "range": "0..1",
        "letterbox": "centre, pad 3",
        "mean": [0.5] * 3,
    }
    options = {"metadata": {**case.options["metadata"], "input": description}, "dtype": TensorProto.FLOAT}
    spec = load_detector(build(case, **options)).spec
    assert (spec.color, spec.scale, spec.placement, spec.pad, spec.mean) == ("BGR", 1 / 255, "centre", 3, (0.5,) * 3)


PIXELS = {
    # layout: colour order, value of a white pixel, placement; as in each family's reference code
    "yolov5": ("RGB", (1, 1, 1), "centre"),
    "yolov8": ("RGB", (1, 1, 1), "centre"),
    "yolov5-heads": ("RGB", (1, 1, 1), "centre"),
    "yolov7-end2end": ("RGB", (1, 1, 1), "centre"),
    "tensorrt-nms": ("RGB", (1, 1, 1), "centre"),
    "yolox": ("BGR", (255, 255, 255), "top-left"),
    "nanodet": ("BGR", (2.640, 2.429, 2.247), "top-left"),
    "picodet": ("RGB", (2.249, 2.429, 2.640), "stretch"),
    "rf-detr": ("RGB", (2.249, 2.429, 2.640), "stretch"),
    "detr-softmax": ("RGB", (2.249, 2.429, 2.640), "stretch"),
    "detr-sigmoid": ("RGB", (1, 1, 1), "stretch"),
    "rt-detr": ("RGB", (1, 1, 1), "stretch"),
    "tf-od": ("RGB", (255, 255, 255), "stretch"),
    "classify": ("RGB", (1, 1, 1), "crop"),
    "classifier": ("RGB", (2.249, 2.429, 2.640), "crop"),
}


@pytest.mark.parametrize("name", PIXELS)
def test_images_are_preprocessed_as_in_training(name, build):
    color, white, placement = PIXELS[name]
    spec = load_detector(build(CASES[name]())).spec
    assert (spec.color, spec.placement) == (color, placement)
    tensor = prepare(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), spec).tensor
    pixel = tensor[0, 0] if spec.layout == "NHWC" else tensor[:, 0, 0]
    np.testing.assert_allclose(pixel, white, atol=2e-3)


def test_mask_is_the_weighted_sum_of_its_prototypes(build):
    case = CASES["yolov8-segment"]()
    detector = load_detector(build(case))
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    inside = [0, 0]
    by_score = {round(entry[1], 5): entry for entry in case.expected}
    for box, score, segment in zip(
        detections.boxes.tolist(), detections.scores.tolist(), detections.segments, strict=True
    ):
        mask = segment.mask()
        assert mask.shape == (HEIGHT, WIDTH)
        logits = by_score[round(score, 5)][3]
        for row in range(HEIGHT // 4):  # a prototype pixel covers 4 x 4 pixels; compare at its centre
            for column in range(WIDTH // 4):
                x, y = column * 4 + 1.5, row * 4 + 1.5
                if box[0] + 3 < x < box[2] - 3 and box[1] + 3 < y < box[3] - 3 and abs(logits[row, column]) > 1.5:
                    inside[int(bool(mask[int(y), int(x)]) == bool(logits[row, column] > 0))] += 1
        outside = mask.copy()
        outside[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))] = False
        assert not outside.any()
    assert inside[1] >= 20 * inside[0] > 0 or (inside[0] == 0 and inside[1] > 100)


WHOLE_MASKS = {
    # layout: mask output, shape, values inside and outside; the mask covers the left half of the input
    "rf-detr": ("masks", (1, 10, 16, 24), 4.0, -4.0),
    "torchvision": ("masks", (9, 1, HEIGHT, WIDTH), 0.9, 0.1),
    "end2end": ("protos", (1, 2, 16, 24), 1.0, -1.0),
}


@pytest.mark.parametrize("name", WHOLE_MASKS)
def test_full_masks_are_mapped_to_the_image(name, build):
    case = CASES[name]()
    key, shape, inside, outside = WHOLE_MASKS[name]
    masks = np.full(shape, outside)
    masks[..., : shape[-1] // 2] = inside
    outputs = {**case.outputs, key: masks}
    metadata = dict(case.options["metadata"])
    if name == "end2end":
        rows = np.asarray(outputs["output0"])
        outputs["output0"] = np.concatenate([rows, np.ones((1, 12, 1)), np.zeros((1, 12, 1))], axis=2)
        metadata["task"] = "segment"
    detector = load_detector(build(dataclasses.replace(case, outputs=outputs), metadata=metadata))
    assert (detector.layout, "masks" in detector.provides) == (name, True)
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    assert len(detections.segments) == len(detections) > 1
    for box, segment in zip(detections.boxes, detections.segments, strict=True):
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : min(WIDTH // 2, int(np.ceil(box[2])))] = True
        assert (segment.mask() != expected).sum() <= 3 * HEIGHT  # the edge between both halves is blurred


def test_graph_without_a_batch_axis(build):
    case = CASES["torchvision"]()
    detector = load_detector(build(case, shape=(3, HEIGHT, WIDTH)))
    assert (detector.layout, detector.batch) == ("torchvision", 1)
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    assert len(detections) == len([entry for entry in case.expected if entry[1] >= FLOOR])


def test_91_coco_ids_map_to_80_names(build):
    from ml_backend.detection.class_names import COCO_GAPS, class_indices

    names = ("person", *(f"thing {n}" for n in range(78)), "toothbrush")
    case = CASES["rf-detr"]()
    logits = np.full((1, 10, 91), -9.0)
    logits[0, 0, 1], logits[0, 1, 90], logits[0, 2, 12] = 3, 2, 5  # person, toothbrush, and an unused id
    case = dataclasses.replace(case, outputs={**case.outputs, "labels": logits})
    detector = load_detector(build(case, metadata={"names": list(names)}))
    [detections] = detector.detect([prepare(np.zeros((32, 48, 3), np.uint8), detector.spec)], floor=0.3)
    assert [detector.names.names[index] for index in detections.classes] == ["person", "toothbrush"]
    assert len(COCO_GAPS) == 11
    assert class_indices(names, 80, "any") is None


AUXILIARY = {
    "orig_target_sizes": ((TensorProto.INT64, ["n", "two"]), [[96, 64]]),
    "im_shape": ((TensorProto.FLOAT, [1, 2]), [[64, 96]]),
    "scale_factor": ((TensorProto.FLOAT, ["n", 2]), [[1, 1]]),
    "pixel_mask": ((TensorProto.INT64, ["n", 32, "w"]), np.ones((1, 32, 96))),
}


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_inputs_are_fed(name, build):
    tensor, expected = AUXILIARY[name]
    engine = load_detector(build(CASES["yolox"](), extra_inputs={name: tensor})).engine
    assert engine.graph.auxiliary_feeds(64, 96, 1)[name].tolist() == np.asarray(expected).tolist()


def test_unknown_input_is_reported(build):
    with pytest.raises(ModelBroken, match=r"exactly one image input.*camera \[1, 3\]"):
        load_detector(build(CASES["yolox"](), extra_inputs={"camera": (TensorProto.FLOAT, [1, 3])}))


def test_named_background_does_not_shift_classes(build):
    case = CASES["torchvision"]()
    detector = load_detector(build(case, metadata={"names": ["__background__", *NAMES]}))
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    expected = [entry[2] for entry in case.expected if entry[1] >= FLOOR]
    assert [detector.names.names[index] for index in detections.classes] == [NAMES[index] for index in expected]


def test_labelloop_score_is_objectness_times_class_score(labelloop_model):
    detector = load_detector(labelloop_model())
    photo = prepare(np.zeros((64, 96, 3), np.uint8), detector.spec)
    [detections] = detector.detect([photo], floor=0.2)
    results = {
        detector.names.names[c]: (round(s, 3), b)
        for c, s, b in zip(detections.classes, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    }
    assert results == {
        "cat": (0.81, [10, 8, 30, 24]),
        "person": (0.8, [40, 16, 80, 56]),
        "car": (0.25, [0, 0, 20, 20]),
    }


def test_a_classifier_may_give_features_too(make_onnx):
    outputs = {"features": np.zeros((1, 512)), "logits": np.array([[0.0, 3.0, 1.0]])}
    file = make_onnx(outputs, metadata={"names": NAMES})
    detector = load_detector(file)
    assert (detector.layout, detector.reader.outputs) == ("classifier", ("logits",))
    [detections] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=0.5)
    assert detections.classes.tolist() == [1]


STRANGE = {
    "anchors of no known grid": ({"output": np.zeros((1, 100, 8))}, "output [1, 100, 8] float32"),
    "a yolox grid with distant centres": (
        {"output": np.asarray(yolox().outputs["output"]) + np.array([500, 500, 0, 0, 0, 0, 0, 0])},
        "output [1, 126, 8] float32",
    ),
    "as many values as anchors, outside 0..1": ({"output": np.full((1, 7, 126), 40.0)}, "output [1, 7, 126] float32"),
    "one output missing": ({"boxes": np.zeros((1, 7, 4)), "scores": np.zeros((1, 7, 3))}, "boxes [1, 7, 4] float32"),
    "one value": ({"logits": np.zeros((1, 1))}, "logits [1, 1] float32"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_unknown_layout_lists_outputs_and_fix(case, make_onnx):
    outputs, described = STRANGE[case]
    with pytest.raises(UnknownLayout) as error:
        load_detector(make_onnx(outputs, metadata={"names": NAMES}))
    assert described in str(error.value)
    assert all(name in str(error.value) for name in LAYOUTS)
    assert "LABELLOOP_MODEL_LAYOUT" in str(error.value)


def test_layout_can_be_forced(make_onnx):
    # Centres far from the grid: not recognised unless forced.
    raw = np.asarray(yolox().outputs["output"])
    raw[..., :2] += 400
    model = make_onnx({"output": raw}, metadata={"names": NAMES})
    with pytest.raises(UnknownLayout):
        load_detector(model)
    assert load_detector(model, layout="yolox").layout == "yolox"


def test_wrong_forced_layout_raises(make_onnx):
    model = make_onnx(yolox().outputs, metadata={"names": NAMES})
    for layout in ("labelloop", "yolov99"):
        with pytest.raises(UnknownLayout, match=f"not of the layout '{layout}'"):
            load_detector(model, layout=layout)


def test_invalid_input_metadata_is_reported(make_onnx):
    outputs = {"boxes": np.zeros((1, 7, 4)), "objectness": np.zeros((1, 7)), "scores": np.zeros((1, 7, 3))}
    for description in ("nonsense", {"size": [64, 96], "color": "CMYK"}, {"size": 64}):
        with pytest.raises(ModelBroken, match="metadata `input`"):
            load_detector(make_onnx(outputs, metadata={"names": NAMES, "input": description}))


def test_missing_names_report_the_sidecar(make_onnx):
    model = make_onnx(yolox().outputs, name="custom.onnx")
    with pytest.raises(NamesMissing, match=r"3 classes.*custom\.onnx\.names"):
        load_detector(model)
    model.with_name("custom.onnx.names").write_text("one\ntwo\nthree\n")
    assert load_detector(model).names.names == ("one", "two", "three")


def test_other_sizes_and_class_counts(make_onnx):
    raw = np.random.default_rng(0).uniform(0, 1, (1, 320 + 80 + 20, 12))
    model = make_onnx({"output": raw}, shape=(1, 3, 128, 160), metadata={"names": [str(n) for n in range(7)]})
    detector = load_detector(model)
    assert (detector.spec.height, detector.spec.width, len(detector.names.names)) == (128, 160, 7)


def test_non_onnx_file_is_broken(tmp_path):
    file = tmp_path / "photo.onnx"
    file.write_bytes(b"\x89PNG not a model")
    with pytest.raises(ModelBroken, match=r"photo\.onnx"):
        load_detector(file)


def test_graph_without_image_input_is_broken(make_onnx):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["tokens"], ["out"])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("tokens", "out")]
    model = helper.make_model(
        helper.make_graph([node], "text", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    file = make_onnx(yolox().outputs).with_name("text.onnx")
    onnx.save(model, file)
    with pytest.raises(ModelBroken, match=r"exactly one image input.*tokens \[1, 8\]"):
        load_detector(file)
