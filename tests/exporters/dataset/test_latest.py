"""latest/ equals the published version, whatever was killed, changed by hand, or ran at the same time."""

import hashlib
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from pycocotools.coco import COCO

from exporters.dataset import mirror
from exporters.dataset.latest import read_latest, update_latest
from exporters.dataset.versions import read_head, read_version
from exporters.pipeline.export import export
from exporters.validate.issues import IssueReport
from exporters.validate.latest import check_latest
from exporters.validate.version import verify
from labelloop.service.store import ObjectNotFound, open_store
from tests.bare_s3 import BareS3

FORMATS = ("coco", "voc", "yolo-detect")
SPLIT = "train=.7,val=.3"


class Killed(BaseException):
    pass


def tasks_of(build, count, *, moved=()):
    return [
        build.task(n, build.annotation(build.box(20 if n in moved else 10, 10, 20, 20), number=n))
        for n in range(1, count + 1)
    ]


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def issues_of(store):
    report = IssueReport()
    check_latest(store, report)
    return [(issue.flaw, issue.file) for issue in report.issues]


@pytest.fixture
def store(tmp_path, settings):
    return open_store(f"file://{tmp_path / 'set'}", settings)


@pytest.fixture
def no_waits(monkeypatch):
    """One exporter at a time: nobody to wait for."""
    monkeypatch.setattr("labelloop.service.store.s3_conditional_writes.SETTLE_S", 0.0)
    monkeypatch.setattr("labelloop.service.store.s3_conditional_writes._SETTLE_TIMES", 0.0)


@pytest.fixture
def to_s3(bare_s3, tmp_path, no_waits):
    """Export tasks to a server in this process; gives (report, objects written, removed, copied by the server)."""
    settings = bare_s3.settings(tmp_path / "home", local_files_root=tmp_path / "photos")

    def to_s3(tasks, **options):
        file = tmp_path / "export.json"
        file.write_text(json.dumps(tasks))
        bare_s3.asked.clear()
        options = {"formats": FORMATS, "split": SPLIT, "fetch": False} | options
        report = export(file, settings=settings, to="s3://bucket/set", **options)
        loose = [(method, key) for method, key, _ in bare_s3.asked if key.startswith("set/latest/")]
        written = {key.removeprefix("set/latest/") for method, key in loose if method == "PUT"}
        return report, written, [key for method, key in loose if method == "DELETE"]

    to_s3.store = open_store("s3://bucket/set", settings)
    return to_s3


def test_folder_on_disk_is_plain_files_after_one_export(run, build):
    out = run(tasks_of(build, 8), split=SPLIT)
    latest, version = out.root / "latest", out.root / "versions/v000001"
    assert files_of(version) == {
        "README.md", "report.html", "images.jsonl", "dropped.jsonl", "manifest.json", "voc.zip", "yolo-detect.zip",
        "coco/annotations/instances_train.json", "coco/annotations/instances_val.json",
    }  # fmt: skip
    images = [json.loads(line) for line in (latest / "images.jsonl").read_bytes().splitlines()]
    labels = {f"yolo-detect/labels/{image['split']}/{image['file_name'][:-4]}.txt" for image in images}
    pages = {f"voc/Annotations/{image['file_name'][:-4]}.xml" for image in images}
    assert labels | pages <= files_of(latest)
    assert len(labels) == len(pages) == 8
    assert files_of(latest) >= {"README.md", "report.html", "VERSION.json", "yolo-detect/data.yaml", "voc/labelmap.txt"}
    for name in ("coco/annotations/instances_train.json", "report.html", "dropped.jsonl"):
        assert (latest / name).read_bytes() == (version / name).read_bytes()
    assert len(COCO(str(latest / "coco/annotations/instances_train.json")).imgs) == out.report.images["train"]
    for name in ("voc", "yolo-detect"):
        with zipfile.ZipFile(version / f"{name}.zip") as archive:
            packed = {f"{name}/{path}": archive.read(path) for path in archive.namelist()}
        assert packed == {
            path: (latest / path).read_bytes() for path in files_of(latest) if path.startswith(f"{name}/")
        }
    state = json.loads((latest / "VERSION.json").read_bytes())
    assert (state["state"], state["version"], state["files"]) == ("complete", "v000001", len(files_of(latest)) - 1)


