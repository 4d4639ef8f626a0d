"""Key points of rotated boxes close the loop on stock Label Studio: learned from submits, pre-labelled, ordered."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.drawn import SIDE, animal_json, draw_animal
from tests.system.loop_fixtures import eventually, learning_project

pytestmark = pytest.mark.system

PHOTOS, SUBMITS = 16, 12
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Animal"/></RectangleLabels><KeyPointLabels name="point" toName="image">
<Label value="head"/><Label value="tail"/></KeyPointLabels></View>"""


def jpeg(seed):
    out = io.BytesIO()
    Image.fromarray(draw_animal(seed)[0]).save(out, "JPEG", quality=92)
    return out.getvalue()


@pytest.fixture
def animals(loop, people):
    """A connected project that learns, {task: seed of its photo}."""
    photos = {f"{seed}.jpg": (jpeg(seed), seed) for seed in range(PHOTOS)}
    with learning_project(loop, people["admin"], "points", CONFIG, photos) as animals:
        yield animals


def test_key_points_and_rotated_boxes_are_learned_and_served(loop, people, animals):
    admin, anna = people["admin"], people["anna"]
    project, seeds = animals
    for _ in range(SUBMITS):
        task = anna.next_task(project)
        anna.submit(task["id"], animal_json(seeds[task["id"]], rotated=True))

    def served():
        version = admin.get(f"/api/projects/{project}/")["model_version"]
        return version if version.startswith(f"learned-{SUBMITS}-") else ""

    version = eventually(served, what="a version learned from all submits")

    def ranked():
        found = {
            task["id"]: prediction["result"]
            for task in admin.get("/api/tasks", project=project, fields="all", page_size=100)["tasks"]
            for prediction in task["predictions"]
            if prediction["model_version"] == version and not task["total_annotations"]
        }
        return found if len(found) == PHOTOS - SUBMITS else None

    right = rotated = 0
    for task, results in eventually(ranked, what="the order of the open tasks").items():
        _, head, tail, _ = draw_animal(seeds[task])
        boxes = {result["id"]: result["value"] for result in results if result["type"] == "rectanglelabels"}
        rotated += any(5 < box["rotation"] % 90 < 85 for box in boxes.values())
        for result in results:
            if result["type"] == "keypointlabels":
                assert result["parentID"] in boxes
                x, y = head if result["value"]["keypointlabels"] == ["head"] else tail
                found = np.array([result["value"]["x"], result["value"]["y"]]) * SIDE / 100
                right += np.hypot(*(found - (x, y))) < 0.15 * 150
    assert right >= PHOTOS - SUBMITS
    assert rotated >= (PHOTOS - SUBMITS) // 2
    said = loop.command("learn", str(project)).stdout
    assert "published" in said
