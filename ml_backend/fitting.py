"""Owns the way from examples to a head: a row a class, boxes refitted where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml_backend.examples import Example
from ml_backend.head import Doubles, Head
from ml_backend.trainers import TRAINERS, Row
from ml_backend.training import Training, tabulate

SHIFT_PENALTY = 10.0
"""Ridge penalty of the box refit, over standardised features; an object counts 1."""

NEVER = -20.0
"""Log-odds of a class that no candidate shows."""


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
        known: Classes of the project that the backbone knows, with its index; used for those that nobody drew yet.
    """
    drawn = sorted({label for one in examples for label in one.labels})
    waiting = [(name, index) for name, index in known if name not in drawn]
    training = tabulate(examples, levels)
    rows = training.scale.unfold(np.stack([_fit_class(name, training, trainer) for name in drawn], axis=1))
    return Head(
        names=(*drawn, *(name for name, _ in waiting)),
        levels=tuple(levels),
        weights=rows[:-1],
        bias=rows[-1],
        known=tuple(index for _, index in waiting),
        shift=training.scale.unfold(_fit_shift(training)) if refit_boxes else None,
    )


def _fit_class(name: str, training: Training, trainer: str) -> Row:
    problem = training.problem(name)
    if problem is not None:
        return TRAINERS[trainer](problem)
    row = np.zeros(training.features.shape[1])
    row[-1] = NEVER
    return row


def _fit_shift(training: Training) -> Doubles:
    """(d + 1, 4): ridge regression; boxes stay where nothing is known."""
    gram, target = training.shifts()
    gram[np.diag_indices_from(gram)] += SHIFT_PENALTY
    return np.asarray(np.linalg.solve(gram, target), np.float64)
