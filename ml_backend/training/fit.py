"""Owns the way from examples to a head: rows for each class, boxes refitted where that is asked for."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml_backend.detection.box_voting import prior_calibration
from ml_backend.training.examples import Example
from ml_backend.training.linear_head import Doubles, Head
from ml_backend.training.parallel import parallel_map
from ml_backend.training.solvers import LOGIT_NEVER, TRAINERS, BinaryProblem, Rows
from ml_backend.training.table import CandidateTable, build_table

SHIFT_PENALTY = 10.0
"""Ridge penalty of the box refit, over standardised features; an object counts 1."""


def fit_head(
    examples: Sequence[Example],
    *,
    levels: Sequence[int],
    trainer: str,
    refit_boxes: bool,
    known: Sequence[tuple[str, int]] = (),
) -> Head:
    """A head for every class that was drawn at least once.

    Args:
        examples: Labelled photos; classes are answered in the order of their names.
        levels: Of the backbone.
        trainer: Key of `TRAINERS`.
        refit_boxes: Whether boxes are moved too.
        known: Classes of the project that the backbone knows, with its index. Those that nobody drew yet are answered
            as they come from it; the others are learned from there on.
    """
    training = build_table(examples, levels, prior=[index for _, index in known])
    photos = training.photos
    heads = fit_heads(training, photos, levels=levels, trainers=[trainer], refit_boxes=refit_boxes, known=known)
    return heads[trainer]


def fit_heads(
    training: CandidateTable,
    photos: Sequence[int],
    *,
    levels: Sequence[int],
    trainers: Sequence[str],
    refit_boxes: bool,
    known: Sequence[tuple[str, int]] = (),
) -> dict[str, Head]:
    """The same for some of the photos of a table, made with the same `known` as `prior`: a head of each trainer."""
    drawn = sorted({label for index in photos for label in training.parts[index].example.labels})
    places = {name: place for place, (name, _) in enumerate(known)}
    shift, moved = None, None
    if refit_boxes:
        shift = _fit_shift(training, photos)
        moved = training.moved(photos, shift)

    def fitted(name: str) -> list[Rows]:
        problem = training.problem(name, photos, refined_overlaps=moved, known=places.get(name))
        return [_fit_class(training, problem, trainer) for trainer in trainers]

    shape = (len(trainers), len(training.spans), training.features.shape[1], len(drawn))
    rows: Doubles = np.zeros(shape)  # without a class where nothing was drawn yet
    for place, each_trainer in enumerate(parallel_map(fitted, drawn)):
        rows[..., place] = each_trainer
    rows = training.scale.unfold(rows)
    waiting = [(name, index) for name, index in known if name not in drawn]
    base = Head(
        names=(*drawn, *(name for name, _ in waiting)),
        levels=tuple(levels),
        weights=rows[0, :, :-1],
        bias=rows[0, :, -1],
        known=tuple(index for _, index in waiting),
        prior=training.prior,
        shift=None if shift is None else training.scale.unfold(shift),
        calibration=tuple(prior_calibration(training.mean_overlap_mass(name, photos)) for name in drawn),
    )
    return {
        trainer: replace(base, weights=mine[:, :-1], bias=mine[:, -1])
        for trainer, mine in zip(trainers, rows, strict=True)
    }


def blend_heads(head: Head, other: Head, share: float) -> Head:
    """The mean of the rows of two heads of one table, the other one's by a share."""
    return replace(
        head,
        weights=(1 - share) * head.weights + share * other.weights,
        bias=(1 - share) * head.bias + share * other.bias,
    )


def _fit_class(training: CandidateTable, problem: BinaryProblem | None, trainer: str) -> Rows:
    if problem is None:
        rows = np.zeros((len(training.spans), training.features.shape[1]))
        rows[:, -1] = LOGIT_NEVER
        return rows
    return TRAINERS[trainer](problem)


def _fit_shift(training: CandidateTable, photos: Sequence[int]) -> Doubles:
    """(d + 1, 4): ridge regression; boxes stay where nothing is known."""
    gram, target = training.box_regression_normal_equations(photos)
    gram[np.diag_indices_from(gram)] += SHIFT_PENALTY
    return np.asarray(np.linalg.solve(gram, target), np.float64)