def test_plain_folders_are_those_of_a_pull(run, build):
    out = run(
        tasks_of(build, 6), split=SPLIT, formats=(*FORMATS, "yolo-segment", "webdataset", "ndjson-obb", "voc-masks")
    )
    pulled = out.files()
    latest = {path: (out.root / "latest" / path).read_bytes() for path in files_of(out.root / "latest")}
    assert {path: data for path, data in pulled.items() if not path.startswith(".")} == {
        path: data for path, data in latest.items() if path not in {"README.md", "report.html", "VERSION.json"}
    }


def test_archives_of_one_version_have_the_same_bytes(run, build):
    tasks = tasks_of(build, 20)
    first, again = run(tasks, split=SPLIT), run(tasks, split=SPLIT, to="other", workers=2)
    for name in ("voc.zip", "yolo-detect.zip"):
        assert (first.manifest_path.parent / name).read_bytes() == (again.manifest_path.parent / name).read_bytes()


def test_parts_are_switched_off(run, build):
    out = run(tasks_of(build, 3), latest=False)
    assert (out.root / "versions/v000001/voc.zip").is_file()
    assert not (out.root / "latest").exists()
    out = run(tasks_of(build, 3), archives=False, to="other")
    assert files_of(out.root / "versions") == {"v000001/manifest.json"}
    assert (out.root / "latest/voc/Annotations").is_dir()
    assert out.report.archives == []
    out = run(tasks_of(build, 3), archives=False, latest=False, to="bare")
    assert {path.name for path in out.root.iterdir()} == {
        "HEAD.json",
        "classes.json",
        "objects",
        "versions",
        ".labelloop",
    }


def test_only_changed_files_are_sent_and_removed_ones_deleted(to_s3, build):
    report, written, removed = to_s3(tasks_of(build, 40))
    assert report.latest_files["written"] == len(written) - 1  # and VERSION.json
    assert not removed
    report, written, removed = to_s3(tasks_of(build, 40, moved=(7,))[:39])
    labels = {path for path in written if "/labels/" in path or "/Annotations/" in path}
    assert {path.rpartition("/")[2] for path in labels} == {"7.txt", "7.xml"}
    assert {path.rpartition("/")[2] for path in removed} == {"40.txt", "40.xml"}
    assert report.latest_files["unverified"] == 0
    assert issues_of(to_s3.store) == []


def test_the_whole_needs_few_requests_beside_the_loose_files(to_s3, build, bare_s3):
    to_s3(tasks_of(build, 60))
    to_s3(tasks_of(build, 60))
    assert len(bare_s3.asked) < 60  # of 120 loose files none changed


def test_images_lie_once_and_are_linked(run, build, photos):
    tasks = [
        build.task(n, build.annotation(build.box(1, 1, 5, 5)), image=photos(f"{n}.jpg", 64, 48 + n)) for n in (1, 2)
    ]
    out = run(tasks, copy_images=True, formats=(*FORMATS, "webdataset"))
    places = [
        out.root / "latest" / place for place in ("coco/images/train", "voc/JPEGImages", "yolo-detect/images/train")
    ]
    for number in (1, 2):
        stats = {(place / f"{number}.jpg").stat().st_ino for place in places}
        assert len(stats) == 1
        assert (places[0] / f"{number}.jpg").stat().st_nlink == 4  # and the object
    with zipfile.ZipFile(out.manifest_path.parent / "yolo-detect.zip") as archive:
        assert archive.testzip() is None
        assert {name for name in archive.namelist() if name.startswith("images/")} == {
            "images/train/1.jpg",
            "images/train/2.jpg",
        }
    assert (out.root / "latest/webdataset/train-000000.tar").stat().st_size > sum(
        (places[0] / f"{number}.jpg").stat().st_size for number in (1, 2)
    )
    again = run(tasks, copy_images=True, formats=(*FORMATS, "webdataset"))
    assert again.report.latest_files["written"] <= 2  # README.md and report.html have a date


