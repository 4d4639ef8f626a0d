"""Find wrong labels of whole images by confident learning. Pure functions.

Probabilities come from models that were not fitted on the example (out of fold). A class that the model finds with low
probabilities throughout needs less evidence: its threshold is the mean probability over the examples labelled with it
(Northcutt et al. 2021, https://arxiv.org/abs/1911.00068, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Probabilities are clipped to at least this.
MIN_PROBABILITY = 1e-6

# Class thresholds are at least this, since the mean of few examples is noise, and probabilities are divided by this
# power of them: by all of it, rare classes would be called wrong too often.
LEAST_THRESHOLD, THRESHOLD_POWER = 0.2, 0.25


@dataclass(frozen=True)
class WrongLabel:
    """A label that is probably wrong.

    Attributes:
        example: Its index.
        given: Index of the given class; None where a class is missing (several per example).
        suggested: Index of the class that fits better; None where the given one only has to go (several per example).
        confidence: Probability that the given label is wrong, in [0, 1].
    """

    example: int
    given: int | None
    suggested: int | None
    confidence: float


def class_thresholds(probabilities: Doubles, given: Indices) -> Doubles:
    """Mean probability of each class over the examples labelled with it, (k,); 1 for classes without an example.

    Args:
        probabilities: (n, k) out-of-fold.
        given: (n,) given class of each example.
    """
    counts = np.bincount(given, minlength=probabilities.shape[1])
    own = probabilities[np.arange(len(given)), given]
    sums = np.bincount(given, weights=own, minlength=probabilities.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def wrongness(probabilities: Doubles, given: Indices) -> Doubles:
    """Score how likely each given label is wrong, (n,) in [0, 1].

    The probabilities are divided by a power of their class thresholds and renormalised, so that a class which the model
    gives little probability throughout is not called wrong throughout. The score is 1 - that of the given class.

    Args:
        probabilities: (n, k) out-of-fold, rows sum to 1.
        given: (n,) given class of each example.
    """
    if not len(given):
        return np.zeros(0)
    thresholds = np.maximum(class_thresholds(probabilities, given), LEAST_THRESHOLD) ** THRESHOLD_POWER
    rescaled = np.maximum(probabilities, MIN_PROBABILITY) / thresholds
    rescaled /= rescaled.sum(axis=1, keepdims=True)
    return np.asarray(1 - rescaled[np.arange(len(given)), given])


def find_wrong_labels(probabilities: Doubles, given: Indices, *, least: float = 0.5) -> list[WrongLabel]:
    """List the labels that are probably wrong, most confident first (one class per example).

    Args:
        probabilities: (n, k) out-of-fold, rows sum to 1.
        given: (n,) given class of each example.
        least: Lowest confidence.
    """
    scores = wrongness(probabilities, given)
    without_given = probabilities.copy()
    without_given[np.arange(len(given)), given] = -1.0
    suggested = without_given.argmax(axis=1)
    order = np.argsort(-scores, kind="stable").tolist()
    return [
        WrongLabel(index, int(given[index]), int(suggested[index]), float(scores[index]))
        for index in order
        if scores[index] >= least
    ]


def tag_wrongness(probabilities: Doubles, given: npt.NDArray[np.bool_]) -> Doubles:
    """Score how likely each decision about a tag is wrong, (n, k) in [0, 1]: several tags per example.

    It is the probability of the opposite: rescaled by the thresholds of both decisions, rare tags rank no better.

    Args:
        probabilities: (n, k) out-of-fold, of each tag.
        given: (n, k) whether each tag is set.
    """
    return np.asarray(np.where(given, 1 - probabilities, probabilities), np.float64)


def find_wrong_tags(probabilities: Doubles, given: npt.NDArray[np.bool_], *, least: float = 0.5) -> list[WrongLabel]:
    """List the tags that are probably set or missing wrongly, most confident first; arguments as `tag_wrongness`."""
    scores = tag_wrongness(probabilities, given)
    issues = [
        WrongLabel(
            int(example),
            int(tag) if given[example, tag] else None,
            None if given[example, tag] else int(tag),
            float(scores[example, tag]),
        )
        for example, tag in np.argwhere(scores >= least)
    ]
    return sorted(issues, key=lambda issue: -issue.confidence)
