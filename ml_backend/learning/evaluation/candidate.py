"""Owns judging a candidate: which photos it is examined on, and against what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.learning.annotations import Lesson
from ml_backend.learning.context import Kit
from ml_backend.learning.evaluation.acceptance import Exam, Verdict, judge_by_folds, judge_held_out, unjudged
from ml_backend.learning.evaluation.evaluator import HEADS, labels_of
from ml_backend.learning.features import drawn_on
from ml_backend.learning.training_set import Material
from ml_backend.training.backbone import Backbone
from ml_backend.training.metrics import Truth
from ml_backend.training.model_selection import Learned
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


class Judge:
    """Judges the candidates of runs."""

    def __init__(self, kit: Kit) -> None:
        """Opens nothing yet."""
        self._kit = kit

    def judge(self, of: Material, backbone: Backbone, learned: Learned) -> Verdict:
        """By the held-out tasks where they suffice, else by cross-validation, else not at all: see `gate`.

        Args:
            of: What the run works on.
            backbone: What the candidate was fitted on.
            learned: The candidate, with its cross-validation.
        """
        held = [(task, photo) for task, _, photos in of.held for photo in photos]
        self._kit.examiner.remember(CANDIDATE, learned.head)
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        exam = self._kit.examiner.examine(CANDIDATE, held, **facts) if held else Exam([], [], [])
        if exam.enough:
            parent = self._kit.examiner.examine(of.served.version, held, **facts)
            earlier = [self._kit.examiner.examine(one, held, **facts) for one in self._earlier(of)]
            return judge_held_out(exam, parent, tolerance=of.policy.tolerance, earlier=earlier)
        scores = {str(key): float(score) for key, score in learned.judged.items()}
        mine = [(task, photo) for task, _, photos in of.lessons for photo in photos if photo.labels]
        if not scores:
            return unjudged(knows=self._served_knows(of, backbone))
        base = self._kit.examiner.examine(of.served.base, mine[-JUDGED_PHOTOS:], **facts)
        crossed = Exam(learned.answers.truths, learned.answers.found, learned.answers.names)
        return judge_by_folds(
            float(learned.judged[learned.choice]), base, before=self._before(of), photos=len(mine),
            tolerance=of.policy.tolerance, by_class=crossed.by_class(),
        )  # fmt: skip

    def thresholds(self, of: Material, backbone: Backbone, learned: Learned) -> dict[str, float]:
        """From which score on the candidate's classes are worth showing.

        Every edit of an annotator is in what was submitted: it is read as what was done to all that the version found
        which was served then, also to what was too weak to be shown. So is what was found on the held-out tasks, which
        the candidate itself is asked about, and what cross-validation found. Scores of all versions are calibrated.

        Returns:
            Thresholds of all classes of the candidate, by name.
        """
        exam = Exam([], [], [])
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        if held := [(task, photo) for task, _, photos in of.held for photo in photos]:
            exam = self._kit.examiner.examine(CANDIDATE, held, **facts)
        answers = [
            *_last(self._kit.lessons.answered(of.project)),
            *((tuple(exam.names), *one) for one in zip(exam.found, exam.truths, strict=True)),
            *((learned.answers.names, *one) for one in zip(learned.answers.found, learned.answers.truths, strict=True)),
        ]
        edits = edits_of_all(answers, names=learned.head.names)
        return learned_thresholds(edits, usual=self._kit.settings.score_threshold, drawing=of.policy.drawing_costs)

    def ask(self, of: Material, backbone: Backbone) -> None:
        """Notes what is served finds on tasks that are learned from now for the first time."""
        if not of.served.learned:
            return
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        found: dict[int, list[Lesson]] = {}
        for task, photos in self._kit.lessons.unanswered(of.project)[:MOST_ASKED]:
            for photo in photos:
                exam = self._kit.examiner.examine(of.served.version, [(task, photo)], **facts)
                for one in exam.found:
                    fit = self._kit.album.sight(backbone, photo.url, task=task).fit
                    lesson = _as_lesson(photo.url, (fit.width, fit.height), one, exam.names)
                    found.setdefault(task, []).append(lesson)
        self._kit.lessons.answer(of.project, found)

    def _earlier(self, of: Material) -> list[str]:
        """Versions before the served one that were learned on the same base and are still in memory.

        None where something that they may have learned from is withdrawn.
        """
        if self._kit.lessons.withdrawn(of.project):
            return []
        runs = self._kit.runs.last(of.project, HEADS)
        found = {run.version for run in runs if run.verdict == "published" and run.base == of.served.base}
        return sorted(one for one in found - {of.served.version} if self._kit.examiner.remembers(one))

    def _before(self, of: Material) -> float | None:
        """The cross-validated score of what is served; None where it was learned from what is withdrawn now."""
        if not of.served.learned or self._kit.lessons.withdrawn(of.project):
            return None
        run = self._kit.runs.of_version(of.project, of.served.version)
        return run.ap50 if run is not None and run.judged_by == "cross-validation" else None

    def _served_knows(self, of: Material, backbone: Backbone) -> list[str]:
        """Drawn classes that what is served can find."""
        if of.served.learned:
            return list(of.classes)
        return sorted(set(labels_of(of.config, backbone.names)) & set(of.classes))


def _last(
    answered: Sequence[tuple[Sequence[Lesson], Sequence[Lesson]]],
) -> Iterator[tuple[tuple[str, ...], Detections, Truth]]:
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
            yield names, detections, Truth(drawn_on(there, one.width, one.height), there.labels)


def _as_lesson(url: str, size: tuple[int, int], found: Detections, names: Sequence[str]) -> Lesson:
    """What was found on a photo of a size, in the form in which it is kept."""
    strong = np.flatnonzero(found.scores >= WEAKEST).tolist()
    kept = [index for index in strong if names[found.classes[index]]][:MOST_FOUND]
    return Lesson(
        url=url, width=size[0], height=size[1],
        boxes=tuple(tuple(round(float(side), 1) for side in found.boxes[index]) for index in kept),  # type: ignore[misc]
        labels=tuple(names[found.classes[index]] for index in kept),
        scores=tuple(round(float(found.scores[index]), 4) for index in kept),
    )  # fmt: skip