def test_images_are_copied_by_the_server_and_once(to_s3, build, photos, bare_s3):
    tasks = [
        build.task(n, build.annotation(build.box(1, 1, 5, 5)), image=photos(f"{n}.jpg", 64, 48 + n)) for n in (1, 2)
    ]
    to_s3(tasks, copy_images=True, split="train=1")
    data = (photos.__closure__, bare_s3.objects["set/latest/yolo-detect/images/train/1.jpg"][0])[1]
    assert f"set/objects/{hashlib.sha256(data).hexdigest()[:2]}/{hashlib.sha256(data).hexdigest()}" in bare_s3.objects
    _, written, _ = to_s3(tasks, copy_images=True, split="train=1")
    assert not [path for path in written if path.endswith(".jpg")]
    assert issues_of(to_s3.store) == []


def test_classify_places_images_in_the_folders_of_their_classes(run, build, config, photos):
    tasks = [
        build.task(
            n,
            build.annotation(build.result("choices", {"choices": [day]}, from_name="weather")),
            image=photos(f"{n}.jpg", 64, 48 + n),
        )
        for n, day in ((1, "day"), (2, "night"))
    ]
    out = run(tasks, copy_images=True, formats=("yolo-classify",), label_config=config("car"))
    assert files_of(out.root / "latest/yolo-classify") == {"labels.csv", "train/day/1.jpg", "train/night/2.jpg"}
    with zipfile.ZipFile(out.manifest_path.parent / "yolo-classify.zip") as archive:
        assert set(archive.namelist()) == {"labels.csv", "train/day/1.jpg", "train/night/2.jpg"}


@pytest.mark.parametrize("opaque", ["parts", "kms"])
def test_etags_that_are_no_checksums_do_not_send_everything_again(to_s3, build, photos, bare_s3, opaque, tmp_path):
    bare_s3.opaque = opaque
    pictures = {n: photos(f"{n}.jpg", 64, 40 + n) for n in range(1, 6)}
    bare_s3.objects["mine/6.jpg"] = ((tmp_path / "photos/5.jpg").read_bytes(), "", 0.0)  # the server copies it
    pictures[6] = "s3://bucket/mine/6.jpg"

    def tasks(moved):
        return [
            build.task(n, build.annotation(build.box(20 if n == moved else 10, 10, 20, 20)), image=url)
            for n, url in pictures.items()
        ]

    to_s3(tasks(0), copy_images=True)
    assert [key for key in bare_s3.objects if key.startswith("set/photos/")]
    report, written, _ = to_s3(tasks(2), copy_images=True)
    assert issues_of(to_s3.store) == []
    assert not verify(to_s3.store)[1]
    loose = {path.rpartition("/")[2] for path in written if "/labels/" in path or "/Annotations/" in path}
    assert loose == {"2.txt", "2.xml"}
    assert not [path for path in written if path.endswith(".jpg")]
    assert report.latest_files["unverified"] <= 8  # the large files that changed, README.md and report.html


@pytest.mark.parametrize("damage", ["changed", "deleted", "added", "half"])
def test_damage_is_found_and_repaired(run, build, store, damage, tmp_path):
    out = run(tasks_of(build, 4))
    label = out.root / "latest/yolo-detect/labels/train/2.txt"
    place, flaw = label, "latest-file"
    if damage == "changed":
        label.write_text("0 .1 .1 .2 .2\n")
    elif damage == "deleted":
        label.unlink()
    elif damage == "added":
        place = label.with_name("mine.txt")
        place.write_text("0 .1 .1 .2 .2\n")
    else:
        place, flaw = out.root / "latest/VERSION.json", "latest-state"
        place.write_bytes(place.read_bytes().replace(b"complete", b"updating"))
    assert issues_of(store) == [(flaw, place.relative_to(out.root).as_posix())]
    update = update_latest(store, scratch=tmp_path, check=True)
    assert issues_of(store) == []
    assert update.counts.written + update.counts.removed == (damage != "half")


