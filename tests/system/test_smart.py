"""Smart tools through stock Label Studio: connected, a prompt as the editor sends it comes back as shapes."""

import contextlib

import numpy as np
import pytest

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Rectangle
from labelloop.labeling.result import Result
from labelloop.labeling.studio.task import ModelPrediction
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.studio.connect import connect
from tests.read_regions import read_regions

pytestmark = pytest.mark.system

LABELS = '<Label value="Ball"/>'
CONFIG = f"""<View><Image name="image" value="$image"/>
<KeyPointLabels name="kp" toName="image" smartOnly="true">{LABELS}</KeyPointLabels>
<RectangleLabels name="box" toName="image" smart="true">{LABELS}</RectangleLabels>
<BrushLabels name="brush" toName="image" smart="false">{LABELS}</BrushLabels>
<PolygonLabels name="poly" toName="image" smart="false">{LABELS}</PolygonLabels></View>"""
BALL = Ellipse(200, 140, 70, 45)


@pytest.fixture(scope="module")
def studio(label_studio):
    with contextlib.closing(Studio(label_studio.url, label_studio.admin_token)) as opened:
        yield opened


@pytest.fixture(scope="module")
def backend(label_studio, tmp_path_factory):
    """The app on a real port, in this process: gunicorn has tests of its own."""
    import threading

    from werkzeug.serving import make_server

    from ml_backend.server.app import create_app

    settings = Settings(
        home=tmp_path_factory.mktemp("smart"),
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.admin_token,
    )
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield settings.replace(ml_url=f"http://localhost:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def project(studio, backend, tmp_path_factory):
    from PIL import Image

    noise = np.random.default_rng(0).normal(0, 8, (300, 400, 3))
    pixels = np.where(BALL.mask(400, 300)[..., None], np.array([200, 60, 50]), np.array([60, 110, 70])) + noise
    file = tmp_path_factory.mktemp("photos") / "ball.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    made = studio.create_project(title="smart tools", label_config=CONFIG)["id"]
    studio.upload_images(made, [file])
    connect(studio, made, backend)
    return made


def prompt(kind, name, value, **more):
    place = {"original_width": 400, "original_height": 300, "image_rotation": 0}
    return {
        "id": "drawn", "from_name": name, "to_name": "image", "type": kind, "origin": "manual", **place,
        "value": {**value, kind: ["Ball"]}, **more,
    }  # fmt: skip


BOX = prompt("rectanglelabels", "box", {"x": 29, "y": 28, "width": 41, "height": 38, "rotation": 0})
CLICK = prompt("keypointlabels", "kp", {"x": 50, "y": 47, "width": 0.26, "labels": ["Ball"]}, is_positive=True)


def suggest(studio, project, *prompts):
    [row] = studio.ml_backends(project)
    [task] = studio.tasks(project)
    body = {"task": task.id, "context": {"result": list(prompts)}}
    answer = studio.request("POST", f"api/ml/{row['id']}/interactive-annotating", json=body)
    assert "errors" not in answer, answer
    return answer["data"]["result"]


def shape(result):
    [region] = read_regions(ModelPrediction(results=(Result(result),)))
    return region.geometry


def test_connect_offers_auto_annotation_where_the_config_has_smart_controls(studio, project, backend):
    [row] = studio.ml_backends(project)
    assert row["is_interactive"] is True
    assert [change.done for change in connect(studio, project, backend)] == [False, False, False]


def test_a_box_comes_back_tight_with_its_brush_and_polygon(studio, project):
    found = {one["from_name"]: one for one in suggest(studio, project, BOX)}
    assert set(found) == {"box", "brush", "poly"}
    left, top, right, bottom = BALL.bounds
    assert iou(shape(found["box"]), Rectangle(left, top, right - left, bottom - top)) > 0.9
    assert iou(shape(found["brush"]), BALL) > 0.9
    assert iou(shape(found["poly"]), BALL) > 0.9
    assert "drawn" not in {one["id"] for one in found.values()}


def test_a_click_comes_back_as_brush_and_polygon(studio, project):
    found = {one["from_name"]: one for one in suggest(studio, project, CLICK)}
    assert set(found) == {"brush", "poly"}
    assert iou(shape(found["brush"]), BALL) > 0.85
