"""Owns judging a candidate: which photos it is examined on, and against what."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import (
    EvaluationResult,
    Verdict,
    accept_without_evaluation,
    judge_by_folds,
    judge_held_out,
)
from ml_backend.learning.evaluation.evaluator import HEADS, labels_of
from ml_backend.learning.features import drawn_on
from ml_backend.learning.training_set import RunInput
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.model_selection import FitResult
from ml_backend.training.thresholds import edits_of_all, learned_thresholds

JUDGED_PHOTOS = 40
"""Labelled photos on which the base is compared with a candidate that is judged by cross-validation."""

CANDIDATE = "candidate"
"""What a head is called until it is a version."""


MOST_TASKS = 60
"""The last tasks that thresholds are learned from: their versions were most like the candidate."""

MOST_ASKED = 20
"""Tasks that what is served is asked about at a run: of a hundred that come at once most tell nothing more."""

WEAKEST, MOST_FOUND = 0.02, 60
"""Of what it finds on a photo, that is kept."""


class CandidateEvaluator:
    """Judges the candidates of runs."""

    def __init__(self, kit: LearningContext) -> None:
        """Opens nothing yet."""
        self._kit = kit

    def judge(self, of: RunInput, backbone: FrozenBackbone, learned: FitResult) -> Verdict:
        """By the held-out tasks where they suffice, else by cross-validation, else not at all: see `gate`.

        Args:
            of: What the run works on.
            backbone: What the candidate was fitted on.
            learned: The candidate, with its cross-validation.
        """
        held = [(task, photo) for task, _, photos in of.held for photo in photos]
        self._kit.examiner.remember(CANDIDATE, learned.head)
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        exam = self._kit.examiner.evaluate(CANDIDATE, held, **facts) if held else EvaluationResult([], [], [])
        if exam.enough:
            parent = self._kit.examiner.evaluate(of.served.version, held, **facts)
            earlier = [self._kit.examiner.evaluate(one, held, **facts) for one in self._earlier(of)]
            return judge_held_out(exam, parent, tolerance=of.policy.tolerance, earlier=earlier)
        scores = {str(key): float(score) for key, score in learned.judged.items()}
        mine = [(task, photo) for task, _, photos in of.lessons for photo in photos if photo.labels]
        if not scores:
            return accept_without_evaluation(knows=self._served_knows(of, backbone))
        base = self._kit.examiner.evaluate(of.served.base, mine[-JUDGED_PHOTOS:], **facts)
        crossed = EvaluationResult(learned.answers.truths, learned.answers.found, learned.answers.names)
        return judge_by_folds(
            float(learned.judged[learned.choice]), base, before=self._before(of), photos=len(mine),
            tolerance=of.policy.tolerance, by_class=crossed.by_class(),
        )  # fmt: skip

    def thresholds(self, of: RunInput, backbone: FrozenBackbone, learned: FitResult) -> dict[str, float]:
        """From which score on the candidate's classes are worth showing.

        Every edit of an annotator is in what was submitted: it is read as what was done to all that the version found
        which was served then, also to what was too weak to be shown. So is what was found on the held-out tasks, which
        the candidate itself is asked about, and what cross-validation found. Scores of all versions are calibrated.

        Returns:
            Thresholds of all classes of the candidate, by name.
        """
        exam = EvaluationResult([], [], [])
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        if held := [(task, photo) for task, _, photos in of.held for photo in photos]:
            exam = self._kit.examiner.evaluate(CANDIDATE, held, **facts)
        answers = [
            *_last(self._kit.lessons.answered(of.project)),
            *((tuple(exam.names), *one) for one in zip(exam.found, exam.truths, strict=True)),
            *((learned.answers.names, *one) for one in zip(learned.answers.found, learned.answers.truths, strict=True)),
        ]
        edits = edits_of_all(answers, names=learned.head.names)
        return learned_thresholds(edits, usual=self._kit.settings.score_threshold, drawing=of.policy.drawing_costs)

    def ask(self, of: RunInput, backbone: FrozenBackbone) -> None:
        """Notes what is served finds on tasks that are learned from now for the first time."""
        if not of.served.learned:
            return
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        found: dict[int, list[LabelledImage]] = {}
        for task, photos in self._kit.lessons.tasks_without_prediction(of.project)[:MOST_ASKED]:
            for photo in photos:
                exam = self._kit.examiner.evaluate(of.served.version, [(task, photo)], **facts)
                for one in exam.found:
                    fit = self._kit.album.sight(backbone, photo.url, task=task).fit
                    lesson = _as_lesson(photo.url, (fit.width, fit.height), one, exam.names)
                    found.setdefault(task, []).append(lesson)
        self._kit.lessons.answer(of.project, found)

    def _earlier(self, of: RunInput) -> list[str]:
        """Versions before the served one that were learned on the same base and are still in memory.

        None where something that they may have learned from is withdrawn.
        """
        if self._kit.lessons.withdrawn(of.project):
            return []
        runs = self._kit.runs.last(of.project, HEADS)
        found = {run.version for run in runs if run.verdict == "published" and run.base == of.served.base}
        return sorted(one for one in found - {of.served.version} if self._kit.examiner.remembers(one))

    def _before(self, of: RunInput) -> float | None:
        """The cross-validated score of what is served; None where it was learned from what is withdrawn now."""
        if not of.served.learned or self._kit.lessons.withdrawn(of.project):
            return None
        run = self._kit.runs.of_version(of.project, of.served.version)
        return run.ap50 if run is not None and run.judged_by == "cross-validation" else None

    def _served_knows(self, of: RunInput, backbone: FrozenBackbone) -> list[str]:
        """Drawn classes that what is served can find."""
        if of.served.learned:
            return list(of.classes)
        return sorted(set(labels_of(of.config, backbone.names)) & set(of.classes))


def _last(
    answered: Sequence[tuple[Sequence[LabelledImage], Sequence[LabelledImage]]],
) -> Iterator[tuple[tuple[str, ...], Detections, GroundTruth]]:
    """(names, what was found on a photo, what was drawn on it) of the tasks drawn last, which come first."""
    for drawn, found in answered[:MOST_TASKS]:
        by_url = {one.url: one for one in drawn}
        for one in found:
            if one.url not in by_url:
                continue
            names = tuple(dict.fromkeys(one.labels))
            boxes, scores = np.asarray(one.boxes, np.float32).reshape(-1, 4), np.asarray(one.scores, np.float32)
            detections = Detections(boxes, scores, np.array([names.index(label) for label in one.labels], np.int64))
            there = by_url[one.url]
            yield names, detections, GroundTruth(drawn_on(there, one.width, one.height), there.labels)


def _as_lesson(url: str, size: tuple[int, int], found: Detections, names: Sequence[str]) -> LabelledImage:
    """What was found on a photo of a size, in the form in which it is kept."""
    strong = np.flatnonzero(found.scores >= WEAKEST).tolist()
    kept = [index for index in strong if names[found.classes[index]]][:MOST_FOUND]
    return LabelledImage(
        url=url, width=size[0], height=size[1],
        boxes=tuple(tuple(round(float(side), 1) for side in found.boxes[index]) for index in kept),  # type: ignore[misc]
        labels=tuple(names[found.classes[index]] for index in kept),
        scores=tuple(round(float(found.scores[index]), 4) for index in kept),
    )  # fmt: skip
