"""Letterboxed images run without most of their padding, where the graph gives the same boxes then."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.cut import ROWS, CutGrid, cells_inside
from ml_backend.detection.preprocess import InputSpec, prepare
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.inference.session import Engine
from ml_backend.predict.inspect import describe
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor

HEIGHT, WIDTH, STRIDES = 128, 192, (8, 16, 32)
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">
<Label value="0"/></RectangleLabels></View>"""
CELLS = sum(HEIGHT // stride * (WIDTH // stride) for stride in STRIDES)


def grid_model(path, *, position=False, centres=False, target=-1, per_cell=6, batch=1):
    """A YOLOX head of one convolution a level, each cell of which sees its own pixels alone.

    Args:
        path: Where it is written.
        position: Whether a constant of the size of a level is added, as a positional embedding is.
        centres: Whether a constant with a row for each cell is added.
        target: What the reshapes of the levels say of the number of cells: -1, or the number itself (0).
        per_cell: Values of a cell.
        batch: Images of a run.
    """
    rng = np.random.default_rng(1)
    nodes, weights, levels = [], [], []
    for stride in STRIDES:
        kernel = (rng.normal(size=(per_cell, 3, stride, stride)) * 0.02 / stride).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{stride}"))
        nodes.append(
            helper.make_node("Conv", ["images", f"kernel{stride}"], [f"level{stride}"], strides=[stride, stride])
        )
        level = f"level{stride}"
        rows, columns = HEIGHT // stride, WIDTH // stride
        if position:
            added = rng.normal(size=(1, per_cell, rows, columns)).astype(np.float32)
            weights.append(numpy_helper.from_array(added, f"position{stride}"))
            nodes.append(helper.make_node("Add", [level, f"position{stride}"], [f"placed{stride}"]))
            level = f"placed{stride}"
        shape = np.array([batch, per_cell, target or rows * columns], np.int64)
        weights.append(numpy_helper.from_array(shape, f"shape{stride}"))
        nodes.append(helper.make_node("Reshape", [level, f"shape{stride}"], [f"flat{stride}"]))
        levels.append(f"flat{stride}")
    nodes.append(helper.make_node("Concat", levels, ["all"], axis=2))
    nodes.append(helper.make_node("Transpose", ["all"], ["cells"], perm=[0, 2, 1]))
    added = rng.uniform(0, 0.2, (CELLS, per_cell)).astype(np.float32) if centres else np.zeros(1, np.float32)
    weights.append(numpy_helper.from_array(added, "added"))
    nodes.append(helper.make_node("Add", ["cells", "added"], ["moved"]))
    nodes.append(helper.make_node("Clip", ["moved", "low", "high"], ["output"]))
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 1))]
    graph = helper.make_graph(
        nodes, "grid",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, CELLS, per_cell])],
        weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def photo(width, height):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("options", [{}, {"target": 0}, {"centres": True}, {"centres": True, "target": 0}])
@pytest.mark.parametrize("size", [(150, 60), (60, 110)])
def test_cut_input_gives_the_boxes_of_the_whole_one(options, size, tmp_path):
    model = grid_model(tmp_path / "grid.onnx", **options)
    detector = load_detector(model, layout="yolox", cache_folder=tmp_path / "cache", allow_numbered=True)
    spec = detector.spec_for(*size)
    assert spec.height * spec.width < HEIGHT * WIDTH
    image = photo(*size)
    [cut] = detector.detect([prepare(image, spec)], floor=0.0)
    [whole] = detector.detect([prepare(image, detector.spec)], floor=0.0)
    [plain] = load_detector(model, layout="yolox", allow_numbered=True).detect(
        [prepare(image, detector.spec)], floor=0.0
    )
    np.testing.assert_array_equal(whole.boxes, plain.boxes)
    known = {tuple(box) for box in whole.boxes.round(3).tolist()}
    inside = cut.boxes[(cut.boxes[:, :2].mean(1) >= 0)].round(3).tolist()
    assert sum(tuple(box) in known for box in inside) >= 0.9 * len(inside) > 20


