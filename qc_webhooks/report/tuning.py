"""Tuning: the policy that reaches a wanted error of the consensus with the fewest labels, from recorded annotations.

The recorded annotators of each task are replayed in random orders. After each of them the task's consensus is computed
with the annotators' reliability, estimated from other tasks, and compared with the reference: the ground truth where
there is one, else the consensus of all who are recorded. A policy is then a rule when to stop:

- at least ``annotators`` answer, at most ``max_annotators``;
- one more is asked while further ones are expected to correct ``least_gain`` errors, and where two draw the same object
  too differently (the rule of ``qc_webhooks.decision.routes``);
- with reviewers, tasks that are disputed in the end go to one, and agreed tasks whose mean agreement is below a route
  of ``[[review]]``. A reviewer is taken to be right.

The error is the share of wrong statements. For objects it is 1 - F1: missing and extra objects, and one with a wrong
label, or a box that overlaps the reference by less than ``match_iou``; for a question about the task, the share of
wrong answers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, Edges
from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, fit_annotator_model
from labelloop.labeling.consensus.crowd import ConfusionModel, uniform_confusion
from labelloop.labeling.consensus.detection_model import ObjectEvidence
from labelloop.labeling.consensus.tags import Answer, TagModel, Votes, has_several_tags, uniform_tags
from qc_webhooks.agreement.compare import control_name
from qc_webhooks.decision.expected_gain import expected_gain
from qc_webhooks.errors import QualityControlError
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

# Fewest tasks with enough annotators for a replay.
MIN_TASKS = 30
# Annotators that a task needs: without a ground truth the reference is made of more than a policy's two.
MIN_ANNOTATORS, MIN_WITH_TRUTH = 3, 2
# Most tasks (drawn at random), annotators of a task, and random orders of them.
MAX_TASKS, MAX_ANNOTATORS, ORDERS = 1000, 10, 5
# Reliability is estimated from the tasks of the other parts.
_PARTS = 5
# Candidates of a policy.
_GAINS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 1.0)
# Labels that one review is worth: it takes longer, and by someone who knows the guideline.
REVIEW_COST = 3.0
_REVIEW_THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_RESAMPLES = 500

# Called with the steps done and the steps in total.
Progress = Callable[[int, int], None]


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
        disputed: Share of the tasks that are disputed in the end, under the policy in force.
        short: Share of the tasks that would have asked more annotators than are recorded.
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
    seed: int = 0,
) -> Tuning:
    """Find the policy that reaches an error with the fewest labels.

    Args:
        tasks: Facts of the recorded tasks.
        target: The wanted share of wrong statements, 0 to 1.
        policy: The policy in force; its settings that are not tuned stay.
        review_cost: Labels that one review is worth; 0: no reviewers.
        progress: Called after each task.
        seed: Of the random orders.

    Raises:
        QualityControlError: Too few tasks have enough annotators.
    """
    policy = policy or Policy()
    rng = np.random.default_rng(seed)
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
    replayed = _replay(usable, policy, rng, progress)
    points = [*_points(replayed, review_cost)]
    reviewed = [point for point in points if point.reviewers]
    alone = [point for point in points if not point.reviewers]

    def with_interval(point: TuningPoint | None) -> TuningPoint | None:
        return None if point is None else _point(replayed, _candidate(point))

    proposed = with_interval(_choose(points, target, review_cost))
    return Tuning(
        target,
        proposed,
        with_interval(_cheapest(reviewed, target, review_cost)),
        None if proposed is None else _held_out(replayed, target, review_cost, rng),
        tuple(_point(replayed, _candidate(point)) for point in _frontier(alone, review_cost)),
        tuple(_point(replayed, _candidate(point)) for point in _frontier(reviewed, review_cost)),
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
    replayed = _replay(usable, policy or Policy(), np.random.default_rng(seed), None, mosts)
    return _point(replayed, _candidate(point))


def policy_block(point: TuningPoint) -> str:
    """The settings of ``policy.toml`` for a point."""
    lines = [
        f"annotators = {point.annotators}",
        f"max_annotators = {point.max_annotators}",
        f"least_gain = {point.least_gain:g}",
    ]
    if point.review_below:
        lines += ["", "[[review]]", 'dimension = "overall"', 'operator = "lt"', f"threshold = {point.review_below:g}"]
    return "\n".join(lines)


def _is_usable(task: TaskFacts) -> bool:
    evidence = task.evidence()
    needed = MIN_ANNOTATORS if evidence.truth is None else MIN_WITH_TRUTH
    return len(evidence.rated_annotators) >= needed and bool(evidence.clusters or evidence.choices)


@dataclass(frozen=True)
class _Replayed:
    """Arrays of a replay: o orders, t tasks, n annotators (index 0 is the first).

    Attributes:
        recorded: Recorded annotators, ``(t,)``.
        wrong: Expected wrong statements of the consensus of the first annotators, ``(o, t, n)``.
        statements: Number of statements.
        gains: Most annotators -> expected gain of further ones after the first, ``(o, t, n)``.
        shapes: Whether only the shapes differ too much, ``(o, t, n)``.
        agreement: Highest threshold at which a majority of the first annotators agrees, -1: none, ``(o, t, n)``.
        mean: Mean agreement of the first annotators, ``(o, t, n)``.
        full_error: Error of the consensus of all.
        threshold: The agreement below which the policy in force calls a task disputed.
    """

    recorded: NDArray[np.intp]
    wrong: Floats
    statements: Floats
    gains: Mapping[int, Floats]
    shapes: NDArray[np.bool_]
    agreement: Floats
    mean: Floats
    full_error: float
    threshold: float

    def part(self, tasks: NDArray[np.intp]) -> "_Replayed":
        """The replay of some tasks only."""
        return replace(
            self,
            recorded=self.recorded[tasks],
            wrong=self.wrong[:, tasks],
            statements=self.statements[:, tasks],
            gains={most: gain[:, tasks] for most, gain in self.gains.items()},
            shapes=self.shapes[:, tasks],
            agreement=self.agreement[:, tasks],
            mean=self.mean[:, tasks],
        )


def _replay(
    tasks: Sequence[TaskFacts],
    policy: Policy,
    rng: np.random.Generator,
    progress: Progress | None,
    mosts: Sequence[int] = (),
) -> _Replayed:
    evidence = [task.evidence() for task in tasks]
    part_of = rng.permutation(len(tasks)) % _PARTS
    models = [
        fit_annotator_model(item for item, part in zip(evidence, part_of, strict=True) if part != held)
        for held in range(_PARTS)
    ]
    recorded = np.array([min(len(item.rated_annotators), MAX_ANNOTATORS) for item in evidence], dtype=np.intp)
    most = int(recorded.max())
    mosts = mosts or sorted({count for count in (3, 4, 5, 7) if count < most} | {most})
    shape = (ORDERS, len(tasks), most)
    wrong, statements, agreement, mean = np.zeros(shape), np.zeros(shape), np.ones(shape), np.ones(shape)
    shapes = np.zeros(shape, dtype=bool)
    gains = {count: np.zeros(shape) for count in mosts}
    full_wrong = full_statements = 0.0
    for index, (task, item) in enumerate(zip(tasks, evidence, strict=True)):
        model = models[part_of[index]]
        reference = _Reference(item, model, policy.match_iou)
        loss = reference.loss(item.rated_annotators)
        full_wrong, full_statements = full_wrong + loss[0], full_statements + loss[1]
        column = 0 if policy.every_control else 1
        deciding = {frozenset((pair.a, pair.b)): pair.agreement_threshold[column] for pair in task.pairs}
        overall = {frozenset((pair.a, pair.b)): pair.overall for pair in task.pairs}
        for order in range(ORDERS):
            people = rng.permutation(item.rated_annotators).tolist()
            for count in range(2, recorded[index] + 1):
                first = tuple(people[:count])
                place = order, index, count - 1
                wrong[place], statements[place] = reference.loss(first)
                agreement[place] = _majority(first, deciding)
                mean[place] = np.mean([_score(overall, a, b) for a, b in combinations(first, 2)])
                subset = _subset(item, first)
                shapes[place] = agreement[place] < policy.agreement and not _has_covered_differences(subset)
                for maximum, gain in gains.items():
                    if count < maximum:
                        gain[place] = expected_gain(subset, model, max_annotators=maximum).gain
        if progress is not None:
            progress(index + 1, len(tasks))
    full_error = full_wrong / full_statements if full_statements else 0.0
    return _Replayed(recorded, wrong, statements, gains, shapes, agreement, mean, full_error, policy.agreement)


class _Reference:
    """The reference of one task, and the errors of the consensus of some of its annotators against it."""

    def __init__(self, evidence: Evidence, model: AnnotatorModel, min_iou: float) -> None:
        self._model = model
        self._evidence = evidence
        everybody = evidence.rated_annotators
        self._min_iou = min_iou
        self._objects: list[tuple[str, Votes, float, dict[Answer, float], AnnotatedBoxes, Edges | None]] = []
        for item, boxes in zip(evidence.objects(), evidence.boxes_by_cluster, strict=True):
            marked = tuple(who for who, _ in item.votes)
            real = (
                model.detection.probability(ObjectEvidence(everybody, marked))
                if item.is_real is None
                else float(item.is_real)
            )
            labels = {item.answer: 1.0} if item.answer is not None else self._posterior(item.control, item.votes, True)
            self._objects.append((item.control, item.votes, real, labels, boxes, self._reference_box(boxes)))
        self._answers = [
            (
                item.control,
                item.votes,
                {item.answer: 1.0} if item.answer is not None else self._posterior(item.control, item.votes, False),
            )
            for item in evidence.answers()
            if item.votes
        ]

    def loss(self, people: Sequence[int]) -> tuple[float, float]:
        """(expected wrong statements, statements) of the consensus of these annotators."""
        chosen, model = frozenset(people), self._model
        wrong = statements = 0.0
        for control, votes, real, labels, boxes, reference in self._objects:
            own = tuple(vote for vote in votes if vote[0] in chosen)
            marked = tuple(who for who, _ in own)
            found = bool(own) and model.detection.probability(ObjectEvidence(tuple(people), marked)) > 0.5
            statements += (found + real) / 2
            if not found:
                wrong += real / 2
                continue
            fused = self._fused([box for box in boxes if box[0] in chosen])
            if reference is not None and fused is not None and _iou(fused, reference) < self._min_iou:
                wrong += (1 + real) / 2
                continue
            answer = self._best(control, own, of_regions=True)
            wrong += (1 - real) / 2 + real * (1 - labels.get(answer, 0.0))
        for control, votes, answers in self._answers:
            own = tuple(vote for vote in votes if vote[0] in chosen)
            statements += 1
            wrong += 1 - (answers.get(self._best(control, own, of_regions=False), 0.0) if own else 0.0)
        return wrong, statements

    def _reference_box(self, boxes: AnnotatedBoxes) -> Edges | None:
        """The box of the ground truth, else the fused box of all; None where the shapes are no boxes."""
        truth = next((edges for who, edges in boxes if who == self._evidence.truth), None)
        return truth if truth is not None or self._evidence.truth is not None else self._fused(boxes)

    def _fused(self, boxes: Sequence[tuple[int, Edges]]) -> Edges | None:
        return self._model.box_bias.fuse_boxes(tuple(boxes)).bounds if boxes else None

    def _models(self, control: str, votes: Votes, of_regions: bool) -> TagModel | ConfusionModel:
        tags = self._model.tags.get(control)
        if tags is not None or has_several_tags(answer for _, answer in votes):
            return tags if tags is not None and tags.knows(votes) else uniform_tags(votes)
        models = self._model.labels if of_regions else self._model.choices
        confusion = models.get(control)
        if confusion is None or any(answer not in confusion.classes for _, answer in votes):
            return uniform_confusion({answer for _, answer in votes})
        return confusion

    def _posterior(self, control: str, votes: Votes, of_regions: bool) -> dict[Answer, float]:
        if not votes:
            return {}
        model = self._models(control, votes, of_regions)
        if isinstance(model, TagModel):
            answer, _ = model.best(votes)
            return {answer: 1.0}
        return model.posterior(votes)

    def _best(self, control: str, votes: Votes, *, of_regions: bool) -> Answer:
        model = self._models(control, votes, of_regions)
        if isinstance(model, TagModel):
            return model.best(votes)[0]
        posterior = model.posterior(votes)
        return min(posterior, key=lambda answer: (-round(posterior[answer], 9), answer))


def _iou(a: Edges, b: Edges) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both, 1e-9)


def _subset(evidence: Evidence, people: Sequence[int]) -> Evidence:
    """The evidence of some annotators, without the ground truth."""
    chosen = frozenset(people)
    clusters = ((control, tuple(vote for vote in votes if vote[0] in chosen)) for control, votes in evidence.clusters)
    choices = ((control, tuple(vote for vote in votes if vote[0] in chosen)) for control, votes in evidence.choices)
    return Evidence(
        tuple(sorted(people)),
        tuple((control, votes) for control, votes in clusters if votes),
        tuple((control, votes) for control, votes in choices if votes),
    )


def _has_covered_differences(evidence: Evidence) -> bool:
    """Whether an object is missed, or a label or an answer differs: what the expected gain covers."""
    count = len(evidence.annotators)
    return any(
        len(votes) < count or len({answer for _, answer in votes}) > 1
        for _, votes in (*evidence.clusters, *evidence.choices)
    )


def _majority(people: Sequence[int], scores: dict[frozenset[int], float]) -> float:
    """Highest threshold at which more than half of the annotators agree, grown from the best pair."""
    size = max(2, len(people) // 2 + 1)
    best = -1.0
    for start in people:
        others = sorted((who for who in people if who != start), key=lambda who: -_score(scores, start, who))
        group, lowest = [start], 1.0
        for who in others[: size - 1]:
            lowest = min([lowest, *(_score(scores, who, member) for member in group)])
            group.append(who)
        best = max(best, lowest)
    return best


def _score(scores: dict[frozenset[int], float], a: int, b: int) -> float:
    return scores.get(frozenset((a, b)), 1.0)


# --- policies -------------------------------------------------------------------------------------------------------


# (annotators, max_annotators, least_gain, review_below: None without reviewers).
Candidate = tuple[int, int, float, float | None]


def _candidate(point: TuningPoint) -> Candidate:
    review = point.review_below if point.reviewers else None
    return point.annotators, point.max_annotators, point.least_gain, review


def _points(replayed: _Replayed, review_cost: float) -> Iterator[TuningPoint]:
    """Every policy that is tried, without intervals."""
    reviews: Sequence[float | None] = (None, *_REVIEW_THRESHOLDS) if review_cost else (None,)
    for most in replayed.gains:
        for annotators in range(2, min(most, 5) + 1):
            for gain in _GAINS if annotators < most else (1.0,):
                stopped = _Stopped.of(replayed, annotators, most, gain)
                for review in reviews:
                    yield stopped.point((annotators, most, gain, review))


def _point(replayed: _Replayed, candidate: Candidate) -> TuningPoint:
    """A policy with its interval."""
    stopped = _Stopped.of(replayed, *candidate[:3])
    return stopped.point(candidate, _resamples(len(replayed.recorded)))


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
    def of(cls, replayed: _Replayed, annotators: int, most: int, least_gain: float) -> "_Stopped":
        """Replay a policy."""
        gains = replayed.gains[most]
        orders, tasks, _ = gains.shape
        used = np.broadcast_to(np.minimum(replayed.recorded, annotators), (orders, tasks)).copy()
        short = np.zeros((orders, tasks), dtype=bool)
        for count in range(annotators, most):
            asks = (used == count) & ((gains[:, :, count - 1] >= least_gain) | replayed.shapes[:, :, count - 1])
            further = asks & (replayed.recorded > count)
            short |= asks & ~further
            used = used + further
        index = used[:, :, None] - 1
        wrong, statements, agreement, mean = (
            np.take_along_axis(values, index, axis=2)[:, :, 0]
            for values in (replayed.wrong, replayed.statements, replayed.agreement, replayed.mean)
        )
        return cls(used, short, wrong, statements, agreement < replayed.threshold - 1e-6, mean)

    def point(self, candidate: Candidate, weights: Floats | None = None) -> TuningPoint:
        """Cost and error, with the interval from resampling weights of the tasks, ``(resamples, tasks)``."""
        annotators, most, least_gain, review = candidate
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


def _held_out(replayed: _Replayed, target: float, review_cost: float, rng: np.random.Generator) -> TuningPoint | None:
    """Cost and error where each half of the tasks is measured under the policy that the other half chose."""
    order = rng.permutation(len(replayed.recorded))
    halves = order[::2], order[1::2]
    measured = []
    for chosen_on, held in (halves, halves[::-1]):
        mine = replayed.part(chosen_on)
        best = _choose([*_points(mine, review_cost)], target, review_cost)
        if best is None:
            return None
        measured.append(_point(replayed.part(held), _candidate(best)))
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


def _frontier(points: Sequence[TuningPoint], review_cost: float) -> tuple[TuningPoint, ...]:
    """The policies that no cheaper one beats, at least .05 labels apart."""
    kept: list[TuningPoint] = []
    for point in sorted(points, key=lambda item: (_cost(item, review_cost), item.error, item.review_below)):
        if kept and (point.error >= kept[-1].error or _cost(point, review_cost) < _cost(kept[-1], review_cost) + 0.05):
            continue
        kept.append(point)
    return tuple(kept)


def _left_out(tasks: Sequence[TaskFacts], policy: Policy) -> tuple[str, ...]:
    lines = []
    if any(task.evidence().truth is None for task in tasks):
        lines.append(
            "The consensus of all has errors of its own, which the estimate does not see: the true error is higher. Mark"
            " 50 ground truths to measure it."
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
