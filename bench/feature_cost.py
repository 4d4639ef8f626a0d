"""What the frozen features of a learned version cost `/predict`: runs with and without them, turn by turn."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import Detector, embedded_model, load_detector
from ml_backend.training.backbone import open_backbone
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.onnx_export import write_learned
from tests.drawn import draw_shapes

ROUNDS, IMAGES, FLOOR = 10, 10, 0.15


def learned_detector(folder: Path) -> Detector:
    """A learned version of the embedded model, with a head of two classes by chance."""
    backbone = open_backbone(embedded_model(), folder=folder, threads=1)
    [features] = backbone.extract_features([prepare(draw_shapes(0)[0], backbone.spec)])
    rng = np.random.default_rng(0)
    width, levels = features.embeddings.shape[1] + 5, len(backbone.levels)
    weights = rng.normal(size=(levels, width, 2)) / width**0.5
    write_learned(
        folder / "learned.onnx", backbone, LinearHead(("a", "b"), backbone.levels, weights, np.full((levels, 2), -6.0))
    )
    return load_detector(folder / "learned.onnx", threads=1)


def without_features(detector: Detector) -> Detector:
    """The same version, which computes what is decoded alone."""
    graph = replace(detector.engine.graph, image_features=False)
    engine = object.__new__(type(detector.engine))
    engine.__dict__.update(detector.engine.__dict__)
    engine.graph = graph
    return replace(detector, engine=engine, reader=replace(detector.reader, embeddings=""))


def run() -> str:
    """Measure both, turn by turn; half a minute, to be run alone."""
    with tempfile.TemporaryDirectory() as folder:
        whole = learned_detector(Path(folder))
        bare = without_features(whole)
        assert set(whole.outputs) - set(bare.outputs)
        images = [prepare(draw_shapes(seed)[0], whole.spec) for seed in range(IMAGES)]
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for turn in range(ROUNDS):
            order = [("with", whole), ("without", bare)]
            for name, detector in order if turn % 2 else reversed(order):
                for image in images:
                    started = time.perf_counter()
                    detector.detect([image], floor=FLOOR)
                    seconds[name].append(time.perf_counter() - started)
    with_, without = (float(np.median(seconds[name])) * 1000 for name in ("with", "without"))
    return (
        "A learned version of the embedded model finds the boxes of an image, with and without the features of its"
        " boxes and of the image.\n\n"
        "| | p50, ms |\n|---|---|\n"
        f"| with features | {with_:.2f} |\n| without | {without:.2f} |\n| ratio | {with_ / without:.3f} |\n"
    )
