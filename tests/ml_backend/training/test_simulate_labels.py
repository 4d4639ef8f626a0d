"""`labelloop learn simulate` with folders of classes and with tables of labels, with the embedded model."""

import json

import numpy as np
import pytest
from PIL import Image

from labelloop.cli.main import main
from labelloop.service.settings import Settings
from ml_backend.errors import DatasetUnreadable
from ml_backend.training.labelled_images import read_labelled_folder
from ml_backend.training.simulate_labels import simulate_labels, split_by_hash

COLOURS = {"blue": (30, 60, 220), "red": (220, 30, 30)}


def draw(file, colour, seed):
    rng = np.random.default_rng(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    photo = rng.integers(100, 156, (64, 64, 3)).astype(np.uint8)
    photo[8:56, 8:56] = colour
    Image.fromarray(photo).save(file)


@pytest.fixture
def folders(tmp_path):
    for colour, pixels in COLOURS.items():
        for number in range(6):
            draw(tmp_path / "photos" / colour / f"{number}.png", pixels, number)
    (tmp_path / "photos" / "loose.png").write_bytes((tmp_path / "photos" / "red" / "0.png").read_bytes())
    (tmp_path / "photos" / "red" / "broken.png").write_bytes(b"no image")
    return tmp_path


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main(["learn", "simulate", *(str(word) for word in words)])
    return ended.value.code


def test_folders_of_classes_give_a_curve(folders, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(folders / "home"))
    report = folders / "out.json"
    assert not call("--images", folders / "photos", "--labelled", "2,5", "--seeds", "2", "--json", report)
    answer = json.loads(report.read_text())
    assert answer["metric"] == "accuracy"
    assert answer["classes"] == ["blue", "red"]
    assert {(run["strategy"], run["seed"], run["labelled"]) for run in answer["runs"]} == {
        (strategy, seed, size) for strategy in ("random", "active") for seed in (0, 1) for size in (2, 5)
    }
    assert np.mean([run["score"] for run in answer["runs"] if run["labelled"] == 5]) > 0.9
    output = capsys.readouterr()
    assert "2 classes (red 7, blue 6)" in output.err
    assert "loose.png: it is in no class folder" in output.err
    assert "broken.png" in output.err
    assert "accuracy" in output.out


@pytest.mark.parametrize(
    ("table", "kind", "labels"),
    [
        ("image,labels\na.png,dog|cat\nb.png,dog\nc.png,\n", "multiple", {("cat", "dog"), ("dog",), ()}),
        ("a.png,dog;cat\nb.png,bird\nc.png,dog\n", "multiple", {("cat", "dog"), ("bird",), ("dog",)}),
        ('name,tags\na.png,"dog, cat"\nb.png,dog\nc.png,cat\n', "multiple", {("cat", "dog"), ("dog",), ("cat",)}),
        ("Filenames,dog,cat\na.png,1,1\nb.png,1,0\nc.png,0,0\n", "multiple", {("cat", "dog"), ("dog",), ()}),
        ("a.png,dog\nb.png,cat\nc.png,dog\n", "single", {("dog",), ("cat",)}),
        ("a.png\tdog\nb.png\tcat\nc.png\tdog\n", "single", {("dog",), ("cat",)}),
        ("image;label\na.png;dog\nb.png;cat\nc.png;dog\n", "single", {("dog",), ("cat",)}),
    ],
)
def test_every_form_of_table_is_read(tmp_path, table, kind, labels):
    for name in "abc":
        draw(tmp_path / "photos" / f"{name}.png", (0, 0, 0), 0)
    (tmp_path / "labels.csv").write_text(table)
    found = read_labelled_folder(tmp_path / "photos", tmp_path / "labels.csv", settings=Settings(home=tmp_path))
    assert found.kind == kind
    assert {tuple(sorted(image.labels)) for image in found.images} == labels
    assert not found.problems


def test_test_folders_of_the_data_set_are_for_testing(tmp_path):
    for part in ("train", "test"):
        for colour, pixels in COLOURS.items():
            draw(tmp_path / part / colour / "0.png", pixels, 0)
    found = read_labelled_folder(tmp_path, None, settings=Settings(home=tmp_path))
    assert found.classes == ("blue", "red")
    assert split_by_hash(found.images, 0.3) == {"test/blue/0.png", "test/red/0.png"}


def test_unknown_images_of_a_table_are_named(tmp_path):
    for name in "ab":
        draw(tmp_path / "photos" / f"{name}.png", (0, 0, 0), 0)
    (tmp_path / "labels.csv").write_text("a.png,dog\nb.png,cat\nz.png,cat\n")
    found = read_labelled_folder(tmp_path / "photos", tmp_path / "labels.csv", settings=Settings(home=tmp_path))
    assert [problem.item for problem in found.problems] == ["z.png"]


@pytest.mark.parametrize("table", ["a.png,dog\nb.png,dog\n", "a.png\nb.png\n", ""])
def test_table_without_two_labels_is_refused(tmp_path, table):
    for name in "ab":
        draw(tmp_path / "photos" / f"{name}.png", (0, 0, 0), 0)
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DatasetUnreadable):
        read_labelled_folder(tmp_path / "photos", tmp_path / "labels.csv", settings=Settings(home=tmp_path))


def test_boxes_without_a_test_list_ask_for_one(tmp_path, capsys):
    assert call("--images", tmp_path, "--annotations", tmp_path) == 1
    assert "--test-list" in capsys.readouterr().err


def test_strategies_begin_with_the_same_images(tmp_path):
    from ml_backend.training.labelled_images import ImageWithLabels

    rng = np.random.default_rng(0)
    images = [ImageWithLabels(tmp_path, f"{n:02}", ("ab"[n % 2],)) for n in range(40)]
    features = (np.arange(40)[:, None] % 2 * 3 + rng.normal(0, 1, (40, 12))).astype(np.float32)
    runs = list(
        simulate_labels(
            images, features, test=frozenset(f"{n:02}" for n in range(10)), kind="single", sizes=(2, 12),
            strategies=("random", "active"), seeds=1,
        )
    )  # fmt: skip
    assert runs[0].score == runs[2].score
    assert [run.images for run in runs] == [2, 12, 2, 12]


def test_refused_images_leave_no_home_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    assert call("--images", tmp_path / "none") == 1
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
