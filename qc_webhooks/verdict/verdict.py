"""Whether the annotators of a task agree: agreed, disputed, waiting or not judged, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from labelloop.labeling.errors import TooLargeToJudge
from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.compare import Comparison, compare, find_conflicts
from qc_webhooks.agreement.conflicts import Conflict
from qc_webhooks.agreement.metrics import Tolerance
from qc_webhooks.policy import Policy

Outcome = Literal["agreed", "disputed", "waiting", "not_judged"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Verdict:
    """What is to be said about a task from what its annotators submitted.

    Attributes:
        outcome: ``waiting``: too few annotators; ``agreed``: a majority of them (more than half, at least two) agree
            pairwise, or there is a ground truth; ``disputed``: no majority agrees, whatever could not be compared;
            ``not_judged``: what cannot be read or compared decides, so neither is known.
        annotators: How many distinct annotators submitted, skips not counted.
        agreement: Mean overall agreement over all pairs of annotators whose answers can be compared, 0 to 1; None
            where there is no such pair, and where the task is not judged.
        majority: Ids of the annotators who agree with each other; empty where there is no majority.
        conflicts: Of a dispute, what the two annotators who are closest to agreeing disagree on.
        comparisons: Every pair; ``Comparison.unjudged`` names what of it cannot be compared.
        ground_truth: Id of the annotation that was marked as the truth, None without one.
        unread: What could not be read of the annotations, in words.
        uncompared: Controls that were answered and that no metric compares.
        not_judged: Why the task is not judged, each reason in a sentence; empty where it is.
    """

    outcome: Outcome
    annotators: int
    agreement: float | None = None
    majority: frozenset[int] = frozenset()
    conflicts: tuple[Conflict, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    ground_truth: int | None = None
    unread: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    not_judged: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Comparison, ...]:
        """The pairs that ``agreement`` is the mean of."""
        return _measured(self.comparisons)


def without_verdict(answers: Sequence[Answers], *reasons: str) -> Verdict:
    """The verdict on a task that cannot be judged, for these reasons; nothing of it is compared."""
    return Verdict("not_judged", len(answers), not_judged=reasons)


def judge(answers: Sequence[Answers], policy: Policy) -> Verdict:
    """The verdict on a task.

    Args:
        answers: One entry an annotator, see ``read_answers``; their order decides nothing.
        policy: The project's policy.
    """
    ordered = sorted(answers, key=lambda answer: answer.annotation)
    try:
        large = next((answer.too_large for answer in ordered if answer.too_large), "")
        if not large:
            return _compared(ordered, policy)
    except TooLargeToJudge as error:
        large = f"{str(error)[0].upper()}{str(error)[1:]}."
    truth = next((answer.annotation for answer in ordered if answer.ground_truth), None)
    if truth is not None:
        return Verdict("agreed", len(ordered), ground_truth=truth)
    return without_verdict(ordered, large)


def _compared(ordered: Sequence[Answers], policy: Policy) -> Verdict:
    """The verdict on annotators in the order of their annotations.

    Raises:
        TooLargeToJudge: Too much of what they drew overlaps.
    """
    tolerance, weights = policy.tolerance, policy.weights
    unread = tuple(line for answer in ordered for line in answer.unread)
    uncompared = tuple(sorted({name for answer in ordered for name in answer.uncompared}))
    comparisons = tuple(
        policy.weighed(compare(a, b, tolerance=tolerance, weights=weights)) for a, b in combinations(ordered, 2)
    )
    truth = next((answer.annotation for answer in ordered if answer.ground_truth), None)
    majority = _majority(ordered, comparisons, policy.agrees)
    reasons: tuple[str, ...] = ()
    outcome: Outcome = "disputed"
    if truth is not None:
        outcome = "agreed"
    elif len(ordered) < policy.annotators:
        outcome, majority = "waiting", frozenset()
    elif majority:
        outcome = "agreed"
    elif _majority(ordered, comparisons, policy.may_agree):
        outcome, reasons = "not_judged", _reasons(ordered, policy)
    measured = _measured(comparisons)
    known = measured and outcome != "not_judged"
    agreement = sum(pair.overall for pair in measured) / len(measured) if known else None
    conflicts = _closest_conflicts(ordered, comparisons, tolerance, policy) if outcome == "disputed" else ()
    return Verdict(
        outcome, len(ordered), agreement, majority, conflicts, comparisons, truth, unread, uncompared, reasons
    )


def _measured(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The pairs that were compared whole; where there is none, those of which something was compared."""
    whole = tuple(pair for pair in comparisons if not pair.unjudged)
    return whole or tuple(pair for pair in comparisons if pair.controls)


def _reasons(answers: Sequence[Answers], policy: Policy) -> tuple[str, ...]:
    """Why a task is not judged: annotations that cannot be read whole, controls that no metric compares."""
    partial = [each for each in answers if any(policy.weighs(name) for name in each.unread_controls)]
    names = sorted({name for each in answers for name in each.uncompared if policy.weighs(name)})
    reasons = []
    if partial:
        first = f" ({partial[0].unread[0]})" if partial[0].unread else ""
        reasons.append(f"{len(partial)} of {len(answers)} annotations cannot be read whole{first}.")
    if names:
        reasons.append(f"Answers to {', '.join(names)} cannot be compared.")
    return tuple(reasons)


def _closest_conflicts(
    answers: Sequence[Answers], comparisons: Sequence[Comparison], tolerance: Tolerance, policy: Policy
) -> tuple[Conflict, ...]:
    """What the two who are closest to agreeing disagree on: the highest agreement, then the fewest conflicts."""
    by_id = {answer.annotator: answer for answer in answers}
    most = max(pair.overall for pair in comparisons)
    found = (
        find_conflicts(
            by_id[pair.a], by_id[pair.b], tolerance=tolerance, agreement=policy.agreement, controls=policy.thresholds
        )
        for pair in comparisons
        if pair.overall == most
    )
    return min(found, key=len)


def _majority(
    answers: Sequence[Answers], comparisons: Sequence[Comparison], agrees: Callable[[Comparison], bool]
) -> frozenset[int]:
    """The largest group in which everybody agrees with everybody, if it is more than half and at least two."""
    friends: dict[int, set[int]] = {answer.annotator: set() for answer in answers}
    for pair in comparisons:
        if agrees(pair):
            friends[pair.a].add(pair.b)
            friends[pair.b].add(pair.a)
    group = largest_group(friends)
    return group if len(group) >= 2 and 2 * len(group) > len(answers) else frozenset()


def largest_group(friends: dict[int, set[int]]) -> frozenset[int]:
    """Largest clique of the agreement graph (Bron-Kerbosch with a pivot; the first found of equal size wins)."""
    best: frozenset[int] = frozenset()

    def grow(group: frozenset[int], candidates: set[int], done: set[int]) -> None:
        nonlocal best
        if len(group) > len(best):
            best = group
        if not candidates or len(group) + len(candidates) <= len(best):
            return
        pivot = max(sorted(candidates | done), key=lambda node: len(friends[node] & candidates))
        for node in sorted(candidates - friends[pivot]):
            grow(group | {node}, candidates & friends[node], done & friends[node])
            candidates = candidates - {node}
            done = done | {node}

    grow(frozenset(), set(friends), set())
    return best
