"""Owns the prototype trainer: the mean of what shows the class against the mean of the rest.

Nothing but two means and a scale is fitted, so it cannot over-fit on one or two photos (Snell et al. 2017,
https://arxiv.org/abs/1703.05175, with the background as the second prototype).
"""

import numpy as np

from ml_backend.training.solvers.logistic import EASY, newton
from ml_backend.training.solvers.problem import BinaryProblem, Row, Rows


def fit_prototype(problem: BinaryProblem) -> Rows:
    """The difference of the two means, scaled and shifted so that its sigmoid is a probability; one for all levels."""
    background = problem.sample(EASY)
    shows, shows_not = problem.features[problem.positives], problem.features[background]
    share = problem.weights / problem.weights.sum()
    row: Row = np.asarray(share @ shows - shows_not.mean(axis=0), np.float64)
    row[-1] = 0.0
    row /= np.linalg.norm(row)
    along = np.concatenate([shows, shows_not]) @ row
    line = np.stack([along, np.ones(len(along))], axis=1).astype(np.float32)
    truth = np.concatenate([np.ones(len(shows)), np.zeros(len(shows_not))])
    weights = np.concatenate([problem.weights, np.ones(len(shows_not))])
    scale, shift = newton(line, truth, weights, row=np.zeros(2), centre=np.zeros(2))
    row *= scale
    row[-1] = shift
    return np.tile(row, (len(problem.spans), 1))
