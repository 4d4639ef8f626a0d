"""Dawid-Skene EM: the true class of each item and the confusion matrix of each rater.

A. P. Dawid and A. M. Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Journal of
the Royal Statistical Society C 28 (1979), pp. 20-28. Equation numbers refer to it.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_TINY = 1e-300
_TOLERANCE = 1e-6


class Pooling(msgspec.Struct, frozen=True):
    """Shrinkage (pseudo-counts) for raters with few answers.

    A full confusion matrix needs more answers than most raters give; accuracy needs fewer.

    Attributes:
        accuracy: Pseudo-answers that shrink a rater's accuracy to the mean accuracy.
        confusion: Pseudo-answers per class that shrink a rater's confusion matrix to one of that accuracy with the
            pooled distribution of errors.
        raters: Pseudo-raters that shrink the mean accuracy to ``typical``.
        items: Pseudo-items that shrink the class frequencies to those of the answers.
        typical: Prior accuracy.

    With two answers per item, the last three distinguish raters who are mostly right about both classes from raters
    who guess on items that are all of one class.
    """

    accuracy: float = 6.0
    confusion: float = 16.0
    raters: float = 20.0
    items: float = 30.0
    typical: float = 0.8


POOLING = Pooling()


class DawidSkene(msgspec.Struct, frozen=True):
    """The estimates.

    Attributes:
        marginals: Class frequencies, of shape ``(classes,)``.
        confusion: ``confusion[rater, truth, answer]``: probability of an answer given the true class; rows sum to 1.
        posterior: ``posterior[item, class]``: probability of the class given the answers.
        log_likelihood: Log-likelihood of all answers.
        iterations: Number of EM iterations.
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
    known_classes: Mapping[int, int] | None = None,
    max_iterations: int = 100,
) -> DawidSkene:
    """Estimate true classes and confusion matrices. The arrays have one entry per answer.

    Args:
        items: Item of each answer, integers from 0.
        raters: Rater of each answer, integers from 0.
        answers: The answer, integers from 0. A rater may answer an item several times.
        classes: Number of classes. Default: the largest answer + 1.
        pooling: Shrinkage of raters to the average; None is the paper's maximum likelihood, under which a rater of
            three answers may be perfect or useless.
        known_classes: Item -> true class; the posterior of these items is fixed.
        max_iterations: Maximum number of EM iterations; it stops earlier on convergence.
    """
    item, rater, answer = (np.asarray(values, dtype=np.intp) for values in (items, raters, answers))
    n, m = int(item.max(initial=-1)) + 1, int(rater.max(initial=-1)) + 1
    k = int(answer.max(initial=-1)) + 1 if classes is None else classes
    data = _Data(item, rater, answer, (n, m, k))
    votes: Floats = np.zeros((n, k))
    np.add.at(votes, (item, answer), 1.0)
    # Equation 3.1: initialise with the shares of the answers.
    posterior: Floats = _with_known_classes(votes / np.maximum(votes.sum(axis=1, keepdims=True), 1.0), known_classes)
    marginals, confusion = _marginals(posterior, data, pooling), _confusion(posterior, data, pooling)
    likelihood, done = -np.inf, 0
    for done in range(1, max_iterations + 1):  # noqa: B007 - the count is returned
        confusion, marginals = _confusion(posterior, data, pooling), _marginals(posterior, data, pooling)
        posterior, new_likelihood = _posterior(marginals, confusion, data)
        posterior = _with_known_classes(posterior, known_classes)
        converged = abs(new_likelihood - likelihood) < _TOLERANCE
        likelihood = new_likelihood
        if converged:
            break
    return DawidSkene(marginals, confusion, posterior, float(likelihood), done)


def _with_known_classes(posterior: Floats, known_classes: Mapping[int, int] | None) -> Floats:
    """The posterior with the rows of known items replaced."""
    if not known_classes:
        return posterior
    rows, fixed = np.array(list(known_classes), dtype=np.intp), posterior.copy()
    fixed[rows] = np.eye(posterior.shape[1])[list(known_classes.values())]
    return fixed


