"""Owns thresholds learned from edits: from which score on a class is worth showing. Pure functions.

An annotator who keeps or moves a pre-label says that it was right, one who deletes it that it was wrong at its score,
and one who draws a box says that the model missed it. The threshold of a class is the one at which its F1 would have
been best, drawn towards what all classes together say, and these towards `USUAL`, while there are few edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.calibration import are_right
from ml_backend.detections import Detections
from ml_backend.judge import Truth

USUAL = 0.3
"""Where nothing is known. F1 is best at half of the best F1 where scores are calibrated (Lipton et al. 2014,
https://arxiv.org/abs/1402.1892, theorem 4), and the best F1 of a useful detector lies about .6."""

STRENGTH = 100.0
"""Objects at which what a class says of itself weighs as much as what was thought before."""

FLATTEST = 0.98
"""Thresholds whose F1 is at least this share of the best one's are as good: the middle of them is taken, not a peak."""


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


def f1_curve(edits: Edits) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Every threshold that makes a difference, ascending, and the F1 of the class if what is below had been hidden."""
    scores = np.array([*edits.kept, *edits.deleted], np.float64)
    hits = np.array([1] * len(edits.kept) + [0] * len(edits.deleted))
    order = np.argsort(scores)
    scores, hits = scores[order], hits[order]
    right = hits[::-1].cumsum()[::-1]
    shown = np.arange(len(scores), 0, -1)
    there = len(edits.kept) + edits.added
    steps = np.diff(scores, prepend=-1.0) > 0
    return scores[steps], (2 * right / np.maximum(shown + there, 1))[steps]


def best_threshold(edits: Edits) -> float | None:
    """The threshold of the best F1; None where nothing was right at any."""
    scores, f1 = f1_curve(edits)
    if not len(scores) or f1.max() <= 0:
        return None
    # A threshold stands for all cuts between the next lower score and its own: the middle of those as good as the best.
    good = np.flatnonzero(f1 >= FLATTEST * f1.max())
    peak = int(f1.argmax())
    low = high = peak
    while low - 1 in good:
        low -= 1
    while high + 1 in good:
        high += 1
    below = scores[low - 1] if low else 0.0
    return float((below + scores[high]) / 2)


def learned_thresholds(edits: Mapping[str, Edits], *, usual: float = USUAL) -> dict[str, float]:
    """The threshold of each class.

    Args:
        edits: What was done to each class, over as many tasks as are known.
        usual: Where nothing is known.
    """
    together = sum(edits.values(), Edits())
    common = _shrunk(together, usual)
    return {name: round(_shrunk(one, common), 4) for name, one in edits.items()}


def _shrunk(edits: Edits, before: float) -> float:
    best = best_threshold(edits)
    if best is None:
        return before
    share = edits.objects / (edits.objects + STRENGTH)
    return share * best + (1 - share) * before
