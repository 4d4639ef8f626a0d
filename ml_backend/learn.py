"""Owns learning: from labelled photos to a head, every choice made by cross-validation on what is labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_backend.calibration import calibrated, lines
from ml_backend.consent import Line, log_odds
from ml_backend.detections import Detections, Ints
from ml_backend.examples import Example
from ml_backend.fitting import fit_table
from ml_backend.head import Head
from ml_backend.judge import Truth, mean_ap50
from ml_backend.spread import each, one_thread_each
from ml_backend.training import Training, tabulate

FOLDS = 2
FEWEST = 2
"""Photos below which nothing can be held out: the first choice is taken."""

FEW = 5
"""Photos from which a prototype never won over logistic regression: it is tried no more."""

SCARCE = 10
"""Boxes on fewer than `FEW` photos, below which levels have too little to learn apart: one row for all comes first."""

MOST_HELD = 24
"""Photos that are held out, drawn by chance where there are more: enough to choose by, and in time."""

MOST_REST = 48
"""Photos that a head is fitted on to judge the others. As soon as there are so many beside those held out, one fit on
them takes the place of a fit a fold: it is nearer to the one on all."""

MARGIN = 0.01
"""AP50 by which a choice must beat the one before it: simpler ones come first."""

FLOOR = 0.01
"""Score of the weakest detection that counts when a head is judged."""


@dataclass(frozen=True)
class Choice:
    """How a head is fitted: a key of `TRAINERS`, and whether boxes are refitted."""

    trainer: str
    refit_boxes: bool


CHOICES = (
    Choice("logistic", refit_boxes=False),
    Choice("logistic", refit_boxes=True),
)

CHOICES_OF_FEW = (*CHOICES, Choice("prototype", refit_boxes=False))
"""Of fewer than `FEW` photos."""

CHOICES_OF_SCARCE = (Choice("shared", refit_boxes=False), Choice("shared", refit_boxes=True), *CHOICES_OF_FEW)
"""Of fewer than `FEW` photos with fewer than `SCARCE` boxes."""


def choices_of(examples: Sequence[Example], *, known: bool) -> tuple[Choice, ...]:
    """What is tried on labelled photos; the first is taken where nothing can be held out.

    Args:
        examples: The labelled photos.
        known: Whether the backbone knows classes of the project: levels then begin with what it knows, so that few
            photos ask for nothing simpler.
    """
    if known or len(examples) >= FEW:
        return CHOICES
    return CHOICES_OF_SCARCE if sum(len(one.labels) for one in examples) < SCARCE else CHOICES_OF_FEW


@dataclass(frozen=True, eq=False)
class Answers:
    """What was found on photos by heads that did not learn from them.

    Attributes:
        names: Classes of the detections.
        truths: What was drawn on each photo.
        found: What was found on each, with scores as the head that is learned on all gives them.
    """

    names: tuple[str, ...] = ()
    truths: Sequence[Truth] = ()
    found: Sequence[Detections] = ()


@dataclass(frozen=True)
class Learned:
    """A fitted head, how it was chosen, and what cross-validation gave.

    Attributes:
        head: The last layer.
        choice: How it was fitted.
        judged: AP50 of each choice by cross-validation; empty: none was possible.
        answers: What cross-validation found with this choice.
    """

    head: Head
    choice: Choice
    judged: Mapping[Choice, float]
    answers: Answers = Answers()


def learn(examples: Sequence[Example], *, levels: Sequence[int], known: Sequence[tuple[str, int]] = ()) -> Learned:
    """The head that did best on photos held out from its own fit, fitted again on all.

    Its scores are calibrated on those photos: a box of .7 is right about seven times in ten.

    Args:
        examples: Labelled photos, at least one of them with a box.
        levels: Of the backbone.
        known: Classes of the project that the backbone knows, with its index: learning starts from there.
    """
    judged: dict[Choice, float] = {}
    answers: Mapping[Choice, Answers] = {}
    best = choices_of(examples, known=bool(known))[0]
    with one_thread_each():
        training = tabulate(examples, levels, prior=[index for _, index in known])
        if sum(bool(one.labels) for one in examples) >= FEWEST:
            judged, answers = cross_validate(examples, training, levels=levels, known=known)
            for choice, score in judged.items():
                if score > judged[best] + MARGIN:
                    best = choice
        head = fit_table(
            training,
            training.photos,
            levels=levels,
            trainer=best.trainer,
            refit_boxes=best.refit_boxes,
            known=known,
        )
    told = answers.get(best, Answers())
    found = lines(told.found, told.truths, names=told.names)
    return Learned(calibrated(head, found), best, judged, _calibrated(told, found))


def cross_validate(
    examples: Sequence[Example],
    training: Training,
    *,
    levels: Sequence[int],
    known: Sequence[tuple[str, int]] = (),
) -> tuple[dict[Choice, float], dict[Choice, Answers]]:
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
    truths = [Truth(examples[index].drawn, examples[index].labels) for places, _ in folds for index in places]

    def judged(fold: tuple[list[int], list[int]]) -> dict[Choice, list[Detections]]:
        places, rest = fold
        answers: dict[Choice, list[Detections]] = {choice: [] for choice in choices}
        for trainer in dict.fromkeys(choice.trainer for choice in choices):
            head = fit_table(training, rest, levels=levels, trainer=trainer, refit_boxes=True, known=known)
            numbers = np.array([names.index(name) if name in names else -1 for name in head.names], np.int64)
            mine = [choice for choice in choices if choice.trainer == trainer]
            for one in (examples[index] for index in places):
                boxes, scores = head.answer(one.sight, exact=False)
                for choice in mine:
                    placed = boxes if choice.refit_boxes else one.sight.boxes
                    answers[choice].append(_renumbered(head.shown(one.sight, placed, scores, floor=FLOOR), numbers))
        return answers

    parts = each(judged, folds)
    found = {choice: [one for part in parts for one in part[choice]] for choice in choices}
    return (
        {choice: mean_ap50(truths, found[choice], names=names) for choice in choices},
        {choice: Answers(tuple(names), truths, found[choice]) for choice in choices},
    )


def _calibrated(answers: Answers, found: Mapping[str, Line]) -> Answers:
    """With scores as a head gives them that is calibrated with these lines."""
    stretch, shift = (np.array([getattr(found[name], what) for name in answers.names]) for what in ("stretch", "shift"))

    def again(one: Detections) -> Detections:
        odds = log_odds(one.scores) * stretch[one.classes] + shift[one.classes]
        scores = (1 / (1 + np.exp(-odds))).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        return Detections(one.boxes[order], scores[order], one.classes[order])

    return replace(answers, found=[again(one) if len(one) else one for one in answers.found])


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
