"""F1 of what is shown of what was found, and the best that thresholds can make of it in hindsight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.annotator import Answers, Cuts
from ml_backend.training.calibration import match_detections

FIXED = tuple(round(step * 0.025, 3) for step in range(1, 40))
CLOSE = 1e-9
Score = tuple[float, float]
"""F1 over all boxes, and the mean of those of the classes."""


@dataclass(frozen=True, eq=False)
class Marked:
    """All that was found on photos, with what is right of it: each drawn box once, for the best that covers it.

    Attributes:
        labels: (n,) class of each.
        scores: (n,).
        right: (n,) bool.
        photos: (n,) on which photo each was found.
        drawn: How many of each class were drawn.
    """

    labels: npt.NDArray[np.object_]
    scores: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]
    photos: npt.NDArray[np.int64]
    drawn: Mapping[str, int]

    @classmethod
    def of(cls, answers: Answers) -> Marked:
        """Those of some photos."""
        return cls(
            np.array([names[index] for names, found, _ in answers for index in found.classes.tolist()], object),
            np.concatenate([found.scores for _, found, _ in answers]),
            np.concatenate([match_detections(found, truth, names=names) for names, found, truth in answers]),
            np.repeat(np.arange(len(answers)), [len(found) for _, found, _ in answers]),
            Counter(label for _, _, truth in answers for label in truth.labels),
        )

    def f1(self, cuts: Cuts | Sequence[Cuts]) -> Score:
        """Of what is shown from thresholds on, which are for all photos, or for each its own."""
        if isinstance(cuts, float):
            shown = self.scores >= cuts
        else:
            each = [cuts] * (int(self.photos.max(initial=0)) + 1) if isinstance(cuts, Mapping) else cuts
            known = zip(self.photos.tolist(), self.labels, strict=True)
            shown = self.scores >= np.array([each[photo][label] for photo, label in known])
        return self._score(shown)

    def best_fixed(self) -> tuple[float, Score]:
        """The best threshold for all classes and photos, and what it gives; the mean of the classes may ask another."""
        scores = [self.f1(value) for value in FIXED]
        place = int(np.argmax([one[0] for one in scores]))
        return FIXED[place], (scores[place][0], max(one[1] for one in scores))

    def best_by(self, groups: Sequence[Hashable]) -> float:
        """F1 over all boxes with the best threshold for each group, exactly (Dinkelbach 1967).

        Args:
            groups: (n,) that of each box found.
        """
        names = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        own = np.array([names[group] for group in groups], np.int64)
        order = np.argsort(-self.scores, kind="stable")
        parts = [order[own[order] == place] for place in range(len(names))]
        curves = [
            (np.append(0, self.right[one].cumsum()), np.arange(len(one) + 1), np.append(True, _ends(self.scores[one])))
            for one in parts
        ]
        total, best, before = sum(self.drawn.values()), 0.0, -1.0
        while best > before + CLOSE:
            before, right, shown = best, 0, 0
            for hits, size, ends in curves:
                place = int(np.where(ends, 2 * hits - before * size, -np.inf).argmax())
                right, shown = right + int(hits[place]), shown + int(size[place])
            best = 2 * right / max(shown + total, 1)
        return best

    def best_by_class(self) -> Score:
        """With the best threshold for each class; the mean of the classes may ask others."""
        alone = [self._only(name).best_by([0] * int((self.labels == name).sum())) for name in sorted(self.drawn)]
        return self.best_by(self.labels.tolist()), float(np.mean(alone))

    def _only(self, name: str) -> Marked:
        mine = self.labels == name
        left = {name: self.drawn[name]}
        return Marked(self.labels[mine], self.scores[mine], self.right[mine], self.photos[mine], left)

    def _score(self, shown: npt.NDArray[np.bool_]) -> Score:
        every = 2 * (self.right & shown).sum() / max(shown.sum() + sum(self.drawn.values()), 1)
        classes = []
        for name in sorted(self.drawn):  # those that were found and never drawn have no F1
            mine = shown & (self.labels == name)
            classes.append(2 * (self.right & mine).sum() / (mine.sum() + self.drawn[name]))
        return float(every), float(np.mean(classes))


def _ends(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Behind which of (n,) falling scores a threshold can part them: not between equal ones."""
    return np.append(scores[:-1] != scores[1:], True)[: len(scores)]
