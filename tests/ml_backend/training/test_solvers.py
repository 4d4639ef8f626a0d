"""Solvers separate a class from the rest; newton minimises its loss; mining adds hard negatives."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ml_backend.training.solvers import (
    BIAS_PENALTY,
    PENALTY,
    TRAINERS,
    BinaryProblem,
    fit_logistic,
    fit_shared,
    newton,
)


def problem(positives=60, negatives=400, size=6, *, seed=0, start=None):
    """Two clouds: the negatives around 0, the positives shifted along the first axis."""
    rng = np.random.default_rng(seed)
    positive = rng.normal(0, 1, (positives, size)) + np.eye(size)[0] * 3
    negative = rng.normal(0, 1, (negatives, size))
    features = np.concatenate([np.concatenate([positive, negative]), np.ones((positives + negatives, 1))], axis=1)
    return build_problem(features, positives, start=start)


def build_problem(features, positives, *, start=None):
    """Positives first, then negatives; all on one level."""
    indices, ones = np.arange(len(features)), np.ones(positives)
    span = ((0, len(features)),)
    return BinaryProblem(features.astype(np.float32), span, indices[:positives], ones, ones, indices[positives:], start)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_solver_ranks_positives_above_negatives(trainer):
    task = problem()
    scores = task.scores(TRAINERS[trainer](task))
    wins = scores[task.positives][:, None] > scores[task.negatives][None]
    assert wins.mean() > 0.97


@pytest.mark.parametrize("trainer", TRAINERS)
def test_solver_is_deterministic(trainer):
    np.testing.assert_array_equal(TRAINERS[trainer](problem()), TRAINERS[trainer](problem()))


def test_newton_reaches_the_minimum_of_scipy():
    task = problem(size=4)
    truth = np.zeros(len(task.features))
    truth[task.positives] = 1
    penalty = np.array([PENALTY] * 4 + [BIAS_PENALTY])

    def loss(row):
        logits = task.features.astype(np.float64) @ row
        return (np.logaddexp(0, logits) - truth * logits).sum() + 0.5 * penalty @ row**2

    row = newton(task.features, truth, np.ones(len(truth)), row=np.zeros(5), centre=np.zeros(5))
    assert loss(row) <= minimize(loss, np.zeros(5)).fun * 1.001


def test_mining_finds_rare_hard_negatives():
    """30 of 30,000 negatives lie near the class: a sample of 1,000 has one of them or none."""
    rng = np.random.default_rng(0)
    positive, easy = rng.normal([4, 0, 0, 0, 0], 1, (50, 5)), rng.normal(0, 1, (30_000, 5))
    hard = rng.normal([4, 5, 0, 0, 0], 1, (30, 5))
    features = np.concatenate([positive, easy, hard])
    task = build_problem(np.concatenate([features, np.ones((len(features), 1))], axis=1), 50)
    sampled_rows = np.concatenate([task.positives, task.sample(1000)])
    truth = np.repeat([1.0, 0.0], [50, 1000])
    sampled = newton(task.features[sampled_rows], truth, np.ones(1050), row=np.zeros(6), centre=np.zeros(6))
    [mined] = fit_logistic(task)
    false_positive_rates = [(task.features[-30:] @ row > 0).mean() for row in (sampled, mined)]
    assert false_positive_rates[0] > 0.5
    assert false_positive_rates[1] < 0.2


def test_levels_have_weights_of_their_own():
    """On the first level the feature is high for the class, on the second it is low."""
    first, second = (problem(positives=40, negatives=200, size=3, seed=seed).features for seed in (0, 1))
    features = np.concatenate([first, second * [-1, 1, 1, 1]]).astype(np.float32)
    positives = np.concatenate([np.arange(40), 240 + np.arange(40)])
    negatives = np.setdiff1d(np.arange(480), positives)
    task = BinaryProblem(features, ((0, 240), (240, 480)), positives, np.ones(80), np.ones(80), negatives)
    rows = fit_logistic(task)
    assert rows[0, 0] > 0 > rows[1, 0]
    assert (task.scores(rows)[positives][:, None] > task.scores(rows)[negatives][None]).mean() > 0.97


def test_level_without_positives_never_predicts_the_class():
    task = problem()
    empty = BinaryProblem(
        task.features, ((0, 300), (300, 460)), task.positives, task.weights, task.truth, task.negatives
    )
    assert task.features.shape == (460, 7)
    assert (empty.scores(fit_logistic(empty))[300:] < -15).all()


def test_shared_row_detects_on_levels_without_positives():
    """All positives lie on the first level; the class looks the same on the second."""
    labelled, unlabelled = (problem(positives=40, negatives=200, size=3, seed=seed).features for seed in (0, 1))
    indices = np.arange(480)
    task = BinaryProblem(
        np.concatenate([labelled, unlabelled]),
        ((0, 240), (240, 480)),
        indices[:40],
        np.ones(40),
        np.ones(40),
        np.concatenate([indices[40:240], indices[280:]]),
    )
    assert fit_shared(task).shape == (2, 4)
    scores = task.scores(fit_shared(task))
    assert (scores[240:280, None] > scores[None, 280:]).mean() > 0.95
    assert (scores[240:280] > 0).mean() > 0.7
    assert (task.scores(fit_logistic(task))[240:280] < -15).all()


def test_shared_equals_logistic_on_a_single_level():
    np.testing.assert_array_equal(fit_shared(problem()), fit_logistic(problem()))


def test_row_stays_near_its_start_with_few_examples():
    start = np.array([0, 2.0, 0, 0, 0, 0, -1])
    few = problem(positives=1, negatives=1, start=start)
    assert np.linalg.norm(fit_logistic(few) - start) < np.linalg.norm(fit_logistic(problem(start=start)) - start)
