"""Whose annotation counts."""

import pytest

from exporters.convert.annotation_policy import POLICIES, parse_policy
from exporters.errors import BadOption


@pytest.fixture
def task(build):
    def annotation(number, x, **fields):
        return build.annotation(build.box(x, 10, 10, 10, id=f"r{number}"), number=number, **fields)

    return build.task(
        1,
        annotation(11, 10, day=3, completed_by=1),
        annotation(12, 20, day=5, completed_by=2),
        annotation(13, 30, day=1, completed_by=3, ground_truth=True),
        annotation(14, 40, day=9, completed_by=2, was_cancelled=True),
    )


@pytest.mark.parametrize(
    ("name", "chosen", "rule"),
    [
        ("latest", [13], "ground truth"),
        ("ground-truth", [13], "ground truth"),
        ("user:2", [12], "user:2"),
        ("user:1", [11], "user:1"),
        ("all", [11, 12, 13], "all"),
    ],
)
def test_policy_chooses_and_the_rest_is_accounted_for(run, task, name, chosen, rule):
    # W9: the image was listed once for each annotator; in YOLO and VOC the oldest annotation overwrote the newest
    out = run([task], annotation=name)
    assert [annotation["annotation_id"] for annotation in out.instances()["annotations"]] == chosen
    assert len(out.instances()["images"]) == 1
    assert len(out.yolo("1")) == len(out.voc_boxes("1")) == len(chosen)
    accounts = out.report.accounts
    assert accounts.chosen_by == {rule: 1}
    assert accounts.annotations.input == accounts.regions.input == 4
    assert accounts.annotations.kept == accounts.regions.kept == len(chosen)
    assert accounts.regions.dropped["skipped by the annotator"] == 1
    assert out.manifest["policy"]["annotation"] == name


def test_without_ground_truth_the_latest_update_counts(run, build, task):
    # W9
    task["annotations"][2]["ground_truth"] = False
    out = run([task])
    assert [annotation["annotation_id"] for annotation in out.instances()["annotations"]] == [12]
    assert out.report.accounts.chosen_by == {"latest": 1}
    assert out.yolo("1")[0][1] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["ground-truth", "user:9"])
def test_task_without_a_fitting_annotation_is_out_and_listed(run, build, name):
    chosen = build.annotation(build.box(1, 1, 5, 5), completed_by=9, ground_truth=True)
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5))), build.task(2, chosen)], annotation=name)
    assert out.report.accounts.tasks.dropped == {"no annotation by the policy": 1}
    assert [image["task_id"] for image in out.instances()["images"]] == [2]
    assert {loss["kind"] for loss in out.losses} == {"task", "annotation"}


def test_skipped_and_unlabelled_tasks_are_listed_not_negatives(run, build, config):
    # W27: skipped tasks left no trace; W25: a task with predictions alone became a background image
    prediction = {"id": 1, "model_version": "m", "score": 0.5, "result": [build.box(1, 1, 5, 5)]}
    tasks = [
        build.task(1, build.annotation(was_cancelled=True)),
        build.task(2),
        build.task(3) | {"predictions": [prediction]},
        build.task(4, build.annotation(), width=10, height=10),
    ]
    out = run(tasks, label_config=config("car"))
    only = "only predictions, no annotation"
    assert out.report.accounts.tasks.dropped == {"not annotated": 1, only: 1, "skipped by the annotator": 1}
    assert [image["task_id"] for image in out.instances()["images"]] == [4]
    assert {loss["task"]: loss["reason"] for loss in out.losses if loss["kind"] == "task"} == {
        1: "skipped by the annotator",
        2: "not annotated",
        3: only,
    }


@pytest.mark.parametrize(("disputed", "count"), [("out", 1), ("in", 3), ("apart", 3)])
def test_tasks_not_judged_are_counted_apart_from_disputed(run, build, disputed, count):
    tasks = [
        build.task(number, build.annotation(build.box(1, 1, 5, 5)), qc_status=status)
        for number, status in enumerate(("not_judged", "disputed", "agreed"), start=1)
    ]
    report = run(tasks, disputed=disputed).report
    assert sum(report.images.values()) == count
    if disputed == "out":
        assert report.accounts.tasks.dropped == {"disputed": 1, "not judged": 1}
    else:
        assert sum(report.accounts.notes.values()) == 2
        assert sum("not judged tasks" in note for note in report.accounts.notes) == 1
        assert report.images.get("disputed", 0) == (2 if disputed == "apart" else 0)


@pytest.mark.parametrize(("disputed", "images"), [("out", [2]), ("in", [1, 2])])
def test_disputed_tasks_are_out_unless_wanted(run, build, disputed, images):
    tasks = [
        build.task(1, build.annotation(build.box(1, 1, 5, 5)), qc_status="disputed"),
        build.task(2, build.annotation(build.box(1, 1, 5, 5)), qc_status="agreed"),
    ]
    out = run(tasks, disputed=disputed)
    assert [image["task_id"] for image in out.instances()["images"]] == images
    assert out.report.accounts.tasks.dropped == ({"disputed": 1} if disputed == "out" else {})
    assert out.report.accounts.failed == 0


def test_annotator_of_a_snapshot_is_an_object_with_an_id(run, build):
    person = {"id": 5, "email": "a@example.com"}
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5), completed_by=person))], annotation="user:5")
    assert out.instances()["annotations"][0]["annotator"] == 5


@pytest.mark.parametrize("name", ["newest", "user:", "user:bob", ""])
def test_unknown_policy_is_refused(name):
    with pytest.raises(BadOption, match="--annotation"):
        parse_policy(name)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_a_task_without_annotations(name):
    assert list(parse_policy(name)([])[0]) == []
