"""A detector of boxes pre-labels every shape: stock Label Studio imports it, the editor draws and submits it."""

import contextlib
import json

import numpy as np
import pytest

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.bulk.prelabel import prelabel
from ml_backend.inference.detector import load_detector
from ml_backend.predict.protocol import read_options
from tests.ml_backend.conftest import build_onnx
from tests.read_regions import read_regions
from tests.system.browser_fixtures import chromium_page, log_in, screenshot

pytestmark = pytest.mark.system

W, H = 384, 256
OBJECTS = {"cat": Ellipse(100, 80, 60, 30, 25), "dog": Ellipse(280, 160, 40, 60)}
LABELS = '<Label value="cat" background="red"/><Label value="dog" background="blue"/>'
CONTROLS = {
    # name: tag, shape, extra params, least IoU with the object
    "polygon": ("PolygonLabels", Polygon, {}, 0.85),
    "brush": ("BrushLabels", Mask, {}, 0.85),
    "bits": ("BitmaskLabels", Mask, {}, 0.85),
    "oval": ("EllipseLabels", Ellipse, {}, 0.85),
    "turned": ("RectangleLabels", Rectangle, {"controls": {"turned": "rotated"}}, 0.6),
}


@pytest.fixture(scope="module")
def studio(label_studio):
    with contextlib.closing(Studio(label_studio.url, label_studio.admin_token)) as opened:
        yield opened


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    boxes = [[tuple(side / 4 for side in shape.bounds) for shape in OBJECTS.values()]]
    outputs = {"boxes": boxes, "objectness": [[0.9, 0.8]], "scores": [[[0.95, 0.0], [0.0, 0.9]]]}
    read = {"size": [64, 96], "layout": "NCHW", "color": "RGB", "range": "0..255", "letterbox": "top-left, pad 114"}
    path = tmp_path_factory.mktemp("model") / "boxes.onnx"
    return load_detector(build_onnx(path, outputs, metadata={"names": ["cat", "dog"], "input": json.dumps(read)}))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    from PIL import Image

    pixels = np.array([60, 110, 70]) + np.random.default_rng(0).normal(0, 6, (H, W, 3))
    for shape in OBJECTS.values():
        pixels[shape.mask(W, H)] = np.array([200, 60, 50])
    file = tmp_path_factory.mktemp("photos") / "objects.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def projects(studio, label_studio, detector, photo, tmp_path_factory):
    """Name of the control -> (project, its label config), pre-labelled."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.admin_token,
    )
    made = {}
    for name, (tag, _, options, _) in CONTROLS.items():
        xml = f'<View><Image name="image" value="$image"/><{tag} name="{name}" toName="image">{LABELS}</{tag}></View>'
        project = studio.create_project(title=f"shapes: {name}", label_config=xml)["id"]
        studio.upload_images(project, [photo])
        report = prelabel(
            studio,
            project,
            detector=detector,
            photos=Media(settings, studio),
            score_threshold=0.3,
            options=read_options(options),
        )
        assert report.boxes == 2
        made[name] = project, LabelConfig.parse(xml)
    return made


@pytest.mark.parametrize("name", CONTROLS)
def test_label_studio_keeps_what_was_drawn(name, studio, projects):
    project, config = projects[name]
    _, kind, _, least = CONTROLS[name]
    [task] = studio.tasks(project)
    [prediction] = studio.task(project, task.id).predictions
    regions = {region.labels[0]: region.geometry for region in read_regions(prediction, config=config)}
    for label, truth in OBJECTS.items():
        assert isinstance(regions[label], kind)
        assert iou(regions[label], truth) > least
    if name == "turned":
        assert abs(regions["cat"].rotation - 25) < 8


@pytest.fixture(scope="module")
def page(label_studio):
    """The admin's tab: Chromium, the log-in and the editor's scripts are loaded once, not once a control."""
    with chromium_page() as page:
        log_in(page, label_studio, label_studio.admin.email)
        yield page


@pytest.mark.parametrize("name", CONTROLS)
def test_the_editor_shows_and_submits_what_was_drawn(name, studio, projects, label_studio, page, tmp_path):
    project, config = projects[name]
    [task] = studio.tasks(project)
    page.goto(f"{label_studio.url}/projects/{project}/data?task={task.id}")
    page.locator('button:has-text("Submit")').first.wait_for()
    page.locator("[class*=outliner-item__title]").first.wait_for()
    page.wait_for_timeout(1500)
    screenshot(page, f"shapes-{name}.png", tmp_path)
    page.locator('button:has-text("Submit")').first.click()
    page.locator('button:has-text("Update")').first.wait_for()
    [annotation] = studio.task(project, task.id).annotations
    regions = {region.labels[0]: region.geometry for region in read_regions(annotation, config=config)}
    for label, truth in OBJECTS.items():
        assert iou(regions[label], truth) > CONTROLS[name][3]
