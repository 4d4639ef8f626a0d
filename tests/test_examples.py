"""Each example runs as its README says, and shows what it is for."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(tmp_path):
    """run(name) -> what the example prints; its files lie in `tmp_path`."""
    ours = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "LABELLOOP_HOME": str(tmp_path / "home"),
    }

    def begin(name):
        done = subprocess.run(
            ["sh", EXAMPLES / name / "run.sh", tmp_path],
            env=os.environ | ours,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return begin


def test_every_example_is_in_the_readme():
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"({script.parent.name}/run.sh)" in readme for script in EXAMPLES.glob("*/run.sh"))


def test_own_detector_is_served_by_its_layout_file(run):
    shown = run("own-detector")
    assert "red  at 48 48 96 96" in shown
    assert "blue  at 160 160 208 208" in shown
    assert "2 detections" in shown


def test_quality_offline_names_the_careless_annotator(run, tmp_path):
    shown = run("quality-offline")
    assert "! Annotator 3 errs far more often" in shown
    assert len(json.loads((tmp_path / "consensus.json").read_text())) == 40
    assert "# policy.toml" in shown


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the extra [train] is not installed; `make test-train` runs this"
)
def test_export_train_back_serves_the_labels_of_the_project(run, monkeypatch):
    monkeypatch.setenv("MINUTES", "0.5")
    shown = run("export-train-back")
    assert "Classes:  2" in shown
    assert "Disc, Square" in shown
