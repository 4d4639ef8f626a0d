"""Wrong labels of whole images, with cleanlab as the referee.

cleanlab 2.9.0 is no dependency: its answers on `case(seed)` are recorded; where it is installed, they are checked.
"""

import importlib.util

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ml_backend.training.confident_learning import (
    class_thresholds,
    find_wrong_labels,
    find_wrong_tags,
    tag_wrongness,
    wrongness,
)

# Seed -> (cleanlab's confident joint without calibration, AUROC of its default score, self_confidence).
CLEANLAB = {
    0: ([[45, 3, 4, 5], [2, 38, 5, 3], [4, 1, 27, 7], [4, 6, 2, 22]], 0.9224),
    1: ([[54, 4, 10, 4], [8, 29, 3, 4], [6, 10, 26, 10], [7, 5, 3, 16]], 0.9653),
    2: ([[55, 5, 3, 6], [2, 38, 10, 11], [5, 5, 24, 3], [2, 4, 6, 11]], 0.9527),
}


def case(seed):
    """240 examples of 4 classes, 20 % of them labelled wrongly: (probabilities, given, wrong)."""
    rng = np.random.default_rng(seed)
    count, classes = 240, 4
    truth = rng.choice(classes, count, p=[0.4, 0.3, 0.2, 0.1])
    wrong = rng.random(count) < 0.2
    given = np.where(wrong, (truth + rng.integers(1, classes, count)) % classes, truth)
    logits = (
        rng.normal(0, 1, (count, classes)) + np.eye(classes)[truth] * np.array([2.5, 2.0, 1.5, 1.2])[truth][:, None]
    )
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), given, wrong


def confident_joint(probabilities, given):
    """Examples by given class (row) and class of highest probability that reaches its threshold (column), (k, k)."""
    joint = np.zeros((probabilities.shape[1],) * 2, np.int64)
    reached = probabilities >= class_thresholds(probabilities, given)
    rows = np.flatnonzero(np.any(reached, axis=1))
    np.add.at(joint, (given[rows], np.where(reached, probabilities, -1.0).argmax(axis=1)[rows]), 1)
    return joint


@pytest.mark.parametrize("seed", CLEANLAB)
def test_confident_joint_is_that_of_cleanlab(seed):
    probabilities, given, _ = case(seed)
    assert confident_joint(probabilities, given).tolist() == CLEANLAB[seed][0]


@pytest.mark.parametrize("seed", CLEANLAB)
def test_planted_errors_rank_as_high_as_with_cleanlab(seed):
    probabilities, given, wrong = case(seed)
    assert roc_auc_score(wrong, wrongness(probabilities, given)) > CLEANLAB[seed][1] - 0.004


@pytest.mark.skipif(importlib.util.find_spec("cleanlab") is None, reason="cleanlab is not installed")
def test_records_are_those_of_cleanlab():
    from cleanlab.count import compute_confident_joint

    for seed, (joint, _) in CLEANLAB.items():
        probabilities, given, _ = case(seed)
        assert compute_confident_joint(given, probabilities, calibrate=False).tolist() == joint


def test_issues_name_the_class_that_fits_better():
    probabilities, given, wrong = case(0)
    issues = find_wrong_labels(probabilities, given, least=0.8)
    assert np.mean([wrong[issue.example] for issue in issues]) > 0.7
    assert all(issue.given == given[issue.example] != issue.suggested for issue in issues)
    confidences = [issue.confidence for issue in issues]
    assert confidences == sorted(confidences, reverse=True)


def test_missing_and_surplus_tags_are_told_apart():
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3)) < 0.4
    probabilities = np.clip(np.where(truth, 0.85, 0.1) + rng.normal(0, 0.05, truth.shape), 0.01, 0.99)
    given = truth.copy()
    given[3, 0], given[5, 1] = ~given[3, 0], ~given[5, 1]
    first, second = find_wrong_tags(probabilities, given)[:2]
    assert {(issue.example, issue.given, issue.suggested) for issue in (first, second)} == {
        (3, None, 0) if truth[3, 0] else (3, 0, None),
        (5, None, 1) if truth[5, 1] else (5, 1, None),
    }
    assert tag_wrongness(probabilities, given).shape == (200, 3)


def test_class_without_examples_has_no_threshold_to_reach():
    assert class_thresholds(np.array([[0.9, 0.1]]), np.array([0])).tolist() == [0.9, 1.0]
    assert wrongness(np.zeros((0, 2)), np.zeros(0, np.int64)).shape == (0,)