@pytest.mark.parametrize("kept", range(0, 30, 3))
def test_killed_update_is_repaired_by_the_next_export(run, build, store, monkeypatch, kept):
    run(tasks_of(build, 6), formats=FORMATS)
    left = kept

    def dying(function):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("_write", "_copy_file", "_link_file"):
            patch.setattr(mirror, name, dying(getattr(mirror, name)))
        patch.setattr(mirror, "sync_disk", dying(mirror.sync_disk))
        try:
            run(tasks_of(build, 5, moved=range(1, 7)), formats=FORMATS)
        except Killed:
            state = read_latest(store)
            assert (state.state, state.version, state.previous) == ("updating", "v000002", "v000001")
            assert read_head(store)[0].version == "v000002"  # published all the same
            assert verify(store, "v000002")[1].issues == []
    run(tasks_of(build, 5, moved=(1,)), formats=FORMATS)
    assert read_latest(store).version == "v000003"
    assert issues_of(store) == []


def test_a_file_of_a_killed_write_is_made_whole(run, build, store):
    out = run(tasks_of(build, 3))
    os.truncate(out.root / "latest/voc/Annotations/1.xml", 20)
    run(tasks_of(build, 3))
    assert issues_of(store) == []


@pytest.mark.parametrize("places", ["folder", "bucket"])
def test_exporters_at_once_leave_no_mixture(places, build, tmp_path, settings):
    with BareS3("begin", slow_s=0.01) as server, ThreadPoolExecutor(3) as threads:
        if places == "bucket":
            settings = server.settings(tmp_path / "home")
        to = "s3://bucket/set" if places == "bucket" else f"file://{tmp_path / 'set'}"

        def one(number):
            file = tmp_path / f"{number}.json"
            file.write_text(json.dumps(tasks_of(build, 6 + number, moved=(number,))))
            return export(file, settings=settings, to=to, formats=FORMATS, fetch=False, split=SPLIT, allow_shrink=True)

        reports = list(threads.map(one, range(1, 4)))
        store = open_store(to, settings)
        newest = max(report.version for report in reports)
        assert all(report.published and not report.warnings for report in reports)
        assert read_head(store)[0].version == newest == read_latest(store).version
        assert issues_of(store) == []
        for report in reports:
            assert verify(store, report.version)[1].issues == []


def test_version_that_is_not_published_does_not_touch_it(run, build, store):
    run(tasks_of(build, 4))
    refused = run([*tasks_of(build, 4)[:3], build.task(4, build.annotation(build.box(300, 1, 5, 5)))], max_errors=0.0)
    assert not refused.report.published
    assert refused.report.latest is None
    assert (refused.manifest_path.parent / "report.html").is_file()
    assert read_latest(store).version == "v000001"
    assert issues_of(store) == []


def test_failure_of_the_update_is_said_and_the_version_published(run, build, monkeypatch):
    monkeypatch.setattr(
        mirror, "_write", lambda path, data: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    report = run(tasks_of(build, 3)).report
    assert report.published
    assert report.latest == ""
    assert "labelloop dataset latest file://" in report.warnings[0]
    assert "No space left" in report.warnings[0]


def test_data_set_of_an_earlier_release_is_carried_on(run, build, store):
    old = run(tasks_of(build, 5), archives=False, latest=False)
    assert old.report.written.tasks == 5
    new = run(tasks_of(build, 5, moved=(1,)))
    assert new.report.written.tasks == 1
    assert issues_of(store) == []
    assert len(read_version(store, "1").files) == 0
    with pytest.raises(ObjectNotFound):
        store.get("versions/v000001/README.md")
