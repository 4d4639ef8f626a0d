"""What the tests of quality control share: tasks as Label Studio's JSON, and a Label Studio that lives in memory."""

import copy
import itertools
import json
import operator
import shutil

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from labelloop.service.studio import StudioRefused
from labelloop.service.studio.tasks import TaskStamp
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.store.decisions import DecisionStore

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels>
<Choices name="quality" toName="image"><Choice value="good"/><Choice value="bad"/></Choices></View>"""
PROJECT = 7
OPERATORS = {"greater": operator.gt, "less": operator.lt}


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


class MemoryStudio:
    """Label Studio as far as quality control sees it: tasks that follow the rules of overlap and is_labeled."""

    def __init__(self):
        self.stored = {}
        self.writes = []
        self.fail_next = None
        self.model_version = "base-1"
        self.settings = {}
        self._ids = itertools.count(1)
        self._predictions = itertools.count(1)
        self._moments = itertools.count(1)

    def add_task(self, *, overlap=2, **data):
        id_ = len(self.stored) + 1
        self.stored[id_] = {
            "id": id_, "project": PROJECT, "data": {"image": "s3://bucket/a b.jpg"} | data, "overlap": overlap,
            "is_labeled": False, "annotations": [], "predictions": [], "created_at": f"born-{id_}",
            "updated_at": self._now(),
        }  # fmt: skip
        return id_

    def annotate(self, task, annotator, results, **fields):
        id_ = next(self._ids)
        annotation = {"id": id_, "completed_by": annotator, "result": results, "updated_at": self._now()} | fields
        self.stored[task]["annotations"].insert(0, annotation)
        self._recount(task)
        return id_

    def change(self, annotation, **fields):
        for task, source in self.stored.items():
            for held in source["annotations"]:
                if held["id"] == annotation:
                    held.update({"updated_at": self._now()} | fields)
                    self._recount(task)

    def remove(self, annotation):
        for task, source in self.stored.items():
            left = [held for held in source["annotations"] if held["id"] != annotation]
            if len(left) < len(source["annotations"]):
                source["annotations"] = left
                self._recount(task)

    def task_json(self, _project, task):
        return copy.deepcopy(self.stored.get(task))

    def tasks(self, _project, *, page_size=100, filters=None, ordering=None, only_ids=None):
        result = list(self.stored.values())
        if only_ids is not None:
            result = [source for source in result if source["id"] in set(only_ids)]
        for item in (filters or {}).get("items", ()):
            name, passes = item["filter"].rpartition(":")[2], OPERATORS[item["operator"]]
            result = [
                source
                for source in result
                if passes(len(source["annotations"]) if name == "total_annotations" else source[name], item["value"])
            ]
        if ordering == ["-tasks:updated_at"]:
            result.sort(key=lambda source: source["updated_at"], reverse=True)
        return iter([read_task(copy.deepcopy(source)) for source in result])

    def count_tasks(self, project, *, filters=None):
        return sum(1 for _ in self.tasks(project, filters=filters))

    def stamps(self, project, *, filters=None, page_size=1000):
        for task in self.tasks(project, filters=filters):
            counted = sum(not item.was_cancelled for item in task.annotations)
            yield TaskStamp(task.id, task.updated_at, counted, len(task.annotations) - counted)

    def projects(self):
        return [{"id": PROJECT}]

    def predict(self, task, result, version, score=None):
        id_ = next(self._predictions)
        prediction = {"id": id_, "result": copy.deepcopy(result), "model_version": version, "score": score}
        self.stored[task]["predictions"].append(prediction)
        return prediction

    def tabs(self, task):
        """The names of the task's predictions as a browser shows them, from left to right."""
        return [item["model_version"] for item in sorted(self.stored[task]["predictions"], key=lambda p: -p["id"])]

    def overlay(self, task, version):
        return next(item for item in self.stored[task]["predictions"] if item["model_version"] == version)

    def project(self, project):
        held = [item for source in self.stored.values() for item in source["annotations"]]
        skipped = sum(bool(item.get("was_cancelled")) for item in held)
        counts = {"total_annotations_number": len(held) - skipped, "skipped_annotations_number": skipped}
        return {"id": project, "model_version": self.model_version} | counts | self.settings

    def update_project(self, _project, **fields):
        self.settings |= fields

    def add_prediction(self, task, result, score, model_version):
        self._stumble("before")
        self.writes.append({"prediction": model_version})
        created = self.predict(task, json.loads(json.dumps(result)), model_version, score)
        self._stumble("after")
        return created

    def delete_prediction(self, prediction):
        self._stumble("before")
        self.writes.append({"deleted": prediction})
        for source in self.stored.values():
            source["predictions"] = [item for item in source["predictions"] if item["id"] != prediction]
            for held in source["annotations"]:
                if held.get("parent_prediction") == prediction:
                    held["parent_prediction"] = None
        self._stumble("after")

    def update_annotation(self, annotation, *, ground_truth):
        self._stumble("before")
        self.writes.append({"ground_truth": annotation if ground_truth else None})
        self.change(annotation, ground_truth=ground_truth)
        self._stumble("after")
        return {"id": annotation, "ground_truth": ground_truth}

    def label_config(self, _project):
        return LabelConfig.parse(CONFIG)

    def update_task(self, task, *, data=None, overlap=None, is_labeled=None):
        self._stumble("before")
        values = {"data": data, "overlap": overlap, "is_labeled": is_labeled}
        self.writes.append({name: value for name, value in values.items() if value is not None})
        self.stored[task] |= copy.deepcopy(self.writes[-1]) | {"updated_at": self._now()}
        self._stumble("after")
        return copy.deepcopy(self.stored[task])

    def _stumble(self, when):
        """Falls over "before" this write or "after" it; `fail_next` may count writes: ("after", 2)."""
        kind, left = self.fail_next if isinstance(self.fail_next, tuple) else (self.fail_next, 0)
        if kind != when:
            return
        self.fail_next = (kind, left - 1) if left else None
        if not left:
            status, message = (500, "it fell over") if when == "before" else (504, "the answer was lost")
            raise StudioRefused("PATCH", status, message)

    def serves(self, task, annotator):
        """Whether the label stream would give the task to this annotator."""
        source = self.stored[task]
        done = {held["completed_by"] for held in source["annotations"]}
        return not source["is_labeled"] and annotator not in done and len(done) < source["overlap"]

    def _recount(self, task):
        source = self.stored[task]
        people = {held["completed_by"] for held in source["annotations"] if not held.get("was_cancelled")}
        source |= {"is_labeled": len(people) >= source["overlap"], "updated_at": self._now()}

    def _now(self):
        moment = next(self._moments)
        return f"2026-01-01T{moment // 3600:02}:{moment // 60 % 60:02}:{moment % 60:02}.000000Z"


@pytest.fixture
def studio():
    """A Label Studio in memory."""
    return MemoryStudio()


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
