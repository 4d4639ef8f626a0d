"""Owns judging a candidate: which photos it is examined on, and against what."""

from __future__ import annotations

from typing import Any

from ml_backend.backbone import Backbone
from ml_backend.learn import Learned
from ml_backend.learning.exams import HEADS, labels_of
from ml_backend.learning.gate import Exam, Verdict, judge_by_folds, judge_held_out, unjudged
from ml_backend.learning.kit import Kit
from ml_backend.learning.material import Material
from ml_backend.thresholds import Edits, edits_of, learned_thresholds

JUDGED_PHOTOS = 40
"""Labelled photos on which the base is compared with a candidate that is judged by cross-validation."""

CANDIDATE = "candidate"
"""What a head is called until it is a version."""


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
        return judge_by_folds(
            float(learned.judged[learned.choice]), base, before=self._before(of), photos=len(mine),
            tolerance=of.policy.tolerance,
        )  # fmt: skip

    def thresholds(self, of: Material, backbone: Backbone, learned: Learned) -> dict[str, float]:
        """From which score on the candidate's classes are worth showing.

        Every edit of an annotator is in what was submitted: it is read as what would be done to all that a head finds
        which did not learn from the photo, also to boxes that no threshold let through so far.

        Returns:
            Thresholds by class; empty where nothing says anything.
        """
        answers = [(learned.answers.names, learned.answers.truths, learned.answers.found)]
        if held := [(task, photo) for task, _, photos in of.held for photo in photos]:
            facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
            exam = self._kit.examiner.examine(CANDIDATE, held, **facts)
            answers.append((tuple(exam.names), exam.truths, exam.found))
        edits: dict[str, Edits] = {}
        for names, truths, found in answers:
            for one, truth in zip(found, truths, strict=True):
                for name, some in edits_of(one, truth, names=names).items():
                    edits[name] = edits.get(name, Edits()) + some
        return learned_thresholds({name: some for name, some in edits.items() if name in of.classes})

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
