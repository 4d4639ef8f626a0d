"""Thresholds learned from edits against fixed ones: of a fitted head, over a session, of models made elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.annotator import FLOOR, Answers, Cuts, annotate, cut, thresholds
from bench.labelled import MISSING, NANO, SHARED, drawn, nano, training_photos
from labelloop.service.media import load_photo
from ml_backend.backbone import Backbone
from ml_backend.calibration import are_right
from ml_backend.detector import load_detector
from ml_backend.examples import Example
from ml_backend.judge import Truth
from ml_backend.learn import learn
from ml_backend.preprocess import prepare
from ml_backend.thresholds import USUAL, best_threshold, edits_of_all

SEEDS = 3
DRAWS = 12
"""Orders of the photos that models made elsewhere are judged in: nothing is fitted, so they cost little."""

SESSION = 100
FIXED = tuple(round(step * 0.05, 2) for step in range(1, 15))
MODELS = ("yolox_nano", "nanodet_m", "fastestdet")
HEADS = "| {} | edits of | by class | one | .3 | .5 | one, in hindsight | by class, in hindsight |"
NOTE = """F1 of what would be shown on all other photos, over all boxes (in brackets: the mean of the classes). By
class: learned from the edits, as in service. One: the same threshold for every class, the best on the edits. In
hindsight: the best on the very photos that are judged, which no one can know: thresholds by class cannot give more than
the last column."""


def run() -> str:
    """The figures, in Markdown."""
    if not NANO.is_file():
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        album = nano(Path(folder))
        _, cells = training_photos(album, "bccd")
        return "\n".join(
            [
                f"## Of a head fitted here: YOLOX-nano, blood cells, mean of {SEEDS} seeds",
                "",
                *_of_heads(cells, album.backbone),
                "",
                NOTE,
                "Scores are calibrated when a head is learned, so one threshold suits all classes about as well.",
                "",
                f"## Over a session of {SESSION} photos in which versions follow each other",
                "",
                *_of_sessions(cells, album.backbone),
                "",
                f"## Of a model made elsewhere, scores as they are: 48 photos of COCO, mean of {DRAWS} draws",
                "",
                *_of_models(),
            ]
        )


def _of_heads(examples: Sequence[Example], backbone: Backbone) -> Iterator[str]:
    yield HEADS.format("fitted on")
    yield "|---|---|---|---|---|---|---|---|"
    for fitted, edited in ((10, 20), (20, 20), (20, 50)):
        rows = []
        for seed in range(SEEDS):
            order = drawn(examples, seed)
            head = learn(order[:fitted], levels=backbone.levels).head
            judged = [
                (head.names, head.detect(one.sight, floor=FLOOR), Truth(one.drawn, one.labels))
                for one in order[fitted:]
            ]
            rows.append(_compared(judged[:edited], judged[edited:]))
        yield f"| {fitted} photos | {edited} photos | {_cells(rows)} |"


def _of_sessions(examples: Sequence[Example], backbone: Backbone) -> Iterator[str]:
    yield "| order | learned, following each version | .3 | .5 | the best fixed one, in hindsight |"
    yield "|---|---|---|---|---|"
    for order in ("chance", "queue"):
        rows = []
        for seed in range(SEEDS):
            photos = list(annotate(examples, backbone, photos=SESSION, seed=seed, order=order, costs=(0.0,)))
            answers = [(one.names, one.found, one.truth) for one in photos]
            followed = _f1(answers, [one.cuts[0.0] for one in photos])[0]
            fixed = {value: _f1(answers, value)[0] for value in FIXED}
            rows.append((followed, fixed[0.3], fixed[0.5], max(fixed.values())))
        yield f"| by {order} | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + " |"


def _of_models() -> Iterator[str]:
    yield HEADS.format("model")
    yield "|---|---|---|---|---|---|---|---|"
    for model in MODELS:
        answers = _found_by(model)
        for edited in (10, 25):
            rows = []
            for seed in range(DRAWS):
                order = [answers[index] for index in np.random.default_rng(seed).permutation(len(answers))]
                rows.append(_compared(order[:edited], order[edited:]))
            yield f"| {model} | {edited} photos | {_cells(rows)} |"


def _found_by(model: str) -> Answers:
    """What a model finds on the photos of COCO, and what is there."""
    root = SHARED / "data" / "coco_sample"
    classes = tuple((SHARED / "models" / "coco80.txt").read_text().split("\n")[:80])
    detector = load_detector(SHARED / "models" / f"{model}.onnx", threads=1)
    answers = []
    for path in sorted((root / "images").rglob("*.jpg")):
        file = next((root / "labels_detect").rglob(f"{path.stem}.txt"), None)
        rows = np.loadtxt(file, ndmin=2).reshape(-1, 5) if file and file.stat().st_size else np.zeros((0, 5))
        spec = detector.spec
        photo = load_photo(path.read_bytes(), max_side=max(spec.width, spec.height), name=path.name)
        [found] = detector.detect([prepare(photo.image, spec, size=(photo.width, photo.height))], floor=FLOOR)
        sides = np.array([photo.width, photo.height])
        middle, half = rows[:, 1:3] * sides, rows[:, 3:5] * sides / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)
        answers.append((classes, found, Truth(boxes, tuple(classes[int(row[0])] for row in rows))))
    return answers


def _compared(known: Answers, later: Answers) -> list[tuple[float, float]]:
    """F1 on later photos: by class, one, .3, .5, the best one in hindsight, the best by class in hindsight."""
    fixed = max(FIXED, key=lambda value: _f1(known, value)[0])
    hindsight = [_f1(later, value) for value in FIXED]
    best = {name: best_threshold(some) or USUAL for name, some in edits_of_all(later).items()}
    ways = [_f1(later, cuts) for cuts in (thresholds(known), fixed, 0.3, 0.5)]
    return [*ways, (max(one[0] for one in hindsight), max(one[1] for one in hindsight)), _f1(later, best)]


def _cells(rows: Sequence[Sequence[tuple[float, float]]]) -> str:
    return " | ".join(f"{every:.3f} ({classes:.3f})" for every, classes in np.mean(rows, axis=0))


def _f1(answers: Answers, cuts: Cuts | Sequence[Cuts]) -> tuple[float, float]:
    """Over all boxes, and the mean over classes; thresholds are for all photos, or for each its own."""
    each = [cuts] * len(answers) if isinstance(cuts, float | Mapping) else cuts
    counts: dict[str, np.ndarray] = {}
    for (names, found, truth), its in zip(answers, each, strict=True):
        shown = cut(found, names, its)
        right = are_right(shown, truth, names=names)
        labels = np.array([names[index] for index in shown.classes.tolist()], object)
        for name in {*truth.labels, *labels.tolist()}:
            drawn_so = sum(label == name for label in truth.labels)
            mine = labels == name
            counts[name] = counts.get(name, np.zeros(3)) + np.array([right[mine].sum(), mine.sum(), drawn_so])
    total = sum(counts.values(), np.zeros(3))
    every = 2 * total[0] / max(total[1] + total[2], 1)
    return float(every), float(np.mean([2 * one[0] / max(one[1] + one[2], 1) for one in counts.values()]))
