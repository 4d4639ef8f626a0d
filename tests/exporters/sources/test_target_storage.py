"""Label Studio's target storage: one JSON an annotation becomes tasks again. Swift and Label Studio: tests/system."""

import json

import pytest

from exporters.errors import SourceNotFound
from exporters.sources import open_source


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.fixture
def put(target, build):
    """Write an annotation as Label Studio's export storage does: its id is the key, its task is inside."""

    def put(annotation, task, *, updated="2026-01-01T00:00:00Z", **data):
        inside = {"id": task, "data": {"image": f"s3://photos/{task}.jpg", **data}, "updated_at": updated, "meta": {}}
        person = {"id": annotation["completed_by"], "email": "a@example.com", "first_name": "", "last_name": ""}
        (target / str(annotation["id"])).write_text(json.dumps(annotation | {"task": inside, "completed_by": person}))

    return put


@pytest.fixture
def take(settings, target):
    def take(**options):
        source = open_source(str(target), settings=settings, **options)
        try:
            return list(source.tasks()), source.origin["read"]
        finally:
            source.close()

    return take


def test_annotations_become_tasks(run, build, put, target):
    box = build.box(10, 10, 20, 20)
    put(build.annotation(box, number=7, completed_by=1), 2)
    put(build.annotation(box, number=10, completed_by=2, ground_truth=True), 2)
    put(build.annotation(box, number=9, completed_by=2, was_cancelled=True), 1)
    put(build.annotation(number=11), 12)
    out = run(target)
    # task 1 was skipped, nothing tells the size of task 12's image
    assert [image["task_id"] for image in out.instances()["images"]] == [2]
    assert [
        (annotation["annotation_id"], annotation["annotator"]) for annotation in out.instances()["annotations"]
    ] == [(10, 2)]
    assert out.report.accounts.tasks.input == 3


def test_same_data_set_as_from_the_json_export(run, build, put, target):
    tasks = []
    for number in (3, 1, 20):
        annotations = [
            build.annotation(build.box(10 * who, 10, 20, 20), number=10 * number + who, completed_by=who, day=who)
            for who in (1, 2)
        ]
        tasks.append(build.task(number, *annotations))
        for annotation in annotations:
            put(annotation, number)
    tasks.sort(key=lambda task: task["id"])
    assert run(target, to="one").files() == run(tasks, to="two").files()


def test_data_of_the_task_is_that_of_its_newest_annotation(build, put, take):
    put(build.annotation(number=8), 1, updated="2026-02-02T00:00:00Z", qc_status="disputed")
    put(build.annotation(number=9), 1, updated="2026-01-01T00:00:00Z")
    ((task,), _) = take()
    assert task.data["qc_status"] == "disputed"
    assert [annotation.id for annotation in task.annotations] == [8, 9]
    assert task.annotations[0].completed_by == 1


def test_only_what_changed_is_read_again(build, put, take, target):
    for number in range(1, 31):
        put(build.annotation(number=number), number)
    assert take()[1] == 30
    assert take()[1] == 0
    put(build.annotation(build.box(1, 1, 5, 5), number=4), 4)
    (target / "5").unlink()
    tasks, read = take()
    assert read == 1
    assert [task.id for task in tasks] == [*range(1, 5), *range(6, 31)]
    assert len(tasks[3].annotations[0].results) == 1
    assert take(fresh=True)[1] == 29


def test_whole_tasks_are_read_too_and_an_annotation_counts_once(build, put, take, target):
    # FUTURE_SAVE_TASK_TO_STORAGE was set in the life of the storage
    old, new = build.annotation(number=70), build.annotation(number=71)
    put(old, 3)
    (target / "3.json").write_text(json.dumps(build.task(3, old, new) | {"updated_at": "2026-03-03T00:00:00Z"}))
    (target / "4.json").write_text(json.dumps(build.task(4, build.annotation(number=80))))
    tasks, _ = take()
    assert [(task.id, sorted(annotation.id for annotation in task.annotations)) for task in tasks] == [
        (3, [70, 71]),
        (4, [80]),
    ]


def test_broken_object_costs_itself_alone_and_is_listed(run, build, put, target):
    put(build.annotation(build.box(1, 1, 5, 5), number=7), 1)
    (target / "8").write_text('{"id": 8, "result": [}')
    (target / "9").write_text('{"id": 9, "result": []}')
    (target / "10").write_text("[]")
    (target / "notes.txt").write_text("not ours")
    out = run(target)
    assert out.report.accounts.tasks.input == 4
    assert out.report.accounts.tasks.dropped == {"malformed": 3}
    assert sorted(loss["detail"].partition(":")[0] for loss in out.losses) == ["10", "8", "9"]
    assert run(target).report.accounts.tasks.dropped == {"malformed": 3}  # also when they are not new


def test_folder_without_annotations_is_no_source(settings, target):
    (target / "notes.txt").write_text("no")
    with pytest.raises(SourceNotFound, match="target storage"):
        open_source(str(target), settings=settings)
