"""The whole story on real parts: pre-labels, a dispute, a third person asked blind, a data set in S3 read back."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import supervision as sv
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.system.loop_fixtures import eventually

pytestmark = pytest.mark.system


def task_json(admin, project, task):
    """A task as stored, its annotations with it; asking this way never calls the ML backend."""
    only = {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": task}
    query = {"filters": {"conjunction": "and", "items": [only]}}
    asked = {"project": project, "fields": "all", "resolve_uri": "false", "query": json.dumps(query)}
    return admin.get("/api/tasks/", **asked)["tasks"][0]


def tasks_of_tab(admin, project, title):
    """The tasks that the Data Manager lists in a tab."""
    views = admin.get("/api/dm/views/", project=project)
    view = next(view for view in views if view["data"]["title"] == title)
    return {task["id"] for task in admin.get("/api/tasks/", view=view["id"])["tasks"]}


def moved(result, **changes):
    """The boxes with other values, as an annotator's corrections of the pre-labels arrive."""
    changed = copy.deepcopy(result)
    for item in changed:
        if item["type"] == "rectanglelabels":
            item["value"].update(changes)
            item["origin"] = "prediction-changed"
    return changed


@pytest.fixture(scope="module")
def disputed(project, people):
    """One task that anna and ben label differently. Gives (task id, anna's result)."""
    first = people["anna"].next_task(project)
    prediction = first["predictions"][0]
    anna = prediction["result"]
    assert any(item["type"] == "rectanglelabels" for item in anna), "the photograph came without pre-labels"
    people["anna"].submit(first["id"], anna, parent_prediction=prediction["id"])
    second = people["ben"].next_task(project)
    assert second["id"] == first["id"], "the task that waits for a second annotator comes first"
    assert not second["annotations"], "the label stream must be blind"
    people["ben"].submit(second["id"], moved(anna, x=0, y=0, width=5, height=5))
    return first["id"], anna


@pytest.fixture(scope="module")
def settled(disputed, project, people):
    """The dispute, after cleo was served the task and agreed with anna. Gives the same as `disputed`."""
    task, anna = disputed
    admin = people["admin"]
    eventually(lambda: task_json(admin, project, task)["data"].get("qc_status") == "disputed", what="the dispute")
    served = people["cleo"].next_task(project)
    assert served["id"] == task, "the dispute is served before fresh tasks"
    assert not served["annotations"], "the third annotator must not see the others' work"
    people["cleo"].submit(task, moved(anna, rotation=0))
    return task, anna


def test_the_label_stream_is_prefilled_by_the_model_that_the_project_names(project, people):
    served = people["ben"].next_task(project)
    prediction = served["predictions"][0]
    named = people["admin"].get(f"/api/projects/{project}/")
    assert prediction["model_version"] == named["model_version"]
    assert named["sampling"] == "Uncertainty sampling"
    assert isinstance(prediction["score"], float)
    labels = {label for item in prediction["result"] for label in item["value"].get("rectanglelabels", [])}
    assert labels <= {"Person", "Cat", "Motorbike"}


def test_a_dispute_is_named_and_routed(disputed, project, people):
    task, _ = disputed
    admin = people["admin"]
    data = eventually(
        lambda: (found := task_json(admin, project, task))["data"].get("qc_status") == "disputed" and found["data"],
        what="the verdict",
    )
    assert data["qc_agreement"] < 0.7
    assert data["image"].startswith("/data/upload/"), "the address of the photograph must stay raw"
    assert "anna" not in data["qc_note"].lower()
    assert "ben@" not in data["qc_note"].lower()
    assert data["qc_note"]
    stored = task_json(admin, project, task)
    assert (stored["overlap"], stored["is_labeled"]) == (3, False)
    assert task in tasks_of_tab(admin, project, "QC: disputed")


def test_a_third_annotator_turns_the_verdict(settled, project, people):
    task, _ = settled
    admin = people["admin"]
    eventually(lambda: task_json(admin, project, task)["data"].get("qc_status") == "agreed", what="the agreement")
    assert task not in tasks_of_tab(admin, project, "QC: disputed")
    assert task_json(admin, project, task)["is_labeled"]


def test_who_connects_twice_changes_nothing(settled, project, loop, people):
    del settled
    before = people["admin"].get("/api/webhooks/", project=project), people["admin"].get("/api/ml/", project=project)
    said = loop.command("connect", str(project))
    after = people["admin"].get("/api/webhooks/", project=project), people["admin"].get("/api/ml/", project=project)
    assert [{**hook, "updated_at": ""} for hook in before[0]] == [{**hook, "updated_at": ""} for hook in after[0]]
    assert len(before[1]) == len(after[1]) == 1
    assert said.returncode == 0


def test_doctor_finds_nothing_wrong(settled, project, loop):
    del settled
    told = loop.command("doctor", str(project), check=False)
    assert told.returncode == 0, told.stdout


@pytest.fixture(scope="module")
def bucket(settled, project, loop, s3_server, people):
    """The project exported to S3 with its photographs. Gives (get(key) -> bytes, root of the version, its keys)."""
    task, _ = settled
    admin = people["admin"]
    eventually(lambda: task_json(admin, project, task)["data"].get("qc_status") == "agreed", what="the agreement")
    # A reviewer marks cleo's version as the truth: it is what counts from now on.
    truth = max(task_json(admin, project, task)["annotations"], key=lambda annotation: annotation["id"])
    admin.ask("PATCH", f"/api/annotations/{truth['id']}/", json={"ground_truth": True}).raise_for_status()
    to = f"s3://{loop.bucket}/story"
    loop.command("export", str(project), "--format", "coco,voc,yolo-detect", "--to", to, "--copy-images")
    client = s3_server.client()

    def get(key):
        return client.get_object(Bucket=loop.bucket, Key=key)["Body"].read()

    head = json.loads(get("story/HEAD.json"))
    root = "story/" + head["manifest"].rpartition("/")[0] + "/"
    listed = client.list_objects_v2(Bucket=loop.bucket, Prefix="story/")["Contents"]
    return get, root, [entry["Key"] for entry in listed]


