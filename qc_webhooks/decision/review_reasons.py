"""Why a task goes to a reviewer although its annotators agree: the guideline, the model, a review route, a draw."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from labelloop.labeling.errors import TooLargeToJudge
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Prediction, Task
from qc_webhooks.agreement import Answers, compare, read_prediction, whole_answers
from qc_webhooks.agreement.compare import control_name
from qc_webhooks.artifacts.overlays import is_overlay
from qc_webhooks.policy import OPERATORS, OVERALL, Policy
from qc_webhooks.policy.guideline_rules import Violation, violations
from qc_webhooks.verdict.verdict import Verdict, judge

# A violation says itself what blocks; this only says that it does.
BLOCKED = "The guideline blocks it."


@dataclass(frozen=True)
class Judgement:
    """What is to be said of a task, from its annotations and the policy alone.

    Attributes:
        verdict: What was found.
        broken: What breaks the guideline.
        reasons: Why a reviewer is to look although nobody disagrees, each in a sentence.
    """

    verdict: Verdict
    broken: tuple[Violation, ...]
    reasons: tuple[str, ...]


def judge_task(
    task: Task, answers: Sequence[Answers], policy: Policy, *, config: LabelConfig | None = None
) -> Judgement:
    """Judges a task: the one way for the service, the report on an export and what-if.

    Args:
        task: The task with its predictions.
        answers: One entry an annotator.
        policy: The project's policy.
        config: The project's label config.
    """
    verdict = judge(answers, policy)
    broken = violations(answers, policy.rules)
    return Judgement(verdict, broken, review_reasons(task, answers, verdict, policy, broken=broken, config=config))


def review_reasons(
    task: Task,
    answers: Sequence[Answers],
    verdict: Verdict,
    policy: Policy,
    *,
    broken: Sequence[Violation] = (),
    config: LabelConfig | None = None,
) -> tuple[str, ...]:
    """Each reason in a sentence; empty where nobody needs to look, or where a ground truth says all.

    Args:
        task: The task with its predictions.
        answers: One entry an annotator.
        verdict: What was found.
        policy: The project's policy.
        broken: What breaks the guideline.
        config: The project's label config.
    """
    if verdict.ground_truth is not None:
        return ()
    reasons = [BLOCKED] if any(each.rule.effect == "block" for each in broken) else []
    if verdict.outcome == "agreed":
        reasons += [*_model_reasons(task, answers, policy, config), *_drawn(task, verdict, policy)]
    if verdict.outcome != "disputed":
        reasons += _doubted(task, policy)
    return tuple(reasons)


def is_for_review(verdict: Verdict, policy: Policy, reasons: Sequence[str]) -> bool:
    """Whether a reviewer is to look once no further annotator is asked, ``reasons`` being those of `review_reasons`."""
    unjudged = verdict.outcome == "not_judged" and policy.review_not_judged
    return verdict.outcome == "disputed" or unjudged or bool(reasons)


def pre_label(task: Task) -> Prediction | None:
    """The newest prediction that is a model's, not an overlay of ours."""
    models = [each for each in task.predictions if each.id is not None and not is_overlay(each)]
    return max(models, key=lambda each: each.id or 0, default=None)


def mean_agreements(verdict: Verdict) -> dict[str, float]:
    """Mean agreement over the pairs by control, and over all of them as ``overall``."""
    found: dict[str, list[float]] = {}
    for pair in verdict.measured:
        for name, score in pair.controls.items():
            found.setdefault(control_name(name), []).append(score)
    means = {name: sum(scores) / len(scores) for name, scores in found.items()}
    return means | ({} if verdict.agreement is None else {OVERALL: verdict.agreement})


def drawn(task: Task, share: float, purpose: str) -> bool:
    """Whether a task is in a share of all, by its number: the same whenever it is asked."""
    digest = hashlib.sha256(f"{purpose}:{task.project}:{task.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def lacks_predictions(task: Task, policy: Policy) -> bool:
    """Whether the policy looks at a pre-label that the export names by its number only."""
    asked = policy.least_model_score or policy.least_model_agreement
    return bool(asked and task.prediction_ids and pre_label(task) is None)


def _model_reasons(task: Task, answers: Sequence[Answers], policy: Policy, config: LabelConfig | None) -> list[str]:
    if not (policy.least_model_score or policy.least_model_agreement):
        return []
    model = pre_label(task)
    if model is None:
        return []
    reasons = []
    if model.score is not None and model.score < policy.least_model_score:
        reasons.append(f"The model was unsure: score {model.score:.2f}, less than {policy.least_model_score:g}.")
    if policy.least_model_agreement and answers:
        said = read_prediction(model, task, config=config)
        try:
            pairs = [
                policy.weighed(compare(said, each, tolerance=policy.tolerance, weights=policy.weights))
                for each in whole_answers(answers)
            ]
        except TooLargeToJudge:
            pairs = []
        scores = [pair.overall for pair in pairs if not pair.unjudged]
        mean = sum(scores) / len(scores) if scores else 1.0
        if not scores:
            reasons.append("The model's pre-label cannot be compared with the annotators.")
        if mean < policy.least_model_agreement:
            reasons.append(f"The model and the annotators agree by {100 * mean:.0f} % only.")
    return reasons


def _doubted(task: Task, policy: Policy) -> list[str]:
    """What the ML backend's second opinion says in the task's data."""
    score, note = task.data.get("qc_model_score"), task.data.get("qc_model_note")
    if not policy.least_model_doubt or not isinstance(score, int | float) or score < policy.least_model_doubt:
        return []
    return [f"The model has doubts: {note}"]


def _drawn(task: Task, verdict: Verdict, policy: Policy) -> list[str]:
    """The first review route that holds decides; where none does, the share of all tasks."""
    means = mean_agreements(verdict)
    for route in policy.review:
        value = means.get(route.dimension)
        if value is None or not OPERATORS[route.operator](value, route.threshold):
            continue
        if not drawn(task, route.share, f"route {route.dimension} {route.operator} {route.threshold}"):
            return []
        what = "Agreement" if route.dimension == OVERALL else f"Agreement on {route.dimension}"
        chance = "" if route.share >= 1 else f", drawn for review ({100 * route.share:g} %)"
        return [f"{what} is {value:.2f}{chance}."]
    if drawn(task, policy.review_share, "share"):
        return [f"Drawn for review ({100 * policy.review_share:g} %)."]
    return []
