"""Owns the gate before a model that was trained elsewhere: judged on a project's labelled photos like any candidate."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.errors import LabelloopError
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.base_models import Served
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import EvaluationResult, Verdict, judge_by_labels, judge_held_out, mean
from ml_backend.learning.evaluation.candidate import JUDGED_PHOTOS
from ml_backend.learning.store.runs import Metrics, Run
from ml_backend.policy import LearningPolicy, read_learning_policy
from ml_backend.training.thresholds import edits_of_all, learned_thresholds

log = structlog.get_logger(__name__)


class NotAdmitted(LabelloopError):
    """A model finds less on a project's labelled photos than what is served to it."""

    code: ClassVar[str] = "model_not_admitted"
    status: ClassVar[int] = 409

    def __init__(self, version: str, project: int, verdict: Verdict) -> None:
        super().__init__(
            f"{version} is kept, and not served to project {project}: {verdict.reason}.",
            fix=f"Serve it all the same with: labelloop models activate {version} --project {project}. How strict the "
            "gate is says `tolerance` in the project's learn.toml.",
        )
        self.version = version
        self.verdict = verdict


@dataclass(frozen=True)
class Admission:
    """What became of a model that was trained elsewhere.

    Attributes:
        verdict: Of the gate.
        thresholds: From which score on each label would best be shown, by the held-out photos: the model's scores mean
            whatever its training made of them. Empty where too few of these are labelled.
    """

    verdict: Verdict
    thresholds: Mapping[str, float]


def admit(kit: LearningContext, project: int, version: str) -> Admission:
    """Compares a version of the store with what is served to a project, on its held-out photos, else on the labelled.

    Args:
        kit: What learning works with.
        project: The project; it need not be connected.
        version: A version of the store, made elsewhere.

    Returns:
        The verdict passes unjudged where too little is labelled, and says so. The run is kept.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be asked.
        ModelError: A model cannot be opened.
    """
    started = time.time()
    policy = read_learning_policy(kit.settings.home, project)
    config = kit.studio.label_config(project)
    kit.reader.sweep(project, config=config, held_out=policy.held_out)
    served = kit.bases.served(project)
    held, labelled = (
        [(task, photo) for task, _, photos in kit.lessons.training_tasks(project, state) for photo in photos]
        for state in ("held_out", "teaches")
    )
    exam = kit.examiner.evaluate(version, held, config=config) if held else EvaluationResult([], [], [])
    if exam.enough:
        parent = kit.examiner.evaluate(served.version, held, config=config)
        verdict = judge_held_out(exam, parent, tolerance=policy.tolerance)
    else:
        verdict = _by_labels(kit, project, version, exam, served=served, labelled=labelled, config=config)
    metrics = Metrics(
        by_class=dict(verdict.by_class), parent_by_class=dict(verdict.parent_by_class), photos=verdict.photos,
        boxes=verdict.boxes,
    )  # fmt: skip
    run = Run(
        project=project, asked_at=started, started_at=started, finished_at=time.time(), source="models add", tasks=0,
        held_out=len(held), boxes=0, parent=served.version, version=version,
        verdict="admitted" if verdict.passed else "refused", judged_by=verdict.judged_by, reason=verdict.reason,
        ap50=verdict.ap50, parent_ap50=verdict.parent_ap50, tolerance=policy.tolerance, metrics=metrics,
    )  # fmt: skip
    kit.runs.add(run)
    return Admission(verdict, _thresholds(exam, policy, kit.settings.score_threshold) if exam.enough else {})


def _by_labels(
    kit: LearningContext,
    project: int,
    version: str,
    held_out: EvaluationResult,
    *,
    served: Served,
    labelled: Sequence[tuple[int, LabelledImage]],
    config: LabelConfig,
) -> Verdict:
    """The verdict where too few held-out tasks are labelled: by the others, or none."""
    drawn = [one for one in labelled if one[1].labels][-JUDGED_PHOTOS:]
    exam = kit.examiner.evaluate(version, drawn, config=config) if drawn else EvaluationResult([], [], [])
    known: float | None = None
    if exam.enough and served.learned:  # it learned from these photos: what it finds on them says nothing
        run = kit.runs.of_version(project, served.version)
        known = run.ap50 if run is not None and run.judged_by == "cross-validation" else None
    elif exam.enough:
        known = mean(kit.examiner.evaluate(served.version, drawn, config=config).by_class())
    if known is None:
        reason = (
            f"unjudged: only {held_out.photos} held-out photos with {held_out.boxes} boxes and {exam.photos} others "
            f"with {exam.boxes} are labelled in the project"
        )
        return Verdict(passed=True, judged_by="nothing", reason=reason, photos=held_out.photos, boxes=held_out.boxes)
    tolerance = read_learning_policy(kit.settings.home, project).tolerance
    return judge_by_labels(exam, served=known, crossed=served.learned, tolerance=tolerance)


def _thresholds(exam: EvaluationResult, policy: LearningPolicy, usual: float) -> dict[str, float]:
    answers = [(tuple(exam.names), *one) for one in zip(exam.found, exam.truths, strict=True)]
    edits = edits_of_all(answers, names={label for label in exam.names if label})
    return learned_thresholds(edits, usual=usual, drawing=policy.drawing_costs)
