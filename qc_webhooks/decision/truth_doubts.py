"""Ground truths that may be wrong: all annotators contradict one, or two of one task contradict each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from qc_webhooks.agreement import Answers, Conflict, read_answers
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.note import describe_against_truth
from qc_webhooks.verdict.verdict import TaskVerdict, judge

# Annotators who agree with each other, from which on they contradict a ground truth together.
MIN_CROWD = 2
# Ground truths of one task that are compared.
_MOST_TRUTHS = 5
_MOST_CONFLICTS = 3


@dataclass(frozen=True)
class TruthDoubt:
    """A ground truth that may be wrong.

    Attributes:
        kind: ``crowd``: all annotators agree with each other and not with it; ``truths``: another ground truth of the
            task contradicts it.
        annotations: Ids of the ground truths.
        authors: User ids of their authors, in the same order.
        annotators: User ids of the annotators who contradict it; empty for ``truths``.
        conflicts: What differs: the ground truth's side first.
    """

    kind: Literal["crowd", "truths"]
    annotations: tuple[int, ...]
    authors: tuple[int, ...]
    annotators: tuple[int, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def text(self) -> str:
        """What is wrong and how to correct it, without names."""
        differences = " ".join(describe_against_truth(conflict, self.kind) for conflict in self.conflicts)
        if self.kind == "crowd":
            return (
                f"The ground truth (annotation {self.annotations[0]}) may be wrong: all {len(self.annotators)} other"
                f" annotators agree with each other and not with it. {differences} Correct it: its tab has an orange"
                " line, then Update. Or confirm it on the dispute page."
            )
        return (
            f"Two ground truths contradict each other: annotations {' and '.join(map(str, self.annotations))}."
            f" {differences} Delete the wrong one; until then annotation {self.annotations[0]} counts."
        )

    def as_json(self) -> dict[str, Any]:
        """JSON for a report."""
        return {
            "kind": self.kind,
            "annotations": list(self.annotations),
            "authors": list(self.authors),
            "annotators": list(self.annotators),
            "text": self.text,
        }


def truth_doubts(
    task: Task, answers: Sequence[Answers], verdict: TaskVerdict, policy: Policy, *, config: LabelConfig | None = None
) -> tuple[TruthDoubt, ...]:
    """Return the doubts about the ground truths of a task; empty without one.

    Args:
        task: The task with its annotations.
        answers: One entry per annotator.
        verdict: Verdict on the task.
        policy: The project's policy.
        config: The project's label config.
    """
    if verdict.ground_truth is None:
        return ()
    return (*_contradicted_by_all(answers, verdict, policy), *_contradicting(task, verdict, policy, config))


def _contradicted_by_all(answers: Sequence[Answers], verdict: TaskVerdict, policy: Policy) -> list[TruthDoubt]:
    truth = next((answer for answer in answers if answer.annotation == verdict.ground_truth), None)
    crowd = [answer for answer in answers if not answer.ground_truth]
    if truth is None or len(crowd) < MIN_CROWD or not all(answer.is_complete for answer in answers):
        return []
    members = {answer.annotator for answer in crowd}
    for pair in verdict.comparisons:
        both = {pair.a, pair.b}
        if both <= members and not policy.agrees(pair):
            return []
        if truth.annotator in both and both - members == {truth.annotator} and (pair.unjudged or policy.agrees(pair)):
            return []
    conflicts = _conflicts(truth, crowd[0], policy)
    annotators = tuple(sorted(members))
    return [TruthDoubt("crowd", (truth.annotation,), (truth.annotator,), annotators, conflicts)] if conflicts else []


def _contradicting(task: Task, verdict: TaskVerdict, policy: Policy, config: LabelConfig | None) -> list[TruthDoubt]:
    """The first ground truth against each other one, also by the same author."""
    marked = [item for item in task.annotations if item.ground_truth and not item.was_cancelled]
    marked = sorted(marked, key=lambda item: (item.id != verdict.ground_truth, item.id or 0))[:_MOST_TRUTHS]
    read = [
        answer
        for item in marked
        for answer in read_answers(msgspec.structs.replace(task, annotations=(item,)), config=config)
        if answer.is_complete
    ]
    doubts = []
    for other in read[1:]:
        if conflicts := _conflicts(read[0], other, policy):
            ids, authors = (read[0].annotation, other.annotation), (read[0].annotator, other.annotator)
            doubts.append(TruthDoubt("truths", ids, authors, (), conflicts))
    return doubts


def _conflicts(truth: Answers, other: Answers, policy: Policy) -> tuple[Conflict, ...]:
    """The first conflicts of two answers if they do not agree; the side of the first is that of ``Conflict.a``."""
    # As two annotators in this order, whichever made them.
    pair = (
        replace(truth, ground_truth=False, annotator=1, annotation=1),
        replace(other, ground_truth=False, annotator=2, annotation=2),
    )
    verdict = judge(pair, replace(policy, annotators=2, max_annotators=max(2, policy.max_annotators)))
    return verdict.conflicts[:_MOST_CONFLICTS] if verdict.outcome == "disputed" else ()
