"""`labelloop models inspect` says what a model is, and its drawing shows what it sees where it is."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from labelloop.cli.main import main
from ml_backend.inference import run_limit


@pytest.fixture
def photo_file(tmp_path):
    file = tmp_path / "street.png"
    Image.fromarray(np.full((128, 192, 3), 200, np.uint8)).save(file)
    return file


def inspect(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["models", "inspect", *map(str, words)])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_inspect_prints_the_layout_and_draws_detections(labelloop_model, photo_file, tmp_path, capsys):
    out = tmp_path / "drawn.png"
    message = inspect(capsys, labelloop_model(), "--image", photo_file, "--out", out)
    assert "Layout:   labelloop, because: outputs named boxes, objectness and scores" in message
    assert "96 x 64 pixels RGB 0..255" in message
    assert "3, from metadata: cat, person, car" in message
    assert re.search(r"^NMS:      above an IoU of 0\.\d+$", message, flags=re.MULTILINE)
    assert "2 detections in an image of 192 x 128 pixels" in message
    assert "0.81  cat  at 20 16 60 48" in message
    drawn = np.asarray(Image.open(out)).astype(int)
    assert drawn.shape == (128, 192, 3)
    touched = np.abs(drawn - 200).max(axis=2) > 30
    assert touched[30:40, 19:22].any()  # the left edge of the cat's box
    assert touched[40:100, 79:82].any()  # and of the person's
    assert not touched[120:, :60].any()  # nothing where nothing is


def test_masks_points_and_turned_boxes_are_drawn_in_their_places(make_onnx, photo_file, tmp_path, capsys):
    from tests.ml_backend.layout_cases import CASES

    for name in ("yolov8-segment", "yolov8-pose", "yolov8-obb"):
        case = CASES[name]()
        model = make_onnx(case.outputs, name=f"{name}.onnx", **case.options)
        out = tmp_path / f"{name}.png"
        message = inspect(capsys, model, "--image", photo_file, "--out", out, "--threshold", "0.8")
        assert f"Layout:   {name}" in message
        assert (np.abs(np.asarray(Image.open(out)).astype(int) - 200).max(axis=2) > 30).sum() > 500


def test_a_threshold_and_slices_are_taken(labelloop_model, photo_file, tmp_path, capsys):
    options = ("--image", photo_file, "--out", tmp_path / "x.png")
    assert "1 detection in" in inspect(capsys, labelloop_model(), *options, "--threshold", "0.805")
    assert "\n12 detections" in inspect(capsys, labelloop_model(), *options, "--slice", "96")


def test_names_of_a_file_and_numbers_where_there_are_none(make_onnx, tmp_path, capsys):
    from tests.ml_backend.layout_cases import CASES

    model = make_onnx(CASES["yolox"]().outputs, name="mine.onnx")
    assert "3, from their numbers (no names found): 0, 1, 2" in inspect(capsys, model)
    names = tmp_path / "mine.txt"
    names.write_text("one\ntwo\nthree\n")
    assert "3, from mine.txt: one, two, three" in inspect(capsys, model, "--names", names)


def test_an_unknown_layout_lists_outputs_and_options(make_onnx, capsys):
    model = make_onnx({"strange": np.zeros((1, 3, 7))})
    with pytest.raises(SystemExit) as ended:
        main(["models", "inspect", str(model)])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "strange [1, 3, 7] float32" in message
    assert "--layout" in message
    assert "yolov8-pose" in message


def test_without_a_model_it_is_the_embedded_one(capsys):
    assert "20, from metadata: aeroplane" in inspect(capsys)


def test_an_endless_loop_is_ended_and_named(labelloop_model, monkeypatch, capsys):
    file = labelloop_model()
    model = onnx.load(file)
    scalar = lambda name, kind: helper.make_tensor_value_info(name, kind, [])  # noqa: E731
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}.next"]) for name in ("go", "value")],
        "body",
        [scalar("turn", TensorProto.INT64), scalar("go", TensorProto.BOOL), scalar("value", TensorProto.FLOAT)],
        [scalar("go.next", TensorProto.BOOL), scalar("value.next", TensorProto.FLOAT)],
    )
    graph = model.graph
    graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    graph.node[-1].output[0] = "scores.first"
    graph.node.append(helper.make_node("ReduceSum", ["scores.first"], ["scores.sum"], keepdims=0))
    graph.node.append(helper.make_node("Loop", ["", "always", "scores.sum"], ["looped"], body=body))
    graph.node.append(helper.make_node("Add", ["scores.first", "looped"], ["scores"]))
    onnx.save(model, file)
    monkeypatch.setattr(run_limit, "RUN_LIMIT_S", 0.5)
    with pytest.raises(SystemExit) as ended:
        main(["models", "inspect", str(file)])
    assert ended.value.code == 1
    assert "endless Loop" in " ".join(capsys.readouterr().err.split())
