"""Every trainer tells a class from the rest; the logistic one minimises what it says; mining finds what fools it."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ml_backend.trainers import TRAINERS, Problem
from ml_backend.trainers.logistic import BIAS_PENALTY, PENALTY, fit_logistic, newton


def problem(positives=60, negatives=400, size=6, *, seed=0, start=None):
    """Two clouds, the second around 0, the first shifted along the first axis."""
    rng = np.random.default_rng(seed)
    shown = rng.normal(0, 1, (positives, size)) + np.eye(size)[0] * 3
    rest = rng.normal(0, 1, (negatives, size))
    features = np.concatenate([np.concatenate([shown, rest]), np.ones((positives + negatives, 1))], axis=1)
    places = np.arange(positives + negatives)
    return Problem(features.astype(np.float32), places[:positives], np.ones(positives), places[positives:], start)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_ranks_what_shows_the_class_above_the_rest(trainer):
    posed = problem()
    scores = posed.features @ TRAINERS[trainer](posed)
    wins = scores[posed.positives][:, None] > scores[posed.negatives][None]
    assert wins.mean() > 0.97


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_gives_the_same_row_twice(trainer):
    np.testing.assert_array_equal(TRAINERS[trainer](problem()), TRAINERS[trainer](problem()))


def test_newton_finds_the_minimum_that_scipy_finds():
    posed = problem(size=4)
    truth = np.zeros(len(posed.features))
    truth[posed.positives] = 1
    penalty = np.array([PENALTY] * 4 + [BIAS_PENALTY])

    def loss(row):
        logits = posed.features.astype(np.float64) @ row
        return (np.logaddexp(0, logits) - truth * logits).sum() + 0.5 * penalty @ row**2

    row = newton(posed, posed.negatives, np.zeros(5))
    assert loss(row) <= minimize(loss, np.zeros(5)).fun * 1.001


def test_mining_teaches_the_rare_negative_that_looks_like_the_class():
    """30 of 30,000 negatives lie beside the class: a sample of 1,000 holds one of them or none."""
    rng = np.random.default_rng(0)
    shown, easy = rng.normal([4, 0, 0, 0, 0], 1, (50, 5)), rng.normal(0, 1, (30_000, 5))
    twins = rng.normal([4, 5, 0, 0, 0], 1, (30, 5))
    features = np.concatenate([shown, easy, twins])
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float32)
    places = np.arange(len(features))
    posed = Problem(features, places[:50], np.ones(50), places[50:])
    sampled = newton(posed, posed.sample(1000), np.zeros(6))
    mined = fit_logistic(posed)
    fooled = [(features[-30:] @ row > 0).mean() for row in (sampled, mined)]
    assert fooled[0] > 0.5
    assert fooled[1] < 0.2


def test_with_hardly_any_examples_a_row_stays_near_its_start():
    start = np.array([0, 2.0, 0, 0, 0, 0, -1])
    few = problem(positives=1, negatives=1, start=start)
    assert np.linalg.norm(fit_logistic(few) - start) < np.linalg.norm(fit_logistic(problem(start=start)) - start)
