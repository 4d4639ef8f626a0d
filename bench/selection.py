"""Regret of model selection: AP50 on test images of the best configuration of a head, less that of the chosen one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from bench.train import NANO, TITLES, WORK, Case, root_of, split
from ml_backend.detection.detections import Detections
from ml_backend.training.backbone import open_backbone
from ml_backend.training.calibration import calibrate_head, fit_calibrations
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.fit import fit_heads
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.model_selection import (
    BLENDED,
    LOGISTIC,
    SHARED,
    FitConfig,
    OutOfFoldPredictions,
    cross_validate,
    is_scarce,
    select_config,
)
from ml_backend.training.parallel import single_threaded_blas
from ml_backend.training.simulate import EVALUATION_FLOOR, FeatureSource
from ml_backend.training.table import build_table

SETS = ("bccd", "raccoon", "neu_det")
SIZES = (5, 20, 60, 120)
DRAWS = int(os.environ.get("BENCH_DRAWS", "20"))
# Fits before the last one, each on one image less.
BEFORE = 7
DONE = WORK / "selection.jsonl"


def run() -> str:
    """The figures, in Markdown."""
    if not NANO.is_file():
        return "Not measured: the data sets are not on this machine."
    sets = [data for data in SETS if root_of(data) is not None]
    for seed in range(DRAWS):
        command = [sys.executable, "-W", "ignore", "-m", "bench.selection", str(seed), *sets]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return page(results())


def results() -> list[dict]:
    """Draws that are done."""
    return [json.loads(line) for line in DONE.read_text().splitlines()] if DONE.is_file() else []


def draw(source: FeatureSource, case: Case) -> dict:
    """Cross-validate as one submit after the other does, and evaluate every configuration on the test images."""
    labelled, test = split(case)
    examples = [source.example(image) for image in labelled]
    levels = source.backbone.levels
    with single_threaded_blas():
        counts = range(case.labelled, max(1, case.labelled - 1 - BEFORE), -1)
        fits = [cross_validate(examples[:n], build_table(examples[:n], levels), levels=levels) for n in counts]
        table = build_table(examples, levels)
        truths = [GroundTruth(np.asarray(image.boxes, np.float32).reshape(-1, 4), image.labels) for image in test]
        features = [source.extract(image) for image in test]
        scores, predictions = fits[0]
        tested = {}
        for config in (*SHARED, *BLENDED, *LOGISTIC):
            heads = fit_heads(
                table, table.indices, levels=levels, trainers=config.trainers, refit_boxes=config.refit_boxes
            )
            out_of_fold = predictions.get(config, OutOfFoldPredictions())
            head = calibrate_head(
                config.head(heads),
                fit_calibrations(
                    out_of_fold.detections, out_of_fold.truths, out_of_fold.sizes, names=out_of_fold.names
                ),
            )
            detections: list[Detections] = [head.detect(one, floor=EVALUATION_FLOOR, exact=False) for one in features]
            tested[config] = mean_ap50(truths, detections, names=head.names)
    evidence = [{config.name: score for config, score in before.items()} for before, _ in fits[1:]]
    best = max(tested.values())
    chosen = {
        "before": _chosen_before(examples, scores),
        "this fit alone": select_config(examples, scores, []),
        "with earlier fits": select_config(examples, scores, evidence),
    }
    return {
        "data": case.data,
        "labelled": case.labelled,
        "seed": case.seed,
        "tested": {config.name: score for config, score in tested.items()},
        "regret": {name: best - tested[config] for name, config in chosen.items() if config in tested},
    }


def _chosen_before(examples: list[Example], scores: dict[FitConfig, float]) -> FitConfig:
    """The rule of the release before: the first configuration, unless one beats it by a margin in one split."""
    boxes = sum(len(example.labels) for example in examples)
    classes = len({label for example in examples for label in example.labels})
    configs = (*(SHARED if is_scarce(examples) else ()), *BLENDED, *LOGISTIC)
    configs = LOGISTIC if boxes >= 60 * classes else configs
    best = configs[0]
    for config in configs:
        if scores[config] > scores[best] + 0.01 * max(1.0, 20 / boxes) ** 2:
            best = config
    return best


def page(done: list[dict]) -> str:
    """The table, in Markdown."""
    groups = defaultdict(list)
    for entry in done:
        groups[entry["data"], entry["labelled"]].append(entry)
    rules = list(done[0]["regret"]) if done else []
    rows, means = [], defaultdict(list)
    for (data, labelled), entries in sorted(groups.items()):
        cells = []
        for rule in rules:
            values = [entry["regret"][rule] for entry in entries]
            means[rule].append(np.mean(values))
            cells.append(f"{np.mean(values):.4f} ± {np.std(values) / np.sqrt(len(values)):.4f}")
        best = np.mean([max(entry["tested"].values()) for entry in entries])
        rows.append(f"| {TITLES[data]} | {labelled} | {len(entries)} | {best:.3f} | {' | '.join(cells)} |")
    total = " | ".join(f"**{np.mean(means[rule]):.4f}**" for rule in rules)
    return "\n".join(
        [
            "A fit of the last layer chooses how it is made (one row for all levels or one a level, share of the",
            "prototype, boxes refitted or not) by cross-validation. Regret: AP50 on the test images of the best of",
            f"the six, less that of the chosen one. YOLOX-nano; up to {DRAWS} draws; ± is the standard error.",
            "",
            f"| data | labelled images | draws | best of six | {' | '.join(rules)} |",
            f"|---|---|---|---|{'---|' * len(rules)}",
            *rows,
            f"| mean of all | | | | {total} |",
            "",
            "`before`: one split, where a later configuration had to be .01 better, and the share of the prototype was",
            "not tried from 60 boxes a class on. `this fit alone`: the rule of now without earlier fits, as in",
            f"`learn simulate`. `with earlier fits`: with those of up to {BEFORE} submits before.",
        ]
    )


def main(seed: int, sets: list[str]) -> None:
    """One draw of each data set and size, appended to the file of results."""
    done = {(entry["data"], entry["labelled"], entry["seed"]) for entry in results()}
    with tempfile.TemporaryDirectory() as folder:
        backbone = open_backbone(NANO, folder=Path(folder), threads=1)
        source = FeatureSource(backbone, FeatureCache(WORK / "features-selection", max_bytes=2**34))
        for data in sets:
            for labelled in SIZES:
                if (data, labelled, seed) not in done:
                    entry = draw(source, Case(data, labelled, seed))
                    with DONE.open("a") as stream:
                        stream.write(json.dumps(entry) + "\n")
                    print(data, labelled, seed, entry["regret"], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
