"""Thresholds and calibration learned from edits against fixed thresholds: over sessions, of heads, of other models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.annotator import FLOOR, Answers, Cuts, Order, Photo, annotate, thresholds
from bench.f1 import FIXED, Marked, Score
from bench.labelled import NANO, SHARED, album, drawn, training_photos, with_nano
from labelloop.service.media import load_image
from ml_backend.detection.box_voting import MIN_CANDIDATE_SCORE, fuse_candidates, prior_calibration
from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.layouts import best_class
from ml_backend.learning.evaluation.candidate import MAX_THRESHOLD_TASKS
from ml_backend.training.examples import Example
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.model_selection import select_and_fit
from ml_backend.training.simulate import FeatureSource
from ml_backend.training.table import build_table

SEEDS = 3
DRAWS = 12
"""Orders of the photos that models made elsewhere are judged in: nothing is fitted, so they cost little."""

SESSION = 100
SESSIONS: Sequence[tuple[str, str, Path, Order]] = (
    ("blood cells, YOLOX-nano, by chance", "bccd", NANO, "chance"),
    ("blood cells, YOLOX-nano, by the queue", "bccd", NANO, "queue"),
    ("blood cells, embedded, by chance", "bccd", embedded_model(), "chance"),
    ("raccoons, YOLOX-nano, by chance", "raccoon", NANO, "chance"),
    ("raccoons, embedded, by chance", "raccoon", embedded_model(), "chance"),
)
MODELS = ("yolox_nano", "nanodet_m", "fastestdet")
OWN, TOGETHER, CALIBRATED = "as the refitted layer has them", "as all candidates say together", "calibrated"
HEADS = "| {} | edits of | by class | one | .3 | .5 | one, in hindsight | by class, in hindsight |"
SESSION_NOTE = """F1 over all boxes that are shown of what each version finds on the photos that come before the next.
Learned: thresholds as service learns them from what was submitted before. In hindsight: the best on the very photos
that are judged, which no one can know: one for all; one for each class; for each version; for each class of each
version, which is the most that thresholds can give. The boxes of the three rows are the same: as sure as the refitted
layer has them, nothing calibrated; as all candidates that see the object say together, with the stretch and the shift
that hold for every head; calibrated by cross-validation, as in service."""
NOTE = """F1 of what would be shown on all other photos, over all boxes (in brackets: the mean of the classes). By
class: learned from the edits, as in service. One: the same threshold for every class, the best on the edits. In
hindsight: the best on the very photos that are judged, for each figure its own."""


def run() -> str:
    """The figures, in Markdown."""
    return with_nano(_measured)


def _measured(nano: FeatureSource) -> str:
    _, cells = training_photos(nano, "bccd")
    return "\n".join(
        [
            f"## Over sessions of {SESSION} photos in which versions follow each other, mean of {SEEDS} seeds",
            "",
            *_of_sessions(),
            "",
            f"## Of a head fitted here: YOLOX-nano, blood cells, mean of {SEEDS} seeds",
            "",
            *_of_heads(cells, nano),
            "",
            NOTE,
            "",
            f"## Of a model made elsewhere, scores as they are: 48 photos of COCO, mean of {DRAWS} draws",
            "",
            *_of_models(),
        ]
    )


def _of_sessions() -> Iterator[str]:
    columns = ("learned", ".3", ".5", "one, in hindsight", "by class", "by version", "by both")
    yield f"| session | scores | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    everywhere: dict[str, list[list[float]]] = {}
    whole: dict[str, float] = {}
    for name, data, model, order in SESSIONS:
        rows: dict[str, list[list[float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            seen = album(model, Path(folder))
            _, examples = training_photos(seen, data)
            for seed in range(SEEDS):
                session = annotate(examples, seen.backbone, photos=SESSION, seed=seed, order=order, costs=(0.0,))
                photos = list(session)
                for scores, (answers, cuts) in _scored(photos, seen).items():
                    marked = Marked.of(answers)
                    rows.setdefault(scores, []).append(_row(marked, cuts, photos))
                    fixed = [marked.f1(value)[0] for value in FIXED]
                    everywhere.setdefault(scores, []).append([*fixed, marked.f1(cuts)[0]])
        means = {scores: np.mean(some, axis=0) for scores, some in rows.items()}
        for scores, row in means.items():
            yield f"| {name} | {scores} | " + " | ".join(f"{value:.3f}" for value in row) + " |"
        whole[name] = means[CALIBRATED][0] - means[OWN][3]
    yield from ("", *SESSION_NOTE.split("\n"), "")
    yield "| scores | the best one for all these sessions, in hindsight | learned |"
    yield "|---|---|---|"
    for scores, some in everywhere.items():
        *fixed, learned = np.mean(some, axis=0).tolist()
        yield f"| {scores} | {max(fixed):.3f} (at {FIXED[int(np.argmax(fixed))]:g}) | {learned:.3f} |"
    told = "; ".join(f"{name} {gain:+.3f}" for name, gain in whole.items())
    yield ""
    yield f"Calibration and learned thresholds against the best fixed one, in hindsight, on scores as they are: {told}."


def _row(marked: Marked, cuts: Sequence[Cuts], photos: Sequence[Photo]) -> list[float]:
    versions = [id(photos[place].head) for place in marked.photos.tolist()]
    _, (fixed, _) = marked.best_fixed()
    both = list(zip(versions, marked.labels.tolist(), strict=True))
    return [
        marked.f1(cuts)[0],
        marked.f1(0.3)[0],
        marked.f1(0.5)[0],
        fixed,
        marked.best_by(marked.labels.tolist()),
        marked.best_by(versions),
        marked.best_by(both),
    ]


def _scored(photos: Sequence[Photo], seen: FeatureSource) -> Mapping[str, tuple[Answers, Sequence[Cuts]]]:
    """What was found on a session's photos by each kind of scores, and the thresholds learned meanwhile."""
    own: list[tuple[Sequence[str], Detections, GroundTruth]] = []
    together: list[tuple[Sequence[str], Detections, GroundTruth]] = []
    plain: LinearHead | None = None
    for place, one in enumerate(photos):
        if one.head is None:
            own.append((one.names, one.found, one.truth))
            together.append(own[-1])
            continue
        if plain is None or one.head is not photos[place - 1].head:
            plain = _uncalibrated(one.head, [before.example for before in photos[:place]], seen.backbone.levels)
        own.append((one.names, _own(one.head, one.example), one.truth))
        together.append((one.names, plain.detect(one.example.candidates, floor=FLOOR), one.truth))
    return {
        OWN: (own, _followed(own, photos)),
        TOGETHER: (together, _followed(together, photos)),
        CALIBRATED: ([(one.names, one.found, one.truth) for one in photos], [one.cuts[0.0] for one in photos]),
    }


