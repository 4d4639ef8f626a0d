"""Agreement of a task as Label Studio Enterprise scores it: pairwise, by consensus, and overall with weights."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from qc_webhooks.verdict.verdict import largest_group

_ROUNDING = 1e-9


def pairwise_score(agreements: Mapping[tuple[int, int], float]) -> float | None:
    """Mean agreement of all pairs of annotators; None without a pair."""
    return sum(agreements.values()) / len(agreements) if agreements else None


def consensus_score(annotators: Sequence[int], agreements: Mapping[tuple[int, int], float], threshold: float) -> float:
    """Share of the annotators in the largest group in which everybody agrees with everybody.

    Args:
        annotators: Who annotated, at least one.
        agreements: Pair of annotators (in the order of ``annotators``) -> agreement, 0 to 1.
        threshold: From which agreement on two agree.
    """
    friends: dict[int, set[int]] = {who: set() for who in annotators}
    for one, other in combinations(annotators, 2):
        if agreements[one, other] >= threshold - _ROUNDING:
            friends[one].add(other)
            friends[other].add(one)
    return len(largest_group(friends)) / len(annotators)


def overall_score(scores: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float | None:
    """Weighted mean over controls; a control without a weight counts 1. None where nothing counts."""
    held = {control: 1.0 if weights is None else weights.get(control, 1.0) for control in scores}
    total = sum(held.values())
    return sum(score * held[control] for control, score in scores.items()) / total if total > 0 else None