def test_batches_have_images_of_one_size_in_the_order_of_the_tasks(tmp_path, album, monkeypatch):
    sizes = [(150, 60), (60, 110), (150, 60), (160, 64), (60, 110), (150, 60), (150, 60)]
    model = grid_model(tmp_path / "grid.onnx", batch=3)
    detector = load_detector(model, layout="yolox", cache_folder=tmp_path / "cache", allow_numbered=True, threads=1)
    batches = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, images, names=None: (
        batches.append([image.shape for image in images]), run(self, images, names))[1])  # fmt: skip
    config = LabelConfig.parse(CONFIG)
    targets = find_targets(config, detector.names.names)
    tasks = [{"id": number, "data": {"image": f"{number}.png"}} for number in range(len(sizes))]
    photos = album({f"{number}.png": np.roll(photo(*size), number, 0) for number, size in enumerate(sizes)})
    predictor = Predictor(photos, score_threshold=0.0)
    together = predictor.predict(tasks, detector=detector, targets=targets)
    assert all(len(set(shapes)) == 1 for shapes in batches)
    assert len(batches) < len(sizes)
    assert any(len(shapes) == detector.batch for shapes in batches)
    one = [
        Predictor(photos, score_threshold=0.0).predict([task], detector=detector, targets=targets)[0] for task in tasks
    ]
    assert together == one
    assert len({str(entry.result) for entry in together}) == len(sizes)


def test_graph_that_bakes_its_size_runs_whole_and_says_so_once(tmp_path):
    model = grid_model(tmp_path / "grid.onnx", position=True)
    with capture_logs() as first:
        detector = load_detector(model, layout="yolox", cache_folder=tmp_path / "cache", allow_numbered=True)
    assert detector.spec_for(150, 60) == detector.spec
    assert [entry["event"] for entry in first] == ["input_not_cut"]
    assert "cannot be run on a part of its input" in first[0]["reason"]
    with capture_logs() as second:
        again = load_detector(model, layout="yolox", cache_folder=tmp_path / "cache", allow_numbered=True)
    assert again.spec_for(150, 60) == again.spec
    assert not second
    assert again.uncut == detector.uncut == first[0]["reason"]
    [said] = [line for line in describe(again) if line.startswith("Padding:")]
    assert detector.uncut in said


def test_inspection_says_that_padding_is_cut_off(tmp_path):
    detector = load_detector(
        grid_model(tmp_path / "grid.onnx"), layout="yolox", cache_folder=tmp_path / "cache", allow_numbered=True
    )
    assert "Padding:  cut off, the boxes are the same" in list(describe(detector))


def test_embedded_model_finds_the_same_on_a_cut_input(tmp_path):
    from skimage import data

    detector = load_detector(embedded_model(), threads=1, cache_folder=tmp_path)
    assert (detector.spec_for(640, 480).height, detector.spec_for(480, 640).width) == (352, 352)
    assert detector.spec_for(500, 500) == detector.spec
    image = data.astronaut()[:384]
    [cut] = detector.detect([prepare(image, detector.spec_for(512, 384))], floor=0.3)
    [whole] = detector.detect([prepare(image, detector.spec)], floor=0.3)
    assert len(cut) == len(whole) > 0
    np.testing.assert_allclose(cut.boxes, whole.boxes, atol=4)
    np.testing.assert_allclose(cut.scores, whole.scores, atol=0.03)


def test_cells_of_a_rectangle_are_those_of_the_whole_grid():
    grid = CutGrid(64, 96, (8, 32), True, {})
    assert len(cells_inside(grid, 64, 96)) == 8 * 12 + 2 * 3
    assert grid.feeds(64, 96)[ROWS].tolist() == list(range(102))
    assert cells_inside(grid, 32, 64).tolist() == [
        *(12 * row + column for row in range(4) for column in range(8)),
        96,
        97,
    ]


def test_stretched_inputs_are_not_cut():
    grid, spec = CutGrid(416, 416, (32,), False, {}), InputSpec(416, 416, placement="stretch")
    assert grid.spec(spec, 640, 480) == spec
