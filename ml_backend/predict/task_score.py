"""The score of a prediction, which is the model's confidence in a task. Label Studio serves the lowest first.

Label Studio's "Uncertainty sampling" sorts by this score. The certainty of a candidate box grows with its distance from
the threshold t that decides whether it is shown:

- a shown box with score s: (s - t) / (1 - t), from 0 at the threshold to 1;
- a near miss, t/2 <= s < t: (t - s) / t, from 0 at the threshold to 1/2.

The task's score is their mean with one pseudo-observation of 1/2. A task without candidates gets 1/2, the middle of the
queue: neither first (a plain mean would give 0) nor last (as if the model were certain). A task with one certain box
scores lower than one with many.
"""

from collections.abc import Sequence

# Score of a task without evidence: no candidates, an unreadable image, or no control for boxes.
NEUTRAL = 0.5

# A box is a near miss from this share of the threshold up.
NEAR_MISS = 0.5

# Candidates below it are ignored, whatever the threshold.
LOWEST_FLOOR = 0.01


def near_miss_floor(threshold: float) -> float:
    """The lowest score of a candidate that counts for the task's score."""
    return max(threshold * NEAR_MISS, LOWEST_FLOOR)


def certainty(score: float, threshold: float) -> float:
    """Certainty of a candidate in [0, 1], its distance from the threshold; see the module docstring."""
    if score >= threshold:
        return (score - threshold) / (1 - threshold) if threshold < 1 else 1.0
    return (threshold - score) / threshold


def task_score(candidates: Sequence[tuple[float, float]]) -> float:
    """Score a prediction from its candidates.

    Args:
        candidates: (score, threshold of its control) of each shown box and near miss.

    Returns:
        A number in [0, 1]; 0 is the most uncertain.
    """
    total = sum(certainty(score, threshold) for score, threshold in candidates)
    return (total + NEUTRAL) / (len(candidates) + 1)
