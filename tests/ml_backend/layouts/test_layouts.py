"""Every layout is recognised from a graph made for it and decoded as an independent loop decodes it; no other is."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken, NamesMissing, UnknownLayout
from ml_backend.inference.detector import load_detector
from ml_backend.layouts import LAYOUTS
from tests.ml_backend.layout_cases import CASES, FLOOR, HEIGHT, NAMES, VARIANTS, WIDTH, yolox

MODELS = {**{name: (name, case) for name, case in CASES.items()}, **VARIANTS}


def test_there_is_a_case_for_every_layout():
    assert set(CASES) == set(LAYOUTS)


@pytest.fixture
def build(make_onnx):
    """build(case, **options) -> the file."""
    return lambda case, **options: make_onnx(case.outputs, **{**case.options, **options})


@pytest.mark.parametrize("which", MODELS)
def test_each_model_is_recognised_without_being_told_and_decoded_as_a_plain_loop_decodes_it(which, build):
    layout, make = MODELS[which]
    case = make()
    detector = load_detector(build(case))
    assert detector.layout == layout
    assert len(detector.why) > 20
    seen = detector.engine.run([np.zeros(blank(detector.spec), detector.spec.dtype)], detector.reader.outputs)
    [found] = detector.reader.decode(seen, FLOOR)
    found = detector._numbered(found)
    expected = [one for one in case.expected if one[1] >= FLOOR]
    assert len(found) == len(expected) > (0 if layout == "classify" else 1)
    assert len(expected) < len(case.expected)
    np.testing.assert_allclose(found.boxes, [one[0] for one in expected], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(found.scores, [one[1] for one in expected], rtol=1e-4)
    names = tuple(case.options["metadata"]["names"]) if layout == "labelloop" else detector.names.names
    assert names == detector.names.names
    assert found.classes.tolist() == [one[2] for one in expected]
    if "keypoints" in detector.gives:
        np.testing.assert_allclose(found.keypoints, [one[3] for one in expected], rtol=1e-5)
    if "turned" in detector.gives:
        np.testing.assert_allclose(found.turned, [one[3] for one in expected], rtol=1e-5)


def blank(spec):
    return (spec.height, spec.width, 3) if spec.layout == "NHWC" else (3, spec.height, spec.width)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_each_layout_gives_one_answer_a_photo_whatever_the_batch_of_the_graph(name, batch, build):
    case = CASES[name]()
    shape = case.options.get("shape", (0, 3, HEIGHT, WIDTH))
    if not case.batched and batch == 4:
        batch = 1  # its outputs have no axis for photos
    detector = load_detector(build(case, shape=(batch, *shape[1:])))
    photo = prepare(np.zeros((32, 48, 3), np.uint8), detector.spec)
    photos = [photo] * min(detector.batch, 3)
    found = detector.detect(photos, floor=0.3)
    assert len(found) == len(photos)
    assert all(len(one) == len(found[0]) for one in found)
    assert list(found[0].scores) == sorted(found[0].scores, reverse=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_served_with_an_open_size_and_with_half_precision(name, build):
    case = CASES[name]()
    last = name == "tf-od"
    metadata = {**case.options["metadata"], "imgsz": f"[{HEIGHT}, {WIDTH}]"}
    shape = (1, "h", "w", 3) if last else (1, 3, "h", "w")
    detector = load_detector(build(case, shape=shape, dtype=TensorProto.FLOAT16, metadata=metadata))
    assert detector.layout in ({"tf-od"} if last else {name})
    assert (detector.spec.height, detector.spec.width, detector.spec.dtype) == (HEIGHT, WIDTH, "float16")
    [found] = detector.detect([prepare(np.zeros((32, 48, 3), np.uint8), detector.spec)], floor=0.3)
    assert len(found)


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_of_half_precision_are_read_as_well(name, build):
    case = CASES[name]()
    halves = {
        key: value if np.issubdtype((value := np.asarray(array)).dtype, np.integer) else value.astype(np.float16)
        for key, array in case.outputs.items()
    }
    detector = load_detector(build(dataclasses.replace(case, outputs=halves)))
    assert detector.layout == name
    [found] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    assert len(found)
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_can_be_named_and_refuses_what_it_cannot_read(name, build, make_onnx):
    case = CASES[name]()
    assert load_detector(build(case), layout=name).why == "asked for"
    with pytest.raises(UnknownLayout, match=f"not of the layout '{name}'"):
        load_detector(make_onnx({"x": np.zeros((1, 2, 3, 4, 5))}, metadata={"names": NAMES}), layout=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_metadata_input_says_how_any_model_is_shown_its_photos(name, build):
    case = CASES[name]()
    told = {"size": [HEIGHT, WIDTH], "color": "BGR", "range": "0..1", "letterbox": "centre, pad 3", "mean": [0.5] * 3}
    spec = load_detector(build(case, metadata={**case.options["metadata"], "input": told})).spec
    assert (spec.color, spec.scale, spec.placement, spec.pad, spec.mean) == ("BGR", 1 / 255, "centre", 3, (0.5,) * 3)


PIXELS = {
    # layout: colour order, value of a white pixel, placement; as each family's own program prepares photos
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
}


@pytest.mark.parametrize("name", PIXELS)
def test_photos_are_prepared_as_the_family_was_trained(name, build):
    color, white, placement = PIXELS[name]
    spec = load_detector(build(CASES[name]())).spec
    assert (spec.color, spec.placement) == (color, placement)
    tensor = prepare(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), spec).tensor
    pixel = tensor[0, 0] if spec.layout == "NHWC" else tensor[:, 0, 0]
    np.testing.assert_allclose(pixel, white, atol=2e-3)


def test_a_mask_is_the_weighted_sum_of_its_prototypes_inside_its_box(build):
    case = CASES["yolov8-segment"]()
    detector = load_detector(build(case))
    [found] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    inside = [0, 0]
    by_score = {round(one[1], 5): one for one in case.expected}
    for box, score, segment in zip(found.boxes.tolist(), found.scores.tolist(), found.segments, strict=True):
        mask = segment.mask()
        assert mask.shape == (HEIGHT, WIDTH)
        logits = by_score[round(score, 5)][3]
        for row in range(HEIGHT // 4):  # each prototype pixel lies over 4 x 4 pixels; its middle is its own value
            for column in range(WIDTH // 4):
                x, y = column * 4 + 1.5, row * 4 + 1.5
                if box[0] + 3 < x < box[2] - 3 and box[1] + 3 < y < box[3] - 3 and abs(logits[row, column]) > 1.5:
                    inside[int(bool(mask[int(y), int(x)]) == bool(logits[row, column] > 0))] += 1
        outside = mask.copy()
        outside[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))] = False
        assert not outside.any()
    assert inside[1] >= 20 * inside[0] > 0 or (inside[0] == 0 and inside[1] > 100)


WHOLE_MASKS = {
    # layout: outputs beside the boxes, by name; a mask of the left half of the input as each family writes it
    "rf-detr": ("masks", (1, 10, 16, 24), 4.0, -4.0),
    "torchvision": ("masks", (9, 1, HEIGHT, WIDTH), 0.9, 0.1),
    "end2end": ("protos", (1, 2, 16, 24), 1.0, -1.0),
}


@pytest.mark.parametrize("name", WHOLE_MASKS)
def test_masks_of_other_families_lie_where_they_were_seen(name, build):
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
    assert (detector.layout, "masks" in detector.gives) == (name, True)
    [found] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    assert len(found.segments) == len(found) > 1
    for box, segment in zip(found.boxes, found.segments, strict=True):
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : min(WIDTH // 2, int(np.ceil(box[2])))] = True
        assert (segment.mask() != expected).sum() <= 3 * HEIGHT  # the edge between both halves is blurred


def test_a_graph_that_takes_one_photo_without_a_batch_is_served(build):
    case = CASES["torchvision"]()
    detector = load_detector(build(case, shape=(3, HEIGHT, WIDTH)))
    assert (detector.layout, detector.batch) == ("torchvision", 1)
    [found] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    assert len(found) == len([one for one in case.expected if one[1] >= FLOOR])


def test_coco_numbers_of_91_classes_find_their_80_names(build):
    from ml_backend.detection.class_names import COCO_GAPS, class_places

    names = ("person", *(f"thing {n}" for n in range(78)), "toothbrush")
    case = CASES["rf-detr"]()
    logits = np.full((1, 10, 91), -9.0)
    logits[0, 0, 1], logits[0, 1, 90], logits[0, 2, 12] = 3, 2, 5  # person, toothbrush, and a number of nothing
    case = dataclasses.replace(case, outputs={**case.outputs, "labels": logits})
    detector = load_detector(build(case, metadata={"names": list(names)}))
    [found] = detector.detect([prepare(np.zeros((32, 48, 3), np.uint8), detector.spec)], floor=0.3)
    assert [detector.names.names[place] for place in found.classes] == ["person", "toothbrush"]
    assert len(COCO_GAPS) == 11
    assert class_places(names, 80, "any") is None


AUXILIARY = {
    "orig_target_sizes": ((TensorProto.INT64, ["n", "two"]), [[96, 64]]),
    "im_shape": ((TensorProto.FLOAT, [1, 2]), [[64, 96]]),
    "scale_factor": ((TensorProto.FLOAT, ["n", 2]), [[1, 1]]),
    "pixel_mask": ((TensorProto.INT64, ["n", 32, "w"]), np.ones((1, 32, 96))),
}


@pytest.mark.parametrize("name", AUXILIARY)
def test_inputs_beside_the_photo_are_given_what_they_mean(name, build):
    told, expected = AUXILIARY[name]
    engine = load_detector(build(CASES["yolox"](), beside={name: told})).engine
    assert engine.graph.feeds(64, 96, 1)[name].tolist() == np.asarray(expected).tolist()


def test_an_input_that_nobody_knows_is_named(build):
    with pytest.raises(ModelBroken, match=r"no single photo.*camera \[1, 3\]"):
        load_detector(build(CASES["yolox"](), beside={"camera": (TensorProto.FLOAT, [1, 3])}))


def test_a_named_background_shifts_nothing(build):
    case = CASES["torchvision"]()
    detector = load_detector(build(case, metadata={"names": ["__background__", *NAMES]}))
    [found] = detector.detect([prepare(np.zeros((HEIGHT, WIDTH, 3), np.uint8), detector.spec)], floor=FLOOR)
    shown = [one[2] for one in case.expected if one[1] >= FLOOR]
    assert [detector.names.names[place] for place in found.classes] == [NAMES[place] for place in shown]


def test_labelloop_score_is_objectness_times_class_score(labelloop_model):
    detector = load_detector(labelloop_model())
    photo = prepare(np.zeros((64, 96, 3), np.uint8), detector.spec)
    [found] = detector.detect([photo], floor=0.2)
    shown = {
        detector.names.names[c]: (round(s, 3), b)
        for c, s, b in zip(found.classes, found.scores.tolist(), found.boxes.tolist(), strict=True)
    }
    assert shown == {
        "cat": (0.81, [10, 8, 30, 24]),
        "person": (0.8, [40, 16, 80, 56]),
        "car": (0.25, [0, 0, 20, 20]),
    }


STRANGE = {
    "anchors of no known grid": ({"output": np.zeros((1, 100, 8))}, "output [1, 100, 8] float32"),
    "a yolox grid whose centres lie nowhere near": (
        {"output": np.asarray(yolox().outputs["output"]) + np.array([500, 500, 0, 0, 0, 0, 0, 0])},
        "output [1, 126, 8] float32",
    ),
    "as many numbers as anchors, but no shares": ({"output": np.full((1, 7, 126), 40.0)}, "output [1, 7, 126] float32"),
    "one output missing": ({"boxes": np.zeros((1, 7, 4)), "scores": np.zeros((1, 7, 3))}, "boxes [1, 7, 4] float32"),
    "a classifier": ({"logits": np.zeros((1, 1000))}, "logits [1, 1000] float32"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_an_unknown_layout_is_an_error_that_lists_the_outputs_and_what_to_do(case, make_onnx):
    outputs, seen = STRANGE[case]
    with pytest.raises(UnknownLayout) as error:
        load_detector(make_onnx(outputs, metadata={"names": NAMES}))
    assert seen in str(error.value)
    assert all(name in str(error.value) for name in LAYOUTS)
    assert "LABELLOOP_MODEL_LAYOUT" in str(error.value)


def test_a_layout_can_be_forced(make_onnx):
    # Centres far off the grid: not recognised, yet the user knows better.
    raw = np.asarray(yolox().outputs["output"])
    raw[..., :2] += 400
    model = make_onnx({"output": raw}, metadata={"names": NAMES})
    with pytest.raises(UnknownLayout):
        load_detector(model)
    assert load_detector(model, layout="yolox").layout == "yolox"


def test_a_forced_layout_that_does_not_fit_or_exist_is_an_error(make_onnx):
    model = make_onnx(yolox().outputs, metadata={"names": NAMES})
    for layout in ("labelloop", "yolov99"):
        with pytest.raises(UnknownLayout, match=f"not of the layout '{layout}'"):
            load_detector(model, layout=layout)


def test_metadata_that_describes_no_input_is_named(make_onnx):
    outputs = {"boxes": np.zeros((1, 7, 4)), "objectness": np.zeros((1, 7)), "scores": np.zeros((1, 7, 3))}
    for told in ("nonsense", {"size": [64, 96], "color": "CMYK"}, {"size": 64}):
        with pytest.raises(ModelBroken, match="metadata `input`"):
            load_detector(make_onnx(outputs, metadata={"names": NAMES, "input": told}))


def test_a_model_without_names_says_where_to_put_them(make_onnx):
    model = make_onnx(yolox().outputs, name="mine.onnx")
    with pytest.raises(NamesMissing, match=r"3 classes.*mine\.onnx\.names"):
        load_detector(model)
    model.with_name("mine.onnx.names").write_text("one\ntwo\nthree\n")
    assert load_detector(model).names.names == ("one", "two", "three")


def test_other_classes_anchors_and_sizes_are_served_as_well(make_onnx):
    raw = np.random.default_rng(0).uniform(0, 1, (1, 320 + 80 + 20, 12))
    model = make_onnx({"output": raw}, shape=(1, 3, 128, 160), metadata={"names": [str(n) for n in range(7)]})
    detector = load_detector(model)
    assert (detector.spec.height, detector.spec.width, len(detector.names.names)) == (128, 160, 7)


def test_a_file_that_is_no_onnx_is_broken(tmp_path):
    file = tmp_path / "photo.onnx"
    file.write_bytes(b"\x89PNG not a model")
    with pytest.raises(ModelBroken, match=r"photo\.onnx"):
        load_detector(file)


def test_a_graph_that_takes_no_photo_is_broken(make_onnx):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["tokens"], ["out"])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("tokens", "out")]
    model = helper.make_model(
        helper.make_graph([node], "text", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    file = make_onnx(yolox().outputs).with_name("text.onnx")
    onnx.save(model, file)
    with pytest.raises(ModelBroken, match=r"no single photo.*tokens \[1, 8\]"):
        load_detector(file)
