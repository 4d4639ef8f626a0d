"""Owns thresholds learned from edits: from which score on a class is worth showing. Pure functions.

An annotator who keeps or moves a pre-label says that it was right, one who deletes it that it was wrong at its score,
and one who draws a box says that the model missed it. So edits tell the chance that a box of a score is right, class by
class, and a box is worth showing from one and the same chance on, whatever its class: the one at which F1 is best, or
edits are cheapest where it is known what one is worth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.detection.box_voting import logit, sigmoid
from ml_backend.detection.detections import Detections
from ml_backend.training.calibration import Doubles, fit_together, match_detections
from ml_backend.training.metrics import GroundTruth

USUAL = 0.3
"""Where nothing is known: half of the F1 of a useful detector, which lies about .6; see `least_chance`."""

BEFORE = 30.0
"""That F1 is taken for seen before, on so many objects."""

LOWEST, HIGHEST = 0.01, 0.99
"""Thresholds stay within: what is weaker is never asked for."""


@dataclass(frozen=True)
class Edits:
    """What annotators did to the pre-labels of one class.

    Attributes:
        kept: Scores of those that were accepted or moved.
        deleted: Scores of those that were deleted, or given another class.
        added: Boxes that were drawn where there was none.
    """

    kept: Sequence[float] = ()
    deleted: Sequence[float] = ()
    added: int = 0

    @property
    def objects(self) -> int:
        """How many there were. Of what is deleted much is so weak that it tells nothing."""
        return len(self.kept) + self.added

    def __add__(self, other: Edits) -> Edits:
        """Both."""
        return Edits((*self.kept, *other.kept), (*self.deleted, *other.deleted), self.added + other.added)


def edits_of(found: Detections, truth: GroundTruth, *, names: Sequence[str]) -> dict[str, Edits]:
    """What an annotator who leaves a photo as `truth` did to all that was found on it, by class.

    Args:
        found: Also what was too weak to be shown: it says where the threshold would have to be to show it.
        truth: What was submitted.
        names: Classes of the detections.
    """
    right = match_detections(found, truth, names=names)
    edits = {}
    for label in sorted({*truth.labels, *(names[index] for index in found.classes.tolist())}):
        mine = np.array([names[index] == label for index in found.classes.tolist()], bool)
        kept = found.scores[mine & right].tolist()
        drawn = sum(one == label for one in truth.labels)
        edits[label] = Edits(tuple(kept), tuple(found.scores[mine & ~right].tolist()), drawn - len(kept))
    return edits


def edits_of_all(
    answers: Iterable[tuple[Sequence[str], Detections, GroundTruth]], *, names: Collection[str]
) -> dict[str, Edits]:
    """The edits of many photos by class.

    Args:
        answers: (classes of the detections, what was found, what was submitted) of each photo.
        names: Classes that count, each of which is answered, also where nothing was done to it.
    """
    found = {name: Edits() for name in sorted(names)}
    for classes, detections, truth in answers:
        for name, some in edits_of(detections, truth, names=classes).items():
            if name in found:
                found[name] += some
    return found


def learned_thresholds(edits: Mapping[str, Edits], *, usual: float = USUAL, drawing: float = 0.0) -> dict[str, float]:
    """The threshold of each class: the score that means the least chance worth showing.

    One line tells chances from scores for all classes, shifted for each as far as its edits ask for
    (`calibration.fit_together`): a class without edits is shown like the others.

    Args:
        edits: What was done to each class, over as many tasks as are known.
        usual: From which score on is worth showing where nothing is known.
        drawing: What drawing a box costs, in deletions; 0: F1 is sought.
    """
    before = 1 / (1 + drawing) if drawing else usual
    classes = np.repeat(np.arange(len(edits)), [len(one.kept) + len(one.deleted) for one in edits.values()])
    odds = logit(np.array([score for one in edits.values() for score in (*one.kept, *one.deleted)], np.float64))
    right = np.array(
        [hit for one in edits.values() for hit in [True] * len(one.kept) + [False] * len(one.deleted)], bool
    )
    line, shifts = fit_together(odds, right, classes, len(edits), around=float(logit(np.array(before))))
    chances = sigmoid(line.stretch * odds + line.shift + shifts[classes])
    objects = sum(one.objects for one in edits.values())
    least = before if drawing else least_chance(chances, objects=objects, usual=usual)
    scores = sigmoid((logit(np.array(least)) - line.shift - shifts) / line.stretch)
    return {name: round(score, 4) for name, score in zip(edits, np.clip(scores, LOWEST, HIGHEST).tolist(), strict=True)}


def least_chance(chances: Doubles, *, objects: int, usual: float = USUAL) -> float:
    """The chance of being right from which on boxes are shown where F1 over all of them is best: half of that F1.

    (Lipton et al. 2014, https://arxiv.org/abs/1402.1892, theorem 4.) The F1 is the one that the chances promise, which
    errs less than the one counted while boxes are few.

    Args:
        chances: (n,) of the boxes found.
        objects: How many there were on the same photos, found or not.
        usual: The answer where nothing was found.
    """
    right = np.sort(chances)[::-1].cumsum()
    shown = np.arange(1, len(chances) + 1)
    f1 = 2 * (right + usual * BEFORE) / (shown + objects + BEFORE)
    return float(f1.max(initial=2 * usual * BEFORE / (objects + BEFORE)) / 2)
