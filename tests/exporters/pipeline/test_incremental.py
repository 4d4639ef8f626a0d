"""A second export converts and writes only what changed; what it publishes is what an export of everything would be."""

import hashlib
import random

import msgspec
import pytest

from exporters.dataset.versions import read_version
from exporters.model.manifest import PlainFile
from exporters.pipeline.plain_version import _copy_unchanged
from labelloop.service.store import ObjectInfo, StoreError, open_store

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


def test_each_version_in_a_folder_has_files_of_its_own(run, build):
    tasks, options = tasks_of(build, 20), {"formats": FORMATS, "split": "train=1"}
    first = run(tasks, **options).root / "versions" / "v000001"
    before = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    large = [path for path in before if path.suffix in {".zip", ".jsonl"} or path.parts[0] == "coco"]
    assert len(large) == 5
    for path in large:
        first.joinpath(path).write_bytes(b"edited")
    run(tasks, **options)
    second = first.with_name("v000002")
    assert all(second.joinpath(path).read_bytes() == before[path] for path in large)


class Bucket:
    """A bucket whose server copies objects, but refuses some."""

    def __init__(self, objects, refused=()):
        self.objects, self.refused = objects, refused

    def entries(self, prefix):
        return [ObjectInfo(key, size, 0.0, tag) for key, (size, tag) in self.objects.items() if key.startswith(prefix)]

    def copy(self, key, to):
        if key in self.refused:
            raise StoreError("s3://b", key, "it is over 5 GB")
        self.objects[to] = self.objects[key]


def test_server_of_a_bucket_copies_what_the_parent_version_has_too(run, build, tmp_path, settings):
    parent = read_version(open_store(run(tasks_of(build, 2)).root.as_uri(), settings), "v000001")
    names = ("same", "parts", "replaced", "cut", "gone", "refused", "changed")
    files, md5 = {}, {}
    for name in names:
        files[name] = tmp_path / name
        files[name].write_text(name)
        md5[name] = hashlib.md5(name.encode()).hexdigest()

    def plain_files(version):
        return tuple(PlainFile(name, f"versions/{version}/{name}", len(name), f"sha of {name}") for name in names)

    old = plain_files("v000001")
    old = (*old[:-1], msgspec.structs.replace(old[-1], sha256="another"))
    objects = {file.key: (file.size, f'"{md5[file.path]}"') for file in old if file.path != "gone"}
    objects["versions/v000001/parts"] = (5, '"0123-2"')  # an upload in parts has no MD5
    objects["versions/v000001/replaced"] = (8, f'"{md5["same"]}"')
    objects["versions/v000001/cut"] = (2, '"0123-2"')
    bucket = Bucket(objects, refused={"versions/v000001/refused"})
    copied = _copy_unchanged(bucket, plain_files("v000002"), files, msgspec.structs.replace(parent, files=old))
    assert copied == {"versions/v000002/same", "versions/v000002/parts"}
    assert {key for key in objects if "v000002" in key} == copied
