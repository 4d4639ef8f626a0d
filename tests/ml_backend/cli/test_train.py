"""`labelloop train` without torch, with wrong options, and what it reads."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from labelloop.cli.main import main
from labelloop.service.settings import Settings
from ml_backend.cli.train import print_result
from ml_backend.errors import DatasetUnreadable
from ml_backend.finetune.data import TrainingData, read_training_data
from ml_backend.finetune.pictures import split
from ml_backend.finetune.run import Finetuned
from ml_backend.finetune.scores import Score
from ml_backend.finetune.torch_parts import PARTS
from ml_backend.training.datasets import LocalImage


@pytest.fixture
def labelled(tmp_path):
    """A COCO file beside its images."""
    folder = tmp_path / "cars"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(6):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 40, "height": 30})
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": [1, 2, 10, 12], "area": 120})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def without_torch(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in PARTS else found(name, *rest))


def test_without_torch_it_says_how_to_install_it(monkeypatch, capsys, tmp_path, labelled):
    without_torch(monkeypatch)
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", str(labelled), "--out", str(tmp_path / "out.onnx")])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "pip install 'labelloop[train]'" in said
    assert "GB" in said
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give a project or a data set"),
        (["7", "--data", "x"], "Give a project or a data set"),
        (["--data", "x"], "no file to write"),
        (["--data", "x", "--out", "model.pt"], "not an ONNX file"),
        (["--data", "x", "--out", "a.onnx", "--minutes", "0"], "not above 0"),
        (["--data", "x", "--out", "a.onnx", "--json", "a.json"], "class names of a.onnx"),
        (["--data", "x", "--out", "/dev/null/a.onnx"], "--out /dev/null/a.onnx cannot be written"),
        (["--data", "x", "--out", "{tmp}/folder.onnx"], "it is a folder"),
        (["--data", "x", "--out", "{tmp}/a.onnx", "--json", "/dev/null/b.json"], "--json /dev/null/b.json cannot"),
    ],
)
def test_wrong_options_are_named(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("ml_backend.cli.train.require_torch", lambda: None)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["train", *(word.format(tmp=tmp_path) for word in words)])
    assert ended.value.code == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_sixty_classes_are_read_in_the_table(capsys):
    names = tuple(f"class-{number}" for number in range(60))
    scores = {
        model: Score(0.5, {name: number / 60 for number, name in enumerate(names[1:], 1)})
        for model in ("parent", "refit", "fine-tuned", "fine-tuned, refitted")
    }
    training = SimpleNamespace(ended="budget", steps=10, seen=80, seconds=60.0)
    print_result(Finetuned(training, scores, 12, 60, 100, names, (), 0.0, ()))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(" class-")}
    assert rows["class-0"] == ["-"] * 4, "none of its boxes is evaluated"
    assert rows["class-6"] == ["0.100"] * 4
    assert any("40 more classes" in line for line in lines)
    assert "…" not in "".join(lines)


def test_nothing_but_the_finetune_package_imports_torch():
    root = Path(__file__).parents[3]
    allowed = {"finetune", "cli"}
    for package in ("labelloop", "ml_backend", "exporters", "qc_webhooks"):
        for file in (root / package).rglob("*.py"):
            lines = file.read_text(encoding="utf-8").splitlines()
            imports = [line for line in lines if line.strip().startswith(("import torch", "from torch"))]
            assert not imports or allowed & set(file.parts), file
            if imports and "cli" in file.parts:
                assert all(line.startswith("    ") for line in imports), file


def test_a_folder_is_read_with_its_version(labelled):
    data = read_training_data(str(labelled / "labels.json"), settings=Settings())
    assert (len(data.images), data.boxes, data.classes) == (6, 6, ("car",))
    again = read_training_data(str(labelled / "labels.json"), images=labelled / "images", settings=Settings())
    assert len(again.images) == 6
    content = json.loads((labelled / "labels.json").read_text())
    content["annotations"][0]["bbox"][0] = 3
    (labelled / "labels.json").write_text(json.dumps(content))
    assert read_training_data(str(labelled / "labels.json"), settings=Settings()).version != data.version


def test_a_packed_data_set_is_refused_with_the_fix(tmp_path):
    (tmp_path / "cars.zip").write_bytes(b"PK")
    with pytest.raises(DatasetUnreadable) as refused:
        read_training_data(str(tmp_path / "cars.zip"), settings=Settings())
    assert "Unpack it" in str(refused.value.fix)


def picture(name):
    return LocalImage(Path(name), name, ((0.0, 0.0, 1.0, 1.0),), ("a",))


def test_the_held_out_tenth_is_the_same_whatever_the_order():
    images = [picture(f"{index}.png") for index in range(100)]
    trained, held = split(images, seed=3)
    assert (len(trained), len(held)) == (90, 10)
    assert {image.name for image in split(images[::-1], seed=3)[1]} == {image.name for image in held}
    assert {image.name for image in split(images, seed=4)[1]} != {image.name for image in held}


def test_the_data_sets_own_test_folders_are_not_trained_on():
    names = ["train/a.png", "images/val/b.png", "c.png", "valid/d.png", "test2017/e.png"]
    data = TrainingData(tuple(map(picture, names)), "", "", ())
    trained, tested = data.by_split()
    assert [image.name for image in trained] == ["train/a.png", "c.png"]
    assert len(tested) == 3
    only = TrainingData((picture("val/a.png"),), "", "", ())
    assert only.by_split() == (list(only.images), [])


def test_few_images_are_all_trained_on():
    images = [picture(f"{index}.png") for index in range(20)]
    assert len(split(images[:9], seed=0)[1]) == 0
    assert len(split(images, seed=0)[1]) == 2
    assert len(split(images, seed=0, only_to_decide=True)[1]) == 0
