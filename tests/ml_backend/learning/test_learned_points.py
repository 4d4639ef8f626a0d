"""Projects of key points and of rotated boxes learn from stock annotations and are pre-labelled as they draw."""

import numpy as np
import pytest
from PIL import Image

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from tests.drawn import SIDE, animal_json, draw_animal
from tests.ml_backend.learning.conftest import PROJECT

POINTS = """<View><Image name="image" value="$image"/><KeyPointLabels name="point" toName="image">
<Label value="head"/><Label value="tail"/></KeyPointLabels></View>"""
POINTS_OF_BOXES = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Animal"/></RectangleLabels><KeyPointLabels name="point" toName="image">
<Label value="head"/><Label value="tail"/></KeyPointLabels></View>"""
BOXES = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Animal"/></RectangleLabels></View>"""
GENERIC = """<View><Image name="image" value="$image"/><Labels name="label" toName="image">
<Label value="Animal"/><Label value="head"/><Label value="tail"/></Labels>
<Rectangle name="rectangle" toName="image"/><KeyPoint name="keypoint" toName="image"/></View>"""


@pytest.fixture(autouse=True)
def _no_waiting(policy):
    policy("debounce_s = 0\nheld_out = 0\n")


def percent(value):
    return 100 * float(value) / SIDE


def points_json(seed):
    """The points alone, children of no region."""
    drawn = animal_json(seed, rotated=False)[1:]
    return [{name: value for name, value in result.items() if name != "parentID"} for result in drawn]


def add_task(studio, seed):
    Image.fromarray(draw_animal(seed)[0]).save(studio.folder / f"animal{seed}.png")
    return studio.add_task({"image": f"/data/local-files/?d=animal{seed}.png"})


def annotate(studio, seed, results):
    task = add_task(studio, seed)
    studio.annotate(task, 1, results)
    return task


def predict(context, studio, xml, seeds):
    detector = context.base_models.detector(context.base_models.served(PROJECT).version)
    config = LabelConfig.parse(xml)
    targets = find_targets(config, detector.names.names, provides=detector.provides, answers=detector.answers)
    tasks = [{"id": task, "data": studio.tasks_by_id[task]["data"]} for task in (add_task(studio, s) for s in seeds)]
    entries = Predictor(context.media, score_threshold=0.3).predict(tasks, detector=detector, targets=targets)
    return [entry.result for entry in entries], controls_of(config, ModelOutputs.of(detector))


def test_a_project_of_key_points_alone_learns_and_is_served(context, studio, learn):
    studio.put_project(PROJECT, label_config=POINTS)
    run = learn(tasks=[annotate(studio, seed, points_json(seed)) for seed in range(10)])
    assert run.verdict == "published", run.reason
    assert run.metrics.heads["keypoints"].passed
    results, [support] = predict(context, studio, POINTS, range(40, 44))
    assert support.prelabels, support.sentence
    right = 0
    for seed, result in zip(range(40, 44), results, strict=True):
        _, head, tail, _ = draw_animal(seed)
        drawn = {one["value"]["keypointlabels"][0]: one for one in result}
        assert {one["type"] for one in result} <= {"keypointlabels"}
        assert not any("parentID" in one for one in result)
        for label, (x, y) in (("head", head), ("tail", tail)):
            value = drawn[label]["value"] if label in drawn else {"x": 0, "y": 0}
            right += np.hypot(value["x"] - percent(x), value["y"] - percent(y)) < percent(0.15 * 150)
    assert right >= 6


def test_points_of_a_box_are_children_of_its_region(context, studio, learn):
    studio.put_project(PROJECT, label_config=POINTS_OF_BOXES)
    run = learn(tasks=[annotate(studio, seed, animal_json(seed, rotated=False)) for seed in range(10)])
    assert run.metrics.heads["keypoints"].passed, run.metrics.heads["keypoints"].reason
    results, supports = predict(context, studio, POINTS_OF_BOXES, range(40, 46))
    assert all(support.prelabels for support in supports)
    points = [one for result in results for one in result if one["type"] == "keypointlabels"]
    boxes = {one["id"] for result in results for one in result if one["type"] == "rectanglelabels"}
    assert points
    assert {one["parentID"] for one in points} <= boxes


def generic(results):
    """The results as `Labels` with a Rectangle and a KeyPoint gives them: two of each region."""
    written = []
    for result in results:
        kind = result["type"].removesuffix("labels")
        shape = {name: value for name, value in result["value"].items() if name != result["type"]}
        labels = {**shape, "labels": result["value"][result["type"]]}
        written.append({**result, "from_name": kind, "type": kind, "value": shape})
        written.append({**result, "from_name": "label", "type": "labels", "value": labels})
    return written


def test_labels_with_a_rectangle_and_a_key_point_learn_both(context, studio, learn):
    studio.put_project(PROJECT, label_config=GENERIC)
    run = learn(tasks=[annotate(studio, seed, generic(animal_json(seed, rotated=False))) for seed in range(10)])
    assert run.metrics.heads["keypoints"].passed, run.metrics.heads["keypoints"].reason
    results, [support] = predict(context, studio, GENERIC, range(40, 46))
    assert "points learned in this project" in support.how
    written = [one for result in results for one in result]
    by_id = {}
    for one in written:
        by_id.setdefault(one["id"], set()).add((one["from_name"], one["type"]))
    boxes = {name for name, kinds in by_id.items() if kinds == {("rectangle", "rectangle"), ("label", "labels")}}
    points = {name for name, kinds in by_id.items() if kinds == {("keypoint", "keypoint"), ("label", "labels")}}
    assert boxes
    assert points
    assert boxes | points == set(by_id)
    assert {one["parentID"] for one in written if one["id"] in points} <= boxes
    assert {one["value"]["labels"][0] for one in written if one["id"] in points and "labels" in one["value"]} == {
        "head",
        "tail",
    }


def test_a_project_of_rotated_boxes_is_served_rotated_boxes(context, studio, learn):
    studio.put_project(PROJECT, label_config=BOXES)
    run = learn(tasks=[annotate(studio, seed, animal_json(seed, rotated=True, points=False)) for seed in range(12)])
    assert run.verdict == "published", run.reason
    angles = run.metrics.heads["angles"]
    assert angles.passed, angles.reason
    results, _ = predict(context, studio, BOXES, range(40, 46))
    boxes = [one["value"] for result in results for one in result]
    assert boxes
    assert any(5 < value["rotation"] % 90 < 85 for value in boxes)
