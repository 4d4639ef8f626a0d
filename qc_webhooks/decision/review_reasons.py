"""Reasons to review a task although its annotators agree: guideline, model, review route, random sample."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import ModelPrediction, Task
from qc_webhooks.agreement import Answers, compare, complete_answers, read_prediction
from qc_webhooks.agreement.compare import control_name
from qc_webhooks.artifacts.overlays import is_overlay
from qc_webhooks.decision.truth_doubts import TruthDoubt, truth_doubts
from qc_webhooks.policy import OPERATORS, OVERALL, Policy
from qc_webhooks.policy.guideline_rules import Violation, violations
from qc_webhooks.verdict.verdict import TaskVerdict, judge

# The violation itself names the rule; this sentence adds that it blocks.
BLOCKED = "The guideline blocks it."

# Start of the sentence about the model's second opinion in stored notes: now, and as written by earlier versions.
MODEL_DISAGREES = ("The model disagrees:", "The model has doubts:")


@dataclass(frozen=True)
class Judgement:
    """The judgement of a task, from its annotations and the policy alone.

    Attributes:
        verdict: Verdict on the task.
        violations: Violations of the guideline.
        reasons: Reasons for a review beyond disagreement, one sentence each; with a ground truth, the doubts about it.
        truth_doubts: Doubts about the task's ground truths, without those that a reviewer confirmed.
    """

    verdict: TaskVerdict
    violations: tuple[Violation, ...]
    reasons: tuple[str, ...]
    truth_doubts: tuple[TruthDoubt, ...] = ()


def judge_task(
    task: Task,
    answers: Sequence[Answers],
    policy: Policy,
    *,
    config: LabelConfig | None = None,
    confirmed_truth: int | None = None,
) -> Judgement:
    """Judge a task; used by the service, the report on an export and the policy simulation.

    Args:
        task: The task with its predictions.
        answers: One entry per annotator.
        policy: The project's policy.
        config: The project's label config.
        confirmed_truth: Id of the ground truth that a reviewer confirmed although the annotators contradict it.
    """
    verdict = judge(answers, policy)
    broken = violations(answers, policy.rules)
    reasons = review_reasons(task, answers, verdict, policy, broken=broken, config=config)
    doubts = tuple(
        doubt
        for doubt in truth_doubts(task, answers, verdict, policy, config=config)
        if doubt.kind != "crowd" or confirmed_truth not in doubt.annotations
    )
    return Judgement(verdict, broken, (*reasons, *(doubt.text for doubt in doubts)), doubts)


def review_reasons(
    task: Task,
    answers: Sequence[Answers],
    verdict: TaskVerdict,
    policy: Policy,
    *,
    broken: Sequence[Violation] = (),
    config: LabelConfig | None = None,
) -> tuple[str, ...]:
    """Return the reasons for a review, one sentence each; empty if none applies or there is a ground truth.

    Args:
        task: The task with its predictions.
        answers: One entry per annotator.
        verdict: Verdict on the task.
        policy: The project's policy.
        broken: Violations of the guideline.
        config: The project's label config.
    """
    if verdict.ground_truth is not None:
        return ()
    reasons = [BLOCKED] if any(violation.rule.effect == "block" for violation in broken) else []
    if verdict.outcome == "agreed":
        reasons += [*_model_reasons(task, answers, policy, config), *_sampling_reasons(task, verdict, policy)]
    if verdict.outcome != "disputed":
        reasons += _second_opinion_reasons(task, policy)
    return tuple(reasons)


def is_for_review(verdict: TaskVerdict, policy: Policy, reasons: Sequence[str]) -> bool:
    """Whether the task needs a review once no further annotator is requested; for `reasons` see `review_reasons`."""
    unjudged = verdict.outcome == "not_judged" and policy.review_not_judged
    return verdict.outcome == "disputed" or unjudged or bool(reasons)


def pre_label(task: Task) -> ModelPrediction | None:
    """The newest prediction of a model, without our overlays."""
    models = [prediction for prediction in task.predictions if prediction.id is not None and not is_overlay(prediction)]
    return max(models, key=lambda prediction: prediction.id or 0, default=None)


def mean_agreements(verdict: TaskVerdict) -> dict[str, float]:
    """Mean agreement over the pairs, by control, and over all controls as ``overall``."""
    scores_by_control: dict[str, list[float]] = {}
    for pair in verdict.measured:
        for name, score in pair.controls.items():
            scores_by_control.setdefault(control_name(name), []).append(score)
    means = {name: sum(scores) / len(scores) for name, scores in scores_by_control.items()}
    return means | ({} if verdict.agreement is None else {OVERALL: verdict.agreement})


def is_sampled(task: Task, share: float, purpose: str) -> bool:
    """Whether a task is in a random sample of this share: a hash of its id decides, so the result is stable."""
    digest = hashlib.sha256(f"{purpose}:{task.project}:{task.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def lacks_predictions(task: Task, policy: Policy) -> bool:
    """Whether the policy needs a pre-label of which the export contains only the id."""
    needs_prediction = policy.least_model_score or policy.least_model_agreement
    return bool(needs_prediction and task.prediction_ids and pre_label(task) is None)


def _model_reasons(task: Task, answers: Sequence[Answers], policy: Policy, config: LabelConfig | None) -> list[str]:
    if not (policy.least_model_score or policy.least_model_agreement):
        return []
    model = pre_label(task)
    if model is None:
        return []
    reasons = []
    if model.score is not None and model.score < policy.least_model_score:
        reasons.append(f"The model was unsure: score {model.score:.2f}, below {policy.least_model_score:g}.")
    if policy.least_model_agreement and answers:
        model_answers = read_prediction(model, task, config=config)
        try:
            pairs = [
                policy.without_uncounted(
                    compare(model_answers, answer, tolerance=policy.tolerance, weights=policy.weights)
                )
                for answer in complete_answers(answers)
            ]
        except TooLargeToJudge:
            pairs = []
        scores = [pair.overall for pair in pairs if not pair.unjudged]
        mean = sum(scores) / len(scores) if scores else 1.0
        if not scores:
            reasons.append("The model's pre-label cannot be compared with the annotators.")
        if mean < policy.least_model_agreement:
            reasons.append(f"The model and the annotators agree by only {100 * mean:.0f} %.")
    return reasons


def _second_opinion_reasons(task: Task, policy: Policy) -> list[str]:
    """The ML backend's second opinion, from the task's data."""
    score, note = task.data.get("qc_model_score"), task.data.get("qc_model_note")
    if not policy.least_model_doubt or not isinstance(score, int | float) or score < policy.least_model_doubt:
        return []
    return [f"{MODEL_DISAGREES[0]} {note}"]


def _sampling_reasons(task: Task, verdict: TaskVerdict, policy: Policy) -> list[str]:
    """The first review route that matches decides; if none does, the share of all tasks."""
    means = mean_agreements(verdict)
    for route in policy.review:
        value = means.get(route.dimension)
        if value is None or not OPERATORS[route.operator](value, route.threshold):
            continue
        if not is_sampled(task, route.share, f"route {route.dimension} {route.operator} {route.threshold}"):
            return []
        subject = "Agreement" if route.dimension == OVERALL else f"Agreement on {route.dimension}"
        sampled = "" if route.share >= 1 else f", drawn for review ({100 * route.share:g} %)"
        return [f"{subject} is {value:.2f}{sampled}."]
    if is_sampled(task, policy.review_share, "share"):
        return [f"Drawn for review ({100 * policy.review_share:g} %)."]
    return []
