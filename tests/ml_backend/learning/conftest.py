"""A Label Studio in memory with photos of red discs, and what learns from it."""

from __future__ import annotations

import itertools
import shutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from PIL import Image

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from labelloop.service.studio import StudioNotFound
from labelloop.service.studio.tasks import TaskStamp
from ml_backend.inference.detector import embedded_model
from ml_backend.learning.context import LearningContext
from ml_backend.learning.training_run import Learner
from ml_backend.training.backbone import open_backbone
from tests.drawn import SIDE, draw_shapes

PROJECT = 7
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/><Label value="Cat"/></RectangleLabels></View>"""


def draw_discs(seed):
    """A red disc and a blue square on grey noise, and (label, box) of each; every third photo has the disc alone."""
    return draw_shapes(seed, ("Disc", "Square") if seed % 3 else ("Disc",))


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


class MemoryStudio:
    """Label Studio as far as learning sees it."""

    url = "http://studio"

    def __init__(self, folder):
        self.folder, self.stored, self.gone, self.backends, self.written = folder, {}, False, [], []
        self.asked = 0  # requests for tasks
        self.fields = {"id": PROJECT, "label_config": CONFIG, "model_version": ""}
        self._ids, self._clock = itertools.count(1), datetime(2026, 1, 1, tzinfo=UTC)

    def add_photo(self, seed):
        """A task with a photo; its id."""
        photo, _ = draw_discs(seed)
        Image.fromarray(photo).save(self.folder / f"{seed}.png")
        return self.add_task({"image": f"/data/local-files/?d={seed}.png"})

    def add_task(self, data):
        number = next(self._ids)
        task = {"id": number, "data": data, "annotations": [], "predictions": [], "updated_at": self._now()}
        self.stored[number] = task | {"project": PROJECT}
        return number

    def annotate(self, task, results, *, annotator=1, **fields):
        """Adds an annotation; its id."""
        number = next(self._ids)
        created = {"id": number, "result": results, "completed_by": annotator, "updated_at": self._now(), **fields}
        self.stored[task]["annotations"].append(created)
        self.stored[task]["updated_at"] = self._now()
        return number

    def label(self, seed, *, task=None):
        """A photo with everything drawn that is on it; its task."""
        task = task or self.add_photo(seed)
        self.annotate(task, [box_json(label, box) for label, box in draw_discs(seed)[1]])
        return task

    def project(self, project):
        self._known(project)
        marks = [_mark(task) for task in self.stored.values()]
        counts = {
            "task_number": len(marks),
            "total_annotations_number": sum(item.total_annotations for item in marks),
            "skipped_annotations_number": sum(item.cancelled_annotations for item in marks),
        }
        return counts | self.fields

    def label_config(self, project):
        self._known(project)
        return LabelConfig.parse(self.fields["label_config"])

    def tasks(self, project, *, only_ids=None, filters=None, ordering=None, **_):
        return iter([read_task(row) for row in self._rows(project, only_ids, filters, ordering)])

    def stamps(self, project, *, filters=None, **_):
        return iter([_mark(row) for row in self._rows(project, None, filters)])

    def count_tasks(self, project):
        return len(list(self.stamps(project)))

    def sample(self, project, count, *, filters=None):
        result = list(self.stamps(project, filters=filters))
        return result[:: max(len(result) // count, 1)][:count]

    def _rows(self, project, only_ids, filters, ordering=None):
        self._known(project)
        self.asked += 1
        wanted = sorted(self.stored if only_ids is None else set(only_ids) & self.stored.keys())
        rows = [self.stored[number] for number in wanted]
        for item in (filters or {}).get("items", ()):
            rows = [row for row in rows if _passes(row, item)]
        return sorted(rows, key=lambda row: row["updated_at"], reverse=True) if ordering else rows

    def task(self, project, task):
        return next(self.tasks(project, only_ids=[task]), None)

    def update_task(self, task, *, data):
        """Replaces the data whole, as Label Studio does; fires nothing."""
        self.stored[task] |= {"data": data, "updated_at": self._now()}
        self.written.append(task)

    def ml_backends(self, project):
        self._known(project)
        return self.backends

    def update_ml_backend(self, backend, *, title, **_):
        next(row for row in self.backends if row["id"] == backend)["title"] = title

    def update_project(self, project, **fields):
        self._known(project)
        self.fields |= fields

    def import_predictions(self, project, rows):
        self._known(project)
        for row in rows:
            self.stored[row["task"]]["predictions"].append({**row, "id": next(self._ids)})
        return len(rows)

    def update_prediction(self, prediction, **fields):
        for task in self.stored.values():
            for item in task["predictions"]:
                if item["id"] == prediction:
                    item.update(fields)

    def model_versions(self, project):
        self._known(project)
        created = [item["model_version"] for task in self.stored.values() for item in task["predictions"]]
        return {version: created.count(version) for version in set(created)}

    def delete_model_version(self, project, version):
        self._known(project)
        self.fields["model_version"] = None  # as Label Studio does, whichever version it is
        for task in self.stored.values():
            task["predictions"] = [item for item in task["predictions"] if item["model_version"] != version]

    def queue(self, version):
        """The open tasks as uncertainty sampling serves them."""
        scores = {
            number: item["score"]
            for number, task in self.stored.items()
            for item in task["predictions"]
            if item["model_version"] == version and not task["annotations"]
        }
        return sorted(scores, key=lambda number: scores[number])

    def _known(self, project):
        if project != PROJECT or self.gone:
            raise StudioNotFound("GET /api/projects", 404, "No Project matches the given query.")

    def _now(self):
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _mark(row):
    live = sum(not item.get("was_cancelled") for item in row["annotations"])
    return TaskStamp(row["id"], row["updated_at"], live, len(row["annotations"]) - live)


def _passes(row, item):
    live = [item for item in row["annotations"] if not item.get("was_cancelled")]
    facts = {
        "filter:tasks:total_annotations": len(live),
        "filter:tasks:cancelled_annotations": len(row["annotations"]) - len(live),
        "filter:tasks:updated_at": row["updated_at"],
        "filter:tasks:id": row["id"],
    }
    value = facts[item["filter"]]
    return value > item["value"] if item["operator"] == "greater" else value == item["value"]


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
    return MemoryStudio(settings.local_files_root)


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
