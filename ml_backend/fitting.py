"""Owns the way from examples to a head: a row a class, boxes refitted where that is asked for.

Where the levels of a backbone have last layers of their own, so has the head: a row is fitted on the candidates of all
levels first, and from it one for each level, which stays near where the level has little to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml_backend.examples import Example
from ml_backend.head import Doubles, Head
from ml_backend.trainers import TRAINERS
from ml_backend.training import Training, tabulate

SHIFT_PENALTY = 10.0
"""Ridge penalty of the box refit, over standardised features; an object counts 1."""

NEVER = -20.0
"""Log-odds of a class that no candidate shows."""


def fit_head(
    examples: Sequence[Example],
    *,
    groups: Sequence[int],
    trainer: str,
    refit_boxes: bool,
    known: Sequence[tuple[str, int]] = (),
) -> Head:
    """A head for every class that was drawn at least once.

    Args:
        examples: Labelled photos; classes are answered in the order of their names.
        groups: Of the backbone.
        trainer: Key of `TRAINERS`.
        refit_boxes: Whether boxes are moved too.
        known: Classes of the project that the backbone knows, with its index; used for those that nobody drew yet.
    """
    drawn = sorted({label for one in examples for label in one.labels})
    waiting = [(name, index) for name, index in known if name not in drawn]
    training = tabulate(examples, groups)
    rows = np.stack([_fit_class(name, training, trainer) for name in drawn], axis=2)
    layers = np.stack([scale.unfold(one) for scale, one in zip(training.scales, rows, strict=True)])
    return Head(
        names=(*drawn, *(name for name, _ in waiting)),
        groups=tuple(groups),
        weights=layers[:, :-1],
        bias=layers[:, -1],
        known=tuple(index for _, index in waiting),
        shift=_fit_shift(training) if refit_boxes else None,
    )


def _fit_class(name: str, training: Training, trainer: str) -> Doubles:
    """(groups, d + 1): one row for all candidates, and from it the row of each group where there is more than one."""
    fit = TRAINERS[trainer]
    count = len(training.scales)
    together = training.problem(name)
    if together is None:
        row = np.zeros(training.features.shape[1])
        row[-1] = NEVER
        return np.tile(row, (count, 1))
    shared = fit(together)
    if count == 1:
        return shared[None]
    apart = [training.problem(name, group=group, start=shared) for group in range(count)]
    return np.stack([fit(one) if one is not None else shared for one in apart])


def _fit_shift(training: Training) -> Doubles:
    """(groups, d + 1, 4): ridge regression, for all candidates and from there for each group, as with classes."""
    equations = [training.shifts(group) for group in range(len(training.scales))]
    ridge = SHIFT_PENALTY * np.eye(training.features.shape[1])
    grams, targets = (np.stack(side) for side in zip(*equations, strict=True))
    shared = np.asarray(np.linalg.solve(grams.sum(axis=0) + ridge, targets.sum(axis=0)), np.float64)
    rows: list[Doubles] = [shared]
    if len(grams) > 1:
        rows = list(np.linalg.solve(grams + ridge, targets + ridge @ shared))
    return np.stack([scale.unfold(one) for scale, one in zip(training.scales, rows, strict=True)])
