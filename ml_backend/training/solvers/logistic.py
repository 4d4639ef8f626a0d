"""Owns the logistic trainer: regularised logistic regression by Newton's method, with mined hard negatives."""

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from ml_backend.detection.detections import Floats, Ints
from ml_backend.training.solvers.problem import LOGIT_NEVER, BinaryProblem, Row, Rows

ROUNDS = 3
"""Of mining: fit, look for the negatives that fool the fit, fit again (Felzenszwalb et al. 2010, section 4.4)."""

FEW_NEW = 0.03
"""Mining ends when a round adds less than this share of the negatives that are there."""

EASY = 1000
"""Negatives drawn by chance, which keep the fit honest on the background."""

HARD = 1000
"""Negatives mined in a round."""

PENALTY = 1.0
"""Of the squared weights, over standardised features; an object counts 1, as one negative does."""

BIAS_PENALTY = 1e-3
STEPS = 8
"""Newton steps of one fit; each round begins where the one before it ended."""

ENOUGH = 1e-2
"""A step that betters the loss by less than this share is the last."""


def fit_logistic(problem: BinaryProblem) -> Rows:
    """The rows that tell the class from the rest, a row a level; see the constants of this module.

    Levels are fitted apart, because a detector's head has weights of its own for each: what a number means on one level
    says nothing about it on another. Mining looks at all of them together.
    """
    rows = problem.first
    negatives = np.sort(problem.sample(EASY))
    rows = _fit_levels(problem, negatives, rows)
    for _ in range(ROUNDS):
        more = np.union1d(negatives, problem.hardest(rows, HARD))
        if len(more) - len(negatives) < FEW_NEW * len(negatives):
            break
        negatives = more
        rows = _fit_levels(problem, negatives, rows)
    return rows


def _fit_levels(problem: BinaryProblem, negatives: Ints, rows: Rows) -> Rows:
    """Each level's row fitted on, from a given one on; on levels that show nothing of the class: where it began."""
    fitted = problem.first
    for level, (low, high) in enumerate(problem.spans):
        mine = slice(*np.searchsorted(problem.positives, [low, high]))
        if mine.start == mine.stop:
            if problem.start is None:
                fitted[level, -1] = LOGIT_NEVER
            continue
        others = negatives[slice(*np.searchsorted(negatives, [low, high]))]
        features = problem.features[np.concatenate([problem.positives[mine], others])]
        truth = np.concatenate([problem.truth[mine], np.zeros(len(others))])
        weights = np.concatenate([problem.weights[mine], np.ones(len(others))])
        fitted[level] = newton(features, truth, weights, row=rows[level], centre=fitted[level])
    return fitted


def newton(
    features: Floats,
    truth: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    *,
    row: Row,
    centre: Row,
    penalty: float = PENALTY,
) -> Row:
    """Minimises weighted log loss + penalty / 2 x |row - centre|^2 from a given row on.

    Sums run in single precision, which is enough for a direction; the steps and the loss are double.

    Args:
        features: (n, d + 1), the last column 1.
        truth: (n,) in [0, 1].
        weights: (n,).
        row: Where to begin.
        centre: What to stay near.
        penalty: Of all but the bias, which has `BIAS_PENALTY`.
    """
    ridge = np.full(len(row), penalty)
    ridge[-1] = BIAS_PENALTY

    def logits_of(at: Row) -> npt.NDArray[np.float64]:
        return np.asarray(features @ at.astype(np.float32), np.float64)

    def loss(at: Row, logits: npt.NDArray[np.float64]) -> float:
        fit = weights @ (np.logaddexp(0, logits) - truth * logits)
        return float(fit + 0.5 * ridge @ (at - centre) ** 2)

    logits = logits_of(row)
    value = loss(row, logits)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        slope = features.T @ (weights * (chance - truth)).astype(np.float32) + ridge * (row - centre)
        curve = np.sqrt(weights * chance * (1 - chance)).astype(np.float32)[:, None] * features
        hessian = (curve.T @ curve).astype(np.float64)
        hessian[np.diag_indices_from(hessian)] += ridge
        step = cho_solve(cho_factor(hessian, overwrite_a=True, check_finite=False), slope, check_finite=False)
        reach = 1.0
        while True:
            there = row - reach * step
            logits = logits_of(there)
            better = loss(there, logits)
            if better <= value or reach < 1e-3:
                break
            reach /= 2
        if better > value:
            return row
        row, gain, value = there, value - better, better
        if gain < ENOUGH * value:
            break
    return row
