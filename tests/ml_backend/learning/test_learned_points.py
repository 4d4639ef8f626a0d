"""Projects of key points and of rotated boxes learn from stock annotations and are pre-labelled as they draw."""

import cv2
import numpy as np
import pytest
from PIL import Image

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from tests.drawn import SIDE
from tests.ml_backend.learning.conftest import PROJECT

POINTS = """<View><Image name="image" value="$image"/><KeyPointLabels name="point" toName="image">
<Label value="head"/><Label value="tail"/></KeyPointLabels></View>"""
POINTS_OF_BOXES = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Animal"/></RectangleLabels><KeyPointLabels name="point" toName="image">
<Label value="head"/><Label value="tail"/></KeyPointLabels></View>"""
BOXES = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Animal"/></RectangleLabels></View>"""


@pytest.fixture(autouse=True)
def _no_waiting(policy):
    policy("debounce_s = 0\nheld_out = 0\n")


def draw_animal(seed):
    """A photo with a body between a head and a tail; head, tail, and the centre, length and angle of the body."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(100, 156, (SIDE, SIDE, 3)).astype(np.uint8)
    centre, angle = rng.uniform(110, SIDE - 110, 2), float(rng.uniform(15, 75) + 90 * (seed % 2))
    along = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))]) * 70
    head, tail = centre + along, centre - along
    ends = [tuple(int(value) for value in point) for point in (head, tail)]
    cv2.line(photo, *ends, (40, 160, 40), 34)
    cv2.circle(photo, ends[0], 16, (220, 20, 20), -1)
    cv2.circle(photo, ends[1], 12, (20, 20, 220), -1)
    return photo, head, tail, centre, angle


def region(number, control, kind, value):
    size = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
    return {"id": f"r{number}", "from_name": control, "to_name": "image", "type": kind, "value": value, **size}


def percent(value):
    return 100 * float(value) / SIDE


def points_json(seed, parent=""):
    _, head, tail, _, _ = draw_animal(seed)
    results = []
    for number, (label, (x, y)) in enumerate((("head", head), ("tail", tail))):
        value = {"x": percent(x), "y": percent(y), "width": 0.5, "keypointlabels": [label]}
        results.append(region(f"{seed}.{number}", "point", "keypointlabels", value))
    return [{**result, "parentID": parent} for result in results] if parent else results


def box_json(seed, *, rotated):
    _, _, _, centre, degrees = draw_animal(seed)
    angle, wide, high = np.deg2rad(degrees), 172.0, 36.0
    cos, sin = np.cos(angle), np.sin(angle)
    if not rotated:
        wide, high = wide * abs(cos) + high * abs(sin), wide * abs(sin) + high * abs(cos)
        degrees, cos, sin = 0.0, 1.0, 0.0
    x = centre[0] - cos * wide / 2 + sin * high / 2
    y = centre[1] - sin * wide / 2 - cos * high / 2
    value = {
        "x": percent(x), "y": percent(y), "width": percent(wide), "height": percent(high), "rotation": degrees,
        "rectanglelabels": ["Animal"],
    }  # fmt: skip
    return region(f"b{seed}", "label", "rectanglelabels", value)


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
        _, head, tail, _, _ = draw_animal(seed)
        drawn = {one["value"]["keypointlabels"][0]: one for one in result}
        assert {one["type"] for one in result} <= {"keypointlabels"}
        assert not any("parentID" in one for one in result)
        for label, (x, y) in (("head", head), ("tail", tail)):
            value = drawn[label]["value"] if label in drawn else {"x": 0, "y": 0}
            right += np.hypot(value["x"] - percent(x), value["y"] - percent(y)) < percent(0.15 * 150)
    assert right >= 6


def test_points_of_a_box_are_children_of_its_region(context, studio, learn):
    studio.put_project(PROJECT, label_config=POINTS_OF_BOXES)
    tasks = []
    for seed in range(10):
        box = box_json(seed, rotated=False)
        tasks.append(annotate(studio, seed, [box, *points_json(seed, parent=box["id"])]))
    run = learn(tasks=tasks)
    assert run.metrics.heads["keypoints"].passed, run.metrics.heads["keypoints"].reason
    results, supports = predict(context, studio, POINTS_OF_BOXES, range(40, 46))
    assert all(support.prelabels for support in supports)
    points = [one for result in results for one in result if one["type"] == "keypointlabels"]
    boxes = {one["id"] for result in results for one in result if one["type"] == "rectanglelabels"}
    assert points
    assert {one["parentID"] for one in points} <= boxes


def test_a_project_of_rotated_boxes_is_served_rotated_boxes(context, studio, learn):
    studio.put_project(PROJECT, label_config=BOXES)
    run = learn(tasks=[annotate(studio, seed, [box_json(seed, rotated=True)]) for seed in range(12)])
    assert run.verdict == "published", run.reason
    angles = run.metrics.heads["angles"]
    assert angles.passed, angles.reason
    results, _ = predict(context, studio, BOXES, range(40, 46))
    boxes = [one["value"] for result in results for one in result]
    assert boxes
    assert any(5 < value["rotation"] % 90 < 85 for value in boxes)
