"""Owns `Training`: the candidates of all labelled photos in one table, and which of them show what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.detections import Floats, Ints
from ml_backend.examples import Example, Match, match
from ml_backend.head import Doubles, describe, shift_to
from ml_backend.trainers import Problem, Row

POSITIVE_IOU = 0.6
"""A candidate that covers a drawn box this far shows the class: a detection there counts as right, not only just."""

NEGATIVE_IOU = 0.5
"""A candidate that covers every drawn box of the class less than this shows something else; between, nobody knows."""

NEAREST_IOU = 0.3
"""The best candidate of a drawn box shows the class from here on, so that small objects are not lost altogether."""

SHIFT_IOU = 0.4
"""A candidate that covers a drawn box this far teaches how boxes are to be moved."""

CONFIDENT = 0.5
"""From this score of the backbone on, a candidate that matches nothing on a sparsely labelled photo is left out."""

MOST = 60_000
"""Candidates in the table; of more photos, fewer of the background are taken from each."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and spread (d,) of features, so that one penalty is right for all of them."""

    mean: Doubles
    spread: Doubles

    def view(self, features: Doubles) -> Floats:
        """Standardised features with a last column of ones: (n, d + 1) float32."""
        scaled = ((features - self.mean) / self.spread).astype(np.float32)
        return np.concatenate([scaled, np.ones((len(scaled), 1), np.float32)], axis=1)

    def unfold(self, rows: Doubles) -> Doubles:
        """Rows (d + 1, k) over standardised features -> (d + 1, k) over features as they are."""
        weights = rows[:-1] / self.spread[:, None]
        return np.concatenate([weights, (rows[-1] - self.mean @ weights)[None]])


@dataclass(frozen=True, eq=False)
class _Part:
    """What is in the table of one photo: the candidates at `kept`, their overlaps, from row `first` on."""

    example: Example
    kept: Ints
    match: Match
    first: int


@dataclass(frozen=True, eq=False)
class Training:
    """The table.

    Attributes:
        features: (n, d + 1) float32, standardised, the last column 1.
        scale: How they were standardised.
    """

    features: Floats
    scale: Scale
    parts: tuple[_Part, ...]

    def problem(self, name: str, *, start: Row | None = None) -> Problem | None:
        """The problem of a class; None where no candidate shows it."""
        positives, weights, negatives = [], [], []
        for part in self.parts:
            mine = np.flatnonzero(np.array([label == name for label in part.example.labels], bool))
            overlap = part.match.iou[:, mine]
            shows, owner = _shown(overlap)
            positives.append(part.first + shows)
            weights.append(1 / np.bincount(owner, minlength=1)[owner])
            away = overlap.max(axis=1, initial=0) < NEGATIVE_IOU
            if not part.example.complete:
                away &= ~_unexplained(part)
            negatives.append(part.first + np.flatnonzero(away))
        chosen = np.concatenate(positives)
        if not len(chosen):
            return None
        return Problem(self.features, chosen, np.concatenate(weights), np.concatenate(negatives), start)

    def shifts(self) -> tuple[Doubles, Doubles]:
        """Weighted normal equations of the shifts that take candidates to the boxes that they cover.

        Returns:
            The Gram matrix (d + 1, d + 1) and the right side (d + 1, 4).
        """
        size = self.features.shape[1]
        gram, target = np.zeros((size, size)), np.zeros((size, 4))
        for part in self.parts:
            near = np.flatnonzero(part.match.best >= SHIFT_IOU)
            owner = part.match.owner[near]
            weight = 1 / np.bincount(owner, minlength=1)[owner]
            features = self.features[part.first + near].astype(np.float64)
            there = shift_to(part.example.sight.boxes[part.kept[near]], part.example.boxes[owner])
            gram += (features * weight[:, None]).T @ features
            target += (features * weight[:, None]).T @ there
        return gram, target


def tabulate(examples: Sequence[Example], levels: Sequence[int]) -> Training:
    """The table of labelled photos.

    Args:
        examples: At least one.
        levels: Of the backbone.
    """
    share = MOST // len(examples)
    parts: list[_Part] = []
    described: list[Doubles] = []
    first = 0
    for index, one in enumerate(examples):
        found = match(one)
        kept = _thin(found, share, seed=index)
        parts.append(_Part(one, kept, found[kept], first))
        described.append(describe(one.sight, levels)[kept])
        first += len(kept)
    features = np.concatenate(described)
    scale = Scale(features.mean(axis=0), features.std(axis=0) + 1e-6)
    return Training(scale.view(features), scale, tuple(parts))


def _thin(found: Match, most: int, *, seed: int) -> Ints:
    """All candidates that touch a drawn box by `NEAREST_IOU`, and of the others so many that there are `most`."""
    near = found.best >= NEAREST_IOU
    far = np.flatnonzero(~near)
    room = max(most - int(near.sum()), most // 4)
    drawn = np.random.default_rng(seed).permutation(far)[:room]
    return np.sort(np.concatenate([np.flatnonzero(near), drawn]))


def _shown(overlap: Floats) -> tuple[Ints, Ints]:
    """Candidates that show an object, and which one, from the overlaps (n, m) with the objects of a class."""
    if not overlap.shape[1]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    shows = np.flatnonzero(overlap.max(axis=1) >= POSITIVE_IOU)
    owner = overlap[shows].argmax(axis=1)
    missed = (overlap.max(axis=0) >= NEAREST_IOU) & (np.bincount(owner, minlength=overlap.shape[1]) == 0)
    return (
        np.concatenate([shows, overlap.argmax(axis=0)[missed]]),
        np.concatenate([owner, np.flatnonzero(missed)]),
    )


def _unexplained(part: _Part) -> npt.NDArray[np.bool_]:
    """(kept,) which candidates the backbone is confident of though they match nothing that was drawn."""
    sight = part.example.sight[part.kept]
    scores = sight.scores.max(axis=1, initial=0) * sight.objectness
    return np.asarray((scores >= CONFIDENT) & (part.match.best < NEGATIVE_IOU))
