"""Replay of recorded annotations for tuning: the consensus of the first annotators of each task, and its errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.box_bias import AnnotatedBoxes, Edges
from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, fit_annotator_model
from labelloop.labeling.consensus.crowd import ConfusionModel, uniform_confusion
from labelloop.labeling.consensus.detection_model import ObjectEvidence
from labelloop.labeling.consensus.tags import Answer, TagModel, Votes, has_several_tags, uniform_tags
from qc_webhooks.decision.expected_gain import expected_gain
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.task_facts import TaskFacts

Floats = NDArray[np.float64]

# Most annotators of a task that are replayed, and random orders of them.
MAX_ANNOTATORS, ORDERS = 10, 5
# Reliability is estimated from the tasks of the other parts.
_PARTS = 5

# Called with the steps done and the steps in total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReplayedOrders:
    """Arrays of a replay: o orders, t tasks, n annotators (index 0 is the first).

    Attributes:
        recorded: Recorded annotators, ``(t,)``.
        wrong: Expected wrong statements of the consensus of the first annotators, ``(o, t, n)``.
        statements: Number of statements.
        gains: Most annotators -> expected gain of further ones after the first, ``(o, t, n)``.
        same_objects: Whether the first annotators have the same objects with the same labels and answers, so that only
            the shapes may differ too much, ``(o, t, n)``.
        agreement: Highest threshold at which a majority of the first annotators agrees, -1: none, ``(o, t, n)``.
        mean: Mean agreement of the first annotators, ``(o, t, n)``.
        full_error: Error of the consensus of all.
        threshold: The agreement below which the policy in force calls a task disputed (setting ``agreement``).
    """

    recorded: NDArray[np.intp]
    wrong: Floats
    statements: Floats
    gains: Mapping[int, Floats]
    same_objects: NDArray[np.bool_]
    agreement: Floats
    mean: Floats
    full_error: float
    threshold: float

    def part(self, tasks: NDArray[np.intp]) -> "ReplayedOrders":
        """The replay of some tasks only."""
        return replace(
            self,
            recorded=self.recorded[tasks],
            wrong=self.wrong[:, tasks],
            statements=self.statements[:, tasks],
            gains={most: gain[:, tasks] for most, gain in self.gains.items()},
            same_objects=self.same_objects[:, tasks],
            agreement=self.agreement[:, tasks],
            mean=self.mean[:, tasks],
        )


def replay_orders(
    tasks: Sequence[TaskFacts],
    policy: Policy,
    rng: np.random.Generator,
    progress: Progress | None,
    mosts: Sequence[int] = (),
) -> ReplayedOrders:
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
    same_objects = np.zeros(shape, dtype=bool)
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
                same_objects[place] = not _has_covered_differences(subset)
                for maximum, gain in gains.items():
                    if count < maximum:
                        gain[place] = expected_gain(subset, model, max_annotators=maximum).gain
        if progress is not None:
            progress(index + 1, len(tasks))
    full_error = full_wrong / full_statements if full_statements else 0.0
    return ReplayedOrders(
        recorded, wrong, statements, gains, same_objects, agreement, mean, full_error, policy.agreement
    )


class _Reference:
    """The reference of one task, and the errors of the consensus of some of its annotators against it."""

    def __init__(self, evidence: Evidence, model: AnnotatorModel, min_iou: float) -> None:
        self._model = model
        self._evidence = evidence
        annotators = evidence.rated_annotators
        self._min_iou = min_iou
        self._objects: list[tuple[str, Votes, float, dict[Answer, float], AnnotatedBoxes, Edges | None]] = []
        for item, boxes in zip(evidence.objects(), evidence.boxes_by_cluster, strict=True):
            marked = tuple(who for who, _ in item.votes)
            real = (
                model.detection.probability(ObjectEvidence(annotators, marked))
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
