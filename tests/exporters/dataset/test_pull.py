"""Pulling into a folder again and again: one version at a time, whole, photos fetched once, nothing else touched."""

import json
import shutil
from pathlib import Path

import pytest

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.errors import DatasetDamaged, ExportError
from labelloop.service.media import Media
from labelloop.service.store import open_store


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".pulled")
    }


@pytest.fixture
def take(run, settings, tmp_path):
    """Pull the newest version of the data set into a folder: ``take("yolo-detect", link=True)``."""
    store = open_store(f"file://{tmp_path / 'set'}", settings)

    def take(*formats: str, to: Path = tmp_path / "pulled", version: str = "latest", photos: bool = True, **options):
        media = Media(settings, None) if photos else None
        try:
            return pull(store, read_version(store, version), to=to, formats=formats, media=media, **options)
        finally:
            if media:
                media.close()

    return take


@pytest.fixture
def two_versions(run, build, photos):
    """Version 1 has a.jpg and b.jpg, version 2 b.jpg and c.jpg."""
    address = {name: photos(name) for name in ("a.jpg", "b.jpg", "c.jpg")}
    numbers = {"a.jpg": 1, "b.jpg": 2, "c.jpg": 3}
    for names in (("a.jpg", "b.jpg"), ("b.jpg", "c.jpg")):
        run(
            [build.task(numbers[name], build.annotation(build.box(1, 1, 5, 5)), image=address[name]) for name in names],
            formats=("coco", "yolo-detect", "webdataset"),
        )


@pytest.mark.parametrize("formats", [("yolo-detect",), ("coco", "yolo-detect", "webdataset")])
def test_later_version_leaves_nothing_of_the_earlier_one(two_versions, take, tmp_path, formats):
    take(*formats, version="1")
    (tmp_path / "pulled/runs").mkdir()
    (tmp_path / "pulled/runs/best.pt").write_bytes(b"weights")
    take(*formats)
    take(*formats, to=tmp_path / "fresh")
    assert files(tmp_path / "pulled") == files(tmp_path / "fresh") | {"runs/best.pt"}
    assert not any("/a." in name for name in files(tmp_path / "pulled"))


def test_formats_are_pulled_one_after_another_into_one_folder(two_versions, take, tmp_path):
    take("coco")
    take("yolo-detect", photos=False)
    assert files(tmp_path / "pulled") >= {
        "annotations/instances_train.json",
        "labels/train/b.txt",
        "images/train/b.jpg",
        "data.yaml",
    }


def test_photos_that_are_there_are_not_fetched_again(two_versions, take, tmp_path, monkeypatch):
    take("coco", "yolo-detect", version="1")
    requested = []
    path = Media.path

    def recorded_path(self, url, **options):
        requested.append(url)
        return path(self, url, **options)

    monkeypatch.setattr(Media, "path", recorded_path)
    take("coco", "yolo-detect")
    assert [url.rpartition("=")[2] for url in requested] == ["c.jpg"]
    assert (tmp_path / "pulled/coco/images/train/b.jpg").read_bytes() == (tmp_path / "photos/b.jpg").read_bytes()


def test_damaged_copy_in_the_folder_is_pulled_again(run, build, photos, take, tmp_path):
    run([build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=photos("a.jpg"))], copy_images=True)
    take("coco")
    photo = tmp_path / "pulled/images/train/a.jpg"
    photo.write_bytes(b"spoiled")
    take("coco")
    assert photo.read_bytes() == (tmp_path / "photos/a.jpg").read_bytes()


def test_what_was_not_pulled_is_not_written_over(two_versions, take, tmp_path):
    (tmp_path / "pulled/images").mkdir(parents=True)
    (tmp_path / "pulled/images/mine.jpg").write_bytes(b"mine")
    with pytest.raises(ExportError, match="images"):
        take("coco")
    assert files(tmp_path / "pulled") == {"images/mine.jpg"}


def test_pull_that_fails_leaves_the_folder_as_it_was(two_versions, take, tmp_path):
    take("coco", version="1")
    before = files(tmp_path / "pulled")
    manifest = json.loads((tmp_path / "set/versions/v000002/manifest.json").read_bytes())
    spoiled = manifest["generations"][-1]["tables"]["coco"][0]["sha256"]
    (tmp_path / f"set/objects/{spoiled[:2]}/{spoiled}").write_bytes(b"x")
    with pytest.raises(DatasetDamaged):
        take("coco")
    assert files(tmp_path / "pulled") == before


def test_what_a_killed_pull_left_does_no_harm(two_versions, take, tmp_path):
    (tmp_path / "pulled/.pulling/labels").mkdir(parents=True)
    (tmp_path / "pulled/.pulling/labels/old.txt").write_text("0 .5 .5 1 1\n")
    take("yolo-detect")
    assert not any("old" in name for name in files(tmp_path / "pulled"))


@pytest.mark.parametrize("copied", [True, False])
def test_photos_of_this_machine_are_linked_when_asked_for(run, build, photos, take, tmp_path, copied):
    run([build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=photos("a.jpg"))], copy_images=copied)
    take("coco", "yolo-detect", link=True)
    for name in ("coco", "yolo-detect"):
        photo = tmp_path / f"pulled/{name}/images/train/a.jpg"
        assert photo.is_symlink()
        assert photo.read_bytes() == (tmp_path / "photos/a.jpg").read_bytes()
    shutil.rmtree(tmp_path / "pulled")
    assert (tmp_path / "photos/a.jpg").is_file()


def test_image_inside_the_task_is_missing_with_a_fix(run, build, take):
    inline = "data:image/png;base64,iVBORw0KGgo="
    run([build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=inline)])
    ((address, reason),) = take("coco").missing
    assert address.startswith("data:image/png;sha256=")
    assert "--copy-images" in reason


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_pull_killed_while_it_moves_files_is_repeated(two_versions, take, tmp_path, monkeypatch, moves):
    take("yolo-detect", version="1")
    replace = Path.replace
    done = []

    def killed(self, target):
        if ".pulling" in self.parts and len(done) == moves:
            raise KeyboardInterrupt
        done.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        take("yolo-detect")
    monkeypatch.undo()
    take("yolo-detect")
    take("yolo-detect", to=tmp_path / "fresh")
    assert files(tmp_path / "pulled") == files(tmp_path / "fresh")
