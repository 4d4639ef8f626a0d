"""Owns the logistic trainer: regularised logistic regression by Newton's method, with mined hard negatives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve

from ml_backend.detections import Ints
from ml_backend.trainers.problem import Problem, Row

ROUNDS = 3
"""Of mining: fit, look for the negatives that fool the fit, fit again (Felzenszwalb et al. 2010, section 4.4)."""

EASY = 1000
"""Negatives drawn by chance, which keep the fit honest on the background."""

HARD = 1000
"""Negatives mined in a round."""

PENALTY = 1.0
"""Of the squared weights, over standardised features; an object counts 1, as one negative does."""

BIAS_PENALTY = 1e-3
STEPS = 8
"""Newton steps of one fit; each round begins where the one before it ended."""

ENOUGH = 1e-3
"""A step that betters the loss by less than this share is the last."""


def fit_logistic(problem: Problem) -> Row:
    """The row that tells the class from the rest; see the constants of this module."""
    negatives = problem.sample(EASY)
    row = problem.start if problem.start is not None else np.zeros(problem.features.shape[1])
    row = newton(problem, negatives, row)
    for _ in range(ROUNDS):
        negatives = np.union1d(negatives, problem.hardest(row, HARD))
        row = newton(problem, negatives, row)
    return row


def newton(problem: Problem, negatives: Ints, row: Row) -> Row:
    """Minimises weighted log loss + PENALTY / 2 x |weights - start|^2 from a given row on.

    Sums run in single precision, which is enough for a direction; the steps and the loss are double.
    """
    features = problem.features[np.concatenate([problem.positives, negatives])]
    truth = np.zeros(len(features))
    truth[: len(problem.positives)] = 1
    weights = np.concatenate([problem.weights, np.ones(len(negatives))])
    centre = problem.start if problem.start is not None else np.zeros_like(row)
    penalty = np.full(len(row), PENALTY)
    penalty[-1] = BIAS_PENALTY

    def logits_of(at: Row) -> npt.NDArray[np.float64]:
        return np.asarray(features @ at.astype(np.float32), np.float64)

    def loss(at: Row, logits: npt.NDArray[np.float64]) -> float:
        fit = weights @ (np.logaddexp(0, logits) - truth * logits)
        return float(fit + 0.5 * penalty @ (at - centre) ** 2)

    logits = logits_of(row)
    value = loss(row, logits)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        slope = features.T @ (weights * (chance - truth)).astype(np.float32) + penalty * (row - centre)
        curve = np.sqrt(weights * chance * (1 - chance)).astype(np.float32)[:, None] * features
        hessian = (curve.T @ curve).astype(np.float64)
        hessian[np.diag_indices_from(hessian)] += penalty
        step = solve(hessian, slope, assume_a="pos")
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
