"""Graphs with final boxes can be trained on: their boxes as ONNX operations, with RoI features."""

import numpy as np
import onnx
import pytest
from onnx import helper

from ml_backend.detection.detections import cross_iou
from ml_backend.detection.preprocess import prepare
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.training.backbone import open_backbone
from ml_backend.training.examples import Example
from ml_backend.training.feature_export import export_features
from ml_backend.training.model_selection import select_and_fit
from ml_backend.training.onnx_builder import GraphBuilder
from ml_backend.training.onnx_decoders import DECODERS
from ml_backend.training.onnx_export import write_learned
from ml_backend.training.roi_features import (
    POSTPROCESSED,
    ROWS,
    add_candidate_outputs,
    feature_map_names,
    grid_boxes,
    select_feature_maps,
)
from tests.ml_backend.layout_cases import CASES, FLOOR, VARIANTS
from tests.ml_backend.learning.conftest import draw_discs

PHOTO = np.full((64, 96, 3), 90, np.uint8)


YOLO_NAS = "YOLO-NAS, rows of seven with the class last"


@pytest.mark.parametrize("name", [*DECODERS, *POSTPROCESSED, YOLO_NAS])
def test_onnx_decoding_equals_the_layout(name, make_onnx, tmp_path):
    layout, make = VARIANTS[name] if name in VARIANTS else (name, CASES[name])
    case = make()
    plain = load_detector(make_onnx(case.outputs, **case.options))
    nodes = GraphBuilder(onnx.load(plain.path), prefix="test")
    (DECODERS.get(layout) or add_candidate_outputs)(nodes, plain)
    onnx.save(nodes.build(), tmp_path / "written.onnx")
    written = load_detector(tmp_path / "written.onnx")
    assert written.layout == "labelloop"
    assert (written.names.names, written.spec) == (plain.names.names, plain.spec)
    [exported], [original] = (decoded(detector) for detector in (written, plain))
    assert len(original) > 1
    np.testing.assert_allclose(exported.boxes, original.boxes, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(exported.scores, original.scores, rtol=1e-4)
    assert exported.classes.tolist() == original.classes.tolist()


def decoded(detector):
    outputs = detector.engine.run([prepare(PHOTO, detector.spec).tensor], detector.reader.outputs)
    return [detector.map_classes(detections) for detections in detector.reader.decode(outputs, FLOOR)]


def end_to_end(path, *, rows):
    """The embedded model as an end-to-end export with its `rows` best boxes."""
    nodes = GraphBuilder(onnx.load(embedded_model()), prefix="end")
    scores = nodes.add("Mul", "scores", nodes.reshape("objectness", (0, -1, 1)))
    best = nodes.reshape(nodes.reduce_max(scores), (1, -1))
    number = nodes.reshape(nodes.cast(nodes.add("ArgMax", scores, axis=2, keepdims=0), np.float32), (1, -1, 1))
    value, index = nodes.new_name(), nodes.new_name()
    count = nodes.constant(np.array([rows], np.int64))
    nodes.model.graph.node.append(helper.make_node("TopK", [best, count], [value, index], axis=1))
    indices = nodes.reshape(index, (-1,))
    gathered = [nodes.add("Gather", tensor, indices, axis=1) for tensor in ("boxes", number)]
    nodes.drop_outputs(*nodes.outputs)
    nodes.concat([gathered[0], nodes.reshape(value, (1, -1, 1)), gathered[1]], axis=2, name="output0")
    nodes.output("output0", (1, rows, 6))
    nodes.set_metadata(task="detect")
    onnx.save(nodes.build(), path)
    return path


def test_end_to_end_model_learns_a_new_class(tmp_path):
    file = end_to_end(tmp_path / "end.onnx", rows=50)
    assert load_detector(file).layout == "end2end"
    backbone = open_backbone(file, folder=tmp_path)
    assert backbone.levels[0] == ROWS
    photos = [draw_discs(seed) for seed in range(1, 10)]
    examples = [
        Example(
            backbone.extract_features([prepare(photo, backbone.spec)])[0],
            np.array([box for _, box in drawn], np.float32).reshape(-1, 4),
            tuple(label for label, _ in drawn),
        )
        for photo, drawn in photos
    ]
    learned = select_and_fit(examples[:6], levels=backbone.levels)
    assert learned.scores[learned.choice] > 0.5
    write_learned(tmp_path / "learned.onnx", backbone, learned.head)
    plain = load_detector(tmp_path / "learned.onnx")
    for (photo, drawn), example in zip(photos[6:], examples[6:], strict=True):
        [detections] = plain.detect([prepare(photo, plain.spec)], floor=0.2)
        expected = learned.head.detect(example.candidates, floor=0.2)
        np.testing.assert_array_equal(detections.scores, expected.scores)  # bit-equal to the fitted head
        np.testing.assert_array_equal(detections.boxes, expected.boxes)
        for label, box in drawn:
            boxes = detections.boxes[[plain.names.names[index] == label for index in detections.classes]]
            assert cross_iou(boxes, np.array([box], np.float32)).max(initial=0) > 0.5, label


def test_one_feature_map_per_size_is_selected(tmp_path):
    model = onnx.load(end_to_end(tmp_path / "end.onnx", rows=50))
    assert len(feature_map_names(model.graph, ["output0"])) >= 3
    shapes = {"b": (1, 100, 20, 20), "a": (1, 200, 40, 40), "b2": (1, 50, 20, 20), "far": (1, 300, 80, 80),
              "one": (1, 9, 1, 1), "flat": (1, 5, 7)}  # fmt: skip
    assert [name for name, _ in select_feature_maps(shapes)] == ["far"]
    del shapes["far"]
    assert [name for name, _ in select_feature_maps(shapes)] == ["a", "b"]


def test_keypoint_model_is_not_learnable(make_onnx):
    _, make = VARIANTS["end to end with keypoints of two values"]
    case = make()
    with pytest.raises(NotLearnable, match="it predicts keypoints"):
        export_features(load_detector(make_onnx(case.outputs, **case.options)))


def test_grid_covers_the_input(tmp_path):
    spec = load_detector(embedded_model()).spec
    boxes = grid_boxes(spec)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= spec.width
    assert (boxes[:, 2:] - boxes[:, :2]).min() > 8
    # Some box overlaps every object of a tenth of the input or more, enough for regression.
    rng = np.random.default_rng(0)
    size = rng.uniform(0.12, 0.6, (200, 2)) * spec.width
    size[:, 1] = np.clip(size[:, 1], size[:, 0] / 2, size[:, 0] * 2)
    low = rng.uniform(0, 1, (200, 2)) * (spec.width - np.minimum(size, spec.width))
    drawn = np.concatenate([low, np.minimum(low + size, spec.width)], axis=1).astype(np.float32)
    assert np.percentile(cross_iou(boxes, drawn).max(axis=0), 5) > 0.5
