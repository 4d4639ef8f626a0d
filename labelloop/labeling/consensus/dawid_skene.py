"""Dawid and Skene's model of raters: the true class of each item and each rater's confusion matrix, by EM.

A. P. Dawid and A. M. Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Journal of
the Royal Statistical Society C 28 (1979), pp. 20-28; the equations are named by the numbers there.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_TINY = 1e-300
_TOLERANCE = 1e-6


class Pooling(msgspec.Struct, frozen=True):
    """What a rater of whom little is known is taken for.

    A whole confusion matrix asks for more answers than most raters give; how often somebody is right is known sooner.

    Attributes:
        accuracy: Pseudo-answers by which a rater's accuracy is drawn to everybody's.
        confusion: Pseudo-answers a class by which a rater's confusion matrix is drawn to one of that accuracy whose
            errors are spread as everybody's.
        raters: Pseudo-raters by which everybody's accuracy is drawn to ``typical``.
        items: Pseudo-items by which the classes' frequency is drawn to that of the answers.
        typical: How often raters are right before anything is known.

    The last three keep apart what two answers an item cannot: raters who are mostly right about both classes, and
    raters who guess about items that are all of one.
    """

    accuracy: float = 6.0
    confusion: float = 16.0
    raters: float = 20.0
    items: float = 30.0
    typical: float = 0.8


POOLING = Pooling()


class DawidSkene(msgspec.Struct, frozen=True):
    """What was estimated.

    Attributes:
        marginals: How common each class is, of shape ``(classes,)``.
        confusion: ``confusion[rater, truth, answer]``: how a rater answers an item of each class; each row sums to 1.
        posterior: ``posterior[item, class]``: how likely each item is of each class.
        log_likelihood: Of all answers under the estimates.
        iterations: Rounds of EM.
    """

    marginals: Floats
    confusion: Floats
    posterior: Floats
    log_likelihood: float
    iterations: int


def dawid_skene(
    items: ArrayLike,
    raters: ArrayLike,
    answers: ArrayLike,
    *,
    classes: int | None = None,
    pooling: Pooling | None = None,
    weights: ArrayLike | None = None,
    known: Mapping[int, int] | None = None,
    iterations: int = 100,
) -> DawidSkene:
    """Estimates true classes and raters' confusion from who answered what; one entry of the arrays an answer.

    Args:
        items: Item of each answer, integers from 0.
        raters: Rater of each answer, integers from 0.
        answers: The answer, integers from 0. A rater may answer an item several times.
        classes: How many classes there are; by default as many as answers name.
        pooling: How raters are drawn to the average one; None is the paper's maximum likelihood, which believes a
            rater of three answers to be perfect or hopeless.
        weights: How much each answer counts in the raters' confusion and the classes' frequency; by default 1.
        known: Item -> its true class, where that is known: such items are not estimated, and tell most of the raters.
        iterations: Most rounds of EM; it ends earlier where nothing moves any more.
    """
    item, rater, answer = (np.asarray(values, dtype=np.intp) for values in (items, raters, answers))
    n, m = int(item.max(initial=-1)) + 1, int(rater.max(initial=-1)) + 1
    k = int(answer.max(initial=-1)) + 1 if classes is None else classes
    weight = np.ones(len(item)) if weights is None else np.asarray(weights, dtype=np.float64)
    data = _Data(item, rater, answer, weight, (n, m, k))
    votes: Floats = np.zeros((n, k))
    np.add.at(votes, (item, answer), 1.0)
    # Equation 3.1: begin with the share of answers of each class.
    posterior: Floats = _settled(votes / np.maximum(votes.sum(axis=1, keepdims=True), 1.0), known)
    marginals, confusion = _marginals(posterior, data, pooling), _confusion(posterior, data, pooling)
    likelihood, done = -np.inf, 0
    for done in range(1, iterations + 1):  # noqa: B007 - how many it took is told
        confusion, marginals = _confusion(posterior, data, pooling), _marginals(posterior, data, pooling)
        posterior, found = _posterior(marginals, confusion, data)
        posterior = _settled(posterior, known)
        settled = abs(found - likelihood) < _TOLERANCE
        likelihood = found
        if settled:
            break
    return DawidSkene(marginals, confusion, posterior, float(likelihood), done)


def _settled(posterior: Floats, known: Mapping[int, int] | None) -> Floats:
    """With what is known in the place of what is estimated."""
    if not known:
        return posterior
    rows, found = np.array(list(known), dtype=np.intp), posterior.copy()
    found[rows] = np.eye(posterior.shape[1])[list(known.values())]
    return found


def class_posterior(marginals: Floats, confusion: Floats, raters: ArrayLike, answers: ArrayLike) -> Floats:
    """How likely one item is of each class, by Bayes' rule from known raters (equation 2.5).

    Args:
        marginals: How common each class is, of shape ``(classes,)``.
        confusion: Confusion matrices, of shape ``(raters, classes, classes)``.
        raters: Who answered.
        answers: What they answered.

    Returns:
        Probabilities, of shape ``(classes,)``.
    """
    rater, answer = np.asarray(raters, dtype=np.intp), np.asarray(answers, dtype=np.intp)
    logs = np.log(np.maximum(marginals, _TINY))
    if rater.size:
        logs = logs + np.log(np.maximum(confusion[rater, :, answer], _TINY)).sum(axis=0)
    shares = np.exp(logs - logs.max())
    found: Floats = shares / shares.sum()
    return found


class _Data(msgspec.Struct, frozen=True):
    """One entry of each array an answer; ``shape`` is (items, raters, classes)."""

    item: NDArray[np.intp]
    rater: NDArray[np.intp]
    answer: NDArray[np.intp]
    weight: Floats
    shape: tuple[int, int, int]


def _confusion(posterior: Floats, data: _Data, pooling: Pooling | None) -> Floats:
    """Equation 2.3: a rater's answers, spread over the classes that the items may be of."""
    _, m, k = data.shape
    counts: Floats = np.zeros((m, k, k))
    spread = posterior[data.item] * data.weight[:, None]
    for truth in range(k):
        np.add.at(counts[:, truth, :], (data.rater, data.answer), spread[:, truth])
    if pooling:
        counts = counts + pooling.confusion * _typical(counts, pooling)
    total = counts.sum(axis=2, keepdims=True)
    found: Floats = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return found


