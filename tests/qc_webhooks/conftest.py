"""What the tests of quality control share: tasks as Label Studio's JSON, and a Label Studio that lives in memory."""

import itertools
import shutil

import pytest
from werkzeug.security import generate_password_hash

from labelloop.labeling.studio.task import read_task
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.store.decisions import DecisionStore
from tests.fake_label_studio import FakeLabelStudio

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels>
<Choices name="quality" toName="image"><Choice value="good"/><Choice value="bad"/></Choices></View>"""
PROJECT = 7
PASSWORD = "correct-horse-9"
HASHED = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")
"""Made and compared in no time, where scrypt takes .1 s each: the hash that we make has a test of its own."""


@pytest.fixture
def box():
    """box(x, label, ...) -> one rectangle as Label Studio's JSON, percent of a 200 x 100 image."""
    ids = itertools.count()

    def make(x=10.0, label="Car", *, y=10.0, width=20.0, height=30.0, rotation=0.0, **more):
        return {
            "id": f"r{next(ids)}",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "original_width": 200,
            "original_height": 100,
            "value": {
                "x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]
            },
        } | more  # fmt: skip

    return make


@pytest.fixture
def choice():
    """choice("good") -> one answer about the whole task as Label Studio's JSON."""

    def make(*chosen, control="quality"):
        return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(chosen)}}

    return make


@pytest.fixture
def task():
    """task([results of annotator 1], [results of annotator 2], ...) -> a read Task."""

    def make(*answers):
        annotations = [annotation_json(n, n, results) for n, results in enumerate(answers, start=1)]
        return read_task({"id": 1, "project": PROJECT, "data": {"image": "s3://b/a.jpg"}, "annotations": annotations})

    return make


def annotation_json(id_, annotator, results, *, version=0, **fields):
    updated_at = f"2026-01-01T00:{version:02}:{id_ % 60:02}.000000Z"
    return {"id": id_, "completed_by": annotator, "result": results, "updated_at": updated_at} | fields


class QcStudio(FakeLabelStudio):
    """Label Studio with one project under quality control; `fields` are the project's."""

    def __init__(self):
        super().__init__()
        self.put_project(PROJECT, label_config=CONFIG, model_version="base-1")
        self.fields = self.projects_by_id[PROJECT]

    def add_task(self, *, overlap=2, **data):
        return self.put_task(PROJECT, {"image": "s3://bucket/a b.jpg"} | data, overlap=overlap)

    def tabs(self, task):
        """The names of the task's predictions as a browser shows them, from left to right."""
        return [item["model_version"] for item in sorted(self.tasks_by_id[task]["predictions"], key=lambda p: -p["id"])]

    def overlay(self, task, version):
        return next(item for item in self.tasks_by_id[task]["predictions"] if item["model_version"] == version)


def studio_of_people(title, *users):
    """A Label Studio whose users have these fields, in the order of their ids from 1 on."""
    studio = QcStudio()
    studio.fields["title"] = title
    studio.users_by_id = {number: {"id": number} | user for number, user in enumerate(users, start=1)}
    return studio


@pytest.fixture
def studio():
    """A Label Studio in memory."""
    return QcStudio()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A migrated database to copy: migrating one for each test takes longer than the tests."""
    settings = Settings(home=tmp_path_factory.mktemp("migrated"))
    open_database(settings).dispose()
    return settings.home / "labelloop.sqlite3"


@pytest.fixture
def engine(settings, migrated):
    """A migrated database of the test's own."""
    settings.home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(migrated, settings.home / "labelloop.sqlite3")
    engine = open_database(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def memory(engine):
    """What quality control remembers, empty at first."""
    return DecisionStore(engine)


@pytest.fixture
def check(studio, memory, settings):
    """check(task) -> Checked: one run of the job."""
    checker = Checker(studio, memory, settings.home)
    return lambda task: checker.check(PROJECT, task)
