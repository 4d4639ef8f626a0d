"""Owns the gate before a model that was trained elsewhere: judged on a project's labelled photos like any candidate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import structlog

from labelloop.service.errors import LabelloopError
from ml_backend.learning.gate import Exam, Verdict, judge_held_out
from ml_backend.learning.kit import Kit
from ml_backend.learning.policy import LearningPolicy, read_learning_policy
from ml_backend.learning.runs import Metrics, Run
from ml_backend.thresholds import edits_of_all, learned_thresholds, usual_threshold

log = structlog.get_logger(__name__)


class NotAdmitted(LabelloopError):
    """A model finds less on a project's held-out photos than what is served to it."""

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
            whatever its training made of them. Empty where too little is labelled.
    """

    verdict: Verdict
    thresholds: Mapping[str, float]


def admit(kit: Kit, project: int, version: str) -> Admission:
    """Compares a version of the store with what is served to a project, on its held-out photos.

    Args:
        kit: What learning works with.
        project: The project.
        version: A version of the store, made elsewhere.

    Returns:
        The verdict passes unjudged where too few held-out tasks are labelled, and says so. The run is kept.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be asked.
        ModelError: A model cannot be opened.
    """
    started = time.time()
    policy = read_learning_policy(kit.settings.home, project)
    config = kit.studio.label_config(project)
    kit.lessons.connect(project)
    kit.reader.sweep(project, config=config, held_out=policy.held_out)
    held = [(task, photo) for task, _, photos in kit.lessons.taught(project, "held_out") for photo in photos]
    served = kit.bases.served(project)
    exam, parent = Exam([], [], []), Exam([], [], [])
    if held:
        exam = kit.examiner.examine(version, held, config=config)
        parent = kit.examiner.examine(served.version, held, config=config)
    if exam.enough:
        verdict = judge_held_out(exam, parent, tolerance=policy.tolerance)
    else:
        reason = f"unjudged: only {exam.photos} held-out photos with {exam.boxes} boxes are labelled in the project"
        verdict = Verdict(passed=True, judged_by="nothing", reason=reason, photos=exam.photos, boxes=exam.boxes)
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


def _thresholds(exam: Exam, policy: LearningPolicy, usual: float) -> dict[str, float]:
    drawn = {label for truth in exam.truths for label in truth.labels}
    answers = [(tuple(exam.names), *one) for one in zip(exam.found, exam.truths, strict=True)]
    drawing = policy.drawing_costs
    edits = edits_of_all(answers, names=drawn)
    return learned_thresholds(edits, usual=usual_threshold(drawing) if drawing else usual, drawing=drawing)
