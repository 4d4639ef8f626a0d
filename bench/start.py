"""What a project starts on: the refit after few labels upon the embedded model, and upon YOLOX-nano."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.train import NANO, TITLES, WORK, Case, root_of, split

SETS = ("bccd", "raccoon", "neu_det", "deep_pcb")
LABELLED, SEEDS = 20, 3

# Steps of the fine-tuning whose pace is measured.
PACE_STEPS = 6


def run() -> str:
    """The figures, in Markdown."""
    from ml_backend.inference.detector import embedded_model

    if not NANO.is_file():
        return "Not measured: the models are not on this machine."
    done, models = _done(), {"embedded": embedded_model(), "yolox-nano": NANO}
    sets = [name for name in SETS if root_of(name) is not None]
    for seed in range(SEEDS):
        for name in sets:
            if f"{name}:{seed}" not in done:
                _fit(name, seed, models)
                done = _done()
    if importlib.util.find_spec("torch") is not None and "pace" not in done:
        entry = {"key": "pace", **{name: images_a_minute(path) for name, path in models.items()}}
        with (WORK / "start.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
    return page(_done())


def images_a_minute(model) -> float:
    """Images that a fine-tuning sees in a minute of one core."""
    import torch

    from ml_backend.finetune.convert import open_trainable
    from ml_backend.finetune.loop import Trainer
    from ml_backend.finetune.pictures import Album
    from ml_backend.finetune.recipe import Recipe

    torch.set_num_threads(1)
    images, _ = split(Case("bccd", LABELLED, 0))
    names = tuple(sorted({label for image in images for label in image.labels}))
    with tempfile.TemporaryDirectory() as folder:
        detector = open_trainable(model, names, folder=Path(folder))
        album = Album(images, names, detector.detector.spec, side=1.3)
        trainer = Trainer(detector, album, None, Recipe(steps=PACE_STEPS, probe=0.0), device="cpu")
        for index in range(len(album)):
            album[index]
        started = time.process_time()
        done = trainer.train()
        return 60 * done.seen / (time.process_time() - started)


def _fit(name: str, seed: int, models) -> None:
    from ml_backend.finetune.scores import refit_score

    labelled, test = split(Case(name, LABELLED, seed))
    scores = {model: refit_score(path, labelled, test, folder=WORK / "features").ap50 for model, path in models.items()}
    with (WORK / "start.jsonl").open("a") as stream:
        stream.write(json.dumps({"key": f"{name}:{seed}", **scores}) + "\n")
    print(name, seed, scores, file=sys.stderr, flush=True)


def _done() -> dict[str, dict]:
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / "start.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def page(done: dict[str, dict]) -> str:
    """The table, in Markdown."""
    rows, gains = [], []
    for name in SETS:
        runs = [entry for key, entry in done.items() if key.startswith(f"{name}:")]
        if not runs:
            continue
        before, after = ([run[model] for run in runs] for model in ("embedded", "yolox-nano"))
        gains.append(float(np.mean(after) - np.mean(before)))
        rows.append(
            f"| {TITLES[name]} | {len(runs)} | {np.mean(before):.3f} ± {np.std(before):.3f} "
            f"| {np.mean(after):.3f} ± {np.std(after):.3f} | {gains[-1]:+.3f} |"
        )
    pace = []
    if entry := done.get("pace"):
        embedded, nano = entry["embedded"], entry["yolox-nano"]
        text = (
            f"A fine-tuning sees {embedded:.0f} images in a minute of one core with the embedded model, {nano:.0f} with"
        )
        pace = [text, f"YOLOX-nano: {nano / embedded:.1f} times as many."]
    return "\n".join(
        [
            f"AP50 on test images after {LABELLED} labelled images by the refit of the last layer (`labelloop learn`),",
            "upon the embedded model and upon YOLOX-nano (`labelloop models pull yolox-nano`, Apache-2.0).",
            "",
            "| data | seeds | embedded model | YOLOX-nano | gain |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Mean gain over {len(rows)} sets: {np.mean(gains or [0.0]):+.3f}.",
            *pace,
        ]
    )
