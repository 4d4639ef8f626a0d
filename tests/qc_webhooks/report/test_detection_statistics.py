"""Detection alpha in the report: at the policy's threshold, over all tasks with two annotators, with its curve."""

import io
import json
import random

import pytest

from labelloop.labeling.studio.config import LabelConfig
from qc_webhooks.policy import Policy
from qc_webhooks.report.report import Export, write_report

CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="car"/>'
    '<Label value="bus"/></RectangleLabels></View>'
)
AT = "2026-01-02T00:00:00Z"


def annotation(id_, who, boxes, *, truth=False):
    results = [
        {"id": f"{id_}-{n}", "from_name": "label", "to_name": "image", "type": "rectanglelabels",
         "original_width": 1000, "original_height": 1000,
         "value": {"x": x, "y": y, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": [label]}}
        for n, (x, y, label) in enumerate(boxes)
    ]  # fmt: skip
    return {"id": id_, "completed_by": who, "result": results, "created_at": AT, "updated_at": AT,
            "ground_truth": truth}  # fmt: skip


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """30 tasks of two annotators with a wide spread of overlaps, 10 of one, 5 empty ones, a ground truth on three."""
    rng, tasks = random.Random(0), []
    for id_ in range(1, 46):
        places = [] if id_ > 40 else [(x, y) for x in (10, 40, 70) for y in (10, 40, 70)]
        drawn = [
            [(x + rng.gauss(0, 2), y + rng.gauss(0, 2), rng.choice(["car"] * 9 + ["bus"])) for x, y in places
             if rng.random() < 0.9]
            for _ in range(1 if 30 < id_ <= 40 else 2)
        ]  # fmt: skip
        annotations = [annotation(10 * id_ + who, who, boxes) for who, boxes in enumerate(drawn, start=1)]
        if id_ <= 3:
            annotations.append(annotation(10 * id_ + 9, 9, [(5, 5, "car")], truth=True))
        tasks.append({"id": id_, "data": {"image": "/a.jpg"}, "annotations": annotations, "predictions": []})
    file = tmp_path_factory.mktemp("export") / "export.json"
    file.write_text(json.dumps(tasks))
    return Export(file, CONFIG)


def detection(export, **policy):
    out = io.BytesIO()
    write_report(export, Policy(**policy), out)
    return json.loads(out.getvalue())["statistics"]["controls"]["label"]["detection"]


def test_alpha_obeys_match_iou_and_lies_on_its_curve(export):
    values = {}
    for threshold in (0.3, 0.75):
        found = detection(export, match_iou=threshold)
        (point,) = [point for point in found["curve"] if point["iou"] == threshold]
        assert found["match_iou"] == threshold
        for name in ("alpha_detection", "alpha_detection_mean"):
            assert found[name]["value"] == pytest.approx(point[name]["value"], abs=1e-9)
            assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        values[threshold] = found["alpha_detection"]["value"]
    assert values[0.3] > values[0.75] + 0.3


def test_tasks_of_two_annotators_count_without_ground_truth(export):
    found = detection(export)
    assert found["alpha_detection"]["n"] == found["f1_at_50"]["n"] == 35
