"""Exporters at once on servers that let several creators through, and what one that is alone need not wait for."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporters.dataset.gc import collect_garbage
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


def classes_of(classes):
    return {name: number for number, name in enumerate(classes.names, start=1)}


def claims(store):
    return [key for key in store.list("versions/") if not key.endswith("manifest.json")]


@pytest.mark.parametrize("conditions", ["ignore", "refuse", "begin"])
def test_concurrent_exporters_share_one_class_map(conditions, file, tmp_path):
    with BareS3(conditions, slow_s=0.03) as bare_s3, ThreadPoolExecutor(3) as threads:
        settings = bare_s3.settings(tmp_path / "home")
        files = [file(number, f"label{number}") for number in (2, 3, 4)]
        run = [
            threads.submit(export, file, settings=settings, to=SET, fetch=False, formats=("coco",)) for file in files
        ]
        reports = [future.result() for future in run]
        store = open_store(SET, settings)
        assert whole(store) == sorted(report.version for report in reports) == ["v000001", "v000002", "v000003"]
        assert read_head(store)[0].version == "v000003"
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
        run = [
            threads.submit(export, file, settings=settings, to=SET, fetch=False, formats=("coco",)) for file in files
        ]
        assert sorted(future.result().version for future in run) == ["v000001", "v000002", "v000003"]
        store = open_store(SET, settings)
        assert whole(store) == ["v000001", "v000002", "v000003"]
        assert read_head(store)[0].version == "v000003"
        assert time.monotonic() - began < 60  # no lock was taken for held because of its date


def test_exporter_that_is_alone_writes_manifest_and_head_without_waiting(bare_s3, file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "exporters.dataset.versions.CONTEST_WINDOW_S", 300.0
    )  # on a busy machine a second may pass between look and head
    settings = bare_s3.settings(tmp_path / "home")
    store = open_store(SET, settings)
    for version in ("v000001", "v000002"):
        bare_s3.asked.clear()
        assert (
            export(file(3), settings=settings, to=SET, fetch=False, formats=("coco",), afresh=True).version == version
        )
        requests = [(method, key.removeprefix("set/")) for method, key, _ in bare_s3.asked]
        manifest, head = (requests.index(("PUT", key)) for key in (manifest_key(version), "HEAD.json"))
        assert manifest < head
        for key in (manifest_key(version), "HEAD.json"):  # who waits looks afterwards whose object stayed
            assert ("HEAD", key) not in requests[manifest:]
        assert not [key for _, key in requests if "locks/" in key]
        assert claims(store) == []
    assert whole(store) == ["v000001", "v000002"]


def test_claim_of_a_killed_exporter_is_contested_and_removed(bare_s3, file, tmp_path):
    settings = bare_s3.settings(tmp_path / "home")
    store = open_store(SET, settings)
    store.put("versions/v000001/claim.json", b"{}")
    for version in ("v000001", "v000002"):
        assert (
            export(file(3), settings=settings, to=SET, fetch=False, formats=("coco",), afresh=True).version == version
        )
        assert read_head(store)[0].version == version
        assert claims(store) == []
    assert whole(store) == ["v000001", "v000002"]


def test_one_exporter_holds_the_claim_until_it_is_contested(bare_s3, tmp_path):
    settings = bare_s3.settings(tmp_path / "home")
    stores = [open_store(SET, settings) for _ in range(3)]
    turns = [VersionClaim(store, 4) for store in stores]
    assert [turn.first() for turn in turns] == [5, 5, 5]
    # the others have written their mark by now
    assert [turn.exclusive_until(5) for turn in turns] == [0.0, 0.0, 0.0]
    for turn in turns:
        turn.__exit__()
    with VersionClaim(stores[0], 5) as alone:
        assert alone.exclusive_until(6) > 0.0
        assert alone.exclusive_until(7) == 0.0  # not the one that it has claimed


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
    store.put("versions/v000001/contested.json", b"{}")
    store.put("versions/v000002/claim.json", b"{}")
    time.sleep(1.1)  # listings tell whole seconds
    collect_garbage(store, grace_h=0)
    assert claims(store) == ["versions/v000002/claim.json"]
