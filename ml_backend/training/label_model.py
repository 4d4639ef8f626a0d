"""Classifiers of answers (choices, tags, paths of a taxonomy, ratings) on frozen features. Pure functions.

A regularised logistic regression: softmax for one answer of several, one binary problem for each tag, and for ratings
also a linear regression whose error gives the probability of each step. Few examples in many dimensions are fitted in
the coordinates of their own span, where the penalty is the same and a fit takes milliseconds. The strength of the
penalty is chosen by cross-validation; with the strongest one the weights point from the mean of all examples to the
mean of the class, which is a prototype. The same folds give the out-of-fold probabilities that calibrate the model
(temperature scaling, Guo et al. 2017, https://arxiv.org/abs/1706.04599), judge it and find wrong labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, ndtr, softmax

from ml_backend.detection.detections import Floats
from ml_backend.training.parallel import single_threaded_blas

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
# "single": one class an example; "multiple": any number of tags; "ordinal": one step of a scale.
Kind = Literal["single", "multiple", "ordinal"]

# Inverse penalties (C of scikit-learn's LogisticRegression) to choose from, for examples of squared norm `NORM`.
PENALTIES = (1.0, 6.0, 36.0, 200.0)

# The one without enough examples, and how strongly it is preferred, in log loss per decade squared.
DEFAULT_PENALTY, PENALTY_PRIOR = 36.0, 1.0

# Mean squared norm that the examples are scaled to.
NORM = 9.0

# Folds of the cross-validation; up to LEAVE_ONE_OUT examples, each is a fold.
FOLDS, LEAVE_ONE_OUT = 5, 12

# Examples from which there is a cross-validation.
MIN_EXAMPLES = 4

# Share of the mean standard deviation that is added to that of each feature: features that hardly vary carry no signal.
MIN_SPREAD = 0.1

# Power of the standard deviation that features are divided by: 1 is best for textures, 0 for flowers.
SPREAD_POWER = 0.75

# Penalty of the intercepts, by kind: few images with tags must not teach that no tag is ever set.
BIAS_PENALTIES: Mapping[Kind, float] = {"single": 0.01, "multiple": 4.0, "ordinal": 0.01}

# Iterations of the solver, curvature pairs that it keeps, and the relative gain at which it stops.
MAX_ITERATIONS, MAX_PAIRS, MIN_RELATIVE_GAIN = 80, 10, 1e-5

# Temperatures to choose from, and the strength of the preference for 1, in log loss per squared unit of its logarithm.
SLOPES = np.exp(np.linspace(-3.0, 1.0, 33))
SLOPE_PRIOR = 2.0

# Log loss of a class that the fitted folds had no example of is not counted; probabilities are at least this.
MIN_PROBABILITY = 1e-7

# Penalties of the linear regression of ratings.
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, eq=False)
class LabelModel:
    """A linear model on standardised features.

    Attributes:
        kind: What the classes are.
        classes: Names of the classes or tags; steps of a scale in ascending order.
        mean: (g,) float32 subtracted from the features.
        scale: (g,) float32 that they are divided by.
        weights: (g, k) float32; (g, 1) for a regression of ratings.
        bias: (k,) float32; (1,) for a regression.
        error: Standard error of the regression, in steps; 0: the model has logits.
    """

    kind: Kind
    classes: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats
    error: float = 0.0

    def probabilities(self, features: Floats) -> Doubles:
        """Return calibrated probabilities (n, k) of the classes for features (n, g)."""
        logits = ((features - self.mean) / self.scale) @ self.weights + self.bias
        return _probabilities(np.asarray(logits, np.float64), self.kind, len(self.classes), self.error)


@dataclass(frozen=True, eq=False)
class FittedLabels:
    """A fitted model and its predictions for its examples.

    Attributes:
        model: Fitted on all examples.
        out_of_fold: (n, k) calibrated probabilities from models that were not fitted on the example; None: too few.
        penalty: The chosen inverse penalty.
    """

    model: LabelModel
    out_of_fold: Doubles | None
    penalty: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """Examples in the coordinates of their span.

    Attributes:
        points: (n, r) float64.
        truth: (n, k) float64, 1 where the class applies.
        kind: What the classes are.
        paths: (k, m) membership of each class in the nodes of a tree, rows of length 1.
    """

    points: Doubles
    truth: Doubles
    kind: Kind
    paths: Doubles

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> _Problem:
        return replace(self, points=self.points[rows], truth=self.truth[rows])


def fit_label_model(
    features: Floats,
    truth: npt.NDArray[np.bool_],
    *,
    classes: Sequence[str],
    kind: Kind,
    groups: Sequence[int] | None = None,
) -> FittedLabels:
    """Fit a model on labelled examples, with out-of-fold predictions.

    Args:
        features: (n, g) frozen features, n at least 1.
        truth: (n, k) whether a class applies; exactly one per row unless `kind` is "multiple".
        classes: Names of the classes; paths of a taxonomy share the weights of their common nodes, by "/".
        kind: What the classes are.
        groups: (n) Examples of one group, such as the objects of an image, are in one fold; None: each is its own.
    """
    with single_threaded_blas():
        transformed = np.asarray(features, np.float64)
        mean = transformed.mean(axis=0)
        spread = transformed.std(axis=0)
        scale = (spread + MIN_SPREAD * spread.mean() + 1e-9) ** SPREAD_POWER
        transformed = (transformed - mean) / scale
        norm = float(np.sqrt((transformed * transformed).sum(axis=1).mean() / NORM)) or 1.0
        points, basis = _span(transformed / norm)
        problem = _Problem(points, truth.astype(np.float64), kind, _memberships(classes))
        folds = _folds(truth, groups)
        fitted, weights = _logistic(problem, folds, tuple(classes))
        if kind == "ordinal":
            linear, linear_weights = _linear(problem, folds, tuple(classes))
            if linear is not None and (
                fitted.out_of_fold is None
                or _loss(linear.out_of_fold, truth, kind) < _loss(fitted.out_of_fold, truth, kind)
            ):
                fitted, weights = linear, linear_weights
        model = replace(
            fitted.model,
            mean=mean.astype(np.float32),
            scale=(scale * norm).astype(np.float32),
            weights=np.asarray(basis @ weights[:-1], np.float32),
            bias=np.asarray(weights[-1], np.float32),
        )
        return replace(fitted, model=model)


def _span(points: Doubles) -> tuple[Doubles, Doubles]:
    """Coordinates (n, r) of points (n, g) in an orthonormal basis (g, r) of their span."""
    values, vectors = np.linalg.eigh(points @ points.T)
    keep = values > 1e-9 * max(float(values.max(initial=0.0)), 1e-12)
    lengths = np.sqrt(values[keep])
    coordinates = vectors[:, keep] * lengths
    return coordinates, points.T @ (vectors[:, keep] / lengths)


def _memberships(classes: Sequence[str]) -> Doubles:
    """Membership (k, m) of each class in the nodes on its path, rows of length 1; the identity without a tree."""
    paths = [name.split("/") for name in classes]
    nodes = sorted({"/".join(path[: depth + 1]) for path in paths for depth in range(len(path))})
    matrix: Doubles = np.zeros((len(classes), len(nodes)))
    for row, path in enumerate(paths):
        for depth in range(len(path)):
            matrix[row, nodes.index("/".join(path[: depth + 1]))] = 1.0
    told_apart = np.asarray(matrix[:, matrix.sum(axis=0) < len(classes)], np.float64)
    matrix = told_apart if told_apart.any(axis=1).all() else matrix
    return np.asarray(matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9), np.float64)


def _folds(truth: npt.NDArray[np.bool_], groups: Sequence[int] | None) -> Indices | None:
    """Fold of each example, spread evenly within groups of equal answers; None with too few groups."""
    _, first, group = np.unique(
        np.arange(len(truth)) if groups is None else np.asarray(groups), return_index=True, return_inverse=True
    )
    count = len(first)
    if count < MIN_EXAMPLES:
        return None
    if count <= LEAVE_ONE_OUT:
        return np.asarray(group, np.int64)
    order = np.random.default_rng(0).permutation(count)
    order = order[np.lexsort(truth[first[order]].T)]
    folds = np.empty(count, np.int64)
    folds[order] = np.arange(count) % FOLDS
    return folds[group]


def _logistic(problem: _Problem, folds: Indices | None, classes: tuple[str, ...]) -> tuple[FittedLabels, Doubles]:
    """Fit the logistic regression; returns it and its calibrated weights (r + 1, k)."""
    penalty, slope, out_of_fold = DEFAULT_PENALTY, 1.0, None
    if folds is not None:
        logits = _out_of_fold_logits(problem, folds)
        best = np.inf
        for candidate, values in logits.items():
            loss, fitting_slope = _calibrate(values, problem)
            loss += PENALTY_PRIOR * float(np.log10(candidate / DEFAULT_PENALTY)) ** 2
            if loss < best:
                best, penalty, slope = loss, candidate, fitting_slope
        out_of_fold = _probabilities(slope * logits[penalty], problem.kind, len(classes), 0.0)
    weights = slope * _solve(problem, penalty) @ problem.paths.T
    return FittedLabels(_unfinished(problem.kind, classes, 0.0), out_of_fold, penalty), weights


def _unfinished(kind: Kind, classes: tuple[str, ...], error: float) -> LabelModel:
    """A model whose weights are still in the coordinates of the span."""
    empty = np.zeros(0, np.float32)
    return LabelModel(kind, classes, empty, empty, empty, empty, error)


def _out_of_fold_logits(problem: _Problem, folds: Indices) -> dict[float, Doubles]:
    """Logits (n, k) of each example by penalty, from fits without its fold; -inf for classes without an example."""
    logits = {penalty: np.zeros(problem.truth.shape) for penalty in PENALTIES}
    for fold in range(int(folds.max()) + 1):
        inside = folds != fold
        part = problem[inside]
        absent = ~part.truth.any(axis=0)
        weights = None
        for penalty in PENALTIES:
            weights = _solve(part, penalty, start=weights)
            values = _with_bias(problem.points[~inside]) @ weights @ problem.paths.T
            logits[penalty][~inside] = np.where(absent, -np.inf, values)
    return logits


def _solve(problem: _Problem, penalty: float, *, start: Doubles | None = None) -> Doubles:
    """Minimise log loss + |weights|^2 / (2 penalty); returns the weights of the nodes (r + 1, m), intercepts last."""
    points, truth, paths = _with_bias(problem.points), problem.truth, problem.paths
    shape = points.shape[1], paths.shape[1]
    ridge = np.full((shape[0], 1), 1 / penalty)
    ridge[-1] = BIAS_PENALTIES[problem.kind]

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        weights = flat.reshape(shape)
        logits = points @ weights @ paths.T
        if problem.kind == "multiple":
            value = (np.logaddexp(0, logits) - truth * logits).sum()
            residual = expit(logits) - truth
        else:
            shares = log_softmax(logits, axis=1)
            value = -(truth * shares).sum()
            residual = np.exp(shares) - truth
        gradient = points.T @ residual @ paths + ridge * weights
        return float(value + 0.5 * (ridge * weights * weights).sum()), gradient.ravel()

    solution = minimize(
        loss,
        np.zeros(shape[0] * shape[1]) if start is None else start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxcor": MAX_PAIRS, "ftol": MIN_RELATIVE_GAIN, "gtol": 1e-3},
    )
    return np.asarray(solution.x, np.float64).reshape(shape)


def _with_bias(points: Doubles) -> Doubles:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _calibrate(logits: Doubles, problem: _Problem) -> tuple[float, float]:
    """Fit the slope of out-of-fold logits; returns (log loss plus its prior, slope)."""
    truth = problem.truth.astype(bool)
    losses = [
        _loss(_probabilities(slope * logits, problem.kind, truth.shape[1], 0.0), truth, problem.kind)
        + SLOPE_PRIOR * float(np.log(slope)) ** 2
        for slope in SLOPES
    ]
    best = int(np.argmin(losses))
    return losses[best], float(SLOPES[best])


def _loss(probabilities: Doubles | None, truth: npt.NDArray[np.bool_], kind: Kind) -> float:
    """Log loss of out-of-fold probabilities; answers that the fits of a fold had no example of are left out."""
    if probabilities is None:
        return float("inf")
    if kind != "multiple":
        own = probabilities[truth]
        return float(-np.log(np.maximum(own[own > 0], MIN_PROBABILITY)).sum())
    right = np.where(truth, probabilities, 1 - probabilities)[(probabilities > 0) | ~truth]
    return float(-np.log(np.maximum(right, MIN_PROBABILITY)).sum())


def _linear(problem: _Problem, folds: Indices | None, classes: tuple[str, ...]) -> tuple[FittedLabels | None, Doubles]:
    """Fit ridge regression of the step; its leave-one-out errors have a closed form. None with too few examples."""
    steps = problem.truth.argmax(axis=1).astype(np.float64)
    if folds is None:
        return None, np.zeros((0, 1))
    centred = problem.points  # the features have mean zero, so the intercept is the mean step
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values = np.maximum(values, 0.0)
    target = steps - steps.mean()
    best: tuple[float, float, Doubles] | None = None
    for ridge in RIDGES:
        shrunk = values / (values + ridge * NORM)
        hat = (vectors * shrunk) @ vectors.T
        errors = (target - hat @ target) / np.maximum(1 - np.diag(hat) - 1 / len(target), 1e-3)
        spread = float(np.sqrt((errors**2).mean()))
        if best is None or spread < best[0]:
            best = spread, ridge, errors
    assert best is not None
    spread, ridge, errors = best
    error = max(spread, 1e-3)
    out_of_fold = _probabilities((steps - errors)[:, None], "ordinal", len(classes), error)
    solution = np.linalg.solve(centred.T @ centred + ridge * NORM * np.eye(centred.shape[1]), centred.T @ target)
    weights = np.concatenate([solution, [steps.mean()]])[:, None]
    return FittedLabels(_unfinished("ordinal", classes, error), out_of_fold, ridge), weights


def _probabilities(values: Doubles, kind: Kind, classes: int, error: float) -> Doubles:
    """Probabilities (n, classes) from logits (n, classes), or from the steps (n, 1) of a regression with its error."""
    if error:
        edges = np.concatenate([[-np.inf], np.arange(classes - 1) + 0.5, [np.inf]])
        return np.asarray(np.diff(ndtr((edges - values) / error), axis=1))
    if kind == "multiple":
        return np.asarray(expit(values))
    return np.asarray(softmax(values, axis=1))