def test_the_coco_set_in_s3_holds_the_right_pixels(bucket, settled, loop, tmp_path):
    del bucket
    _, anna = settled
    loop.command("dataset", "pull", f"s3://{loop.bucket}/story", "--format", "coco", "--to", str(tmp_path / "set"))
    boxes, images = [], []
    for file in sorted((tmp_path / "set" / "annotations").glob("instances_*.json")):
        coco = COCO(file)
        images += coco.dataset["images"]
        boxes += [(coco.loadCats(box["category_id"])[0]["name"], box["bbox"]) for box in coco.dataset["annotations"]]
        if coco.dataset["annotations"]:
            found = [{**box, "score": 1.0} for box in coco.dataset["annotations"]]
            judge = COCOeval(coco, coco.loadRes(found), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            assert judge.stats[0] == pytest.approx(1.0)
    wanted = sorted(
        (item["value"]["rectanglelabels"][0], *_pixels(item)) for item in anna if item["type"] == "rectanglelabels"
    )
    got = sorted((name, *bbox) for name, bbox in boxes)
    assert [name for name, *_ in got] == [name for name, *_ in wanted]
    assert np.allclose([bbox for _, *bbox in got], [bbox for _, *bbox in wanted], atol=0.02)
    assert len({image["id"] for image in images}) == len(images) >= 1


def _pixels(item):
    width, height, value = item["original_width"], item["original_height"], item["value"]
    across, down = (value["x"], value["width"]), (value["y"], value["height"])
    left, wide = (number * width / 100 for number in across)
    top, high = (number * height / 100 for number in down)
    return left, top, wide, high


def test_a_stranger_loads_the_bucket_without_labelloop(bucket, settled, loop, s3_server, tmp_path):
    del bucket
    _, anna = settled
    words = [f"s3://{loop.bucket}/story", str(tmp_path)]
    script = Path(__file__).with_name("stranger.py")
    environment = {**os.environ, **s3_server.environment()}
    done = subprocess.run(
        [sys.executable, "-I", script, *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = sorted(row for rows in json.loads(done.stdout.splitlines()[-1]).values() for row in rows)
    wanted = sorted(_pixels(item) for item in anna if item["type"] == "rectanglelabels")
    assert np.allclose([row[:2] for row in found], [row[:2] for row in wanted], atol=0.02)
    assert np.allclose([[x1 - x0, y1 - y0] for x0, y0, x1, y1 in found], [row[2:] for row in wanted], atol=0.02)


def test_every_format_in_s3_tells_the_same_boxes(bucket, loop, tmp_path):
    del bucket
    found = {}
    for name in ("coco", "voc", "yolo-detect"):
        folder = tmp_path / name
        loop.command("dataset", "pull", f"s3://{loop.bucket}/story", "--format", name, "--to", str(folder))
        found[name] = _read(name, folder)
    labelled = {name: {image: boxes for image, boxes in of.items() if len(boxes)} for name, of in found.items()}
    assert labelled["coco"].keys() == labelled["voc"].keys() == labelled["yolo-detect"].keys()
    assert labelled["coco"]
    for image, boxes in labelled["coco"].items():
        for other in ("voc", "yolo-detect"):
            # VOC keeps whole pixels, YOLO a few decimals of the image's size
            assert np.allclose(np.sort(boxes, axis=0), np.sort(labelled[other][image], axis=0), atol=1.01)


def _read(name, folder):
    """Boxes by image's stem, x0 y0 x1 y1 in pixels, read by supervision from plain folders as a trainer would."""
    sets = []
    if name == "coco":
        for file in folder.rglob("instances_*.json"):
            images = file.parents[1] / "images" / file.stem.removeprefix("instances_")
            sets.append(sv.DetectionDataset.from_coco(str(images), str(file)))
    elif name == "voc":
        notes = next(folder.rglob("Annotations"))
        images = next(path for path in (notes.parent / "JPEGImages", notes.parent / "images") if path.exists())
        sets.append(sv.DetectionDataset.from_pascal_voc(str(images), str(notes)))
    else:
        config = next(folder.rglob("data.yaml"))
        for split in config.parent.glob("labels/*"):
            images = config.parent / "images" / split.name
            sets.append(sv.DetectionDataset.from_yolo(str(images), str(split), str(config)))
    boxes = {}
    for dataset in sets:
        for path, image, found in dataset:
            assert image is not None
            boxes[path.rpartition("/")[2].rpartition(".")[0]] = found.xyxy
    return boxes


def test_the_photographs_came_along_untouched(bucket, loop, photos, tmp_path):
    del bucket
    loop.command("dataset", "pull", f"s3://{loop.bucket}/story", "--format", "coco", "--to", str(tmp_path))
    came = {file.read_bytes() for file in tmp_path.rglob("*.jpg")}
    assert came
    assert came <= set(photos.values())


def test_metrics_count_over_all_workers(bucket, loop):
    del bucket
    auth = loop.env["LABELLOOP_BASIC_AUTH_USER"], loop.env["LABELLOOP_BASIC_AUTH_PASSWORD"]
    text = httpx.get(f"{loop.env['LABELLOOP_QC_URL']}/metrics", auth=auth).raise_for_status().text
    hooks = sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if "_total" in line and '"/webhook"' in line and not line.startswith("#")
    )
    assert hooks >= 3, "three submits, three events"
