"""Regret of the averaged head: AP50 on test images of the best single configuration, less that of the average."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.train import NANO, TITLES, WORK, Case, root_of, split
from ml_backend.training.backbone import open_backbone
from ml_backend.training.calibration import calibrate_head, fit_calibrations
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.fit import fit_heads
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.model_selection import BLENDED, LOGISTIC, SHARED, fit_folds, select_and_fit
from ml_backend.training.parallel import single_threaded_blas
from ml_backend.training.simulate import EVALUATION_FLOOR, FeatureSource
from ml_backend.training.table import build_table

SETS = ("bccd", "raccoon", "neu_det")
SIZES = (5, 20, 60, 120)
DRAWS = int(os.environ.get("BENCH_DRAWS", "20"))
SOLVERS = ("logistic", "prototype", "shared")
# The single configurations; a record has their figures in this order.
SINGLE = {
    f"{name}{', boxes' if boxes else ''}": replace(config, box_share=boxes)
    for name, config in (("shared", SHARED), ("blended", BLENDED), ("logistic", LOGISTIC))
    for boxes in (0.0, 1.0)
}
# Draws that are done, those of this machine too.
RECORD = Path(__file__).parent / "results" / "selection.jsonl"
# Seeds on which the rule was chosen.
CHOSEN_ON = range(10, 20)
RULES = {
    "before": "one split, where a later configuration had to be .01 better",
    "selected": "the best of one cross-validation, with a prior for few images",
    "selected, 3 fits": "the same of the mean with the cross-validations of two earlier fits",
    "average": "the mean of all, as `labelloop learn` fits it",
}


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
    """Draws that are done; of one that was made again, the last."""
    lines = RECORD.read_text().splitlines() if RECORD.is_file() else []
    done = [entry for entry in map(json.loads, lines) if "average" in entry]
    return list({(entry["data"], entry["labelled"], entry["seed"]): entry for entry in done}.values())


def draw(source: FeatureSource, case: Case) -> dict:
    """Evaluate every single configuration and the average on the test images."""
    labelled, test = split(case)
    examples = [source.example(image) for image in labelled]
    levels = source.backbone.levels
    truths = [GroundTruth(np.asarray(image.boxes, np.float32).reshape(-1, 4), image.labels) for image in test]
    features = [source.extract(image) for image in test]

    def tested(head: LinearHead) -> float:
        detections = [head.detect(one, floor=EVALUATION_FLOOR, exact=False) for one in features]
        return round(mean_ap50(truths, detections, names=head.names), 4)

    with single_threaded_blas():
        table = build_table(examples, levels)
        folds = fit_folds(examples, table, SOLVERS, levels=levels)
        heads = {
            boxes: fit_heads(table, table.indices, levels=levels, trainers=SOLVERS, refit_boxes=bool(boxes))
            for boxes in (0.0, 1.0)
        }
        scores, single = [], []
        for config in SINGLE.values():
            out = folds.predict(config)
            calibrations = fit_calibrations(out.detections, out.truths, out.sizes, names=out.names)
            single.append(tested(calibrate_head(config.head(heads[config.box_share]), calibrations)))
            scores.append(round(out.mean_ap50(), 4))
    average = select_and_fit(examples, levels=levels)
    return {
        "data": case.data,
        "labelled": case.labelled,
        "seed": case.seed,
        "boxes": sum(len(example.labels) for example in examples),
        "classes": len({label for example in examples for label in example.labels}),
        "scores": scores,
        "tested": single,
        "chosen": {"before": _chosen_before(examples, dict(zip(SINGLE, scores, strict=True)))},
        "average": {"config": average.choice.name, "tested": tested(average.head)},
    }


def _chosen_before(examples: list, scores: dict[str, float]) -> str:
    """The rule of an earlier release: the first configuration, unless one beats it by a margin in one split."""
    boxes = sum(len(example.labels) for example in examples)
    names = list(SINGLE)[0 if boxes < min(50, 5 * len(examples)) else 2 :]
    if boxes >= 60 * len({label for example in examples for label in example.labels}):
        names = list(SINGLE)[4:]
    best = names[0]
    for name in names:
        if scores[name] > scores[best] + 0.01 * max(1.0, 20 / boxes) ** 2:
            best = name
    return best


def regrets(entry: dict) -> dict[str, float]:
    """AP50 of the best single configuration of a draw, less that of what each rule takes."""
    best, single = max(entry["tested"]), dict(zip(SINGLE, entry["tested"], strict=True))
    taken = {rule: single[name] for rule, name in entry["chosen"].items()}
    return {rule: best - value for rule, value in (taken | {"average": entry["average"]["tested"]}).items()}


def page(done: list[dict]) -> str:
    """The tables, in Markdown."""
    groups = defaultdict(list)
    for entry in done:
        groups[entry["data"], entry["labelled"]].append(entry)
    rows = []
    for (data, labelled), entries in sorted(groups.items()):
        best = np.mean([max(entry["tested"]) for entry in entries])
        cells = " | ".join(_cell([regrets(entry).get(rule, np.nan) for entry in entries]) for rule in RULES)
        rows.append(f"| {TITLES[data]} | {labelled} | {len(entries)} | {best:.3f} | {cells} |")
    parts = {
        "seeds on which the rule was chosen": [entry for entry in done if entry["seed"] in CHOSEN_ON],
        "**other seeds**": [entry for entry in done if entry["seed"] not in CHOSEN_ON],
        "all": done,
    }
    means = [
        f"| {title} | {len(entries)} | {' | '.join(_mean(entries, rule) for rule in RULES)} |"
        for title, entries in parts.items()
        if entries
    ]
    return "\n".join(
        [
            "A fit of the last layer averages configurations (one row for all levels or one a level, two shares of the",
            "prototype) by how they do in cross-validation, and moves boxes by a share of their regression. Regret:",
            "AP50 on the test images of the best of six single configurations (three, boxes moved or not), less that",
            "of what is fitted; below zero the average is better. YOLOX-nano; ± is the standard error.",
            "",
            f"| mean over data and sizes | draws | {' | '.join(RULES)} |",
            f"|---|---|{'---|' * len(RULES)}",
            *means,
            "",
            f"| data | labelled images | draws | best of six | {' | '.join(RULES)} |",
            f"|---|---|---|---|{'---|' * len(RULES)}",
            *rows,
            "",
            *(f"- `{rule}`: {meaning}." for rule, meaning in RULES.items()),
            "",
            "`selected` and `selected, 3 fits` are rules of an earlier release; the record beside this page,",
            "`selection.jsonl`, keeps what they took. It has cross-validated and tested AP50 of every single",
            f"configuration in each draw, in this order: {'; '.join(SINGLE)}.",
        ]
    )


def _cell(values: list[float]) -> str:
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.4f} ± {np.std(known) / np.sqrt(len(known)):.4f}" if known else "-"


def _mean(entries: list[dict], rule: str) -> str:
    """Mean over data and sizes of the regret of a rule."""
    groups = defaultdict(list)
    for entry in entries:
        if (value := regrets(entry).get(rule)) is not None:
            groups[entry["data"], entry["labelled"]].append(value)
    return f"{np.mean([np.mean(values) for values in groups.values()]):.4f}" if groups else "-"


def main(seed: int, sets: list[str]) -> None:
    """One draw of each data set and size, appended to the record."""
    done = {(entry["data"], entry["labelled"], entry["seed"]) for entry in results()}
    with tempfile.TemporaryDirectory() as folder:
        backbone = open_backbone(NANO, folder=Path(folder), threads=1)
        source = FeatureSource(backbone, FeatureCache(WORK / "features-selection", max_bytes=2**34))
        for data in sets:
            for labelled in SIZES:
                if (data, labelled, seed) not in done:
                    entry = draw(source, Case(data, labelled, seed))
                    with RECORD.open("a") as stream:
                        stream.write(json.dumps(entry) + "\n")
                    print(data, labelled, seed, regrets(entry), flush=True)


if __name__ == "__main__":  # without a seed: the page of the record
    if not sys.argv[1:]:
        print(page(results()))
    else:
        main(int(sys.argv[1]), sys.argv[2:])
