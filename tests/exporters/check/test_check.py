"""`labelloop dataset check` on folders and on versions: what it finds, says, draws, and its exit status."""

import json

import pytest
from PIL import Image

from exporters.check import run as run_module
from exporters.check.images import folder_dataset
from exporters.check.opinion import Objection
from exporters.check.run import check
from labelloop.cli.check import dataset_check
from tests.accessibility import faults
from tests.exporters.look.look_images import CHANGES, drawn, encoded


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))


@pytest.fixture
def yolo(tmp_path):
    """A YOLO folder: (split, name, bytes) -> the folder."""

    def yolo(*images):
        root = tmp_path / "yolo"
        root.mkdir(exist_ok=True)
        (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car]\n")
        for split, name, data in images:
            for folder, file, content in (
                ("images", f"{name}.jpg", data),
                ("labels", f"{name}.txt", b"0 0.5 0.5 0.2 0.2\n"),
            ):
                path = root / folder / split / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return root

    return yolo


def clean(number=24):
    return [("train" if n % 4 else "val", f"{n}", encoded(drawn(n))) for n in range(number)]


def found(folder, tmp_path, **options):
    """(exit status, JSON) of a check."""
    path = tmp_path / "check.json"
    status = dataset_check(str(folder), json=path, **options)
    return status, json.loads(path.read_bytes())


def test_good_folder_has_no_findings(yolo, tmp_path, capsys):
    status, report = found(yolo(*clean()), tmp_path, strict=True)
    assert (status, report["counts"]) == (0, {})
    assert report["splits"] == {"train": 18, "val": 6}
    assert "nothing found" in capsys.readouterr().out


def test_twin_in_another_split_is_an_error(yolo, tmp_path, capsys):
    folder = yolo(*clean(), ("val", "copy", CHANGES["all of it"](drawn(1))))
    status, report = found(folder, tmp_path)
    assert status == 1
    assert report["counts"] == {"twins-across-splits": 1}
    assert [image["name"] for image in report["findings"][0]["images"]] == [
        "images/train/1.jpg",
        "images/val/copy.jpg",
    ]
    assert "images/train/1.jpg (train) = images/val/copy.jpg (val)" in capsys.readouterr().out


def test_twin_in_one_split_is_a_warning(yolo, tmp_path):
    folder = yolo(*clean(), ("train", "copy", CHANGES["grey"](drawn(1))))
    assert found(folder, tmp_path)[0] == 0
    status, report = found(folder, tmp_path, strict=True)
    assert (status, report["counts"]) == (1, {"twins": 1})


