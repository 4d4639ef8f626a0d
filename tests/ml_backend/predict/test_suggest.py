"""A layout file is proposed for a graph that finds red squares, and the proposal finds them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from labelloop.service.errors import LabelloopError
from ml_backend.cli.suggest import draw_candidates, print_suggestions
from ml_backend.errors import UnknownLayout
from ml_backend.inference.detector import load_detector
from ml_backend.layouts.layout_file import layout_file_of
from ml_backend.predict.suggest import suggest

HEIGHT, WIDTH, STRIDE, SIDE = 256, 320, 8, 32
# x_min, y_min of red squares of SIDE pixels, whose middles are those of cells.
SQUARES = ((44, 52), (204, 116))


@pytest.fixture
def graph(tmp_path):
    """A graph of 320 x 256 pixels in 0..1 RGB -> rows of four distances in strides, and the logit of a red square.

    The root of the redness of 5 x 5 cells is the square's side, and highest at its middle.
    """
    rows = (HEIGHT // STRIDE) * (WIDTH // STRIDE)
    weights = np.zeros((1, 3, STRIDE, STRIDE), np.float32)
    weights[0, 0], weights[0, 1], weights[0, 2] = 1 / 64, -0.2 / 64, -0.8 / 64  # red, and not blue
    constants = {
        "red": weights,
        "window": np.full((1, 1, 5, 5), 1 / 16, np.float32),
        "gain": np.array(8.0, np.float32),
        "shift": np.array(-4.0, np.float32),
        "half": np.array(SIDE / 2 / STRIDE, np.float32),
        "shape": np.array([1, rows, 1]),
    }
    nodes = [
        helper.make_node("Conv", ["images", "red"], ["redness"], strides=[STRIDE, STRIDE]),
        helper.make_node("Conv", ["redness", "window"], ["mean"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["mean"], ["positive"]),
        helper.make_node("Sqrt", ["positive"], ["root"]),
        helper.make_node("Reshape", ["root", "shape"], ["side"]),
        helper.make_node("Mul", ["side", "gain"], ["high"]),
        helper.make_node("Add", ["high", "shift"], ["logit"]),
        helper.make_node("Mul", ["side", "half"], ["far"]),
        helper.make_node("Concat", ["far", "far", "far", "far", "logit"], ["rows"], axis=2),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "squares",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, rows, 5])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "squares.onnx")
    return tmp_path / "squares.onnx"


@pytest.fixture
def photo(tmp_path):
    """Red squares on grey, and a blue one."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for x, y in SQUARES:
        pixels[y : y + SIDE, x : x + SIDE] = 255, 10, 10
    pixels[180:212, 100:132] = 10, 10, 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_best_proposal_finds_the_objects(graph, photo):
    pixels = np.asarray(Image.open(photo))
    candidates = suggest(graph, pixels)
    best = candidates[0]
    assert best.file.boxes.format == "distances"
    assert (best.file.boxes.unit, best.file.anchors.strides, best.file.scores.activation) == (
        "strides",
        (8,),
        "sigmoid",
    )
    assert best.file.input.color == "RGB"
    assert [one.plausibility for one in candidates] == sorted((one.plausibility for one in candidates), reverse=True)
    centres = (best.detections.boxes[:2, :2] + best.detections.boxes[:2, 2:]) / 2
    expected = np.array(SQUARES) + SIDE / 2
    assert np.abs(centres[np.argsort(centres[:, 0])] - expected).max() <= STRIDE
    sheet = draw_candidates(pixels, candidates[:4])
    assert sheet.width > 900


def test_chosen_proposal_is_written_and_served(graph, photo, tmp_path, capsys):
    with pytest.raises(UnknownLayout, match="no known layout") as error:
        load_detector(graph, allow_numbered=True)
    assert "--suggest" in error.value.fix
    print_suggestions(graph, photo, out=tmp_path / "drawn.png", size=None, rank=1)
    said = capsys.readouterr().out
    assert "Not served without changes" in said
    assert "boxes distances in strides; scores after sigmoid; pixels RGB" in said
    assert (tmp_path / "drawn.png").is_file()
    detector = load_detector(graph, allow_numbered=True)
    assert detector.layout_file == layout_file_of(graph) == tmp_path / "squares.layout.toml"
    with pytest.raises(LabelloopError, match="exists already"):
        print_suggestions(graph, photo, out=tmp_path / "drawn.png", size=None, rank=1)


def test_where_class_numbers_start_is_left_to_the_user(make_onnx, photo, tmp_path, capsys):
    boxes = np.array([[(x, y, x + SIDE, y + SIDE) for x, y in SQUARES]], float)
    outputs = {"found": boxes, "kinds": np.array([[1, 2]]), "sure": np.array([[0.9, 0.8]])}
    model = make_onnx(outputs, shape=(1, 3, HEIGHT, WIDTH))
    print_suggestions(model, photo, out=tmp_path / "drawn.png", size=None, rank=1)
    said = capsys.readouterr().out
    assert "whether its class numbers start at 0, or at 1" in said
    assert "kinds is read from 0" in said
    assert "`first = 1` into `[classes]`" in said
    assert load_detector(model, allow_numbered=True).layout == "layout-file"


def test_photo_without_objects_gives_no_convincing_proposal(graph, tmp_path, capsys):
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(LabelloopError, match="gives plausible detections"):
        print_suggestions(graph, tmp_path / "grey.png", out=tmp_path / "drawn.png", size=None, rank=0)
    assert "Not served without changes" in capsys.readouterr().out


def test_suggest_needs_a_model_and_an_image(graph):
    with pytest.raises(LabelloopError, match="needs a model and an image"):
        print_suggestions(graph, None, out=None, size=None, rank=0)
