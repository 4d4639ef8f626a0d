"""What tiles bring where objects are small: BCCD's photos, shrunk into mosaics, learned whole and on tiles.

Each mosaic of 1280 x 960 pixels shows photos shrunk to one width; the narrower, the smaller their cells. Heads are
fitted on LABELLED mosaics and tested on TESTED others. The bound of object size below which tiles are tried,
`SMALL_PX`, is read off this table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.labelled import MISSING, NANO, SHARED, album
from ml_backend.inference.detector import embedded_model
from ml_backend.training import tiles
from ml_backend.training.datasets import LocalImage, read_labelled
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.model_selection import FitResult, select_and_fit
from ml_backend.training.simulate import FeatureSource

WIDTHS = (640, 320, 160, 80)
LABELLED, TESTED = 5, 3
MOSAIC = (1280, 960)
FLOOR = 0.005


def run() -> str:
    """AP50 on whole images and on tiles by the size of the objects, for two models."""
    root = SHARED / "data" / "bccd"
    if not root.is_dir() or not NANO.is_file():
        return MISSING
    photos = read_labelled(root / "images", root / "annotations_voc").images
    lines = [
        f"{LABELLED} labelled mosaics of {MOSAIC[0]} x {MOSAIC[1]} pixels, AP50 on {TESTED} others, served as learned.",
        "Seconds are CPU time of a fit with its choice, features included.",
        "",
        "| model | object, px at the input | AP50 whole | AP50 as chosen | fit whole, s | fit chosen, s | the choice |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        for model in (embedded_model(), NANO):
            for width in WIDTHS:
                folder = Path(name) / f"{model.stem}-{width}"
                folder.mkdir()
                mosaics = _mosaics(photos, width, folder)
                lines.append(_row(model, album(model, folder), mosaics))
    return "\n".join(lines)


def _row(model: Path, source: FeatureSource, mosaics: Sequence[LocalImage]) -> str:
    labelled, tested = mosaics[:LABELLED], mosaics[LABELLED:]
    examples = [source.example(image) for image in labelled]
    spec, levels = source.backbone.spec, source.backbone.levels
    whole, whole_s = _timed(lambda: select_and_fit(examples, levels=levels))
    chosen, chosen_s = _timed(
        lambda: tiles.fit_on_best_view(
            examples, lambda index, parts: source.tiles(labelled[index], parts), spec=spec, levels=levels
        )
    )
    median = tiles.plan_tiles(examples, spec).median_px
    scores = [_test(source, fitted, tested) for fitted in (whole, chosen)]
    name = "embedded" if model == embedded_model() else "YOLOX-nano"
    choice = chosen.tiling.partition(": ")[2] or "whole images"
    return f"| {name} | {median:.0f} | {scores[0]:.3f} | {scores[1]:.3f} | {whole_s:.1f} | {chosen_s:.1f} | {choice} |"


def _test(source: FeatureSource, fitted: FitResult, tested: Sequence[LocalImage]) -> float:
    truths = [GroundTruth(np.asarray(image.boxes, np.float32).reshape(-1, 4), image.labels) for image in tested]
    found = [source.detect(fitted.head, image, floor=FLOOR) for image in tested]
    return mean_ap50(truths, found, names=fitted.head.names)


def _timed(fit: Callable[[], FitResult]) -> tuple[FitResult, float]:
    started = time.process_time()
    return fit(), time.process_time() - started


def _mosaics(photos: Sequence[LocalImage], width: int, folder: Path) -> list[LocalImage]:
    """Mosaics of different photos where there are enough, shrunk to a width."""
    height = width * 3 // 4
    columns, rows = MOSAIC[0] // width, MOSAIC[1] // height
    order = np.random.default_rng(0).permutation(len(photos)).tolist()
    split = len(order) * LABELLED // (LABELLED + TESTED)
    mosaics = []
    for number in range(LABELLED + TESTED):
        pool = order[:split] if number < LABELLED else order[split:]
        chosen = np.random.default_rng(number).permutation(pool)[: columns * rows]
        canvas = Image.new("RGB", MOSAIC, (200, 190, 200))
        boxes, labels = [], []
        for place, index in enumerate(chosen.tolist()):
            photo = photos[index]
            left, top = place % columns * width, place // columns * height
            with Image.open(photo.path) as opened:
                scale_x, scale_y = width / opened.width, height / opened.height
                canvas.paste(opened.convert("RGB").resize((width, height), Image.Resampling.BOX), (left, top))
            for box, label in zip(photo.boxes, photo.labels, strict=True):
                boxes.append(
                    (box[0] * scale_x + left, box[1] * scale_y + top, box[2] * scale_x + left, box[3] * scale_y + top)
                )
                labels.append(label)
        path = folder / f"{number}.png"
        canvas.save(path)
        mosaics.append(LocalImage(path, path.name, tuple(boxes), tuple(labels)))
    return mosaics
