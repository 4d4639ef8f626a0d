"""A second export converts and writes only what changed; what it publishes is what an export of everything would be."""

import random
from pathlib import Path

import pytest

FORMATS = ("coco", "voc", "yolo-detect")


def tasks_of(build, count=600):
    rng = random.Random(1)
    return [
        build.task(
            n, build.annotation(*(build.box(rng.uniform(0, 60), 10, 20, 20, id=f"r{i}") for i in range(3)), number=n)
        )
        for n in range(1, count + 1)
    ]


def change(build, tasks, rng):
    """Change some tasks, delete some, and append new ones."""
    tasks = [task for task in tasks if rng.random() > 0.01]
    for index in rng.sample(range(len(tasks)), 6):
        number = tasks[index]["id"]
        tasks[index] = build.task(
            number, build.annotation(build.box(rng.uniform(0, 50), 5, 30, 30), number=number, day=2)
        )
    last = tasks[-1]["id"]
    return tasks + [build.task(last + n, build.annotation(build.box(5, 5, 9, 9), number=last + n)) for n in (1, 2)]


def test_export_of_what_changed_is_the_same_as_of_everything(run, build):
    rng = random.Random(2)
    tasks = tasks_of(build)
    first = run(tasks, formats=FORMATS)
    for _ in range(3):
        tasks = change(build, tasks, rng)
        second = run(tasks, formats=FORMATS)
        afresh = run(tasks, formats=FORMATS, to=f"afresh{len(tasks)}{rng.random()}")
        assert second.report.written.tasks == 8
        assert second.report.written.bytes < 0.05 * first.report.bytes
        assert second.files() == afresh.files()
        assert second.report.accounts == afresh.report.accounts
        assert second.report.images == afresh.report.images


def test_nothing_changed_nothing_is_written(run, build):
    tasks = tasks_of(build, 20)
    run(tasks)
    second = run(tasks)
    assert (second.report.written.tasks, second.report.written.objects) == (0, 0)


ODD = {
    "reversed": lambda build, tasks: tasks[::-1],
    "a task twice": lambda build, tasks: [*tasks, tasks[0]],
    "a name that another had": lambda build, tasks: [
        build.task(1, build.annotation(build.box(1, 1, 5, 5)), image="s3://photos/x/2.jpg"),
        *tasks[1:],
    ],
    "a name that is free again": lambda build, tasks: [
        build.task(1, build.annotation(build.box(1, 1, 5, 5)), image="s3://photos/new.jpg"),
        *tasks[1:],
    ],
    "broken now": lambda build, tasks: [{"id": 1, "data": []}, *tasks[1:]],
    "one before the others": lambda build, tasks: [build.task(900, build.annotation(build.box(1, 1, 5, 5))), *tasks],
}


@pytest.mark.parametrize("name", ODD)
def test_incremental_export_equals_a_full_one(run, build, name):
    tasks = [
        *tasks_of(build, 12),
        build.task(50, build.annotation(build.box(1, 1, 5, 5)), image="s3://photos/y/1.jpg"),  # the name of task 1's
        {"id": 60, "data": {"caption": "no image"}, "annotations": []},
    ]
    run(tasks, formats=FORMATS)
    after = ODD[name](build, tasks)
    second, afresh = run(after, formats=FORMATS), run(after, formats=FORMATS, to="afresh")
    assert second.files() == afresh.files()
    assert second.report.accounts == afresh.report.accounts


def test_other_rules_convert_everything_again(run, build, config):
    tasks = tasks_of(build, 10)
    run(tasks, formats=FORMATS)
    assert run(tasks, formats=FORMATS, annotation="all").report.written.tasks == 10
    assert run(tasks, formats=("coco",), annotation="all").report.written.tasks == 10
    assert run(tasks, formats=("coco",), annotation="all", label_config=config("car")).report.written.tasks == 10
    assert run(tasks, formats=("coco",), annotation="all", label_config=config("car")).report.written.tasks == 0
    assert (
        run(tasks, formats=("coco",), annotation="all", label_config=config("car"), afresh=True).report.written.tasks
        == 10
    )


def test_plain_files_that_the_parent_has_are_not_written_again(run, build):
    tasks, options = tasks_of(build, 20), {"formats": FORMATS, "split": "train=1"}

    def files(version):
        folder = first.root / "versions" / version
        return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}

    first = run(tasks, **options)
    before = files("v000001")
    large = {path for path in before if path.suffix in {".zip", ".jsonl"} or path.parts[0] == "coco"}
    assert len(large) == 5
    run(tasks, **options)
    again = files("v000002")
    assert {path for path in again if again[path].samefile(before[path])} == large
    run(tasks, afresh=True, **options)  # the repair of a damaged data set trusts none of its files
    third = files("v000003")
    assert not any(third[path].samefile(again[path]) for path in large)
    assert all(third[path].read_bytes() == again[path].read_bytes() for path in large)
    third[Path("voc.zip")].unlink()
    run(tasks, **options)
    last = files("v000004")
    assert last[Path("voc.zip")].read_bytes() == again[Path("voc.zip")].read_bytes()
    assert last[Path("images.jsonl")].samefile(third[Path("images.jsonl")])
