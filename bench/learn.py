"""Learning by refitting the last layer: AP50 by labelled photos, active learning against random, time of a fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from ml_backend.inference.detector import embedded_model
from ml_backend.training.backbone import open_backbone
from ml_backend.training.datasets import read_labelled
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.model_selection import select_and_fit
from ml_backend.training.simulate import FeatureSource

SHARED = Path(__file__).parents[2] / "shared"
SEEDS = 5
NANO = SHARED / "models" / "yolox_nano.onnx"

# (what, data set, model, sizes, strategies, targets by size)
CASES = (
    ("YOLOX-nano, blood cells", "bccd", str(NANO), (1, 5, 10, 20), "random", {1: 0.25, 5: 0.40, 10: 0.55, 20: 0.65}),
    ("YOLOX-nano, raccoons", "raccoon", str(NANO), (1, 5, 10, 20), "random", {1: 0.72}),
    ("embedded, raccoons", "raccoon", "default", (1, 5, 10, 20), "random", {1: 0.74, 5: 0.82, 10: 0.86, 20: 0.86}),
    ("embedded, blood cells", "bccd", "default", (5, 10, 20), "random", {5: 0.33, 10: 0.44, 20: 0.52}),
)
ACTIVE = (2, 5, 8, 10, 13)


def run() -> str:
    """The figures, in Markdown."""
    if not NANO.is_file():
        return "Not measured: the data sets are not on this machine."
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rows = []
        for what, data, model, sizes, strategies, targets in CASES:
            for size, runs in _by(_simulate(home, data, model, sizes, strategies)).items():
                rows.append(_row(what, size[1], runs, targets))
        active = _by(_simulate(home, "bccd", str(NANO), ACTIVE, "random,active"))
    return "\n".join(
        [
            f"Means of {SEEDS} seeds by `labelloop learn simulate`, each on two thirds of the photos beside the test.",
            "Test photos: `val.txt` of the blood cells; every fourth raccoon, by name. AP50 by pycocotools.",
            f"Load average when it ended: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
            "",
            "| what | photos labelled | boxes | AP50 | over seeds | at least | fit, s on the clock |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Active learning against random order: YOLOX-nano, blood cells",
            "",
            "| photos | random | boxes | active | boxes |",
            "|---|---|---|---|---|",
            *(_pair(active, size) for size in ACTIVE),
            "",
            "Both begin with the same photos; the first two are drawn by chance.",
            "",
            _saved(active),
            "",
            "## Time of a fit",
            "",
            *_times(),
            "",
            "Over more seeds, and what each part is worth: [learn_ablation.md](learn_ablation.md).",
        ]
    )


def _simulate(home: Path, data: str, model: str, sizes, strategies: str, seeds: int = SEEDS) -> list[dict]:
    root = SHARED / "data" / data
    listed = root / "val.txt"
    if not listed.is_file():
        listed = home / f"{data}.txt"
        stems = sorted(photo.stem for photo in (root / "images").iterdir())
        listed.write_text("\n".join(stems[::4]))
    out = home / "out.json"
    words = [sys.executable, "-m", "labelloop.cli.main", "learn", "simulate", "--images", str(root / "images")]
    words += ["--annotations", str(root / "annotations_voc"), "--test-list", str(listed), "--model", model]
    words += ["--labelled", ",".join(map(str, sizes)), "--strategy", strategies, "--seeds", str(seeds)]
    subprocess.run([*words, "--json", str(out)], check=True, env=os.environ | {"LABELLOOP_HOME": str(home)})
    return json.loads(out.read_text())["runs"]


def _times() -> list[str]:
    """CPU seconds of a fit with its cross-validation and calibration, one thread: the machine's load matters little."""
    rows = ["| model | photos labelled | CPU s, median of three |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        root = SHARED / "data" / "bccd"
        for name, path in (("YOLOX-nano", NANO), ("embedded", embedded_model())):
            backbone = open_backbone(path, folder=Path(folder), threads=1)
            album = FeatureSource(backbone, FeatureCache(Path(folder) / "sights", max_bytes=2**32))
            photos = read_labelled(root / "images", root / "annotations_voc").images[:100]
            examples = [album.example(photo) for photo in photos]
            for size in (20, 100):
                spent = []
                for _ in range(3):
                    started = time.process_time()
                    select_and_fit(examples[:size], levels=backbone.levels)
                    spent.append(time.process_time() - started)
                rows.append(f"| {name} | {size} | {sorted(spent)[1]:.1f} |")
    return rows


def _by(runs: list[dict]) -> dict[tuple[str, int], list[dict]]:
    found = defaultdict(list)
    for one in runs:
        found[one["strategy"], one["labelled"]].append(one)
    return found


def _mean(runs: list[dict], key: str) -> float:
    return float(np.mean([one[key] for one in runs]))


def _row(what: str, size: int, runs: list[dict], targets: dict[int, float]) -> str:
    spread = np.std([one["ap50"] for one in runs])
    target = f"{targets[size]:.2f}" if size in targets else "-"
    return (
        f"| {what} | {size} | {_mean(runs, 'boxes'):.0f} | **{_mean(runs, 'ap50'):.3f}** | ± {spread:.3f} | {target} "
        f"| {_mean(runs, 'seconds'):.1f} |"
    )


def _pair(runs, size: int) -> str:
    cells = [
        f"{_mean(runs[way, size], 'ap50'):.3f} | {_mean(runs[way, size], 'boxes'):.0f}" for way in ("random", "active")
    ]
    return f"| {size} | {' | '.join(cells)} |"


def _saved(runs) -> str:
    """Photos and boxes that active learning needs for random's AP50 at the last size, between sizes by a line."""
    goal = _mean(runs["random", ACTIVE[-1]], "ap50")
    curve = [_mean(runs["active", size], "ap50") for size in ACTIVE]
    reached = next((index for index, value in enumerate(curve) if value >= goal), None)
    if reached is None:
        return f"Active learning does not reach random's {goal:.3f} at {ACTIVE[-1]} photos within as many."
    before = max(reached - 1, 0)
    share = 1.0 if reached == before else (goal - curve[before]) / (curve[reached] - curve[before])
    photos = ACTIVE[before] + share * (ACTIVE[reached] - ACTIVE[before])
    boxes = [_mean(runs["active", ACTIVE[index]], "boxes") for index in (before, reached)]
    drawn = boxes[0] + share * (boxes[1] - boxes[0])
    usual = _mean(runs["random", ACTIVE[-1]], "boxes")
    return (
        f"Random's AP50 at {ACTIVE[-1]} photos is {goal:.3f}; active learning is there with {photos:.1f} photos "
        f"({1 - photos / ACTIVE[-1]:.0%} fewer) and {drawn:.0f} boxes ({1 - drawn / usual:.0%} fewer)."
    )
