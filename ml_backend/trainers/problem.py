"""Owns `Problem`: one class to be told from everything else, as a trainer sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.detections import Floats, Ints

Row = npt.NDArray[np.float64]
"""(d + 1,) weights of one class over standardised features; the last is the bias."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One class against the rest.

    Attributes:
        features: (n, d + 1) float32 of all candidates, standardised, the last column 1.
        positives: Indices of those that show the class.
        weights: (positives,) how much each counts; the candidates of one object together count 1.
        negatives: Indices of those that show something else. What is in neither tells nothing.
        start: Where to begin, and what to stay near: a row fitted on more; None: 0.
    """

    features: Floats
    positives: Ints
    weights: npt.NDArray[np.float64]
    negatives: Ints
    start: Row | None = None

    def hardest(self, row: Row, most: int) -> Ints:
        """The negatives that a row takes for the class most, at most so many."""
        scores = (self.features @ row.astype(np.float32))[self.negatives]
        if len(scores) <= most:
            return self.negatives
        return self.negatives[np.argpartition(scores, len(scores) - most)[-most:]]

    def sample(self, most: int, *, seed: int = 0) -> Ints:
        """Negatives drawn by chance, the same for the same seed."""
        return np.random.default_rng(seed).permutation(self.negatives)[:most]
