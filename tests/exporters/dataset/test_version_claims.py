"""Exporters at once on servers that let several creators through, and what one that is alone need not wait for."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporters.dataset.gc import collect_garbage
from exporters.dataset.latest import read_latest
from exporters.dataset.versions import (
    VersionClaim,
    manifest_key,
    publish_version,
    read_head,
    read_version,
    version_name,
    versions,
)
from exporters.model.class_map import load_classes
from exporters.pipeline.export import export
from exporters.validate.issues import IssueReport
from exporters.validate.latest import check_latest
from exporters.validate.version import verify
from labelloop.service.store import open_store
from tests.bare_s3 import BareS3

SET = "s3://bucket/set"


@pytest.fixture
def file(build, tmp_path):
    """Return a file with a number of tasks and a unique label."""

    def file(count, label="bus"):
        path = tmp_path / f"{count}-{label}.json"
        boxes = [build.box(1, 1, 5, 5, id="a"), build.box(2, 2, 5, 5, label, id="b")]
        path.write_text(json.dumps([build.task(n, build.annotation(*boxes, number=n)) for n in range(1, count + 1)]))
        return path

    return file


def whole(store):
    """The names of the versions; each is what its manifest says, and a number is one label in all of them."""
    classes, _ = load_classes(store)
    for manifest in versions(store):
        assert verify(store, manifest.version)[1].issues == []
        assert list(manifest.classes.items()) == list(classes_of(classes).items())[: len(manifest.classes)]
    return [manifest.version for manifest in versions(store)]


def check(store):
    report = IssueReport()
    check_latest(store, report)
    return report.issues


def classes_of(classes):
    return {name: number for number, name in enumerate(classes.names, start=1)}


def claims(store):
    return list(store.list("claims/"))


@pytest.mark.parametrize("conditions", ["ignore", "refuse", "begin"])
def test_concurrent_exporters_share_one_class_map(conditions, file, tmp_path):
    with BareS3(conditions, slow_s=0.03) as bare_s3, ThreadPoolExecutor(3) as threads:
        settings = bare_s3.settings(tmp_path / "home")
        files = [file(number, f"label{number}") for number in (2, 3, 4)]
        options = {"settings": settings, "to": SET, "fetch": False, "formats": ("coco",), "allow_shrink": True}
        run = [threads.submit(export, file, **options) for file in files]
        reports = [future.result() for future in run]
        store = open_store(SET, settings)
        names = whole(store)
        assert names == sorted({report.version for report in reports})
        assert len(names) == 3
        assert read_head(store)[0].version == names[-1] == read_latest(store).version
        assert check(store) == []
        for report in reports:
            assert read_version(store, report.version).accounts.tasks.input == report.accounts.tasks.input
        assert claims(store) == []


def test_exporters_at_once_do_not_mind_clocks_that_are_set(file, tmp_path, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + random.choice([-86400.0, 0.0, 86400.0]))  # the server's as well
    with BareS3("begin", slow_s=0.03) as bare_s3, ThreadPoolExecutor(3) as threads:
        settings = bare_s3.settings(tmp_path / "home")
        files = [file(number, f"label{number}") for number in (2, 3, 4)]
        began = time.monotonic()
        options = {"settings": settings, "to": SET, "fetch": False, "formats": ("coco",), "allow_shrink": True}
        run = [threads.submit(export, file, **options) for file in files]
        names = sorted({future.result().version for future in run})
        store = open_store(SET, settings)
        assert whole(store) == names
        assert len(names) == 3
        assert read_head(store)[0].version == names[-1]
        assert time.monotonic() - began < 60  # no lock was taken for held because of its date


def test_exporter_that_is_alone_writes_manifest_and_head_without_waiting(bare_s3, file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "exporters.dataset.versions.CONTEST_WINDOW_S", 300.0
    )  # on a busy machine a second may pass between look and head
    settings = bare_s3.settings(tmp_path / "home")
    store = open_store(SET, settings)
    options = {"settings": settings, "to": SET, "fetch": False, "formats": ("coco",), "afresh": True, "latest": False}
    for version in ("v000001", "v000002"):
        bare_s3.asked.clear()
        assert export(file(3), **options).version == version
        requests = [(method, key.removeprefix("set/")) for method, key, _ in bare_s3.asked]
        manifest, head = (requests.index(("PUT", key)) for key in (manifest_key(version), "HEAD.json"))
        assert manifest < head
        for key in (manifest_key(version), "HEAD.json"):  # who waits looks afterwards whose object stayed
            assert ("HEAD", key) not in requests[manifest:]
        assert not [key for _, key in requests if "locks/" in key]
        assert claims(store) == []
    assert whole(store) == ["v000001", "v000002"]


def test_number_of_a_killed_exporter_is_never_used(bare_s3, file, tmp_path):
    settings = bare_s3.settings(tmp_path / "home")
    store = open_store(SET, settings)
    store.put("claims/v000001.json", b"{}")
    store.put("versions/v000001/voc.zip", b"half of it")
    for version in ("v000002", "v000003"):
        report = export(file(3), settings=settings, to=SET, fetch=False, formats=("coco",), afresh=True)
        assert report.version == read_head(store)[0].version == version
        assert claims(store) == ["claims/v000001.json"]
    assert whole(store) == ["v000002", "v000003"]


def test_claims_at_once_are_different_numbers_and_none_is_exclusive(bare_s3, tmp_path):
    settings = bare_s3.settings(tmp_path / "home")
    stores = [open_store(SET, settings) for _ in range(3)]
    turns = [VersionClaim(store, 4) for store in stores]
    assert sorted(turn.version for turn in turns) == ["v000005", "v000006", "v000007"]
    assert [turn.exclusive_until() for turn in turns] == [0.0, 0.0, 0.0]
    for turn in turns:
        turn.__exit__()
    assert claims(stores[0]) == []
    with VersionClaim(stores[0], 5) as alone:
        assert alone.version == "v000006"
        assert alone.exclusive_until() > 0.0


def test_failed_exporter_removes_its_files_and_its_claim(bare_s3, tmp_path):
    store = open_store(SET, bare_s3.settings(tmp_path / "home"))

    def fail():
        with VersionClaim(store, 0) as claim:
            store.put(f"versions/{claim.version}/voc.zip", b"half of it")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert list(store.list()) == []


def test_version_that_was_not_published_is_no_turn(bare_s3, file, tmp_path):
    settings = bare_s3.settings(tmp_path / "home")
    bad = file(2)
    tasks = json.loads(bad.read_text())
    tasks[0]["annotations"][0]["result"][0]["value"] = {}
    bad.write_text(json.dumps(tasks))
    for number in (1, 2):
        report = export(bad, settings=settings, to=SET, fetch=False, formats=("coco",), max_errors=0)
        assert (report.version, report.published) == (version_name(number), False)
    assert export(bad, settings=settings, to=SET, fetch=False, formats=("coco",), max_errors=1).version == "v000003"
    assert read_head(open_store(SET, settings))[0].version == "v000003"


def test_late_write_of_the_head_is_corrected(bare_s3, file, tmp_path, monkeypatch):
    settings = bare_s3.settings(tmp_path / "home")
    store = open_store(SET, settings)
    first = export(file(2), settings=settings, to=SET, fetch=False, formats=("coco",))
    export(file(3), settings=settings, to=SET, fetch=False, formats=("coco",))
    until = time.monotonic() + 0.2

    def late(key, data, *, etag, exclusive_until):  # our process stood still between its look and its write
        time.sleep(0.3)
        store.put(key, data)

    bare_s3.objects.pop("set/HEAD.json")  # as it was when we looked
    with monkeypatch.context() as patch:
        patch.setattr(store, "swap", lambda key, data, **options: (patch.undo(), late(key, data, **options)))
        publish_version(store, first.version, first.manifest_sha256, exclusive_until=until)
    assert read_head(store)[0].version == "v000002"


def test_gc_removes_claims_of_killed_exporters_only(bare_s3, file, tmp_path):
    settings = bare_s3.settings(tmp_path / "home")
    store = open_store(SET, settings)
    export(file(2), settings=settings, to=SET, fetch=False, formats=("coco",))
    left = ["claims/v000001.json", "versions/v000001/contested.json", "versions/v000001/voc.zip"]
    at_work = ["claims/v000002.json", "versions/v000002/voc.zip"]
    for key in left + at_work:
        store.put(key, b"{}")
    time.sleep(1.1)  # listings tell whole seconds
    collect_garbage(store, grace_h=0)
    keys = set(store.list())
    assert not keys & set(left)
    assert keys >= set(at_work)
    assert whole(store) == ["v000001"]
