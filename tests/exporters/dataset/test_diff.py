"""What changed from one version to another."""

import json

import pytest

from exporters.cli.dataset import dataset_diff
from exporters.dataset.diff import ChangeCounts, ClassChange, diff_versions
from exporters.dataset.versions import read_version
from exporters.errors import BadOption
from labelloop.service.store import open_store


@pytest.fixture
def diff(tmp_path, settings):
    def diff(a, b, name="set"):
        store = open_store(f"file://{tmp_path / name}", settings)
        return diff_versions(store, read_version(store, a), read_version(store, b))

    return diff


def boxes(build, number, *drawn, **data):
    results = [build.box(*shape[:4], shape[4], id=f"r{index}") for index, shape in enumerate(drawn)]
    return build.task(number, build.annotation(*results, number=number), width=640, height=360, **data)


CAR, BUS, CAR_MOVED = (10, 10, 20, 20, "car"), (10, 10, 20, 20, "bus"), (11, 10, 20, 20, "car")
FAR = (70, 70, 10, 10, "car")


@pytest.mark.parametrize("formats", [["coco"], ["yolo-detect"], ["voc"], ["yolo-segment"], ["coco", "voc"]])
@pytest.mark.parametrize("afresh", [False, True])
def test_each_kind_of_change_is_counted_once(run, build, diff, formats, afresh):
    before = [
        boxes(build, 1, CAR, FAR),
        boxes(build, 2, CAR),
        boxes(build, 3, CAR),
        boxes(build, 4, CAR),
        boxes(build, 5, CAR, FAR),
    ]
    after = [
        boxes(build, 1, CAR, FAR),  # nothing
        boxes(build, 2, CAR_MOVED),  # moved
        boxes(build, 3, BUS),  # relabelled
        boxes(build, 5, CAR),  # one gone; task 4 gone whole
        boxes(build, 6, CAR, FAR),  # new
    ]
    run(before, formats=formats)
    run(after, formats=formats, afresh=afresh)
    changes = diff("v000001", "v000002")
    assert changes.tasks.added == 1
    assert changes.tasks.removed == 1
    assert changes.images == ChangeCounts(added=1, removed=1, changed=3, same=1)
    assert changes.classes_added == ("bus",)
    assert changes.classes == {
        "bus": ClassChange(relabelled=1),
        "car": ClassChange(added=2, removed=2, moved=1),
    }
    assert changes.objects == ClassChange(added=2, removed=2, moved=1, relabelled=1)
    assert {sample.task for sample in changes.samples} == {2, 3, 4, 5, 6}


def test_incremental_version_reads_only_what_changed(run, build, diff, monkeypatch):
    tasks = [boxes(build, number, CAR) for number in range(1, 41)]
    run(tasks)
    tasks[3] = boxes(build, 4, FAR)
    run(tasks)
    read = []
    from exporters.dataset import diff as module

    rows = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *a: (read.append(len(a[3])), rows(*a))[1])
    changes = diff("v000001", "v000002")
    assert set(read) == {1}
    assert changes.tasks == ChangeCounts(changed=1, same=39)
    assert changes.images == ChangeCounts(changed=1, same=39)


def test_nothing_changed(run, build, diff):
    tasks = [boxes(build, 1, CAR)]
    run(tasks)
    run(tasks)
    changes = diff("v000001", "v000002")
    assert changes.objects == ClassChange()
    assert changes.images == ChangeCounts(same=1)
    assert changes.rules == {}


def test_rules_and_splits_that_differ_are_named(run, build, diff):
    tasks = [boxes(build, number, CAR) for number in (1, 2)]
    run(tasks)
    run(tasks, split="val=1", annotation="all", formats=["coco"])
    changes = diff("v000001", "v000002")
    assert changes.rules["annotation"] == ("latest", "all")
    assert changes.rules["split"] == ({"train": 1.0}, {"val": 1.0})
    assert changes.rules["formats"] == (["coco", "voc", "yolo-detect"], ["coco"])
    assert changes.splits == {"train -> val": 2}
    assert changes.images == ChangeCounts(changed=2)
    assert changes.objects == ClassChange()


def test_order_of_objects_is_no_change(run, build, diff):
    run([boxes(build, 1, CAR, FAR, BUS)])
    run([boxes(build, 1, BUS, CAR, FAR)])
    assert diff("v000001", "v000002").objects == ClassChange()


def test_masks_and_polygons_are_compared_by_their_outline(run, build, diff):
    square = [[10, 10], [30, 10], [30, 30], [10, 30]]
    bent = [[10, 10], [30, 10], [20, 20], [30, 30], [10, 30]]
    for points in (square, bent):
        run([build.task(1, build.annotation(build.polygon(points)))])
    assert diff("v000001", "v000002").classes == {"car": ClassChange(moved=1)}


def test_versions_without_a_common_format_are_refused(run, build, diff):
    run([boxes(build, 1, CAR)], formats=["coco"])
    run([boxes(build, 1, CAR)], formats=["voc"])
    with pytest.raises(BadOption, match="A and B"):
        diff("v000001", "v000002")


def test_command_prints_a_table_or_json(run, build, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    run([boxes(build, 1, CAR)])
    run([boxes(build, 1, BUS), boxes(build, 2, CAR)])
    assert dataset_diff(f"file://{tmp_path / 'set'}", "v000001") == 0
    text = capsys.readouterr().out
    assert "v000001 -> v000002" in text
    assert "new classes: bus" in text
    assert "1 added, 0 removed, 1 changed, 0 the same" in text
    assert "task 1 1.jpg: 1 relabelled" in text
    assert dataset_diff(f"file://{tmp_path / 'set'}", "v000001", json="-") == 0
    assert json.loads(capsys.readouterr().out)["objects"]["relabelled"] == 1
