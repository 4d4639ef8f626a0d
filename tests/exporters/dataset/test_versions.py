"""Versions in the store are complete or absent, whichever exporter is killed or writes concurrently."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporters.dataset.latest import read_latest
from exporters.dataset.versions import publish_version, read_head, read_version, version_name, version_number, versions
from exporters.errors import DatasetDamaged, StoreBusy, VersionNotFound
from exporters.model.manifest import object_key
from exporters.pipeline import export as module
from exporters.validate import verify
from exporters.validate.issues import IssueReport
from exporters.validate.latest import check_latest
from labelloop.service.store import StoreError, open_store


def issues_of_latest(store):
    report = IssueReport()
    check_latest(store, report)
    return report.issues


@pytest.fixture
def tasks(build):
    return [build.task(n, build.annotation(build.box(n, 10, 10, 10))) for n in range(1, 8)]


class Killed(BaseException):
    pass


class FailingStore:
    """A store that stops at its nth write, as a killed process does, or as a server that answers 500."""

    WRITES = ("put", "create", "swap", "copy")

    def __init__(self, store, fail_at, error):
        self._store, self._left, self._error = store, fail_at, error

    def __getattr__(self, name):
        call = getattr(self._store, name)
        if name not in self.WRITES:
            return call

        def counted(*arguments, **options):
            self._left -= 1
            if self._left < 0:
                raise self._error
            return call(*arguments, **options)

        return counted

    def put_many(self, items, progress=None):
        return sum(bool(self.put(*item)) for item in items)

    def delete(self, key):
        if isinstance(self._error, Killed):
            raise Killed
        self._store.delete(key)


@pytest.mark.parametrize("error", [Killed(), StoreError("file:///x", "key", "the server answered 500")])
def test_interruption_at_any_write_leaves_the_last_version(run, tasks, monkeypatch, error, tmp_path, settings):
    real = module.open_store
    outcomes = []
    for write in range(40):
        prefix = f"set{write}"
        first = run(tasks[:3], to=prefix, formats=("coco", "yolo-detect"))
        store = real(f"file://{tmp_path / prefix}", settings)
        with monkeypatch.context() as patch:
            patch.setattr(module, "open_store", lambda url, s, n=write: FailingStore(real(url, s), n, error))
            try:
                report = run(tasks, to=prefix, formats=("coco", "yolo-detect")).report
                outcomes.append("done" if report.latest else "published")
            except (Killed, StoreError):
                outcomes.append("published" if read_head(store)[0].version != first.report.version else "died")
        whole = {manifest.version: manifest for manifest in versions(store)}
        assert read_head(store)[0].version == (first.report.version if outcomes[-1] == "died" else "v000002")
        for manifest in whole.values():
            assert verify(store, manifest.version)[1].issues == []
        # the folder is of the version that it names, or says that it is being updated
        assert {issue.flaw for issue in issues_of_latest(store)} <= {"latest-state", "latest-old"}
        after = run(tasks, to=prefix, formats=("coco", "yolo-detect"))
        assert read_version(store).version == after.report.version == read_latest(store).version
        assert issues_of_latest(store) == []
        if outcomes[-1] == "done":
            break
    assert outcomes.count("died") >= 6
    assert outcomes.count("published") >= 2
    assert outcomes[-1] == "done"


def test_failed_export_leaves_no_version(run, tasks, monkeypatch, tmp_path, settings):
    real = module.open_store
    error = StoreError("file:///x", "key", "no space left")
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_store", lambda url, s: FailingStore(real(url, s), 3, error))
        with pytest.raises(StoreError, match="no space left"):
            run(tasks)
    left = open_store(f"file://{tmp_path / 'set'}", settings).list()
    assert {key.partition("/")[0] for key in left} == {"classes.json", "objects"}
    assert run(tasks).report.version == "v000001"


def test_exporters_at_once_all_end_well(build, tmp_path, settings):
    def assigned(number):
        path = tmp_path / f"{number}.json"
        path.write_text(
            json.dumps([build.task(n, build.annotation(build.box(n, 10, 10, 10))) for n in range(1, number + 5)])
        )
        return module.export(
            path, settings=settings, to=f"file://{tmp_path / 'set'}", fetch=False, formats=("yolo-detect",)
        )

    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(assigned, range(6)))
    assert sorted(report.version for report in reports) == [version_name(n) for n in range(1, 7)]
    store = open_store(f"file://{tmp_path / 'set'}", settings)
    head, _ = read_head(store)
    assert head.version == "v000006"
    for report in reports:
        manifest = read_version(store, report.version)
        assert manifest.accounts.tasks.input == report.accounts.tasks.input
        assert verify(store, report.version)[1].issues == []


def test_process_killed_by_the_system_leaves_no_version(run, tasks, tmp_path):
    first = run(tasks)
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from exporters.pipeline import export as module, export_run\n"
        "from labelloop.service.settings import Settings\n"
        "def killed(store, manifest):\n"
        "    os.kill(os.getpid(), 9)\n"
        "export_run.commit_version = killed\n"
        f"module.export({str(tmp_path / 'export.json')!r}, settings=Settings(home={str(tmp_path / 'home')!r}),"
        f" to='file://{tmp_path / 'set'}', fetch=False, split='test=1')\n"
    )
    done = subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": str(Path.cwd())}, check=False)
    assert done.returncode == -9
    assert json.loads((first.root / "HEAD.json").read_bytes())["version"] == first.report.version
    assert not (first.root / "versions/v000002/manifest.json").exists()
    assert len(list(first.root.glob("objects/*/*"))) > len(first.objects())
    assert run([*tasks, tasks[0] | {"id": 99}]).report.version == "v000003"  # the number of the killed one is lost


def test_same_input_gives_the_same_bytes(run, tasks):
    options = {"split": "train=.5,val=.3,test=.2"}
    first, second, elsewhere = run(tasks, **options), run(tasks, **options), run(tasks, to="other", **options)
    assert (first.report.version, second.report.version) == ("v000001", "v000002")
    assert first.files() == second.files() == elsewhere.files()
    assert first.manifest["generations"] == second.manifest["generations"] == elsewhere.manifest["generations"]
    assert second.manifest["parent"] == "v000001"


def test_ids_stay_when_tasks_are_added_and_reordered(run, tasks, build):
    first = run(tasks[2:5])
    second = run([build.task(50, build.annotation(build.box(1, 1, 5, 5))), *tasks])

    def ids(out):
        instances = out.instances()
        images = {image["coco_url"]: image["id"] for image in instances["images"]}
        return images | {
            (annotation["image_id"], annotation["region_id"]): annotation["id"]
            for annotation in instances["annotations"]
        }

    assert ids(first).items() <= ids(second).items()


def test_manifest_lists_every_object_with_its_size_and_checksum(run, tasks):
    out = run(tasks)
    shards = [
        shard
        for generation in out.manifest["generations"]
        for shard in [generation["index"], *(item for table in generation["tables"].values() for item in table)]
    ]
    listed = {object_key(shard["sha256"]): (shard["size"], shard["sha256"]) for shard in shards}
    listed |= {file["key"]: (file["size"], file["sha256"]) for file in out.manifest["files"]}
    found = [*out.root.glob("objects/*/*"), *(path for path in out.root.glob("versions/**/*") if path.is_file())]
    stored = {str(path.relative_to(out.root)): path.read_bytes() for path in found if path.name != "manifest.json"}
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in stored.items()}
    head = json.loads((out.root / "HEAD.json").read_bytes())
    assert head["sha256"] == hashlib.sha256(out.manifest_path.read_bytes()).hexdigest()
    assert out.report.objects == len(listed)
    manifest = out.manifest
    assert manifest["source"] == {"kind": "file", "location": "export.json"}
    assert manifest["code"].startswith("labelloop ")
    assert manifest["classes"] == {"car": 1}
    assert manifest["splits"] == {"train": 7}
    assert manifest["policy"]["disputed"] == "out"


def test_head_never_goes_back(run, tasks, tmp_path, settings):
    run(tasks)
    run(tasks)
    store = open_store(f"file://{tmp_path / 'set'}", settings)
    publish_version(store, "v000001", "x")
    assert read_head(store)[0].version == "v000002"


def test_head_that_keeps_changing_raises_store_busy(tmp_path, settings, monkeypatch):
    from labelloop.service.store import ObjectChanged

    store = open_store(f"file://{tmp_path / 'set'}", settings)

    def lost(key, data, *, etag, exclusive_until):
        raise ObjectChanged(store.url, key)

    monkeypatch.setattr(store, "swap", lost)
    monkeypatch.setattr("exporters.dataset.versions.time.sleep", lambda seconds: None)
    with pytest.raises(StoreBusy, match=r"HEAD\.json"):
        publish_version(store, "v000001", "x")


def test_version_that_is_not_there_or_damaged_is_said(run, tasks, tmp_path, settings):
    store = open_store(f"file://{tmp_path / 'set'}", settings)
    with pytest.raises(VersionNotFound):
        read_version(store)
    out = run(tasks)
    with pytest.raises(VersionNotFound, match="v000009"):
        read_version(store, "v000009")
    out.manifest_path.write_bytes(out.manifest_path.read_bytes() + b" ")
    with pytest.raises(DatasetDamaged, match="checksum"):
        read_version(store)
    out.manifest_path.write_bytes(b'{"format": "other/9"}')
    with pytest.raises(DatasetDamaged):
        read_version(store, "v000001")


def test_version_names_sort_as_numbers():
    assert [version_number(version_name(n)) for n in (1, 99, 1_000_000)] == [1, 99, 1_000_000]
    assert version_number("x") == 0
