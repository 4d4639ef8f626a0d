"""Owns `Problem`: one class to be told from everything else, as a trainer sees it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Floats, Ints

Row = npt.NDArray[np.float64]
"""(d + 1,) weights over standardised features; the last is the bias."""

Rows = npt.NDArray[np.float64]
"""(levels, d + 1): a row a level, since the levels of a detector's head count in units of their own."""

LOGIT_NEVER = -20.0
"""Log-odds of a class on a level where no candidate shows it."""


@dataclass(frozen=True, eq=False)
class BinaryProblem:
    """One class against the rest.

    Attributes:
        features: (n, d + 1) float32 of all candidates, standardised, the last column 1.
        spans: Of each level, the rows of `features` from first to last: candidates lie level after level.
        positives: Indices of those that show the class, ascending.
        weights: (positives,) how much each counts; the candidates of one object together count 1.
        truth: (positives,) in (0, 1]: how well each shows it.
        negatives: Indices of those that show something else, ascending. What is in neither tells nothing.
        start: Where to begin, and what to stay near: what the backbone itself knows of the class; None: nothing.
    """

    features: Floats
    spans: tuple[tuple[int, int], ...]
    positives: Ints
    weights: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    negatives: Ints
    start: Row | None = None

    @property
    def first(self) -> Rows:
        """Where a fit begins: (levels, d + 1)."""
        start = np.zeros(self.features.shape[1]) if self.start is None else self.start
        return np.tile(start, (len(self.spans), 1))

    def scores(self, rows: Rows) -> Floats:
        """(n,) log-odds of all candidates."""
        return np.concatenate(
            [
                self.features[low:high] @ row.astype(np.float32)
                for (low, high), row in zip(self.spans, rows, strict=True)
            ]
        )

    def hardest(self, rows: Rows, most: int) -> Ints:
        """The negatives that rows take for the class most, at most so many."""
        if len(self.negatives) <= most:
            return self.negatives
        scores = self.scores(rows)[self.negatives]
        return self.negatives[np.argpartition(scores, len(scores) - most)[-most:]]

    def sample(self, most: int, *, seed: int = 0) -> Ints:
        """Negatives drawn by chance, the same for the same seed."""
        return np.random.default_rng(seed).permutation(self.negatives)[:most]
