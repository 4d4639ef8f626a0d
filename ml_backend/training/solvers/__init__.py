"""Owns TRAINERS: the ways to fit one class of a last layer. To add one: `fit(problem) -> rows`, and a line here."""

from collections.abc import Callable, Mapping

from ml_backend.training.solvers.logistic import fit_logistic
from ml_backend.training.solvers.problem import LOGIT_NEVER, BinaryProblem, Row, Rows
from ml_backend.training.solvers.prototype import fit_prototype
from ml_backend.training.solvers.shared import fit_shared

TRAINERS: Mapping[str, Callable[[BinaryProblem], Rows]] = {
    "prototype": fit_prototype,
    "shared": fit_shared,
    "logistic": fit_logistic,
}
"""Trainer by name. Which of them learns a project is decided by cross-validation on what is labelled."""

__all__ = ["LOGIT_NEVER", "TRAINERS", "BinaryProblem", "Row", "Rows", "fit_logistic", "fit_prototype", "fit_shared"]
