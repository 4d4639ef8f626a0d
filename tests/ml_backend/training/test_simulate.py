"""`labelloop learn simulate` from folders to JSON, with the embedded model on photos drawn here."""

import json

import numpy as np
import pytest
from PIL import Image

from labelloop.cli.main import main
from ml_backend.training.datasets import LabelledPhoto
from ml_backend.training.simulate import by_name


@pytest.fixture
def data(tmp_path):
    """Eight photos with a red disc each; one more is cut short. The last two are the test."""
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
    seen = [(run["strategy"], run["seed"], run["labelled"]) for run in runs]
    assert seen == [(s, seed, n) for s in ("random", "active") for seed in (0, 1) for n in (1, 3)]
    assert all(set(run) == {"strategy", "labelled", "seed", "ap50", "images", "boxes", "seconds"} for run in runs)
    assert all(run["images"] == run["boxes"] == run["labelled"] for run in runs)
    assert np.mean([run["ap50"] for run in runs if run["labelled"] == 3]) > 0.8
    shown = capsys.readouterr()
    assert "broken.png" in shown.err
    assert "active" in shown.out


def test_the_order_by_chance_hangs_on_names_and_seed_alone(tmp_path):
    photos = [LabelledPhoto(tmp_path / str(number), f"{number:03}.png", (), ()) for number in range(60)]
    order = by_name(photos, seed=3)
    assert by_name(photos[::-1], seed=3) == order
    assert [photo.name for photo in order[:4]] == ["051.png", "053.png", "010.png", "022.png"]
    assert set(order) == set(photos)
    places = [photos.index(photo) for photo in order]
    assert abs(np.corrcoef(places, np.arange(60))[0, 1]) < 0.4
    assert by_name(photos, seed=4) != order


def test_a_list_that_names_no_photo_is_an_error(data, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    (data / "test.txt").write_text("nobody\n")
    assert call(data) == 1
    assert "names none of the photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [("--labelled", "0"), ("--labelled", "many"), ("--strategy", "best"), ("--seeds", "0")]
)
def test_wrong_options_are_said(data, wrong, capsys):
    assert call(data, *wrong) == 1
    assert wrong[1] in capsys.readouterr().err


def test_what_does_not_meet_is_told_and_a_photo_without_objects_can_be_the_first(data, monkeypatch, capsys):
    """A list that names strangers, boxes without a photo, and only one photo in six with anything on it."""
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
    told = capsys.readouterr().err
    assert all(word in told for word in ("stranger.png", "gone.txt", "6 photos to label"))


def test_nothing_to_judge_on_is_said_before_the_work(data, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    for number in (6, 7):
        (data / "boxes" / f"{number}.txt").write_text("")
    assert call(data) == 1
    assert "nothing is drawn on the photos that it names" in capsys.readouterr().err
    assert call(data, "--json", data) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"another\n", "it names none of the photos"),
        (b"\n".join(b"%d" % number for number in range(8)), "it leaves no photo to label"),
    ],
)
def test_a_test_list_that_cannot_be_used_says_what_is_to_be_given(data, monkeypatch, capsys, listed, said):
    monkeypatch.setenv("LABELLOOP_HOME", str(data / "home"))
    if listed is None:
        (data / "test.txt").unlink()
    else:
        (data / "test.txt").write_bytes(listed)
    assert call(data) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "Give with `--test-list` a text file" in told.replace("\n", " ")
