"""Every trainer tells a class from the rest; the logistic one minimises what it says; mining finds what fools it."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ml_backend.training.solvers import TRAINERS, BinaryProblem
from ml_backend.training.solvers.logistic import BIAS_PENALTY, PENALTY, fit_logistic, newton
from ml_backend.training.solvers.shared import fit_shared


def problem(positives=60, negatives=400, size=6, *, seed=0, start=None):
    """Two clouds, the second around 0, the first shifted along the first axis."""
    rng = np.random.default_rng(seed)
    shown = rng.normal(0, 1, (positives, size)) + np.eye(size)[0] * 3
    rest = rng.normal(0, 1, (negatives, size))
    features = np.concatenate([np.concatenate([shown, rest]), np.ones((positives + negatives, 1))], axis=1)
    return posed(features, positives, start=start)


def posed(features, positives, *, start=None):
    """The first rows show the class, the others do not; all lie on one level."""
    places, ones = np.arange(len(features)), np.ones(positives)
    span = ((0, len(features)),)
    return BinaryProblem(features.astype(np.float32), span, places[:positives], ones, ones, places[positives:], start)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_ranks_what_shows_the_class_above_the_rest(trainer):
    task = problem()
    scores = task.scores(TRAINERS[trainer](task))
    wins = scores[task.positives][:, None] > scores[task.negatives][None]
    assert wins.mean() > 0.97


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_gives_the_same_row_twice(trainer):
    np.testing.assert_array_equal(TRAINERS[trainer](problem()), TRAINERS[trainer](problem()))


def test_newton_finds_the_minimum_that_scipy_finds():
    task = problem(size=4)
    truth = np.zeros(len(task.features))
    truth[task.positives] = 1
    penalty = np.array([PENALTY] * 4 + [BIAS_PENALTY])

    def loss(row):
        logits = task.features.astype(np.float64) @ row
        return (np.logaddexp(0, logits) - truth * logits).sum() + 0.5 * penalty @ row**2

    row = newton(task.features, truth, np.ones(len(truth)), row=np.zeros(5), centre=np.zeros(5))
    assert loss(row) <= minimize(loss, np.zeros(5)).fun * 1.001


def test_mining_teaches_the_rare_negative_that_looks_like_the_class():
    """30 of 30,000 negatives lie beside the class: a sample of 1,000 holds one of them or none."""
    rng = np.random.default_rng(0)
    shown, easy = rng.normal([4, 0, 0, 0, 0], 1, (50, 5)), rng.normal(0, 1, (30_000, 5))
    twins = rng.normal([4, 5, 0, 0, 0], 1, (30, 5))
    features = np.concatenate([shown, easy, twins])
    task = posed(np.concatenate([features, np.ones((len(features), 1))], axis=1), 50)
    seen = np.concatenate([task.positives, task.sample(1000)])
    truth = np.repeat([1.0, 0.0], [50, 1000])
    sampled = newton(task.features[seen], truth, np.ones(1050), row=np.zeros(6), centre=np.zeros(6))
    [mined] = fit_logistic(task)
    fooled = [(task.features[-30:] @ row > 0).mean() for row in (sampled, mined)]
    assert fooled[0] > 0.5
    assert fooled[1] < 0.2


def test_what_a_number_means_on_one_level_says_nothing_about_it_on_another():
    """On the first level the class is where the feature is high, on the second where it is low."""
    one, other = (problem(positives=40, negatives=200, size=3, seed=seed).features for seed in (0, 1))
    features = np.concatenate([one, other * [-1, 1, 1, 1]]).astype(np.float32)
    shows = np.concatenate([np.arange(40), 240 + np.arange(40)])
    rest = np.setdiff1d(np.arange(480), shows)
    task = BinaryProblem(features, ((0, 240), (240, 480)), shows, np.ones(80), np.ones(80), rest)
    rows = fit_logistic(task)
    assert rows[0, 0] > 0 > rows[1, 0]
    assert (task.scores(rows)[shows][:, None] > task.scores(rows)[rest][None]).mean() > 0.97


def test_a_level_that_shows_nothing_of_a_class_never_answers_it():
    task = problem()
    empty = BinaryProblem(
        task.features, ((0, 300), (300, 460)), task.positives, task.weights, task.truth, task.negatives
    )
    assert task.features.shape == (460, 7)
    assert (empty.scores(fit_logistic(empty))[300:] < -15).all()


def test_one_row_for_all_levels_finds_the_class_on_a_level_that_never_showed_it():
    """All that was drawn lies on the first level; on the second the same class stands out in the same way."""
    drawn, unseen = (problem(positives=40, negatives=200, size=3, seed=seed).features for seed in (0, 1))
    places = np.arange(480)
    task = BinaryProblem(
        np.concatenate([drawn, unseen]),
        ((0, 240), (240, 480)),
        places[:40],
        np.ones(40),
        np.ones(40),
        np.concatenate([places[40:240], places[280:]]),
    )
    assert fit_shared(task).shape == (2, 4)
    scores = task.scores(fit_shared(task))
    assert (scores[240:280, None] > scores[None, 280:]).mean() > 0.95
    assert (scores[240:280] > 0).mean() > 0.7
    assert (task.scores(fit_logistic(task))[240:280] < -15).all()


def test_one_row_for_all_levels_is_the_logistic_row_where_there_is_but_one():
    np.testing.assert_array_equal(fit_shared(problem()), fit_logistic(problem()))


def test_with_hardly_any_examples_a_row_stays_near_its_start():
    start = np.array([0, 2.0, 0, 0, 0, 0, -1])
    few = problem(positives=1, negatives=1, start=start)
    assert np.linalg.norm(fit_logistic(few) - start) < np.linalg.norm(fit_logistic(problem(start=start)) - start)
