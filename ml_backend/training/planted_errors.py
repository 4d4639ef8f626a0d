"""Calibrate the confidence of label issues by planted errors. Pure functions.

Each label that the model has an opinion on is a planted error too: had another class been drawn, its issue would have
the confidence of the agreement (`label_errors.Agreement`). If a share of all labels is wrong, that share of the
agreements at a confidence is the number of issues there that are right; all others are errors of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from ml_backend.training.linear_head import Doubles

# Fewest agreements from a confidence on that the share of wrong labels is estimated by.
MIN_PLANTED = 10

# Inverse variances of the prior of intercept and slope, whose means of 0 and 1 do not change a confidence.
PRIOR = np.array([3.0, 10.0])

# Bounds of the slope: the order of the issues stays.
SLOPES = (0.3, 8.0)

# Confidences are kept this far from 0 and 1.
MARGIN = 1e-4


def fit_to_planted(issues: Doubles, agreements: Doubles, *, most: float, unseen: float) -> Callable[[float], float]:
    """Fit a logistic map from the confidence of an issue to the probability that it is right.

    The risk is that of learning from positive and unlabelled examples with the logistic loss (du Plessis, Niu and
    Sugiyama 2015, https://proceedings.mlr.press/v37/plessis15.html, equation 6), which is convex.

    Args:
        issues: Their confidences, by heads that were not fitted on the labels.
        agreements: The confidences that planted errors would have.
        most: Greatest share of wrong labels.
        unseen: Issues that are added to those that were seen, when the share of wrong labels is estimated.
    """
    if not len(issues) or not len(agreements):
        return lambda confidence: confidence
    share = share_of_errors(issues, agreements, most=most, unseen=unseen)
    planted, seen = _log_odds(agreements), _log_odds(issues)

    def risk(line: Doubles) -> tuple[float, Doubles]:
        away = line - np.array([0.0, 1.0])
        values = line[0] + line[1] * seen
        right = expit(values)
        value = np.logaddexp(0, values).sum() - share * (line[0] + line[1] * planted).sum() + away @ (PRIOR * away) / 2
        slope = np.array([right.sum(), right @ seen]) - share * np.array([len(planted), planted.sum()])
        return float(value), slope + PRIOR * away

    found = minimize(risk, np.array([0.0, 1.0]), jac=True, method="L-BFGS-B", bounds=[(None, None), SLOPES])
    intercept, slope = (float(value) for value in found.x)
    return lambda confidence: float(expit(intercept + slope * _log_odds(confidence)))


def share_of_errors(issues: Doubles, agreements: Doubles, *, most: float, unseen: float) -> float:
    """Estimate the share of wrong labels: the least number of issues for each planted error, from any confidence on.

    No share above it leaves all issues that it says are right (mixture proportion estimation, Blanchard, Lee and Scott
    2010, https://jmlr.org/papers/v11/blanchard10a.html, section 4).
    """
    ordered = np.sort(agreements)[::-1]
    counts = np.arange(1, len(ordered) + 1)
    raised = len(issues) - np.searchsorted(np.sort(issues), ordered, side="left")
    shares = (raised + unseen)[MIN_PLANTED - 1 :] / counts[MIN_PLANTED - 1 :]
    return float(min(most, shares.min(initial=most)))


def _log_odds(confidences: Doubles | float) -> Doubles:
    return np.asarray(logit(np.clip(confidences, MARGIN, 1 - MARGIN)), np.float64)
