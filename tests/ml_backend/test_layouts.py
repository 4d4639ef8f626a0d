"""Every layout is recognised from a graph made for it and decoded as an independent loop decodes it; no other is."""

import math

import numpy as np
import pytest

from ml_backend.detector import load_detector
from ml_backend.errors import ModelBroken, NamesMissing, UnknownLayout
from ml_backend.layouts import LAYOUTS
from ml_backend.preprocess import InputSpec, prepare

NAMES = ["a", "b", "c"]


def grid_anchors(height, width):
    return sum((height // stride) * (width // stride) for stride in (8, 16, 32))


def yolox_raw(height=64, width=96, classes=3, *, seed=0):
    """A raw grid as a YOLOX head gives it: offsets and log sizes around 0, probabilities after the sigmoid."""
    rng = np.random.default_rng(seed)
    anchors = grid_anchors(height, width)
    raw = rng.normal(0, 0.7, (1, anchors, 5 + classes)).astype(np.float32)
    raw[..., 4:] = rng.uniform(0, 1, (1, anchors, 1 + classes))
    return raw


def decode_by_loop(raw, height, width, floor):
    """YOLOX's decoding written out cell by cell, as the paper describes it; the referee of the vectorised one."""
    found = []
    index = 0
    for stride in (8, 16, 32):
        for row in range(height // stride):
            for column in range(width // stride):
                x, y, w, h, presence, *scores = (float(value) for value in raw[index])
                index += 1
                best = max(range(len(scores)), key=lambda one: scores[one])
                score = presence * scores[best]
                if score < floor:
                    continue
                cx, cy = (x + column) * stride, (y + row) * stride
                half_w, half_h = math.exp(w) * stride / 2, math.exp(h) * stride / 2
                found.append((cx - half_w, cy - half_h, cx + half_w, cy + half_h, score, best))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_yolox_is_decoded_as_a_plain_loop_decodes_it(seed):
    raw = yolox_raw(seed=seed)
    expected = np.array(decode_by_loop(raw[0], 64, 96, 0.3))
    [found] = LAYOUTS["yolox"].decode({"output": raw}, InputSpec(64, 96, color="BGR"), 0.3)
    assert len(found) == len(expected) > 10
    np.testing.assert_allclose(found.boxes, expected[:, :4], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-5)
    assert found.classes.tolist() == expected[:, 5].astype(int).tolist()


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


CASES = {
    "labelloop": lambda make: make(
        {
            "boxes": np.zeros((1, 7, 4)),
            "objectness": np.zeros((1, 7)),
            "scores": np.zeros((1, 7, 3)),
            "embeddings": np.zeros((1, 7, 5)),
        },
        metadata={"names": NAMES, "input": {"size": [64, 96]}},
    ),
    "yolox": lambda make: make({"output": yolox_raw()}, metadata={"names": NAMES}),
}


def test_there_is_a_case_for_every_layout():
    assert set(CASES) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_without_being_told(name, make_onnx):
    detector = load_detector(CASES[name](make_onnx))
    assert detector.layout == name
    assert detector.why
    assert detector.names.names == tuple(NAMES)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_each_layout_gives_one_answer_a_photo_whatever_the_batch_of_the_graph(name, batch, make_onnx):
    model = CASES[name](lambda outputs, **options: make_onnx(outputs, shape=(batch, 3, 64, 96), **options))
    detector = load_detector(model)
    photo = prepare(np.zeros((32, 32, 3), np.uint8), detector.spec)
    photos = [photo] * min(detector.batch, 3)
    found = detector.detect(photos, floor=0.3)
    assert len(found) == len(photos)
    assert all(len(one) == len(found[0]) for one in found)


STRANGE = {
    "anchors of no known grid": ({"output": np.zeros((1, 100, 8))}, "output [1, 100, 8] float32"),
    "a yolox export that decodes in the graph": (
        {"output": yolox_raw() + np.array([500, 500, 0, 0, 0, 0, 0, 0], np.float32)},
        "output [1, 126, 8] float32",
    ),
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
    raw = yolox_raw()
    raw[..., :2] += 40
    model = make_onnx({"output": raw}, metadata={"names": NAMES})
    with pytest.raises(UnknownLayout):
        load_detector(model)
    assert load_detector(model, layout="yolox").layout == "yolox"


def test_a_forced_layout_that_does_not_fit_or_exist_is_an_error(make_onnx):
    model = make_onnx({"output": yolox_raw()}, metadata={"names": NAMES})
    for layout in ("labelloop", "yolov99"):
        with pytest.raises(UnknownLayout, match=f"not of the layout '{layout}'"):
            load_detector(model, layout=layout)


def test_metadata_that_describes_no_input_is_named(make_onnx):
    outputs = {"boxes": np.zeros((1, 7, 4)), "objectness": np.zeros((1, 7)), "scores": np.zeros((1, 7, 3))}
    for told in ("nonsense", {"size": [64, 96], "color": "CMYK"}, {"size": 64}):
        with pytest.raises(ModelBroken, match="metadata `input`"):
            load_detector(make_onnx(outputs, metadata={"names": NAMES, "input": told}))


def test_a_model_without_names_says_where_to_put_them(make_onnx):
    model = make_onnx({"output": yolox_raw()}, name="mine.onnx")
    with pytest.raises(NamesMissing, match=r"3 classes.*mine\.onnx\.names"):
        load_detector(model)
    model.with_name("mine.onnx.names").write_text("one\ntwo\nthree\n")
    assert load_detector(model).names.names == ("one", "two", "three")


def test_other_classes_anchors_and_sizes_are_served_as_well(make_onnx):
    raw = yolox_raw(128, 160, classes=7)
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
    file = make_onnx({"output": yolox_raw()}).with_name("text.onnx")
    onnx.save(model, file)
    with pytest.raises(ModelBroken, match=r"no single photo.*tokens \[1, 8\]"):
        load_detector(file)
