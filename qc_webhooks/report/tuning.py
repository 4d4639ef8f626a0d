"""Tuning: the policy that reaches a wanted error of the consensus with the fewest labels, from recorded annotations.

The recorded annotators of each task are replayed in random orders. After each of them the task's consensus is computed
with the annotators' reliability, estimated from other tasks, and compared with the reference: the ground truth where
there is one, else the consensus of all who are recorded. A policy is then a rule when to stop:

- at least ``annotators`` answer, at most ``max_annotators``;
- one more is asked while further ones are expected to correct ``least_gain`` errors, and where two draw the same object
  too differently (the rule of ``qc_webhooks.decision.routes``);
- with reviewers, tasks that are disputed in the end go to one, and agreed tasks whose mean agreement is below a route
  of ``[[review]]``. A reviewer is taken to be right. ``agreement`` says from which agreement on a task is no dispute.

The error is the share of wrong statements. For objects it is 1 - F1: missing and extra objects, and one with a wrong
label, or a box that overlaps the reference by less than ``match_iou``; for a question about the task, the share of
wrong answers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from qc_webhooks.agreement.compare import control_name
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy
from qc_webhooks.report.tuning_replay import Progress, ReplayedOrders, replay_orders
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]
_Kind = TypeVar("_Kind", bound=np.generic)

# Fewest tasks with enough annotators for a replay.
MIN_TASKS = 30
# Annotators that a task needs: without a ground truth the reference is made of more than a policy's two.
MIN_ANNOTATORS, MIN_WITH_TRUTH = 3, 2
# Most tasks that are replayed, drawn at random.
MAX_TASKS = 1000
# Candidates of a policy.
_GAINS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 1.0)
# Thresholds in addition to that of the policy in force. With them no route of reviews is tried: both send tasks to
# reviewers.
_AGREEMENTS = (0.5, 0.6, 0.7, 0.8, 0.9)
# Labels that one review is worth: it takes longer, and by someone who knows the guideline.
REVIEW_COST = 3.0
_REVIEW_THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_RESAMPLES = 500
# Labels per task between two policies of the curve.
_APART = 0.05


class TuningPoint(msgspec.Struct, frozen=True, gc=False):
    """A policy and what it costs and reaches on the recorded annotations.

    Attributes:
        annotators: Initial annotators.
        max_annotators: Most annotators.
        least_gain: Expected corrections that are worth one more.
        reviewers: Whether disputed tasks are decided by a reviewer; otherwise by their consensus.
        review_below: With reviewers, agreed tasks whose mean agreement is below this go to one too; 0: none.
        labels: Labels of annotators per task.
        reviewed: Share of the tasks for a reviewer.
        error: Share of wrong statements.
        low: Lower end of its 95 % interval (bootstrap over tasks).
        high: Upper end.
        disputed: Share of the tasks that are disputed in the end.
        short: Share of the tasks that would have asked more annotators than are recorded.
        agreement: Agreement from which a task is no dispute; 0: that of the policy in force (earlier tunings).
    """

    annotators: int
    max_annotators: int
    least_gain: float
    reviewers: bool
    review_below: float
    labels: float
    reviewed: float
    error: float
    low: float
    high: float
    short: float
    disputed: float
    agreement: float = 0.0


class Tuning(msgspec.Struct, frozen=True, gc=False):
    """Result of a tuning.

    Attributes:
        target: The wanted error.
        proposed: The policy with the fewest labels that reaches it, without reviewers where one does; None where none
            does.
        with_reviewer: The cheapest one with reviewers, a review being worth ``review_cost`` labels.
        held_out: Cost and error where half of the tasks choose the policy and the other half measure it.
        curve: The policies without reviewers that no other beats in labels and error, the fewest labels first.
        reviewed_curve: The same with reviewers.
        review_cost: Labels that one review is worth.
        tasks: Tasks that were replayed.
        truths: Those of them with a ground truth; the reference of the others is the consensus of all.
        annotators: Median number of recorded annotators of a task.
        full_error: Error of the consensus of all who are recorded.
        left_out: What the error does not cover, in sentences.
        made_at: Time it was made, seconds since 1970.
    """

    target: float
    proposed: TuningPoint | None
    with_reviewer: TuningPoint | None
    held_out: TuningPoint | None
    curve: tuple[TuningPoint, ...]
    reviewed_curve: tuple[TuningPoint, ...]
    review_cost: float
    tasks: int
    truths: int
    annotators: float
    full_error: float
    left_out: tuple[str, ...] = ()
    made_at: float = 0.0

    @property
    def reference(self) -> str:
        """What the error is measured against, in words."""
        if self.truths == self.tasks:
            return f"the ground truth of {self.truths} tasks"
        crowd = "the consensus of all recorded annotators, whose reliability is estimated from other tasks"
        return crowd if not self.truths else f"{self.truths} ground truths, for the other tasks {crowd}"


def tune(
    tasks: Sequence[TaskFacts],
    target: float,
    policy: Policy | None = None,
    *,
    review_cost: float = REVIEW_COST,
    progress: Progress | None = None,
) -> Tuning:
    """Find the policy that reaches an error with the fewest labels.

    Args:
        tasks: Facts of the recorded tasks.
        target: The wanted share of wrong statements, 0 to 1.
        policy: The policy in force; its settings that are not tuned stay.
        review_cost: Labels that one review is worth; 0: no reviewers.
        progress: Called after each task.

    Raises:
        QualityControlError: Too few tasks have enough annotators.
    """
    policy = policy or Policy()
    rng = np.random.default_rng(0)
    usable = [item for item in tasks if _is_usable(item)]
    if len(usable) < MIN_TASKS:
        raise QualityControlError(
            f"{len(usable)} of {len(tasks)} tasks can be replayed; {MIN_TASKS} are needed, each with {MIN_ANNOTATORS}"
            f" or more annotators, or with a ground truth and {MIN_WITH_TRUTH} annotators.",
            fix=f"Let {MIN_ANNOTATORS} to 5 annotators do {MIN_TASKS} to 50 tasks: set `annotators = {MIN_ANNOTATORS}`"
            " in the policy for a while, or mark ground truths.",
            code="too_few_overlapping",
            status=422,
        )
    if len(usable) > MAX_TASKS:
        usable = [usable[index] for index in sorted(rng.choice(len(usable), MAX_TASKS, replace=False).tolist())]
    replayed = replay_orders(usable, policy, rng, progress)
    points = [*_points(replayed, review_cost)]
    reviewed = [point for point in points if point.reviewers]
    alone = [point for point in points if not point.reviewers]

    def with_interval(point: TuningPoint | None) -> TuningPoint | None:
        return None if point is None else _point(replayed, point)

    chosen = _choose(points, target, review_cost)
    proposed = with_interval(chosen)
    return Tuning(
        target,
        proposed,
        with_interval(_cheapest(reviewed, target, review_cost)),
        None if proposed is None else _held_out(replayed, target, review_cost, rng),
        tuple(_point(replayed, point) for point in _frontier(alone, review_cost, chosen)),
        tuple(_point(replayed, point) for point in _frontier(reviewed, review_cost, chosen)),
        review_cost,
        len(usable),
        sum(item.evidence().truth is not None for item in usable),
        float(np.median(replayed.recorded)),
        replayed.full_error,
        _left_out(usable, policy),
    )


def measure(
    tasks: Sequence[TaskFacts], point: TuningPoint, policy: Policy | None = None, *, seed: int = 0
) -> TuningPoint:
    """Cost and error of a policy on other tasks.

    Args:
        tasks: Facts of tasks.
        point: The policy.
        policy: The settings that are not tuned.
        seed: Of the random orders.
    """
    usable = [item for item in tasks if _is_usable(item)]
    mosts = (point.max_annotators,)
    replayed = replay_orders(usable, policy or Policy(), np.random.default_rng(seed), None, mosts)
    return _point(replayed, point)


def policy_block(point: TuningPoint) -> str:
    """The settings of ``policy.toml`` for a point."""
    lines = [
        f"annotators = {point.annotators}",
        f"max_annotators = {point.max_annotators}",
        f"least_gain = {point.least_gain:g}",
        *([f"agreement = {point.agreement:g}"] if point.agreement else []),
    ]
    if point.review_below:
        lines += ["", "[[review]]", 'dimension = "overall"', 'operator = "lt"', f"threshold = {point.review_below:g}"]
    return "\n".join(lines)


def _is_usable(task: TaskFacts) -> bool:
    evidence = task.evidence()
    needed = MIN_ANNOTATORS if evidence.truth is None else MIN_WITH_TRUTH
    return len(evidence.rated_annotators) >= needed and bool(evidence.clusters or evidence.choices)


class _Candidate(NamedTuple):
    """A policy that is tried; ``review_below`` is None without reviewers."""

    annotators: int
    max_annotators: int
    least_gain: float
    agreement: float
    review_below: float | None

    @classmethod
    def of(cls, point: TuningPoint, replayed: ReplayedOrders) -> "_Candidate":
        """The policy of a point."""
        agreement = point.agreement or replayed.threshold
        review = point.review_below if point.reviewers else None
        return cls(point.annotators, point.max_annotators, point.least_gain, agreement, review)


def _points(replayed: ReplayedOrders, review_cost: float) -> Iterator[TuningPoint]:
    """Every policy that is tried, without intervals; among equals, those with the agreement in force come first."""
    for agreement in (replayed.threshold, *(value for value in _AGREEMENTS if value != replayed.threshold)):
        is_in_force = agreement == replayed.threshold
        reviews: Sequence[float | None] = (None, *(_REVIEW_THRESHOLDS if is_in_force else (0.0,)))
        for most in replayed.gains:
            for annotators in range(2, min(most, 5) + 1):
                for gain in _GAINS if annotators < most else (1.0,):
                    stopped = _Stopped.of(replayed, annotators, most, gain, agreement)
                    for review in reviews if review_cost else (None,):
                        yield stopped.point(_Candidate(annotators, most, gain, agreement, review))


def _point(replayed: ReplayedOrders, point: TuningPoint) -> TuningPoint:
    """A policy with its interval."""
    candidate = _Candidate.of(point, replayed)
    return _Stopped.of(replayed, *candidate[:4]).point(candidate, _resamples(len(replayed.recorded)))


@dataclass(frozen=True)
class _Stopped:
    """Where a policy stops asking: o orders, t tasks.

    Attributes:
        used: Annotators of each task, ``(o, t)``.
        short: Whether more would have been asked than are recorded.
        wrong: Expected wrong statements of the consensus.
        statements: Number of statements.
        disputed: Whether the task is disputed in the end.
        mean: Mean agreement.
    """

    used: NDArray[np.intp]
    short: NDArray[np.bool_]
    wrong: Floats
    statements: Floats
    disputed: NDArray[np.bool_]
    mean: Floats

    @classmethod
    def of(
        cls, replayed: ReplayedOrders, annotators: int, most: int, least_gain: float, agreement: float
    ) -> "_Stopped":
        """Replay a policy."""
        gains, is_low = replayed.gains[most], replayed.agreement < agreement - 1e-6
        orders, tasks, _ = gains.shape
        used = np.broadcast_to(np.minimum(replayed.recorded, annotators), (orders, tasks)).copy()
        short = np.zeros((orders, tasks), dtype=bool)
        for count in range(annotators, most):
            shapes = is_low[:, :, count - 1] & replayed.same_objects[:, :, count - 1]
            asks = (used == count) & ((gains[:, :, count - 1] >= least_gain) | shapes)
            further = asks & (replayed.recorded > count)
            short |= asks & ~further
            used = used + further
        index = used[:, :, None] - 1

        def last(values: NDArray[_Kind]) -> NDArray[_Kind]:
            found: NDArray[_Kind] = np.take_along_axis(values, index, axis=2)[:, :, 0]
            return found

        return cls(used, short, last(replayed.wrong), last(replayed.statements), last(is_low), last(replayed.mean))

    def point(self, candidate: _Candidate, weights: Floats | None = None) -> TuningPoint:
        """Cost and error, with the interval from resampling weights of the tasks, ``(resamples, tasks)``."""
        annotators, most, least_gain, agreement, review = candidate
        reviewed = np.zeros_like(self.disputed) if review is None else self.disputed | (self.mean < review)
        wrong, statements = np.where(reviewed, 0.0, self.wrong).mean(axis=0), self.statements.mean(axis=0)
        error = round(float(wrong.sum() / max(statements.sum(), 1e-9)), 5)
        low = high = error
        if weights is not None:
            drawn = (weights @ wrong) / np.maximum(weights @ statements, 1e-9)
            low, high = (round(end, 5) for end in np.quantile(drawn, [0.025, 0.975]).tolist())
        return TuningPoint(
            annotators,
            most,
            least_gain,
            review is not None,
            review or 0.0,
            round(float(self.used.mean()), 4),
            round(float(reviewed.mean()), 4),
            error,
            low,
            high,
            round(float(self.short.mean()), 4),
            round(float(self.disputed.mean()), 4),
            agreement,
        )


def _resamples(tasks: int) -> Floats:
    """Weights of the tasks in each bootstrap sample, ``(resamples, tasks)``."""
    drawn = np.random.default_rng(0).multinomial(tasks, np.full(tasks, 1 / tasks), size=_RESAMPLES)
    return drawn.astype(np.float64)


def _choose(points: Sequence[TuningPoint], target: float, review_cost: float) -> TuningPoint | None:
    """The cheapest policy that reaches the target without reviewers, else with them."""
    alone = _cheapest([point for point in points if not point.reviewers], target, review_cost)
    return _cheapest(points, target, review_cost) if alone is None else alone


def _cheapest(points: Sequence[TuningPoint], target: float, review_cost: float) -> TuningPoint | None:
    """The cheapest policy whose error is at most the target; among equals the lowest error, then the simplest."""
    return min(
        (point for point in points if point.error <= target),
        key=lambda point: (round(_cost(point, review_cost), 2), point.error, point.review_below, point.max_annotators),
        default=None,
    )


def _cost(point: TuningPoint, review_cost: float) -> float:
    return point.labels + review_cost * point.reviewed


def _held_out(
    replayed: ReplayedOrders, target: float, review_cost: float, rng: np.random.Generator
) -> TuningPoint | None:
    """Cost and error where each half of the tasks is measured under the policy that the other half chose."""
    order = rng.permutation(len(replayed.recorded))
    halves = order[::2], order[1::2]
    measured = []
    for chosen_on, held in (halves, halves[::-1]):
        mine = replayed.part(chosen_on)
        best = _choose([*_points(mine, review_cost)], target, review_cost)
        if best is None:
            return None
        measured.append(_point(replayed.part(held), best))
    first, second = measured
    half = math.hypot(first.high - first.low, second.high - second.low) / 4
    error = (first.error + second.error) / 2
    return msgspec.structs.replace(
        first,
        labels=round((first.labels + second.labels) / 2, 4),
        reviewed=round((first.reviewed + second.reviewed) / 2, 4),
        error=round(error, 5),
        low=round(max(error - half, 0.0), 5),
        high=round(error + half, 5),
        short=round((first.short + second.short) / 2, 4),
        disputed=round((first.disputed + second.disputed) / 2, 4),
    )


def _frontier(points: Sequence[TuningPoint], review_cost: float, chosen: TuningPoint | None) -> tuple[TuningPoint, ...]:
    """The policies that no cheaper one beats, at least .05 labels apart; and the chosen one, if it is one of them."""
    kept: list[TuningPoint] = []
    for point in sorted(points, key=lambda item: (_cost(item, review_cost), item.error, item.review_below)):
        is_better = not kept or point.error < kept[-1].error
        is_apart = not kept or _cost(point, review_cost) >= _cost(kept[-1], review_cost) + _APART
        if is_better and (is_apart or point == chosen):
            kept.append(point)
    return tuple(kept)


def _left_out(tasks: Sequence[TaskFacts], policy: Policy) -> tuple[str, ...]:
    lines = []
    if any(task.evidence().truth is None for task in tasks):
        lines.append(
            "The consensus of all has errors of its own, which the estimate does not see: the true error is higher."
            " Mark 50 ground truths to measure it."
        )
    covered = {control for task in tasks for control, _ in (*task.evidence().clusters, *task.evidence().choices)}
    compared = {control for task in tasks for pair in task.pairs for control in map(control_name, pair.controls)}
    others = sorted(compared - covered)
    if others:
        lines.append(f"The error does not cover {', '.join(others)}: labels and answers of several choices only.")
    if any(mark.edges is None for task in tasks for item in task.objects if len(item.marks) > 1 for mark in item.marks):
        lines.append("Shapes other than upright boxes count as right, however they are drawn.")
    if policy.rules or policy.least_model_score or policy.least_model_agreement or policy.least_model_doubt:
        lines.append("Reviews by rules and by the model are not replayed; they stay as they are.")
    return tuple(lines)