def test_mirrored_twin_is_found_on_request(yolo, tmp_path):
    flipped = drawn(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    folder = yolo(*clean(), ("val", "copy", encoded(flipped)))
    assert found(folder, tmp_path)[1]["counts"] == {}
    assert found(folder, tmp_path, mirror=True)[1]["counts"] == {"twins-across-splits": 1}


def test_unreadable_and_blank_images_are_said(yolo, tmp_path):
    blank = Image.new("RGB", (320, 240), (9, 9, 9))
    folder = yolo(*clean(), ("train", "damaged", b"no image"), ("train", "blank", encoded(blank)))
    status, report = found(folder, tmp_path)
    assert status == 1
    assert report["counts"] == {"image-unreadable": 1, "image-blank": 1}


def test_next_check_reads_new_images_only(yolo, tmp_path):
    looked_at = found(yolo(*clean()), tmp_path)[1]["looked_at"]
    assert looked_at["images read"] == 24
    assert "images read by earlier checks" not in looked_at
    report = found(yolo(("val", "copy", CHANGES["darker"](drawn(1)))), tmp_path)[1]
    looked_at = report["looked_at"]
    assert looked_at["images"] == 25
    assert (looked_at["images read"], looked_at["images read by earlier checks"]) == (1, 24)
    assert report["counts"] == {"twins-across-splits": 1}


def test_stopped_check_keeps_what_it_read(yolo, tmp_path, monkeypatch):
    folder = yolo(*clean())
    monkeypatch.setattr("exporters.look.cache._WRITTEN", 4)
    reading = run_module.read_fingerprints

    def stopped(*arguments, **options):
        for number, outcome in enumerate(reading(*arguments, **options)):
            if number == 10:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(run_module, "read_fingerprints", stopped)
    with pytest.raises(KeyboardInterrupt):
        found(folder, tmp_path)
    monkeypatch.setattr(run_module, "read_fingerprints", reading)
    assert found(folder, tmp_path)[1]["looked_at"]["images read"] == 16


def test_without_images_labels_are_checked_and_it_is_said(yolo, tmp_path):
    report = found(yolo(*clean(), ("val", "copy", encoded(drawn(1)))), tmp_path, images=False)[1]
    assert report["counts"] == {}
    assert any("not read" in note for note in report["notes"])


def test_version_is_checked_with_the_images_of_its_tasks(run, build, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_LOCAL_FILES_ROOT", str(settings.local_files_root))
    settings.local_files_root.mkdir()

    def task(number, data, split):
        (settings.local_files_root / f"{number}.jpg").write_bytes(data)
        url = f"/data/local-files/?d={number}.jpg"
        return build.task(number, build.annotation(build.box(10, 10, 30, 30)), image=url, split=split)

    tasks = [task(number, encoded(drawn(number)), "train") for number in range(1, 6)]
    tasks.append(task(6, CHANGES["crop of 3 %"](drawn(2)), "val"))
    exported = run(tasks, formats=("coco", "voc"), split="train=.5,val=.5", split_key="split")
    out = tmp_path / "page" / "report.html"
    status, report = found(exported.root, tmp_path, out=out)
    assert status == 1
    assert report["counts"]["twins-across-splits"] == 1
    assert [image["task"] for image in report["findings"][0]["images"]] == [2, 6]
    # labels are for 640 x 360, the images are 320 x 240
    assert report["counts"]["image-size"] == 6
    assert list((exported.root / "look").iterdir())
    page = out.read_text()
    assert page.count("<h2") > 3
    assert page.count("data:image/jpeg") >= 4
    assert found(exported.root, tmp_path)[1]["looked_at"]["images read"] == 0


def test_page_of_a_folder_is_self_contained_and_escapes_names(yolo, tmp_path):
    name = "<script>alert(1)<"
    folder = yolo(*clean(8), ("val", name, CHANGES["darker"](drawn(1))))
    out = tmp_path / "check.html"
    found(folder, tmp_path, out=out)
    page = out.read_text()
    assert "<script" not in page
    assert "&lt;script" in page
    assert page.count("data:image/jpeg") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert faults(page) == []


class Contrary:
    """A model that contradicts the first label that it sees."""

    max_side = 64

    def __init__(self, max_images: int = 100) -> None:
        self.max_images = max_images
        self.seen: list = []

    def review(self, images):
        self.seen = list(images)
        first = self.seen[0]
        return [Objection(first.position, "another class: bus", 0.7, (1.0, 2.0, 30.0, 40.0))], ["some are withheld"]


def test_labels_that_a_model_contradicts_are_reported(yolo, tmp_path, settings):
    model = Contrary()
    report = check(folder_dataset(str(yolo(*clean())), settings), settings, second_opinion=model)
    assert len(model.seen) == 24
    assert max(model.seen[0].image.pixels.shape) == 64
    assert model.seen[0].boxes.tolist() == [[128.0, 96.0, 192.0, 144.0]]
    assert report.counts == {"label-issue": 1}
    assert report.examples("label-issue")[0].images[0].name == "images/train/1.jpg"
    assert report.notes == ["some are withheld"]


def test_model_reviews_a_sample_of_a_large_data_set(yolo, tmp_path, settings):
    model = Contrary(max_images=5)
    report = check(folder_dataset(str(yolo(*clean())), settings), settings, second_opinion=model)
    assert len(model.seen) == 5
    assert "sample of 5 images" in report.notes[-1]


def test_twin_outside_the_splits_is_no_leak(yolo, tmp_path):
    folder = yolo(*clean(), ("spare", "copy", CHANGES["grey"](drawn(1))))
    assert found(folder, tmp_path)[1]["counts"] == {"twins": 1}
