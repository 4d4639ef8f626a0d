"""`labelloop learn simulate` from folders to JSON, with the embedded model on generated images."""

import json

import numpy as np
import pytest
from PIL import Image

from labelloop.cli.main import main
from ml_backend.training.datasets import LocalImage
from ml_backend.training.simulate import hash_order


@pytest.fixture
def data(tmp_path):
    """Eight images with a red disc each, and a truncated file. The last two images are the test set."""
    for name in ("images", "boxes"):
        (tmp_path / name).mkdir()
    y, x = np.mgrid[:240, :240]
    for number in range(8):
        rng = np.random.default_rng(number)
        photo = rng.integers(100, 156, (240, 240, 3)).astype(np.uint8)
        cx, cy, radius = (int(value) for value in rng.integers((60, 60, 30), (180, 180, 50)))
        photo[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = (220, 20, 20)
        Image.fromarray(photo).save(tmp_path / "images" / f"{number}.png")
        box = f"0 {cx / 240} {cy / 240} {radius / 120} {radius / 120}"
        (tmp_path / "boxes" / f"{number}.txt").write_text(box)
    (tmp_path / "boxes" / "classes.txt").write_text("disc\n")
    broken = (tmp_path / "images" / "0.png").read_bytes()[:4000]
    (tmp_path / "images" / "broken.png").write_bytes(broken)
    (tmp_path / "boxes" / "broken.txt").write_text("0 .5 .5 .2 .2")
    (tmp_path / "test.txt").write_text("6\n7\n")
    return tmp_path


def call(data, *more):
    words = ["--images", data / "images", "--annotations", data / "boxes", "--test-list", data / "test.txt", *more]
    with pytest.raises(SystemExit) as ended:
        main(["learn", "simulate", *(str(word) for word in words)])
    return ended.value.code


def test_every_strategy_size_and_seed_is_a_run(data, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    assert not call(data, "--labelled", "1,3", "--seeds", "2", "--json", data / "out.json")
    runs = json.loads((data / "out.json").read_text())["runs"]
    keys = [(run["strategy"], run["seed"], run["labelled"]) for run in runs]
    assert keys == [(s, seed, n) for s in ("random", "active") for seed in (0, 1) for n in (1, 3)]
    assert all(
        set(run) == {"strategy", "labelled", "seed", "ap50", "images", "boxes", "seconds", "tiling"} for run in runs
    )
    assert all(run["images"] == run["boxes"] == run["labelled"] for run in runs)
    assert np.mean([run["ap50"] for run in runs if run["labelled"] == 3]) > 0.8
    output = capsys.readouterr()
    assert "broken.png" in output.err
    assert "active" in output.out


def test_random_order_depends_only_on_names_and_seed(tmp_path):
    photos = [LocalImage(tmp_path / str(number), f"{number:03}.png", (), ()) for number in range(60)]
    order = hash_order(photos, seed=3)
    assert hash_order(photos[::-1], seed=3) == order
    assert [photo.name for photo in order[:4]] == ["051.png", "053.png", "010.png", "022.png"]
    assert set(order) == set(photos)
    positions = [photos.index(photo) for photo in order]
    assert abs(np.corrcoef(positions, np.arange(60))[0, 1]) < 0.4
    assert hash_order(photos, seed=4) != order


def test_list_without_a_matching_image_is_an_error(data, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    (data / "test.txt").write_text("unknown\n")
    assert call(data) == 1
    assert "names no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [("--labelled", "0"), ("--labelled", "many"), ("--strategy", "best"), ("--seeds", "0")]
)
def test_invalid_options_are_reported(data, wrong, capsys):
    assert call(data, *wrong) == 1
    assert wrong[1] in capsys.readouterr().err


def test_mismatches_are_reported_and_empty_images_come_first(data, monkeypatch, capsys):
    """A list with unknown names, boxes without an image, and objects on one image in six only."""
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    (data / "test.txt").write_text("6\nimages/7.png\nstranger.png\n")
    (data / "boxes" / "gone.txt").write_text("0 .5 .5 .2 .2")
    for number in range(5):
        (data / "boxes" / f"{number}.txt").write_text("")
    out = data / "out" / "runs.json"
    assert not call(data, "--labelled", "99,1,1", "--seeds", "2", "--strategy", "active, random,random", "--json", out)
    runs = json.loads(out.read_text())["runs"]
    assert [(run["strategy"], run["labelled"], run["images"]) for run in runs] == [
        (strategy, size, min(size, 6)) for strategy in ("active", "random") for _ in range(2) for size in (1, 99)
    ]
    assert {run["boxes"] for run in runs if run["labelled"] == 99} == {1}
    errors = capsys.readouterr().err
    assert all(word in errors for word in ("stranger.png", "gone.txt", "Only 6 images"))


def test_empty_test_set_is_reported_before_training(data, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    for number in (6, 7):
        (data / "boxes" / f"{number}.txt").write_text("")
    assert call(data) == 1
    assert "the images it names have no annotations" in capsys.readouterr().err
    assert call(data, "--json", data) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"another\n", "it names no image"),
        (b"\n".join(b"%d" % number for number in range(8)), "it leaves no annotated image to label"),
    ],
)
def test_unusable_test_list_is_reported_with_a_fix(data, monkeypatch, capsys, listed, message):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    if listed is None:
        (data / "test.txt").unlink()
    else:
        (data / "test.txt").write_bytes(listed)
    assert call(data) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "Give with `--test-list` a text file" in errors.replace("\n", " ")
