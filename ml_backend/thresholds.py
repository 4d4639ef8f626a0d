"""Owns thresholds learned from edits: from which score on a class is worth showing. Pure functions.

An annotator who keeps or moves a pre-label says that it was right, one who deletes it that it was wrong at its score,
and one who draws a box says that the model missed it. The threshold of a class is the one at which its F1 would have
been best, or its edits cheapest where it is known what one is worth, drawn towards what all classes together say, and
these towards what is usual, while there are few edits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.calibration import are_right
from ml_backend.detections import Detections
from ml_backend.judge import Truth

USUAL = 0.3
"""Where nothing is known. F1 is best at half of the best F1 where scores are calibrated (Lipton et al. 2014,
https://arxiv.org/abs/1402.1892, theorem 4), and the best F1 of a useful detector lies about .6."""

STRENGTH = 300.0
"""Objects at which what a class says of itself weighs as much as what all classes together say."""

TOGETHER = 30.0
"""Objects at which what all classes together say weighs as much as what is usual: scores of a model that was trained
elsewhere may mean anything."""

FLATTEST = 0.98
"""Thresholds that are worth at least this share of the best are as good: the middle of them is taken, not a peak."""


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


def edits_of(found: Detections, truth: Truth, *, names: Sequence[str]) -> dict[str, Edits]:
    """What an annotator who leaves a photo as `truth` did to all that was found on it, by class.

    Args:
        found: Also what was too weak to be shown: it says where the threshold would have to be to show it.
        truth: What was submitted.
        names: Classes of the detections.
    """
    right = are_right(found, truth, names=names)
    edits = {}
    for label in sorted({*truth.labels, *(names[index] for index in found.classes.tolist())}):
        mine = np.array([names[index] == label for index in found.classes.tolist()], bool)
        kept = found.scores[mine & right].tolist()
        drawn = sum(one == label for one in truth.labels)
        edits[label] = Edits(tuple(kept), tuple(found.scores[mine & ~right].tolist()), drawn - len(kept))
    return edits


Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""(thresholds, what each is worth)."""


def edits_of_all(
    answers: Iterable[tuple[Sequence[str], Detections, Truth]], *, names: Collection[str] | None = None
) -> dict[str, Edits]:
    """The edits of many photos by class.

    Args:
        answers: (classes of the detections, what was found, what was submitted) of each photo.
        names: Classes that count; None: all.
    """
    found: dict[str, Edits] = {}
    for classes, detections, truth in answers:
        for name, some in edits_of(detections, truth, names=classes).items():
            if names is None or name in names:
                found[name] = found.get(name, Edits()) + some
    return found


def usual_threshold(drawing: float) -> float:
    """Where nothing is known but that scores are calibrated, and that drawing a box costs as much as so many deletions.

    A pre-label that is right with a chance p costs 1 - p to show and p times `drawing` not to.
    """
    return 1 / (1 + drawing) if drawing else USUAL


def worth_curve(edits: Edits, *, drawing: float = 0.0) -> Curve:
    """Every threshold that makes a difference, ascending, and what it is worth to hide all that is below.

    Args:
        edits: Of one class.
        drawing: What drawing a box costs, in deletions: the worth is the share that is saved of the cost of drawing
            everything, below 0 where it costs more. 0: the worth is the F1.
    """
    scores = np.array([*edits.kept, *edits.deleted], np.float64)
    hits = np.array([1] * len(edits.kept) + [0] * len(edits.deleted))
    order = np.argsort(scores)
    scores, hits = scores[order], hits[order]
    right = hits[::-1].cumsum()[::-1]
    shown = np.arange(len(scores), 0, -1)
    steps = np.diff(scores, prepend=-1.0) > 0
    if drawing:
        worth = (drawing * right - (shown - right)) / (drawing * max(edits.objects, 1))
    else:
        worth = 2 * right / np.maximum(shown + edits.objects, 1)
    return scores[steps], worth[steps]


def best_threshold(edits: Edits, *, drawing: float = 0.0) -> float | None:
    """The threshold that is worth most, see `worth_curve`; None where nothing was right at any."""
    scores, worth = worth_curve(edits, drawing=drawing)
    if not len(scores) or not edits.kept:
        return None
    peak = int(worth.argmax())
    if worth[peak] <= 0:
        return float((scores[-1] + 1) / 2)  # whatever is shown costs more than it spares
    # A threshold stands for all cuts between the next lower score and its own: the middle of those as good as the best.
    good = set(np.flatnonzero(worth >= FLATTEST * worth[peak]).tolist())
    low = high = peak
    while low - 1 in good:
        low -= 1
    while high + 1 in good:
        high += 1
    below = scores[low - 1] if low else 0.0
    return float((below + scores[high]) / 2)


def learned_thresholds(edits: Mapping[str, Edits], *, usual: float = USUAL, drawing: float = 0.0) -> dict[str, float]:
    """The threshold of each class.

    Args:
        edits: What was done to each class, over as many tasks as are known.
        usual: Where nothing is known.
        drawing: As in `worth_curve`.
    """
    together = sum(edits.values(), Edits())
    common = _shrunk(best_threshold(together, drawing=drawing), together.objects / TOGETHER, usual)
    return {
        name: round(_shrunk(best_threshold(one, drawing=drawing), one.objects / STRENGTH, common), 4)
        for name, one in edits.items()
    }


def _shrunk(best: float | None, weight: float, before: float) -> float:
    return before if best is None else (weight * best + before) / (weight + 1)
