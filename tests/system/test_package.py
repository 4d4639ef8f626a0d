"""The wheel: its metadata is what an index takes, and its commands run outside any checkout."""

import json
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes

import pytest
from PIL import Image

from labelloop import VERSION
from tests.drawn import SIDE, draw_shapes

pytestmark = pytest.mark.system

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/></RectangleLabels></View>"""
PACKAGES = ("labelloop", "ml_backend", "exporters", "qc_webhooks")


@pytest.fixture
def outside(tmp_path):
    """Options of a process that knows no checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": env | {"LABELLOOP_HOME": str(tmp_path / "home")}}


@pytest.fixture
def run(installed, outside):
    """run(words...) -> what the installed command prints; it fails unless the command ends with 0."""

    def begin(*words):
        done = subprocess.run(
            [installed.command, *map(str, words)], **outside, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return begin


@pytest.fixture
def labelled(tmp_path):
    """Six drawn photos with labels: a folder of images, one of YOLO files, and an export of Label Studio."""
    images, labels, tasks = tmp_path / "images", tmp_path / "labels", []
    images.mkdir()
    labels.mkdir()
    (labels / "classes.txt").write_text("Disc\nSquare\n")
    for seed in range(6):
        pixels, objects = draw_shapes(seed, ("Disc", "Square"))
        Image.fromarray(pixels).save(images / f"{seed}.png")
        regions, rows = [], []
        for label, (x0, y0, x1, y1) in objects:
            share = [(x0 + x1) / 2 / SIDE, (y0 + y1) / 2 / SIDE, (x1 - x0) / SIDE, (y1 - y0) / SIDE]
            rows.append(" ".join(map(str, [0 if label == "Disc" else 1, *share])))
            value = {"x": 100 * x0 / SIDE, "y": 100 * y0 / SIDE, "width": 100 * share[2], "height": 100 * share[3]}
            value |= {"rotation": 0, "rectanglelabels": [label]}
            names = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
            regions.append({"id": label, **names, "value": value, "original_width": SIDE, "original_height": SIDE})
        (labels / f"{seed}.txt").write_text("\n".join(rows))
        answers = [{"id": 10 * seed + one, "completed_by": one, "result": regions} for one in (1, 2)]
        tasks.append({"id": seed + 1, "data": {"image": str(images / f"{seed}.png")}, "annotations": answers})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (tmp_path / "config.xml").write_text(CONFIG)
    return tmp_path


def test_an_index_takes_the_metadata(installed):
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", installed.wheel], check=True)
    with zipfile.ZipFile(installed.wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        said = message_from_bytes(archive.read(metadata))
        needed, readme = said.get_all("Requires-Dist"), said.get_payload()
        assert f"](https://github.com/labelloop/labelloop/raw/v{VERSION}/docs/images/prelabels.png)" in readme
        assert re.findall(r"\]\((?!https:)[^)]*", readme) == []  # an index resolves no relative link
        assert [need for need in needed if "@" in need] == []  # no direct URL
        assert {f"{package}/py.typed" for package in PACKAGES} <= set(archive.namelist())


def test_every_package_comes_from_the_wheel(installed, outside):
    code = f"import {', '.join(PACKAGES)}; print({', '.join(f'{package}.__file__' for package in PACKAGES)}, sep='\\n')"
    done = subprocess.run([installed.python, "-c", code], **outside, capture_output=True, text=True, check=True)
    assert all(line.startswith(str(installed.python.parents[1])) for line in done.stdout.splitlines())


def test_a_model_is_inspected(run):
    assert "Layout:   labelloop" in run("models", "inspect")


def test_learning_is_simulated(run, labelled):
    (labelled / "test.txt").write_text("4\n5\n")
    folders = ["--images", labelled / "images", "--annotations", labelled / "labels"]
    listed = ["--test-list", labelled / "test.txt", "--json", labelled / "runs.json"]
    run("learn", "simulate", *folders, *listed, "--labelled", "2", "--seeds", "1", "--strategy", "random")
    (found,) = json.loads((labelled / "runs.json").read_text())["runs"]
    assert found["images"] == 2


def test_a_data_set_is_exported(run, labelled):
    config = ["--label-config", labelled / "config.xml"]
    run("export", labelled / "export.json", *config, "--format", "coco", "--to", labelled / "out", "--split", "train=1")
    written = json.loads((labelled / "out/latest/coco/annotations/instances_train.json").read_text())
    assert len(written["annotations"]) == 12


def test_quality_is_reported(run, labelled):
    config = ["--label-config", labelled / "config.xml"]
    run("qc", "report", "--from", labelled / "export.json", *config, "--json", labelled / "report.json")
    assert len(json.loads((labelled / "report.json").read_text())["tasks"]) == 6
