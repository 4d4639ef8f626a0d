"""Unreferenced objects are removed, everything else stays, also while exporters run."""

import os
import time

import pytest

from exporters.cli.dataset import dataset_gc
from exporters.dataset.gc import collect_garbage, find_garbage
from exporters.dataset.versions import versions
from exporters.errors import BadOption, DatasetDamaged
from exporters.pipeline import export_run as running
from exporters.validate.version import verify
from labelloop.service.store import open_store

OLD = time.time() - 3 * 86400


@pytest.fixture
def store(tmp_path, settings):
    return open_store(f"file://{tmp_path / 'set'}", settings)


@pytest.fixture
def age(tmp_path):
    """Make everything in the store three days old."""

    def age():
        for path in (tmp_path / "set").rglob("*"):
            if path.is_file():
                os.utime(path, (OLD, OLD))

    return age


def task(build, number, x=10, **fields):
    return build.task(number, build.annotation(build.box(x, 10, 20, 20), number=number), **fields)


def keys(store):
    return {entry.key for folder in ("objects/", "versions/") for entry in store.entries(folder)}


def whole(store):
    for version in versions(store):
        manifest, problems = verify(store, version.version)
        assert manifest is not None
        assert not problems
    return [manifest.version for manifest in versions(store)]


def test_objects_of_a_killed_export_go_when_they_are_old(run, build, store, age):
    run([task(build, 1)])
    wanted = keys(store)
    store.put("objects/ab/" + "ab" * 32, b"left by an export that was killed")
    assert find_garbage(store).objects == ()
    assert find_garbage(store).young == 1
    age()
    assert find_garbage(store).objects == (("objects/ab/" + "ab" * 32, 33),)
    assert keys(store) > wanted  # looking changes nothing
    assert collect_garbage(store).bytes == 33
    assert keys(store) == wanted
    assert whole(store) == ["v000001"]


def test_older_versions_go_with_what_only_they_refer_to(run, build, store, age):
    formats = ["coco", "ndjson-detect"]
    for x in (10, 20, 30, 40):
        run([task(build, 1), task(build, 2, x)], formats=formats)
    age()
    before = keys(store)
    garbage = collect_garbage(store, keep=2)
    assert garbage.versions == ("v000001", "v000002")
    assert whole(store) == ["v000003", "v000004"]
    assert keys(store) < before
    assert collect_garbage(store, keep=2).objects == ()
    # the class map and the head stay, and the next export builds on the rest
    out = run([task(build, 1), task(build, 2, 50)], formats=formats)
    assert out.report.version == "v000005"
    assert out.report.written.tasks == 1
    assert whole(store) == ["v000003", "v000004", "v000005"]


def test_version_that_was_replaced_a_moment_ago_stays(run, build, store, age):
    run([task(build, 1)])
    age()
    run([task(build, 1, 20)])
    assert collect_garbage(store, keep=1).versions == ()  # an export that began before may still build on it
    assert whole(store) == ["v000001", "v000002"]


def test_published_version_stays_whatever_comes_after_it(run, build, store, age):
    run([task(build, 1)])
    run([task(build, 1, 300)], max_errors=0.0)  # outside of its image: written, not published
    age()
    assert collect_garbage(store, keep=1).versions == ()
    assert whole(store) == ["v000001", "v000002"]


def test_version_in_latest_stays_with_its_files(run, build, store, age):
    run([task(build, 1)])
    for x in (20, 30, 40):
        run([task(build, 1, x)], latest=False)
    age()
    assert collect_garbage(store, keep=1).versions == ("v000002", "v000003")
    assert whole(store) == ["v000001", "v000004"]
    assert store.exists("versions/v000001/voc.zip")
    assert not store.exists("versions/v000002/voc.zip")
    assert store.exists("latest/yolo-detect/data.yaml")


def test_copies_of_photos_stay_as_long_as_their_version_does(run, build, store, age, photos):
    run([task(build, 1, image=photos("one.jpg")), task(build, 2, image=photos("two.jpg", 320, 200))], copy_images=True)
    run([task(build, 1, image=photos("one.jpg"))], copy_images=True, allow_shrink=True)
    age()
    assert collect_garbage(store).objects == ()
    assert collect_garbage(store, keep=1).versions == ("v000001",)
    assert whole(store) == ["v000002"]


def test_export_is_retried_when_gc_removed_its_objects(run, build, store, monkeypatch, age):
    run([task(build, 1)])
    commit_version, times = running.commit_version, []
    publish_plain_version = running.publish_plain_version

    def removing(where, *arguments, **options):
        times.append(1)
        manifest_with_files = publish_plain_version(where, *arguments, **options)
        if len(times) == 1:
            age()  # as if the export took three days
            assert len(collect_garbage(where).objects) > 0
        return manifest_with_files

    monkeypatch.setattr(running, "publish_plain_version", removing)
    monkeypatch.setattr(running, "commit_version", commit_version)
    out = run([task(build, 1), task(build, 2)])
    assert len(times) == 2
    assert whole(store) == ["v000001", "v000002"]
    assert len(out.catalogue) == 2


def test_removal_that_is_cut_off_leaves_whole_versions(run, build, store, age, monkeypatch):
    for x in (10, 20, 30):
        run([task(build, 1, x)])
    age()
    delete, left = store.delete, 2

    def failing(key):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        delete(key)

    monkeypatch.setattr(store, "delete", failing)
    with pytest.raises(KeyboardInterrupt):
        collect_garbage(store, keep=1)
    monkeypatch.setattr(store, "delete", delete)
    assert whole(store)[-1] == "v000003"
    collect_garbage(store, keep=1)
    assert whole(store) == ["v000003"]


def test_manifest_that_cannot_be_read_stops_it(run, build, store, age):
    run([task(build, 1)])
    store.put("versions/v000007/manifest.json", b'{"format": "labelloop-dataset/9"}')
    age()
    with pytest.raises(DatasetDamaged, match="labelloop-dataset/9"):
        collect_garbage(store)
    for options in ({"keep": 0}, {"grace_h": -1}):
        with pytest.raises(BadOption):
            find_garbage(store, **options)


def test_command_looks_first_and_deletes_when_told(run, build, store, age, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    run([task(build, 1)])
    run([task(build, 1, 20)])
    age()
    assert dataset_gc(store.url, keep=1) == 0
    text = capsys.readouterr().out
    assert "Would remove 1 version and" in text
    assert "v000001" in text
    assert "--delete" in text
    assert whole(store) == ["v000001", "v000002"]
    assert dataset_gc(store.url, keep=1, delete=True) == 0
    assert "Removed 1 version and" in capsys.readouterr().out
    assert whole(store) == ["v000002"]


@pytest.mark.parametrize("jump_s", [-400 * 86400, 400 * 86400])
def test_wrong_local_clock_does_not_matter(run, build, store, age, monkeypatch, jump_s):
    run([task(build, 1)])
    old, young = ("objects/ab/" + name * 32 for name in ("ab", "cd"))
    store.put(old, b"left by an export that was killed")
    age()
    store.put(young, b"of an export that is at work")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    assert collect_garbage(store).objects == ((old, 33),)
    assert store.exists(young)
    assert whole(store) == ["v000001"]
