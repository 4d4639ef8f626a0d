"""A Label Studio in memory with photos of red discs, and what learns from it."""

from __future__ import annotations

import io
import shutil
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace

import pytest
from PIL import Image

from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from ml_backend.inference.detector import embedded_model
from ml_backend.learning.context import LearningContext
from ml_backend.learning.training_run import Learner
from ml_backend.training.backbone import open_backbone
from tests.drawn import SIDE, draw_shapes
from tests.fake_label_studio import FakeLabelStudio

PROJECT = 7
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/><Label value="Cat"/></RectangleLabels></View>"""


def draw_discs(seed):
    """A red disc and a blue square on grey noise, and (label, box) of each; every third photo has the disc alone."""
    return draw_shapes(seed, ("Disc", "Square") if seed % 3 else ("Disc",))


@cache
def png(seed):
    """The photo as a file; the tests use the same ones again and again."""
    out = io.BytesIO()
    Image.fromarray(draw_discs(seed)[0]).save(out, "PNG")
    return out.getvalue()


def box_json(label, box, *, width=SIDE, height=SIDE, **more):
    """A rectangle as Label Studio's JSON, from pixels."""
    x0, y0, x1, y1 = box
    value = {
        "x": 100 * x0 / width, "y": 100 * y0 / height, "width": 100 * (x1 - x0) / width,
        "height": 100 * (y1 - y0) / height, "rotation": 0, "rectanglelabels": [label],
    }  # fmt: skip
    size = {"original_width": width, "original_height": height}
    text = {"id": f"r{x0}.{y0}", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
    return {**text, **size, **more}


class LearningStudio(FakeLabelStudio):
    """Label Studio with one project whose images are drawn into a folder; `fields` are the project's."""

    def __init__(self, folder):
        super().__init__(url="http://studio", served_version="")
        self.folder = folder
        self.put_project(PROJECT, label_config=CONFIG)
        self.fields = self.projects_by_id[PROJECT]

    def add_image(self, seed):
        """A task with an image; its id."""
        (self.folder / f"{seed}.png").write_bytes(png(seed))
        return self.add_task({"image": f"/data/local-files/?d={seed}.png"})

    def add_task(self, data):
        return self.put_task(PROJECT, data)

    def label(self, seed, *, task=None):
        """An image with everything annotated that is drawn on it; its task."""
        task = task or self.add_image(seed)
        self.annotate(task, 1, [box_json(label, box) for label, box in draw_discs(seed)[1]])
        return task

    def queue(self, version):
        """The open tasks as uncertainty sampling serves them."""
        scores = {
            number: prediction["score"]
            for number, task in self.tasks_by_id.items()
            for prediction in task["predictions"]
            if prediction["model_version"] == version and not task["annotations"]
        }
        return sorted(scores, key=lambda number: scores[number])

    @property
    def reads(self):
        """The number of calls that read tasks so far."""
        return len(self.calls_of("tasks", "stamps", "sample", "count_tasks"))

    @property
    def updated(self):
        """The tasks that were updated so far."""
        return [call["task"] for call in self.calls_of("update_task")]


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """A folder with the embedded model's features laid open, which takes seconds."""
    folder = tmp_path_factory.mktemp("backbones")
    open_backbone(embedded_model(), folder=folder, threads=1)
    return folder


@pytest.fixture
def settings(tmp_path, backbones):
    (tmp_path / "photos").mkdir()
    shutil.copytree(backbones, tmp_path / "home" / "ml_backend" / "backbones")
    return Settings(home=tmp_path / "home", local_files_root=tmp_path / "photos", inference_threads=1, poll_seconds=1)


@pytest.fixture
def studio(settings):
    return LearningStudio(settings.local_files_root)


@pytest.fixture
def engine(settings):
    return open_database(settings)


@pytest.fixture
def context(settings, studio, engine):
    return LearningContext.of(settings, studio, engine)


@pytest.fixture
def policy(settings):
    """policy("first = 3"): writes the learning policy of every project."""

    def write(text):
        file = settings.home / "ml_backend" / "learn.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


@pytest.fixture
def learn(context):
    """learn(tasks=[...], now=True, ...) -> the run that answers one such event, or None."""
    learner = Learner(context)

    def run(**payload):
        event = SimpleNamespace(payload={"source": "test", **payload}, created_at=datetime.now(UTC).timestamp(), id=1)
        return learner.learn(PROJECT, [event])

    return run
