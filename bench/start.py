"""What a project starts on: the refit after few labels upon the embedded model, and upon YOLOX-nano."""

from __future__ import annotations

import json
import sys

import numpy as np

from bench.train import NANO, TITLES, WORK, Case, root_of, split

SETS = ("bccd", "raccoon", "neu_det", "deep_pcb")
LABELLED, SEEDS = 20, 3


def run() -> str:
    """The figures, in Markdown."""
    from ml_backend.inference.detector import embedded_model

    if not NANO.is_file():
        return "Not measured: the models are not on this machine."
    done = _done()
    sets = [name for name in SETS if root_of(name) is not None]
    for seed in range(SEEDS):
        for name in sets:
            if f"{name}:{seed}" not in done:
                _fit(name, seed, {"embedded": embedded_model(), "yolox-nano": NANO})
                done = _done()
    return page(done)


def _fit(name: str, seed: int, models) -> None:
    from ml_backend.finetune.scores import refit_score

    labelled, test = split(Case(name, LABELLED, seed))
    scores = {
        model: refit_score(path, labelled, test, folder=WORK / "features").ap50 for model, path in models.items()
    }
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
        ]
    )
