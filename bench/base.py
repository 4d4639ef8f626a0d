"""Base models side by side: what they find (AP50), what is learned on them from few photos, how long a photo takes.

`python -m bench.base A.onnx B.onnx` compares any two; as `python -m bench base` the embedded one with YOLOX-nano.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.learn import SHARED, _by, _mean, _simulate
from bench.predict import SAMPLE, _ap50, _coco, _prepared
from ml_backend.detection.class_names import read_sidecar
from ml_backend.inference.detector import Detector, embedded_model, load_detector

NAMES = SHARED / "models" / "coco80.txt"
ROUNDS = 40
SEEDS = 3
FEW = (("raccoon", "raccoons", (5,)),)
"""Data set, in words, photos labelled: what is learned by `labelloop learn simulate`, in random order."""


def run() -> str:
    """The figures of the embedded model and YOLOX-nano, in Markdown."""
    other = SHARED / "models" / "yolox_nano.onnx"
    if not other.is_file() or not SAMPLE.is_dir():
        return "Nothing was measured: the models or the photos are not on this machine."
    return compare([embedded_model(), other])


def compare(models: list[Path]) -> str:
    """A table, a column a model."""
    detectors = [load_detector(model) for model in models]
    shared = sorted(set.intersection(*({name.casefold() for name in one.names.names} for one in detectors)))
    clocks = _clocks(detectors)
    rows = [
        ("file, MB", [f"{model.stat().st_size / 1e6:.1f}" for model in models]),
        ("layout, input", [f"{one.layout}, {one.spec.width} x {one.spec.height}" for one in detectors]),
        ("classes", [str(len(one.names.names)) for one in detectors]),
        ("a run and its decoding, ms, p50 / p95", [_spread(one[:, 0]) for one in clocks]),
        ("the same in processor time", [_spread(one[:, 1]) for one in clocks]),
    ]
    if SAMPLE.is_dir():
        found = [_found(one, shared) for one in detectors]
        rows.append((f"AP50 on COCO, the {len(shared)} classes of both", found))
        with tempfile.TemporaryDirectory() as folder:
            for data, words, sizes in FEW:
                runs = [_by(_simulate(Path(folder), data, str(model), sizes, "random", SEEDS)) for model in models]
                rows += [
                    (f"AP50 after {size} labelled photos, {words}", [_learned(one["random", size]) for one in runs])
                    for size in sizes
                ]
    heads = " | ".join(model.name for model in models)
    return "\n".join(
        [
            f"Each run in turn with the other's, {ROUNDS} rounds after a warm-up; learned: means of {SEEDS} seeds",
            f"with their spread. Load average when it began: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
            "",
            f"| | {heads} |",
            "|---|" + "---|" * len(models),
            *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows),
        ]
    )


def _clocks(detectors: list[Detector]) -> list[np.ndarray]:
    """(rounds, wall and processor) ms of each."""
    photos = sorted((SAMPLE / "images").glob("*.jpg")) if SAMPLE.is_dir() else []
    blank = np.full((480, 640, 3), 114, np.uint8)
    from ml_backend.detection.preprocess import prepare

    kept: list[list[tuple[float, float]]] = [[] for _ in detectors]
    for turn in range(ROUNDS + 5):
        for place, one in enumerate(detectors):
            ready = _prepared(photos[turn % len(photos)], one.spec) if photos else prepare(blank, one.spec)
            before = time.perf_counter(), time.process_time()
            one.detect([ready], floor=0.15)
            kept[place].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return [np.array(one[5:]) * 1000 for one in kept]


def _spread(column: np.ndarray) -> str:
    return f"{np.percentile(column, 50):.1f} / {np.percentile(column, 95):.1f}"


def _found(detector: Detector, shared: list[str]) -> str:
    names = [name.casefold() for name in read_sidecar(NAMES)]
    chosen = [names.index(name) for name in shared if name in names]
    own = [names.index(name.casefold()) if name.casefold() in names else -1 for name in detector.names.names]
    photos, found = sorted((SAMPLE / "images").glob("*.jpg")), []
    for number, photo in enumerate(photos):
        [seen] = detector.detect([_prepared(photo, detector.spec)], floor=0.01)
        kept = seen[np.array([own[class_] in chosen for class_ in seen.classes.tolist()], bool)]
        found += _coco(number, kept.boxes, kept.scores, [own[class_] for class_ in kept.classes.tolist()])
    return f"{_ap50(photos, found, chosen):.3f}"


def _learned(runs: list[dict]) -> str:
    return f"{_mean(runs, 'ap50'):.3f} ± {np.std([one['ap50'] for one in runs]):.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.base", description=__doc__)
    parser.add_argument("models", nargs=2, type=Path, metavar="MODEL.onnx")
    print(compare(parser.parse_args().models))