def _own(head: LinearHead, one: Example) -> Detections:
    """What a head shows, each box as sure as the head's own score says."""
    found = best_class(*head.score_candidates(one.candidates), MIN_CANDIDATE_SCORE)
    return fuse_candidates(found, one.candidates.fit, floor=FLOOR, calibrations=[None] * len(head.names)).to_image(
        one.candidates.fit
    )


def _uncalibrated(head: LinearHead, labelled: Sequence[Example], levels: Sequence[int]) -> LinearHead:
    """The head as it was before cross-validation told what its scores mean."""
    training = build_table(labelled, levels)
    return replace(
        head,
        platt=tuple(prior_calibration(training.mean_overlap_mass(name, training.indices)) for name in head.names),
    )


def _followed(answers: Answers, photos: Sequence[Photo]) -> list[Cuts]:
    """The thresholds that would be learned at each version from the answers before."""
    cuts: list[Cuts] = []
    for place, one in enumerate(photos):
        if not place or one.head is not photos[place - 1].head:
            learned = thresholds(answers[max(0, place - MAX_THRESHOLD_TASKS) : place], names=one.names)
        cuts.append(learned)
    return cuts


def _of_heads(examples: Sequence[Example], nano: FeatureSource) -> Iterator[str]:
    yield HEADS.format("fitted on")
    yield "|---|---|---|---|---|---|---|---|"
    for fitted, edited in ((10, 20), (20, 20), (20, 50)):
        rows = []
        for seed in range(SEEDS):
            order = drawn(examples, seed)
            head = select_and_fit(order[:fitted], levels=nano.backbone.levels).head
            judged = [
                (head.names, head.detect(one.candidates, floor=FLOOR), GroundTruth(one.drawn, one.labels))
                for one in order[fitted:]
            ]
            rows.append(_compared(judged[:edited], judged[edited:]))
        yield f"| {fitted} photos | {edited} photos | {_cells(rows)} |"


def _of_models() -> Iterator[str]:
    yield HEADS.format("model")
    yield "|---|---|---|---|---|---|---|---|"
    for model in MODELS:
        answers = _found_by(model)
        for edited in (5, 10, 25):
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
        photo = load_image(path.read_bytes(), max_side=max(spec.width, spec.height), name=path.name)
        [found] = detector.detect([prepare(photo.pixels, spec, size=(photo.width, photo.height))], floor=FLOOR)
        sides = np.array([photo.width, photo.height])
        middle, half = rows[:, 1:3] * sides, rows[:, 3:5] * sides / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)
        answers.append((classes, found, GroundTruth(boxes, tuple(classes[int(row[0])] for row in rows))))
    return answers


def _compared(known: Answers, later: Answers) -> list[Score]:
    """F1 on later photos: by class, one, .3, .5, the best one in hindsight, the best by class in hindsight."""
    judged = Marked.of(later)
    names = {name for classes, _, _ in (*known, *later) for name in classes}
    fixed, _ = Marked.of(known).best_fixed()
    _, hindsight = judged.best_fixed()
    ways = [judged.f1(cuts) for cuts in (thresholds(known, names=names), fixed, 0.3, 0.5)]
    return [*ways, hindsight, judged.best_by_class()]


def _cells(rows: Sequence[Sequence[Score]]) -> str:
    return " | ".join(f"{every:.3f} ({classes:.3f})" for every, classes in np.mean(rows, axis=0))
