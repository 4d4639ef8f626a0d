"""Owns the shared trainer: logistic regression with one row for all levels, for projects with hardly any photos.

An object or two show themselves on one level of a detector's head, so that the others would have nothing to learn from
and never answer the class: an object that is larger or smaller on the next photo would be missed. One row for all of
them passes on what the one level shows; features are standardised level by level, so that it is understood there.
"""

from dataclasses import replace

import numpy as np

from ml_backend.training.solvers.logistic import fit_logistic
from ml_backend.training.solvers.problem import BinaryProblem, Rows


def fit_shared(problem: BinaryProblem) -> Rows:
    """The row that `fit_logistic` finds where all candidates lie on one level, for each level."""
    row = fit_logistic(replace(problem, spans=((0, len(problem.features)),)))
    return np.repeat(row, len(problem.spans), axis=0)
