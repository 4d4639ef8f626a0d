"""A whole project is pre-labelled once, goes on where it was stopped, and says which photos it could not use."""

import pytest

from labelloop.service.media import NotAnImage
from ml_backend.bulk.prelabel import CHUNK, prelabel, prune
from ml_backend.inference.detector import load_detector
from ml_backend.predict.control_support import NotServed
from ml_backend.predict.protocol import ProjectOptions
from tests.fake_label_studio import FakeLabelStudio


class PrelabelStudio(FakeLabelStudio):
    """Project 1 with an image per task; `deleted` are tasks that are deleted right before an import."""

    def __init__(self, config, urls, deleted=()):
        super().__init__()
        self.put_project(1, label_config=config)
        self.deleted = set(deleted)
        for task, url in urls.items():
            self.put_task(1, {"image": url}, id=task)

    def before_call(self, call):
        if call.name == "import_predictions":
            for task in self.deleted:
                self.tasks_by_id.pop(task, None)

    @property
    def imports(self):
        """The number of imports of predictions so far."""
        return len(self.calls_of("import_predictions"))

    @property
    def predictions(self):
        return [prediction for task in self.tasks_by_id.values() for prediction in task["predictions"]]


@pytest.fixture
def detector(labelloop_model):
    return load_detector(labelloop_model())


@pytest.fixture
def run(detector, album, astronaut):
    photos = album({"good": astronaut, "failure": NotAnImage("failure", "it is truncated")})

    def start(studio, **options):
        return prelabel(
            studio, 1, detector=detector, photos=photos, score_threshold=0.3, options=ProjectOptions(), **options
        )

    return start


def test_second_run_has_nothing_to_do(run, boxes_config, detector):
    studio, text = PrelabelStudio(boxes_config, dict.fromkeys(range(1, 61), "good")), []
    report = run(studio, progress=lambda *counts: text.append(counts))
    assert (report.tasks, report.imported, report.already_done, report.failures) == (60, 60, 0, ())
    assert report.boxes == 120
    assert studio.imports == 3
    assert text == [(0, 60), (25, 60), (50, 60), (60, 60)]
    assert studio.model_versions(1) == {detector.version: 60}
    again = run(studio)
    assert (again.imported, again.already_done) == (0, 60)
    assert studio.imports == 3


def test_project_without_servable_controls_is_refused(run):
    xml = '<View><Text name="t" value="$text"/><Labels name="ner" toName="t"><Label value="a"/></Labels></View>'
    studio = PrelabelStudio(xml, {1: "good"})
    with pytest.raises(NotServed, match=r"ner \(Labels on Text\) is not pre-labelled"):
        run(studio)
    assert studio.predictions == []


def test_a_task_without_an_address_is_named(run, boxes_config):
    studio = PrelabelStudio(boxes_config, {1: "good", 2: None})
    report = run(studio)
    assert report.imported == 1
    [failure] = report.failures
    assert (failure.task, "image" in failure.reason) == (2, True)


def test_stopped_run_is_resumable(run, boxes_config, detector):
    studio = PrelabelStudio(boxes_config, dict.fromkeys(range(1, 61), "good"))
    first = run(studio, stop=lambda: studio.imports == 1)
    assert first.stopped
    assert first.imported == CHUNK
    second = run(studio)
    assert (second.already_done, second.imported, second.stopped) == (CHUNK, 60 - CHUNK, False)
    assert studio.model_versions(1) == {detector.version: 60}


def test_failed_image_is_listed_and_retried_by_the_next_run(run, boxes_config):
    studio = PrelabelStudio(boxes_config, {1: "good", 2: "failure", 3: "good"})
    report = run(studio)
    assert report.imported == 2
    assert [(item.task, item.url) for item in report.failures] == [(2, "failure")]
    assert "truncated" in report.failures[0].reason
    studio.tasks_by_id[2]["data"]["image"] = "good"
    assert run(studio).imported == 1


def test_all_replaces_what_is_there(run, boxes_config, detector):
    studio = PrelabelStudio(boxes_config, {1: "good", 2: "good"})
    run(studio)
    before = {item["id"] for item in studio.predictions}
    assert run(studio, every=True).imported == 2
    assert studio.model_versions(1) == {detector.version: 2}
    assert not before & {item["id"] for item in studio.predictions}


def test_a_task_that_is_deleted_meanwhile_costs_the_others_nothing(run, boxes_config):
    studio = PrelabelStudio(boxes_config, {1: "good", 2: "good", 3: "good"}, deleted={2})
    report = run(studio)
    assert (report.imported, report.deleted) == (2, 1)
    assert sorted(item["task"] for item in studio.predictions) == [1, 3]


def test_only_our_older_versions_are_pruned(boxes_config):
    studio = PrelabelStudio(boxes_config, {1: "good"})
    for version in ("now-1", "old-1", "other-model"):
        studio.add_prediction(1, [], 0.5, version)
    assert prune(studio, 1, keep="now-1", ours=frozenset({"now-1", "old-1"})) == {"old-1": 1}
    assert set(studio.model_versions(1)) == {"now-1", "other-model"}