def _typical(counts: Floats, pooling: Pooling) -> Floats:
    """(raters, classes, classes): confusion of somebody as often right as this rater, who errs as everybody does."""
    k = counts.shape[1]
    right, total = np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2))
    # Raters are counted, not answers: one who guesses all day says little of the others.
    weight = 1 / (total + pooling.accuracy)
    common = (weight @ right + pooling.raters * pooling.typical) / (weight @ total + pooling.raters)
    accuracy = (right + pooling.accuracy * common) / (total + pooling.accuracy)
    everybody = np.tensordot(pooling.accuracy * weight, counts, axes=1) + 1 / k
    errors = everybody * (1 - np.eye(k))
    errors /= np.maximum(errors.sum(axis=1, keepdims=True), _TINY)
    found: Floats = accuracy[:, None, None] * np.eye(k) + (1 - accuracy)[:, None, None] * errors
    return found


def _marginals(posterior: Floats, data: _Data, pooling: Pooling | None) -> Floats:
    """Equation 2.4."""
    mass = np.zeros(data.shape[0])
    np.maximum.at(mass, data.item, data.weight)
    sums: Floats = mass @ posterior
    if pooling:
        answers = np.bincount(data.answer, data.weight, data.shape[2]) + 1.0
        sums = sums + 1.0 + pooling.items * answers / answers.sum()
    found: Floats = sums / max(float(sums.sum()), _TINY)
    return found


def _posterior(marginals: Floats, confusion: Floats, data: _Data) -> tuple[Floats, float]:
    """Equations 2.5 and 2.7."""
    n = data.shape[0]
    told: Floats = np.log(np.maximum(confusion[data.rater, :, data.answer], _TINY))
    logs: Floats = np.tile(np.log(np.maximum(marginals, _TINY)), (n, 1))
    for truth in range(len(marginals)):
        logs[:, truth] += np.bincount(data.item, told[:, truth], n)
    highest = logs.max(axis=1, keepdims=True) if logs.size else np.zeros((n, 1))
    shares = np.exp(logs - highest)
    totals = shares.sum(axis=1, keepdims=True)
    return shares / totals, float((np.log(totals) + highest).sum())
