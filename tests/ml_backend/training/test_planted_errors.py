"""Confidences fitted to planted errors, against the exact posterior of known distributions."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from ml_backend.training.planted_errors import fit_to_planted, share_of_errors

# Log-odds of the confidences of right labels and of wrong ones.
RIGHT, WRONG = norm(-2.5, 1.0), norm(1.0, 1.0)


def drawn(labels, share, seed=0):
    """(confidences of issues, of planted errors) of labels of which a share is wrong."""
    rng = np.random.default_rng(seed)
    wrong = round(share * labels)
    issues = np.concatenate([RIGHT.rvs(labels - wrong, random_state=rng), WRONG.rvs(wrong, random_state=rng)])
    return expit(issues), expit(WRONG.rvs(labels, random_state=rng))


def posterior(confidence, share):
    odds = logit(confidence)
    wrong, right = share * WRONG.pdf(odds), (1 - share) * RIGHT.pdf(odds)
    return wrong / (wrong + right)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_probabilities_are_those_of_the_exact_posterior(share):
    issues, planted = drawn(6000, share)
    probability = fit_to_planted(issues, planted, most=0.15, unseen=1.0)
    stated = np.array([probability(value) for value in issues])
    exact = posterior(issues, share)
    shown = exact > 0.05
    assert np.abs(stated - exact)[shown].mean() < 0.1
    assert np.abs(issues - exact)[shown].mean() > 0.15, "the confidences themselves are far off"


def test_the_share_of_errors_is_found_and_bounded():
    assert share_of_errors(*drawn(6000, 0.05), most=0.15, unseen=1.0) == pytest.approx(0.05, abs=0.015)
    assert share_of_errors(*drawn(6000, 0.3), most=0.15, unseen=1.0) == 0.15
    few = np.array([0.4, 0.6])
    assert share_of_errors(few, few, most=0.15, unseen=1.0) == 0.15, "too few to tell"


def test_a_model_that_sees_errors_everywhere_is_not_believed():
    rng = np.random.default_rng(1)
    same = expit(rng.normal(0.0, 1.0, 2000))
    probability = fit_to_planted(same, expit(rng.normal(0.0, 1.0, 2000)), most=0.1, unseen=1.0)
    assert probability(0.8) == pytest.approx(0.1, abs=0.06)


def test_with_few_labels_a_confidence_stays_and_the_order_always():
    issues, planted = drawn(8, 0.25)
    probability = fit_to_planted(issues, planted, most=0.1, unseen=1.0)
    assert all(abs(probability(value) - value) < 0.2 for value in (0.2, 0.5, 0.8))
    issues, planted = drawn(500, 0.05)
    against = fit_to_planted(planted, issues, most=0.1, unseen=1.0)  # the more confident, the less right
    values = [against(value) for value in np.linspace(0.05, 0.95, 10)]
    assert values == sorted(values)
    assert len(set(values)) == 10


def test_without_issues_or_planted_errors_a_confidence_stays():
    nothing, some = np.zeros(0), np.array([0.3])
    assert fit_to_planted(nothing, some, most=0.1, unseen=1.0)(0.4) == 0.4
    assert fit_to_planted(some, nothing, most=0.1, unseen=1.0)(0.4) == 0.4
