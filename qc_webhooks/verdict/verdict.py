"""The verdict on a task: agreed, disputed, waiting or not judged, with the reasons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.geometry.overlap import ROUNDING
from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.compare import Comparison, compare, find_conflicts
from qc_webhooks.agreement.conflicts import Conflict
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.object_doubts import Doubt, judge_objects

Outcome = Literal["agreed", "disputed", "waiting", "not_judged"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class TaskVerdict:
    """The verdict on a task, from what its annotators submitted.

    Attributes:
        outcome: ``waiting``: too few annotators; ``agreed``: a majority (more than half, at least two) agrees pairwise
            and no object is in doubt (see ``object_doubts``), or there is a ground truth; ``disputed``: no majority is
            possible, or an object stays in doubt, whatever could not be compared; ``not_judged``: the outcome depends
            on answers that cannot be read or compared.
        annotators: Number of annotators who submitted, without skips.
        agreement: Mean overall agreement in [0, 1] over the comparable pairs of annotators; None without such a pair,
            and if the task is not judged.
        majority: Ids of the annotators who agree with each other; empty without a majority.
        conflicts: For a dispute, the conflicts of the pair closest to agreeing, those about objects in doubt first.
        comparisons: All pairs; ``Comparison.unjudged`` lists what could not be compared.
        ground_truth: Id of the annotation marked as ground truth; None without one.
        unread: Messages about results that could not be read.
        uncompared: Controls with answers that no metric compares.
        not_judged: Reasons why the task is not judged, one sentence each; empty otherwise.
        settled: Number of objects and answers that a minority disputes and the others settle.
        disputed_objects: Whether objects in doubt, and not the mean agreement, make the task disputed.
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
    settled: int = 0
    disputed_objects: bool = False

    @property
    def measured(self) -> tuple[Comparison, ...]:
        """The pairs that ``agreement`` averages."""
        return _measured(self.comparisons)


def without_verdict(answers: Sequence[Answers], *reasons: str) -> TaskVerdict:
    """Return the verdict on a task that cannot be judged, for these reasons; nothing is compared."""
    return TaskVerdict("not_judged", len(answers), not_judged=reasons)


def judge(answers: Sequence[Answers], policy: Policy) -> TaskVerdict:
    """Judge a task.

    Args:
        answers: One entry per annotator, see ``read_answers``, in any order.
        policy: The project's policy.
    """
    ordered = sorted(answers, key=lambda answer: answer.annotation)
    try:
        too_large = next((answer.too_large for answer in ordered if answer.too_large), "")
        if not too_large:
            return _compared(ordered, policy)
    except TooLargeToJudge as error:
        too_large = f"{str(error)[0].upper()}{str(error)[1:]}."
    truth = next((answer.annotation for answer in ordered if answer.ground_truth), None)
    if truth is not None:
        return TaskVerdict("agreed", len(ordered), ground_truth=truth)
    return without_verdict(ordered, too_large)


def _compared(ordered: Sequence[Answers], policy: Policy) -> TaskVerdict:
    """Judge annotators in the order of their annotations.

    Raises:
        TooLargeToJudge: Too many regions overlap.
    """
    tolerance, weights = policy.tolerance, policy.weights
    unread = tuple(line for answer in ordered for line in answer.unread)
    uncompared = tuple(sorted({name for answer in ordered for name in answer.uncompared}))
    objects = judge_objects(ordered, policy)
    doubts = objects.doubts
    comparisons = tuple(
        objects.decide(
            policy.without_uncounted(
                compare(a, b, tolerance=tolerance, weights=weights, known=objects.measured(a.annotator, b.annotator))
            )
        )
        for a, b in combinations(ordered, 2)
    )
    truth = next((answer.annotation for answer in ordered if answer.ground_truth), None)
    # The group that agrees on everything, if it is a majority; else one that differs in objects that votes settle.
    agreeing = frozenset[int]() if doubts else _majority(ordered, comparisons, policy.agrees)
    by_mean = agreeing or _majority(ordered, comparisons, policy.agrees_by_mean)
    majority = frozenset[int]() if doubts else by_mean
    reasons: tuple[str, ...] = ()
    outcome: Outcome = "disputed"
    if truth is not None:
        outcome = "agreed"
    elif len(ordered) < policy.annotators:
        outcome, majority = "waiting", frozenset()
    elif majority:
        outcome = "agreed"
    elif all(doubt.may_be_settled for doubt in doubts) and _majority(ordered, comparisons, policy.may_agree):
        outcome, reasons = "not_judged", _reasons(ordered, policy)
    measured = _measured(comparisons)
    has_agreement = measured and outcome != "not_judged"
    agreement = sum(pair.overall for pair in measured) / len(measured) if has_agreement else None
    conflicts = _closest_conflicts(ordered, comparisons, doubts, policy) if outcome == "disputed" else ()
    return TaskVerdict(
        outcome, len(ordered), agreement, majority, conflicts, comparisons, truth, unread, uncompared, reasons,
        objects.settled if outcome == "agreed" and truth is None else 0,
        outcome == "disputed" and bool(doubts) and bool(by_mean),
    )  # fmt: skip