def class_posterior(marginals: Floats, confusion: Floats, raters: ArrayLike, answers: ArrayLike) -> Floats:
    """Posterior of one item by Bayes' rule from known raters (equation 2.5).

    Args:
        marginals: Class frequencies, of shape ``(classes,)``.
        confusion: Confusion matrices, of shape ``(raters, classes, classes)``.
        raters: The rater of each answer.
        answers: The answers.

    Returns:
        Probabilities, of shape ``(classes,)``.
    """
    rater, answer = np.asarray(raters, dtype=np.intp), np.asarray(answers, dtype=np.intp)
    logs = np.log(np.maximum(marginals, _TINY))
    if rater.size:
        logs = logs + np.log(np.maximum(confusion[rater, :, answer], _TINY)).sum(axis=0)
    shares = np.exp(logs - logs.max())
    probabilities: Floats = shares / shares.sum()
    return probabilities


class _Data(msgspec.Struct, frozen=True):
    """The answers, one entry of each array per answer; ``shape`` is (items, raters, classes)."""

    item: NDArray[np.intp]
    rater: NDArray[np.intp]
    answer: NDArray[np.intp]
    shape: tuple[int, int, int]


def _confusion(posterior: Floats, data: _Data, pooling: Pooling | None) -> Floats:
    """Equation 2.3: the answers of each rater, distributed over the posterior of the items."""
    _, m, k = data.shape
    counts: Floats = np.zeros((m, k, k))
    spread = posterior[data.item]
    for truth in range(k):
        np.add.at(counts[:, truth, :], (data.rater, data.answer), spread[:, truth])
    if pooling:
        counts = counts + pooling.confusion * _pooled_confusion(counts, pooling)
    total = counts.sum(axis=2, keepdims=True)
    confusion: Floats = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return confusion


def _pooled_confusion(counts: Floats, pooling: Pooling) -> Floats:
    """(raters, classes, classes): confusion with each rater's shrunk accuracy and the pooled distribution of errors."""
    k = counts.shape[1]
    right, total = np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2))
    # Raters are weighted equally, not answers: one prolific guesser says little about the others.
    weight = 1 / (total + pooling.accuracy)
    common = (weight @ right + pooling.raters * pooling.typical) / (weight @ total + pooling.raters)
    accuracy = (right + pooling.accuracy * common) / (total + pooling.accuracy)
    pooled_counts = np.tensordot(pooling.accuracy * weight, counts, axes=1) + 1 / k
    errors = pooled_counts * (1 - np.eye(k))
    errors /= np.maximum(errors.sum(axis=1, keepdims=True), _TINY)
    confusion: Floats = accuracy[:, None, None] * np.eye(k) + (1 - accuracy)[:, None, None] * errors
    return confusion


def _marginals(posterior: Floats, data: _Data, pooling: Pooling | None) -> Floats:
    """Equation 2.4: class frequencies."""
    mass = np.zeros(data.shape[0])
    mass[data.item] = 1.0
    sums: Floats = mass @ posterior
    if pooling:
        answers = np.bincount(data.answer, minlength=data.shape[2]) + 1.0
        sums = sums + 1.0 + pooling.items * answers / answers.sum()
    marginals: Floats = sums / max(float(sums.sum()), _TINY)
    return marginals


def _posterior(marginals: Floats, confusion: Floats, data: _Data) -> tuple[Floats, float]:
    """Equations 2.5 and 2.7: posterior of all items, and the log-likelihood."""
    n = data.shape[0]
    log_likelihoods: Floats = np.log(np.maximum(confusion[data.rater, :, data.answer], _TINY))
    logs: Floats = np.tile(np.log(np.maximum(marginals, _TINY)), (n, 1))
    for truth in range(len(marginals)):
        logs[:, truth] += np.bincount(data.item, log_likelihoods[:, truth], n)
    highest = logs.max(axis=1, keepdims=True) if logs.size else np.zeros((n, 1))
    shares = np.exp(logs - highest)
    totals = shares.sum(axis=1, keepdims=True)
    return shares / totals, float((np.log(totals) + highest).sum())
