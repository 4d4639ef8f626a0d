"""Owns learning: from labelled photos to a head, every choice made by cross-validation on what is labelled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_backend.detection.box_voting import PlattCalibration, apply_calibration, edge_aspect_features, logit, sigmoid
from ml_backend.detection.detections import Detections, Ints
from ml_backend.training.calibration import calibrated, fit_calibrations
from ml_backend.training.examples import Example
from ml_backend.training.fit import blend_heads, fit_heads
from ml_backend.training.linear_head import Head
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.parallel import parallel_map, single_threaded_blas
from ml_backend.training.table import CandidateTable, build_table

FOLDS = 2
FEWEST = 2
"""Photos below which nothing can be held out: the first choice is taken."""

PROTOTYPE_MAX_PHOTOS = 5
"""Photos from which a prototype never won over logistic regression: it is tried no more."""

SCARCE = 50
"""Boxes below which levels have too little to learn apart: one row for all of them comes first..."""

SPARSE = 5
"""... where photos show fewer boxes than this each: many on one photo show themselves on all levels that matter."""

MANY = 60
"""Boxes a class from which the prototype never helped: it is tried no more."""

MOST_HELD = 24
"""Photos that are held out, drawn by chance where there are more: enough to choose by, and in time."""

MOST_REST = 48
"""Photos that a head is fitted on to judge the others. As soon as there are so many beside those held out, one fit on
them takes the place of a fit a fold: it is nearer to the one on all."""

MARGIN = 0.01
"""AP50 by which a choice must beat the one before it: what did well with as many boxes elsewhere comes first."""

MARGIN_FULL_BOXES = 20
"""Boxes from which that is enough. Of fewer, chance makes more: of half as many a choice must win by four times it."""

FLOOR = 0.01
"""Score of the weakest detection that counts when a head is judged."""


@dataclass(frozen=True)
class FitConfig:
    """How a head is fitted.

    Attributes:
        trainer: A key of `TRAINERS`.
        refit_boxes: Whether boxes are refitted.
        lean: Share of the prototype in its rows. What separates few objects best is one direction among many that
            would; the prototype lies where the objects are, whatever they are told from, and errs otherwise.
    """

    trainer: str
    refit_boxes: bool
    lean: float = 0.0

    @property
    def trainers(self) -> tuple[str, ...]:
        """Those whose heads it needs."""
        return (self.trainer, PROTOTYPE) if self.lean else (self.trainer,)

    def head(self, heads: Mapping[str, Head]) -> Head:
        """The head of this choice, from those of its trainers."""
        return blend_heads(heads[self.trainer], heads[PROTOTYPE], self.lean) if self.lean else heads[self.trainer]


PROTOTYPE = "prototype"


def _with_boxes(trainer: str, lean: float = 0.0) -> tuple[FitConfig, FitConfig]:
    return FitConfig(trainer, refit_boxes=False, lean=lean), FitConfig(trainer, refit_boxes=True, lean=lean)


LOGISTIC = _with_boxes("logistic")
LEANING = _with_boxes("logistic", 0.3)
SHARED = _with_boxes("shared", 0.4)


def choices_of(examples: Sequence[Example], *, known: bool) -> tuple[FitConfig, ...]:
    """What is tried on labelled photos; the first is taken where nothing can be held out.

    Args:
        examples: The labelled photos.
        known: Whether the backbone knows classes of the project: levels then begin with what it knows, so that few
            photos ask for nothing simpler.
    """
    boxes = sum(len(one.labels) for one in examples)
    classes = len({label for one in examples for label in one.labels})
    if known or boxes >= MANY * classes:
        return LOGISTIC
    few = (FitConfig(PROTOTYPE, refit_boxes=False),) if len(examples) < PROTOTYPE_MAX_PHOTOS else ()
    scarce = boxes < min(SCARCE, SPARSE * len(examples))
    return (*(SHARED if scarce else ()), *LEANING, *LOGISTIC, *few)


@dataclass(frozen=True, eq=False)
class OutOfFoldPredictions:
    """What was found on photos by heads that did not learn from them.

    Attributes:
        names: Classes of the detections.
        truths: What was drawn on each photo.
        sizes: Width and height of each, in pixels.
        found: What was found on each, with scores as the head that is learned on all gives them.
    """

    names: tuple[str, ...] = ()
    truths: Sequence[GroundTruth] = ()
    sizes: Sequence[tuple[int, int]] = ()
    found: Sequence[Detections] = ()


@dataclass(frozen=True)
class FitResult:
    """A fitted head, how it was chosen, and what cross-validation gave.

    Attributes:
        head: The last layer.
        choice: How it was fitted.
        judged: AP50 of each choice by cross-validation; empty: none was possible.
        answers: What cross-validation found with this choice.
    """

    head: Head
    choice: FitConfig
    judged: Mapping[FitConfig, float]
    answers: OutOfFoldPredictions = OutOfFoldPredictions()


def select_and_fit(
    examples: Sequence[Example], *, levels: Sequence[int], known: Sequence[tuple[str, int]] = ()
) -> FitResult:
    """The head that did best on photos held out from its own fit, fitted again on all.

    Its scores are calibrated on those photos: a box of .7 is right about seven times in ten.

    Args:
        examples: Labelled photos, at least one of them with a box.
        levels: Of the backbone.
        known: Classes of the project that the backbone knows, with its index: learning starts from there.
    """
    judged: dict[FitConfig, float] = {}
    answers: Mapping[FitConfig, OutOfFoldPredictions] = {}
    best = choices_of(examples, known=bool(known))[0]
    with single_threaded_blas():
        training = build_table(examples, levels, prior=[index for _, index in known])
        if sum(bool(one.labels) for one in examples) >= FEWEST:
            judged, answers = cross_validate(examples, training, levels=levels, known=known)
            margin = MARGIN * max(1.0, MARGIN_FULL_BOXES / sum(len(one.labels) for one in examples)) ** 2
            for choice, score in judged.items():
                if score > judged[best] + margin:
                    best = choice
        heads = fit_heads(
            training,
            training.photos,
            levels=levels,
            trainers=best.trainers,
            refit_boxes=best.refit_boxes,
            known=known,
        )
    crossed = answers.get(best, OutOfFoldPredictions())
    found = fit_calibrations(crossed.found, crossed.truths, crossed.sizes, names=crossed.names)
    return FitResult(calibrated(best.head(heads), found), best, judged, _calibrated(crossed, found))


def cross_validate(
    examples: Sequence[Example],
    training: CandidateTable,
    *,
    levels: Sequence[int],
    known: Sequence[tuple[str, int]] = (),
) -> tuple[dict[FitConfig, float], dict[FitConfig, OutOfFoldPredictions]]:
    """Mean AP50 of each choice on photos that took no part in the fit that judges them, and what it found there.

    Args:
        examples: As in `learn`.
        training: Their table.
        levels: Of the backbone.
        known: As in `learn`.
    """
    choices = choices_of(examples, known=bool(known))
    names = sorted({label for one in examples for label in one.labels})
    folds = [fold for fold in _folds(len(examples)) if any(examples[index].labels for index in fold[1])]
    held = [examples[index] for places, _ in folds for index in places]
    truths = [GroundTruth(one.drawn, one.labels) for one in held]
    sizes = [(one.sight.fit.width, one.sight.fit.height) for one in held]

    def judged(fold: tuple[list[int], list[int]]) -> dict[FitConfig, list[Detections]]:
        places, rest = fold
        answers: dict[FitConfig, list[Detections]] = {choice: [] for choice in choices}
        trainers = tuple(dict.fromkeys(trainer for choice in choices for trainer in choice.trainers))
        heads = fit_heads(training, rest, levels=levels, trainers=trainers, refit_boxes=True, known=known)
        for trainer, lean in dict.fromkeys((choice.trainer, choice.lean) for choice in choices):
            mine = [choice for choice in choices if (choice.trainer, choice.lean) == (trainer, lean)]
            head = mine[0].head(heads)
            numbers = np.array([names.index(name) if name in names else -1 for name in head.names], np.int64)
            for one in (examples[index] for index in places):
                boxes, scores = head.score_candidates(one.sight, exact=False)
                for choice in mine:
                    placed = boxes if choice.refit_boxes else one.sight.boxes
                    answers[choice].append(
                        _renumbered(head.postprocess(one.sight, placed, scores, floor=FLOOR), numbers)
                    )
        return answers

    parts = parallel_map(judged, folds)
    found = {choice: [one for part in parts for one in part[choice]] for choice in choices}
    return (
        {choice: mean_ap50(truths, found[choice], names=names) for choice in choices},
        {choice: OutOfFoldPredictions(tuple(names), truths, sizes, found[choice]) for choice in choices},
    )


def _calibrated(answers: OutOfFoldPredictions, found: Mapping[str, PlattCalibration]) -> OutOfFoldPredictions:
    """With scores as a head gives them that is calibrated with these lines."""
    each_line = [found[name] for name in answers.names]

    def again(one: Detections, size: tuple[int, int]) -> Detections:
        odds = apply_calibration(logit(one.scores), edge_aspect_features(one.boxes, *size), each_line, one.classes)
        scores = sigmoid(odds).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        return Detections(one.boxes[order], scores[order], one.classes[order])

    return replace(
        answers,
        found=[again(one, size) if len(one) else one for one, size in zip(answers.found, answers.sizes, strict=True)],
    )


def _folds(count: int) -> list[tuple[list[int], list[int]]]:
    """What is held out, and what is fitted on to judge it: indices."""
    order = np.random.default_rng(0).permutation(count).tolist()
    if count >= MOST_HELD + MOST_REST:
        return [(order[:MOST_HELD], order[MOST_HELD : MOST_HELD + MOST_REST])]
    order = order[:MOST_HELD]
    return [
        (order[fold::FOLDS], [one for place, one in enumerate(order) if place % FOLDS != fold]) for fold in range(FOLDS)
    ]


def _renumbered(found: Detections, numbers: Ints) -> Detections:
    classes = numbers[found.classes]
    return Detections(found.boxes, found.scores, classes)[classes >= 0]