def _measured(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The completely compared pairs; if there is none, those with at least one compared control."""
    complete = tuple(pair for pair in comparisons if not pair.unjudged)
    return complete or tuple(pair for pair in comparisons if pair.controls)


def _reasons(answers: Sequence[Answers], policy: Policy) -> tuple[str, ...]:
    """Why a task is not judged: annotations with unreadable results, controls that no metric compares."""
    partial = [answer for answer in answers if any(policy.counts(name) for name in answer.unread_controls)]
    names = sorted({name for answer in answers for name in answer.uncompared if policy.counts(name)})
    reasons = []
    if partial:
        first = f" ({partial[0].unread[0]})" if partial[0].unread else ""
        reasons.append(f"{len(partial)} of {len(answers)} annotations cannot be read whole{first}.")
    if names:
        reasons.append(f"Answers to {', '.join(names)} cannot be compared.")
    return tuple(reasons)


def _closest_conflicts(
    answers: Sequence[Answers], comparisons: Sequence[Comparison], doubts: Sequence[Doubt], policy: Policy
) -> tuple[Conflict, ...]:
    """Conflicts of the pair closest to agreeing: highest agreement, then fewest conflicts; objects in doubt first."""
    by_id = {answer.annotator: answer for answer in answers}
    doubted: dict[tuple[int, int], list[Conflict]] = {}
    for doubt in doubts:
        doubted.setdefault((doubt.a, doubt.b), []).append(doubt.conflict)
    candidates = [pair for pair in comparisons if not doubted or (pair.a, pair.b) in doubted]
    highest = max(pair.overall for pair in candidates)

    def conflicts_of(pair: Comparison) -> tuple[Conflict, ...]:
        first = doubted.get((pair.a, pair.b), [])
        conflicts = find_conflicts(
            by_id[pair.a], by_id[pair.b], tolerance=policy.tolerance, agreement=policy.agreement,
            controls=policy.thresholds,
        )  # fmt: skip
        named = {(conflict.type, conflict.control, conflict.regions) for conflict in first}
        others = (item for item in conflicts if (item.type, item.control, item.regions) not in named)
        return (*first, *others)

    return min((conflicts_of(pair) for pair in candidates if pair.overall >= highest - ROUNDING), key=len)


def _majority(
    answers: Sequence[Answers], comparisons: Sequence[Comparison], agrees: Callable[[Comparison], bool]
) -> frozenset[int]:
    """The largest group whose members all agree with each other, if it is a majority of at least two."""
    neighbours: dict[int, set[int]] = {answer.annotator: set() for answer in answers}
    for pair in comparisons:
        if agrees(pair):
            neighbours[pair.a].add(pair.b)
            neighbours[pair.b].add(pair.a)
    group = largest_group(neighbours)
    return group if len(group) >= 2 and 2 * len(group) > len(answers) else frozenset()


def largest_group(neighbours: dict[int, set[int]]) -> frozenset[int]:
    """Largest clique of the agreement graph (Bron-Kerbosch with a pivot; of equal size, the first found)."""
    if all(len(others) == len(neighbours) - 1 for others in neighbours.values()):
        return frozenset(neighbours)
    best: frozenset[int] = frozenset()

    def expand(group: frozenset[int], candidates: set[int], excluded: set[int]) -> None:
        nonlocal best
        if len(group) > len(best):
            best = group
        if not candidates or len(group) + len(candidates) <= len(best):
            return
        pivot = max(sorted(candidates | excluded), key=lambda node: len(neighbours[node] & candidates))
        for node in sorted(candidates - neighbours[pivot]):
            expand(group | {node}, candidates & neighbours[node], excluded & neighbours[node])
            candidates = candidates - {node}
            excluded = excluded | {node}

    expand(frozenset(), set(neighbours), set())
    return best
