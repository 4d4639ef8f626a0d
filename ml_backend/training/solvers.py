"""Fits one class of a linear head from candidate features: prototype, shared and per-level logistic regression.

To add a solver, write `fit(problem) -> rows` and add one line to `TRAINERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from ml_backend.detection.detections import Floats, Ints

# (d + 1,) weights over standardised features; the last element is the bias.
Row = npt.NDArray[np.float64]

# (levels, d + 1) one row per level: the feature scales of a detector's levels differ.
Rows = npt.NDArray[np.float64]

# Logit of a class on a level without a positive candidate.
LOGIT_NEVER = -20.0

# Rounds of hard-negative mining: fit, add the highest-scoring negatives, fit again (Felzenszwalb et al. 2010,
# section 4.4).
ROUNDS = 3

# Mining stops when a round adds less than this share of the current negatives.
MIN_NEW_NEGATIVES = 0.03

# Negatives drawn at random; they keep the fit calibrated on the background.
RANDOM_NEGATIVES = 1000

# Negatives mined per round.
HARD_NEGATIVES = 1000

# L2 penalty on standardised weights; each object and each negative has total weight 1.
PENALTY = 1.0

BIAS_PENALTY = 1e-3

# Newton steps per fit; each round starts at the previous solution.
MAX_STEPS = 8

# The fit stops after a step that lowers the loss by less than this share.
MIN_RELATIVE_GAIN = 1e-2


@dataclass(frozen=True, eq=False)
class BinaryProblem:
    """One class against the rest.

    Attributes:
        features: (n, d + 1) float32 of all candidates, standardised; the last column is 1.
        spans: First and last row of each level in `features`; candidates are sorted by level.
        positives: (p,) int64 ascending indices of candidates that show the class.
        weights: (p,) float64 sample weights; the candidates of one object sum to 1.
        truth: (p,) float64 soft targets in (0, 1].
        negatives: (q,) int64 ascending indices of candidates that show something else. Candidates in neither list are
            ignored.
        start: (d + 1,) float64 initial row and centre of the penalty: the backbone's own class; None: zeros.
    """

    features: Floats
    spans: tuple[tuple[int, int], ...]
    positives: Ints
    weights: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    negatives: Ints
    start: Row | None = None

    @property
    def initial_rows(self) -> Rows:
        """(levels, d + 1) float64 rows where a fit starts."""
        start = np.zeros(self.features.shape[1]) if self.start is None else self.start
        return np.tile(start, (len(self.spans), 1))

    def scores(self, rows: Rows) -> Floats:
        """Compute the logits (n,) float32 of all candidates from rows (levels, d + 1)."""
        return np.concatenate(
            [
                self.features[low:high] @ row.astype(np.float32)
                for (low, high), row in zip(self.spans, rows, strict=True)
            ]
        )

    def hardest(self, rows: Rows, count: int) -> Ints:
        """Select the negatives with the highest logits; all of them where there are at most `count`.

        Args:
            rows: (levels, d + 1) float64.
            count: Number of negatives.

        Returns:
            (count,) int64 indices into `features`.
        """
        if len(self.negatives) <= count:
            return self.negatives
        scores = self.scores(rows)[self.negatives]
        return self.negatives[np.argpartition(scores, len(scores) - count)[-count:]]

    def sample(self, count: int, *, seed: int = 0) -> Ints:
        """Draw up to `count` negatives at random, reproducibly for a seed."""
        return np.random.default_rng(seed).permutation(self.negatives)[:count]


def fit_logistic(problem: BinaryProblem) -> Rows:
    """Fit regularised logistic regression per level, with mined hard negatives.

    Levels have weights of their own because feature scales differ between the levels of a detector's head. Mining ranks
    the negatives of all levels together.

    Returns:
        (levels, d + 1) float64.
    """
    rows = problem.initial_rows
    negatives = np.sort(problem.sample(RANDOM_NEGATIVES))
    rows = _fit_levels(problem, negatives, rows)
    for _ in range(ROUNDS):
        mined = np.union1d(negatives, problem.hardest(rows, HARD_NEGATIVES))
        if len(mined) - len(negatives) < MIN_NEW_NEGATIVES * len(negatives):
            break
        negatives = mined
        rows = _fit_levels(problem, negatives, rows)
    return rows


def fit_shared(problem: BinaryProblem) -> Rows:
    """Fit one logistic regression for all levels, for projects with very few images.

    One or two objects have positives on a single level, so per-level rows would never detect a larger or smaller
    object. Features are standardised per level, so one row transfers.

    Returns:
        (levels, d + 1) float64 with equal rows.
    """
    row = fit_logistic(replace(problem, spans=((0, len(problem.features)),)))
    return np.repeat(row, len(problem.spans), axis=0)


def fit_prototype(problem: BinaryProblem) -> Rows:
    """Fit the difference of the class mean and the background mean, with a logistic scale and bias.

    Only two means and two scalars are estimated, so it does not over-fit on one or two images (Snell et al. 2017,
    https://arxiv.org/abs/1703.05175, with the background as the second prototype).

    Returns:
        (levels, d + 1) float64 with equal rows.
    """
    background = problem.sample(RANDOM_NEGATIVES)
    positive, negative = problem.features[problem.positives], problem.features[background]
    share = problem.weights / problem.weights.sum()
    row: Row = np.asarray(share @ positive - negative.mean(axis=0), np.float64)
    row[-1] = 0.0
    row /= np.linalg.norm(row)
    projection = np.concatenate([positive, negative]) @ row
    design = np.stack([projection, np.ones(len(projection))], axis=1).astype(np.float32)
    truth = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    weights = np.concatenate([problem.weights, np.ones(len(negative))])
    scale, bias = newton(design, truth, weights, row=np.zeros(2), centre=np.zeros(2))
    row *= scale
    row[-1] = bias
    return np.tile(row, (len(problem.spans), 1))


def newton(
    features: Floats,
    truth: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    *,
    row: Row,
    centre: Row,
) -> Row:
    """Minimise weighted log loss + `PENALTY` / 2 x |row - centre|^2 by damped Newton steps.

    Sums run in single precision, which is enough for a direction; steps and loss are double.

    Args:
        features: (n, d + 1) float32, the last column 1.
        truth: (n,) targets in [0, 1].
        weights: (n,) sample weights.
        row: (d + 1,) initial solution.
        centre: (d + 1,) centre of the penalty, which is `BIAS_PENALTY` for the bias.

    Returns:
        (d + 1,) float64.
    """
    ridge = np.full(len(row), PENALTY)
    ridge[-1] = BIAS_PENALTY

    def logits_of(candidate: Row) -> npt.NDArray[np.float64]:
        return np.asarray(features @ candidate.astype(np.float32), np.float64)

    def loss(candidate: Row, logits: npt.NDArray[np.float64]) -> float:
        log_loss = weights @ (np.logaddexp(0, logits) - truth * logits)
        return float(log_loss + 0.5 * ridge @ (candidate - centre) ** 2)

    logits = logits_of(row)
    value = loss(row, logits)
    for _ in range(MAX_STEPS):
        probability = expit(logits)
        gradient = features.T @ (weights * (probability - truth)).astype(np.float32) + ridge * (row - centre)
        weighted = np.sqrt(weights * probability * (1 - probability)).astype(np.float32)[:, None] * features
        hessian = (weighted.T @ weighted).astype(np.float64)
        hessian[np.diag_indices_from(hessian)] += ridge
        step = cho_solve(cho_factor(hessian, overwrite_a=True, check_finite=False), gradient, check_finite=False)
        step_size = 1.0
        while True:
            candidate = row - step_size * step
            logits = logits_of(candidate)
            new_value = loss(candidate, logits)
            if new_value <= value or step_size < 1e-3:
                break
            step_size /= 2
        if new_value > value:
            return row
        row, gain, value = candidate, value - new_value, new_value
        if gain < MIN_RELATIVE_GAIN * value:
            break
    return row


def _fit_levels(problem: BinaryProblem, negatives: Ints, rows: Rows) -> Rows:
    """Refit each level's row from its current value; levels without positives keep the initial row."""
    fitted = problem.initial_rows
    for level, (low, high) in enumerate(problem.spans):
        in_level = slice(*np.searchsorted(problem.positives, [low, high]))
        if in_level.start == in_level.stop:
            if problem.start is None:
                fitted[level, -1] = LOGIT_NEVER
            continue
        background = negatives[slice(*np.searchsorted(negatives, [low, high]))]
        features = problem.features[np.concatenate([problem.positives[in_level], background])]
        truth = np.concatenate([problem.truth[in_level], np.zeros(len(background))])
        weights = np.concatenate([problem.weights[in_level], np.ones(len(background))])
        fitted[level] = newton(features, truth, weights, row=rows[level], centre=fitted[level])
    return fitted


# Solver by name. Cross-validation on the labelled images chooses between them.
TRAINERS: Mapping[str, Callable[[BinaryProblem], Rows]] = {
    "prototype": fit_prototype,
    "shared": fit_shared,
    "logistic": fit_logistic,
}
