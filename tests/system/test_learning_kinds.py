"""Projects without rectangles close the loop on stock Label Studio: polygons alone, answers alone, and a mixed one."""

import io

import pytest
from PIL import Image

from tests.drawn import SIDE, draw_shapes
from tests.system.loop_fixtures import eventually, learning_project

pytestmark = pytest.mark.system

PHOTOS, SUBMITS = 18, 12
IMAGE = '<Image name="image" value="$image"/>'
POLYGONS = '<PolygonLabels name="outline" toName="image"><Label value="Disc"/><Label value="Square"/></PolygonLabels>'
BOXES = '<RectangleLabels name="box" toName="image"><Label value="Disc"/><Label value="Square"/></RectangleLabels>'
CHOICES = '<Choices name="kind" toName="image"><Choice value="both"/><Choice value="alone"/></Choices>'
GENERIC = (
    '<Labels name="label" toName="image"><Label value="Disc"/><Label value="Square"/></Labels>'
    '<Polygon name="outline" toName="image"/>'
)
KINDS = {
    "generic": (GENERIC, {"polygon", "labels"}),
    "polygons": (POLYGONS, {"polygonlabels"}),
    "answers": (CHOICES, {"choices"}),
    "mixed": (BOXES + CHOICES, {"choices", "rectanglelabels"}),
}


def draw(seed):
    """A photo with a disc, and with a square beside it on two of three: (JPEG, [(label, box)])."""
    photo, drawn = draw_shapes(seed, ("Disc", "Square") if seed % 3 else ("Disc",))
    out = io.BytesIO()
    Image.fromarray(photo).save(out, "JPEG", quality=92)
    return out.getvalue(), drawn


def annotation_of(kind, drawn):
    """What an annotator draws and answers, as stock Label Studio's page sends it."""
    size = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0, "to_name": "image"}
    results = []
    for label, box in drawn if kind != "answers" else ():
        x0, y0, x1, y1 = (100 * side / SIDE for side in box)
        if kind == "generic":
            points = {"points": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], "closed": True}
            results.append({"id": label, "from_name": "outline", "type": "polygon", "value": points, **size})
            value = {**points, "labels": [label]}
            results.append({"id": label, "from_name": "label", "type": "labels", "value": value, **size})
            continue
        if kind == "polygons":
            points = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
            value, name = {"points": points, "closed": True, "polygonlabels": [label]}, "outline"
        else:
            value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": [label]}
            name = "box"
        type_ = "polygonlabels" if kind == "polygons" else "rectanglelabels"
        results.append({"id": label, "from_name": name, "type": type_, "value": value, **size})
    if kind not in {"polygons", "generic"}:
        value = {"choices": ["both" if len(drawn) > 1 else "alone"]}
        results.append({"id": "kind", "from_name": "kind", "to_name": "image", "type": "choices", "value": value})
    return results


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name == "generic" else name for name in KINDS]
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def connected(loop, people, kind):
    """A connected project of this kind, {task: what is on it}."""
    photos = {f"{seed}.jpg": draw(seed) for seed in range(PHOTOS)}
    with learning_project(loop, people["admin"], kind, f"<View>{IMAGE}{KINDS[kind][0]}</View>", photos) as connected:
        yield connected


def open_predictions(admin, project, version):
    """Task -> prediction of a version, of tasks that nobody annotated."""
    tasks = admin.get("/api/tasks", project=project, fields="all", page_size=100)["tasks"]
    return {
        task["id"]: prediction
        for task in tasks
        for prediction in task["predictions"]
        if prediction["model_version"] == version and not task["total_annotations"]
    }


def test_twelve_submits_of_any_kind_are_learned_and_served(loop, people, connected, kind):
    project, drawn = connected
    admin, anna = people["admin"], people["anna"]
    for _ in range(SUBMITS):
        task = anna.next_task(project)
        anna.submit(task["id"], annotation_of(kind, drawn[task["id"]]))

    def served():
        version = admin.get(f"/api/projects/{project}/")["model_version"]
        return version if version.startswith(f"learned-{SUBMITS}-") else ""

    version = eventually(served, what="a version learned from all submits")
    left = PHOTOS - SUBMITS

    def ranked():
        found = open_predictions(admin, project, version)
        return found if len(found) == left else None

    predictions = eventually(ranked, what="the order of the open tasks")
    types = {result["type"] for prediction in predictions.values() for result in prediction["result"]}
    assert types == KINDS[kind][1]
    filled = sum(bool(prediction["result"]) for prediction in predictions.values())
    assert filled >= left - 1
    if "choices" in types:
        right = 0
        for task, prediction in predictions.items():
            for result in prediction["result"]:
                if result["type"] == "choices":
                    right += result["value"]["choices"] == ["both" if len(drawn[task]) > 1 else "alone"]
        assert right >= left - 2
    task = anna.next_task(project)
    assert task["id"] == min(predictions, key=lambda number: predictions[number]["score"])
    assert [prediction["model_version"] for prediction in task["predictions"]] == [version]
    said = loop.command("learn", str(project)).stdout
    assert f"{SUBMITS} tasks learned from" in said
    assert "published" in said
