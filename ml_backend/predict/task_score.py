"""Owns the score of a prediction: how sure the model is of a photo. Label Studio serves the lowest first.

The score is what "Uncertainty sampling" sorts by. Each candidate box is as sure as it is far from the threshold t that
decides whether it is shown:

- a shown box of score s: (s - t) / (1 - t), from 0 at the threshold to 1;
- a box that just missed it, t/2 <= s < t: (t - s) / t, from 0 at the threshold to 1/2.

The photo's score is their mean, with one voice of 1/2 added: so a photo on which nothing was seen stands at 1/2, in the
middle of the queue. It is neither the first to be served (as with a plain mean, which is 0 for it) nor the last (as if
the model were sure), and a photo with a single sure box does not count as sure as one with many.
"""

from collections.abc import Sequence

NEUTRAL = 0.5
"""Score of a photo of which nothing is known: nothing seen on it, not readable, or no control for boxes."""

NEAR_MISS = 0.5
"""Share of the threshold from which a box that is not shown counts as a near miss."""

LOWEST_FLOOR = 0.01
"""No candidate below it is looked at, whatever the threshold."""


def near_miss_floor(threshold: float) -> float:
    """The lowest score of a candidate that counts for the photo's score."""
    return max(threshold * NEAR_MISS, LOWEST_FLOOR)


def sureness(score: float, threshold: float) -> float:
    """How far from the threshold a candidate is, in [0, 1]; see the head of this module."""
    if score >= threshold:
        return (score - threshold) / (1 - threshold) if threshold < 1 else 1.0
    return (threshold - score) / threshold


def photo_score(candidates: Sequence[tuple[float, float]]) -> float:
    """Score of a prediction from its candidates.

    Args:
        candidates: (score, threshold of its control) of each shown box and near miss.

    Returns:
        A number in [0, 1], never None: 0 is the most uncertain.
    """
    total = sum(sureness(score, threshold) for score, threshold in candidates)
    return (total + NEUTRAL) / (len(candidates) + 1)
