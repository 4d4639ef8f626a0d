"""Classifiers of answers on frozen features, with scikit-learn as the referee."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ml_backend.training.label_model import LabelModel, _folds, _memberships, _Problem, _solve, fit_label_model


def clusters(per_class, classes, *, dimensions=24, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (classes, dimensions))
    y = np.repeat(np.arange(classes), per_class)
    return (centres[y] + rng.normal(0, spread, (len(y), dimensions))).astype(np.float32), y


def one_hot(y, classes):
    return np.eye(classes, dtype=bool)[y]


@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0])
def test_softmax_equals_logistic_regression_of_sklearn(penalty):
    x, y = clusters(12, 3)
    problem = _Problem(x.astype(np.float64), one_hot(y, 3).astype(float), "single", _memberships(("a", "b", "c")))
    weights = _solve(problem, penalty) @ problem.paths.T
    referee = LogisticRegression(C=penalty, max_iter=2000, tol=1e-8).fit(x, y)
    ours = x @ weights[:-1] + weights[-1]
    theirs = referee.decision_function(x)
    ours, theirs = (logits - logits.mean(axis=1, keepdims=True) for logits in (ours, theirs))
    assert np.abs(ours - theirs).max() < 0.06 * np.abs(theirs).max()


def test_more_dimensions_than_examples_separate_unseen_ones():
    x, y = clusters(40, 4, dimensions=500, spread=3.0)
    train = np.concatenate([np.flatnonzero(y == label)[:6] for label in range(4)])
    fitted = fit_label_model(x[train], one_hot(y[train], 4), classes="abcd", kind="single")
    rest = np.setdiff1d(np.arange(len(y)), train)
    assert (fitted.model.probabilities(x[rest]).argmax(axis=1) == y[rest]).mean() > 0.9


def test_out_of_fold_probabilities_are_calibrated():
    x, y = clusters(60, 3, spread=3.0)
    fitted = fit_label_model(x, one_hot(y, 3), classes="abc", kind="single")
    top, right = fitted.out_of_fold.max(axis=1), fitted.out_of_fold.argmax(axis=1) == y
    assert abs(top.mean() - right.mean()) < 0.06
    assert np.allclose(fitted.out_of_fold.sum(axis=1), 1)


def test_pure_noise_is_not_predicted_confidently():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (60, 200)).astype(np.float32), rng.integers(0, 2, 60)
    fitted = fit_label_model(x, one_hot(y, 2), classes="ab", kind="single")
    assert fitted.model.probabilities(rng.normal(0, 1, (200, 200)).astype(np.float32)).max(axis=1).mean() < 0.75


def test_class_with_one_example_is_wrong_out_of_fold_only():
    x, y = clusters(8, 3)
    rows = np.flatnonzero((y < 2) | (np.arange(len(y)) == 16))
    fitted = fit_label_model(x[rows], one_hot(y[rows], 3), classes="abc", kind="single")
    assert fitted.out_of_fold[-1, 2] == 0
    assert fitted.model.probabilities(x[rows])[-1].argmax() == 2


def test_tags_are_independent_of_each_other():
    x, y = clusters(30, 4)
    truth = np.stack([y % 2 == 1, y >= 2, np.zeros(len(y), bool)], axis=1)
    fitted = fit_label_model(x, truth, classes=("odd", "high", "never"), kind="multiple")
    chosen = fitted.out_of_fold > 0.5
    assert (chosen == truth).mean() > 0.95
    assert not chosen[:, 2].any()


def test_rating_of_a_line_is_better_by_regression():
    rng = np.random.default_rng(1)
    steps = rng.integers(0, 5, 60)
    x = (np.outer(steps - 2, rng.normal(0, 1, 30)) + rng.normal(0, 2.0, (60, 30))).astype(np.float32)
    fitted = fit_label_model(x, one_hot(steps, 5), classes="12345", kind="ordinal")
    median = (np.cumsum(fitted.out_of_fold, axis=1) < 0.5).sum(axis=1)
    assert np.abs(median - steps).mean() < 0.6


def test_leave_one_out_of_regression_equals_refits():
    rng = np.random.default_rng(5)
    steps = rng.integers(0, 3, 12)
    x = (np.outer(steps, rng.normal(0, 1, 6)) + rng.normal(0, 0.3, (12, 6))).astype(np.float32)
    fitted = fit_label_model(x, one_hot(steps, 3), classes="123", kind="ordinal")
    assert (fitted.out_of_fold.argmax(axis=1) == steps).mean() > 0.9


def test_paths_of_one_branch_share_what_they_have_in_common():
    matrix = _memberships(("animal/cat", "animal/dog", "plant"))
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1)
    assert matrix[0] @ matrix[1] == pytest.approx(0.5)
    assert matrix[0] @ matrix[2] == 0


def test_objects_of_one_image_are_in_one_fold():
    truth = one_hot(np.arange(60) % 2, 2)
    folds = _folds(truth, [row // 3 for row in range(60)])
    assert all(len(set(folds[start : start + 3])) == 1 for start in range(0, 60, 3))
    assert len(set(folds.tolist())) == 5


def test_two_examples_give_a_model_without_a_judgement():
    x, y = clusters(1, 2)
    fitted = fit_label_model(x, one_hot(y, 2), classes="ab", kind="single")
    assert fitted.out_of_fold is None
    assert (fitted.model.probabilities(x).argmax(axis=1) == y).all()


def test_model_predicts_in_less_than_a_millisecond():
    import time

    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1, shape).astype(np.float32) for shape in ((1000,), (1000, 40), (40,))]
    model = LabelModel("single", tuple(map(str, range(40))), arrays[0], np.ones(1000, np.float32), *arrays[1:])
    row = rng.normal(0, 1, (1, 1000)).astype(np.float32)
    best = min(_seconds(lambda: model.probabilities(row), time) for _ in range(20))
    assert best < 1e-3


def _seconds(work, time):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
