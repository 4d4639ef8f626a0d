"""Evaluate a model trained outside labelloop on a project's labelled images, like any candidate."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.base_models import ServedModel
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import AcceptanceVerdict, judge_by_labels, judge_held_out, mean
from ml_backend.learning.evaluation.candidate import MAX_FOLD_IMAGES
from ml_backend.learning.evaluator import EvaluationResult
from ml_backend.learning.store.runs import RunMetrics, TrainingRun
from ml_backend.policy import LearningPolicy, read_learning_policy
from ml_backend.training.thresholds import edits_of_all, learned_thresholds

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Admission:
    """The evaluation of an external model.

    Attributes:
        verdict: Whether it may be served.
        thresholds: Best score threshold of each label on the held-out images; the model's scores are not calibrated.
            Empty with too few held-out images.
    """

    verdict: AcceptanceVerdict
    thresholds: Mapping[str, float]


def admit(
    context: LearningContext,
    project: int,
    version: str,
    *,
    source: str = "models add",
    seconds: float = 0.0,
    trial: tuple[float, float] | None = None,
    remark: str = "",
) -> Admission:
    """Compare an external version with the served one, on held-out images or else on all labelled ones.

    Args:
        context: Dependencies of learning.
        project: The project; it need not be connected.
        version: A version on the store.
        source: What asked for the evaluation, for the run.
        seconds: Duration of the training, where it was trained here.
        trial: AP50 of a refit upon it and of one upon its parent on labelled images outside the fits: with too few
            held-out images it is judged by them too.
        remark: The trial in words, or why there is none; part of the reason.

    Returns:
        The evaluation. With too few labelled images it passes unevaluated and says so. A run is recorded.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be reached.
        ModelError: A model cannot be opened.
    """
    started = time.time()
    policy = read_learning_policy(context.settings.home, project)
    config = context.studio.label_config(project)
    context.sync.sweep(project, config=config, held_out=policy.held_out)
    served = context.base_models.served(project)
    held_out, labelled = (
        [(task, photo) for task, _, photos in context.training_data.training_tasks(project, state) for photo in photos]
        for state in ("held_out", "teaches")
    )
    result = context.evaluator.evaluate(version, held_out, config=config) if held_out else EvaluationResult([], [], [])
    if result.enough:
        parent = context.evaluator.evaluate(served.version, held_out, config=config)
        verdict = judge_held_out(result, parent, tolerance=policy.tolerance)
    else:
        verdict = _by_labels(context, project, version, result, served=served, labelled=labelled, config=config)
        if trial is not None and verdict.judged_by == "nothing":
            # Until the refit upon it ends, it is served itself: something must show that it finds objects.
            verdict = replace(verdict, passed=False, reason=f"{verdict.reason}; label more images")
        elif trial is not None and verdict.passed:
            tuned, refit = trial
            verdict = AcceptanceVerdict(
                True, "cross-validation", remark, tuned, refit, photos=verdict.photos, boxes=verdict.boxes
            )
    if remark and remark != verdict.reason:
        verdict = replace(verdict, reason=f"{verdict.reason}; {remark}")
    record_admission(
        context, project, version, verdict, source=source, started=started, seconds=seconds, parent=served.version,
        held_out=len(held_out),
    )  # fmt: skip
    return Admission(verdict, _thresholds(result, policy, context.settings.score_threshold) if result.enough else {})


def record_admission(
    context: LearningContext,
    project: int,
    version: str,
    verdict: AcceptanceVerdict,
    *,
    source: str,
    started: float,
    parent: str,
    seconds: float = 0.0,
    held_out: int = 0,
) -> None:
    """Record the verdict on a version that was not learned in service as a run, which the learning page shows."""
    policy = read_learning_policy(context.settings.home, project)
    metrics = RunMetrics(
        by_class=dict(verdict.by_class), parent_by_class=dict(verdict.parent_by_class), photos=verdict.photos,
        boxes=verdict.boxes,
    )  # fmt: skip
    run = TrainingRun(
        project=project, asked_at=started, started_at=started, finished_at=time.time(), source=source, tasks=0,
        held_out=held_out, boxes=0, parent=parent, version=version,
        verdict="admitted" if verdict.passed else "refused", judged_by=verdict.judged_by, reason=verdict.reason,
        ap50=verdict.ap50, parent_ap50=verdict.parent_ap50, tolerance=policy.tolerance, metrics=metrics,
        seconds={"train": seconds} if seconds else {},
    )  # fmt: skip
    context.runs.add(run)


def _by_labels(
    context: LearningContext,
    project: int,
    version: str,
    held_out: EvaluationResult,
    *,
    served: ServedModel,
    labelled: Sequence[tuple[int, LabelledImage]],
    config: LabelConfig,
) -> AcceptanceVerdict:
    """Return the verdict with too few held-out tasks: on the other labelled images, or unevaluated."""
    drawn = [pair for pair in labelled if pair[1].labels][-MAX_FOLD_IMAGES:]
    result = context.evaluator.evaluate(version, drawn, config=config) if drawn else EvaluationResult([], [], [])
    served_score: float | None = None
    if result.enough and served.learned:  # it was trained on these images, so its AP50 on them is biased
        run = context.runs.of_version(project, served.version)
        served_score = run.ap50 if run is not None and run.judged_by == "cross-validation" else None
    elif result.enough:
        served_score = mean(context.evaluator.evaluate(served.version, drawn, config=config).by_class())
    if served_score is None:
        reason = (
            f"not evaluated: only {held_out.photos} held-out images with {held_out.boxes} boxes and {result.photos} "
            f"others with {result.boxes} are labelled in the project"
        )
        return AcceptanceVerdict(
            passed=True, judged_by="nothing", reason=reason, photos=held_out.photos, boxes=held_out.boxes
        )
    tolerance = read_learning_policy(context.settings.home, project).tolerance
    return judge_by_labels(result, served=served_score, crossed=served.learned, tolerance=tolerance)


def _thresholds(result: EvaluationResult, policy: LearningPolicy, usual: float) -> dict[str, float]:
    answers = [(tuple(result.names), *pair) for pair in zip(result.detections, result.truths, strict=True)]
    edits = edits_of_all(answers, names={label for label in result.names if label})
    return learned_thresholds(edits, default=usual, drawing_cost=policy.drawing_costs)
