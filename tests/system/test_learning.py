"""Learning in service: stock Label Studio, two gunicorn workers, a worker; an annotator in the order of the stream."""

import io

import numpy as np
import pytest
from PIL import Image

from labelloop.labeling.geometry.overlap import box_iou
from ml_backend.inference.detector import embedded_model
from tests.drawn import SIDE, draw_shapes
from tests.system.loop_fixtures import eventually, learning_project

pytestmark = pytest.mark.system

PHOTOS, TURNS = 8, 4
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/></RectangleLabels></View>"""


def draw(seed):
    """A red disc and a blue square on grey noise: (JPEG, [(label, box)])."""
    photo, drawn = draw_shapes(seed)
    out = io.BytesIO()
    Image.fromarray(photo).save(out, "JPEG", quality=92)
    return out.getvalue(), drawn


def result_of(drawn):
    results = []
    for label, (x0, y0, x1, y1) in drawn:
        part = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
        value = {key: 100 * number / SIDE for key, number in part.items()} | {"rotation": 0, "rectanglelabels": [label]}
        size = {"original_width": SIDE, "original_height": SIDE}
        told = {"id": label, "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        results.append({**told, **size, "value": value})
    return results


@pytest.fixture(scope="module")
def shapes(loop, people):
    """A connected project with photos of shapes, {task: what is on it}; every task is learned from, none judges."""
    photos = {f"{seed}.jpg": draw(seed) for seed in range(PHOTOS)}
    with learning_project(loop, people["admin"], "Shapes", CONFIG, photos) as shapes:
        yield shapes


def scores(admin, project, version):
    """Task -> score of its prediction of a version, of tasks that nobody annotated."""
    tasks = admin.get("/api/tasks", project=project, fields="all", page_size=100)["tasks"]
    return {
        task["id"]: one["score"]
        for task in tasks
        for one in task["predictions"]
        if one["model_version"] == version and not task["total_annotations"]
    }


def served(admin, project):
    return admin.get(f"/api/projects/{project}/")["model_version"]


def test_an_annotator_labels_in_the_order_of_the_stream_and_the_pre_labels_improve(loop, people, shapes):
    project, drawn = shapes
    admin, anna = people["admin"], people["anna"]
    base = served(admin, project)
    assert base.startswith("base-")
    order = eventually(lambda: _complete(scores(admin, project, base), PHOTOS), what="the cold start")
    assert len(set(order.values())) == PHOTOS  # a place each
    found = []
    for turn in range(1, TURNS + 1):
        version = served(admin, project)
        open_tasks = scores(admin, project, version)
        task = anna.next_task(project)
        assert task["id"] == min(open_tasks, key=open_tasks.get)  # stock Label Studio serves what we put first
        [prediction] = task["predictions"]
        assert prediction["model_version"] == version
        found.append(_right(prediction["result"], drawn[task["id"]]))
        made = anna.submit(task["id"], result_of(drawn[task["id"]]))
        if turn < 2:
            continue
        wanted = f"learned-{turn}-"
        eventually(lambda wanted=wanted: served(admin, project).startswith(wanted), what=wanted)
        left = PHOTOS - turn
        eventually(lambda left=left: _complete(scores(admin, project, served(admin, project)), left), what="order")
    assert found[0] == 0  # the base never saw discs and squares
    assert found[-1] == 2  # both are drawn already
    said = loop.command("learn", str(project)).stdout
    assert f"{TURNS} tasks learned from" in said
    assert "published" in said
    # "Start training" in the settings fits at once, and gives a job.
    [backend] = admin.get("/api/ml", project=project)
    before = said.count("published")
    admin.ask("POST", f"/api/ml/{backend['id']}/train", json={}).raise_for_status()
    eventually(lambda: loop.command("learn", str(project)).stdout.count("published") > before, what="the training")
    # A deleted annotation is un-learned.
    admin.ask("DELETE", f"/api/annotations/{made['id']}/").raise_for_status()
    eventually(lambda: served(admin, project).startswith(f"learned-{TURNS - 1}-"), what="un-learning")
    # And one step back.
    loop.command("models", "rollback", "--project", str(project))
    assert served(admin, project).startswith(f"learned-{TURNS}-")
    # The task that is open again since then had no place in that version's order.
    left = PHOTOS - TURNS + 1
    eventually(lambda: _complete(scores(admin, project, served(admin, project)), left), within_s=60, what="the order")


def test_a_model_for_a_project_that_is_not_there_is_not_put_on_the_store(loop):
    before = loop.command("models", "list").stdout
    said = loop.command("models", "add", str(embedded_model()), "--project", "987654", check=False)
    assert said.returncode != 0
    assert "api/projects/987654/" in said.stderr
    assert "/projects/ID/" in said.stderr
    assert loop.command("models", "list").stdout == before


def test_label_studio_refuses_a_submit_from_a_pre_label_that_is_gone(people, shapes):
    """Why pre-labels of old versions stay for an hour: somebody may have one of them open."""
    project, drawn = shapes
    admin, anna = people["admin"], people["anna"]
    task = anna.next_task(project)
    [prediction] = task["predictions"]
    admin.ask("DELETE", f"/api/predictions/{prediction['id']}/").raise_for_status()
    body = {"result": result_of(drawn[task["id"]]), "parent_prediction": prediction["id"]}
    assert anna.ask("POST", f"/api/tasks/{task['id']}/annotations/", json=body).status_code == 400


def _complete(found, count):
    return found if len(found) == count else None


def _right(result, drawn):
    """How many of the drawn boxes a pre-label has, label and place."""
    right = 0
    for label, box in drawn:
        values = [one["value"] for one in result if one["value"]["rectanglelabels"] == [label]]
        boxes = [(v["x"], v["y"], v["x"] + v["width"], v["y"] + v["height"]) for v in values]
        right += bool(boxes) and bool(box_iou(np.array([box]), np.array(boxes) * SIDE / 100).max() > 0.5)
    return right
