"""Owns consent: what all candidates that see one object say together: where it is, and how sure that is.

A head fitted on few photos errs from one candidate to the next. A detector looks at an object from several cells, and
what is no object seldom fools all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ml_backend.detections import Detections, cross_iou, suppress

SUPPRESS_IOU = 0.4
"""Overlap above which two boxes of a class are one object."""

AVERAGED_IOU = 0.5
"""Overlap from which two boxes of a class see the same object, where boxes are averaged."""

VOICE = 0.25
"""A candidate is heard on where a box lies when it is at least this share as sure of it."""

CONSENT_IOU = 0.7
"""Overlap from which the score of a candidate counts for a box: what lies that near can only see the same object."""

CONSENT = 0.75
"""Share of what all say together in the log-odds of a box, beside its own."""

FAINTEST = 0.005
"""Candidates below are neither shown nor heard, whatever the lowest score that is asked for."""

CERTAIN = 1e-6
"""Chances are kept this far from 0 and 1 before their log-odds are taken."""


@dataclass(frozen=True)
class Line:
    """Calibrated log-odds = stretch x log-odds + shift (Platt 1999)."""

    stretch: float = 1.0
    shift: float = 0.0

    def __call__(self, before: Line) -> Line:
        """This line after another one."""
        return Line(self.stretch * before.stretch, self.stretch * before.shift + self.shift)


def line_of(looks: float) -> Line:
    """How sure boxes are of a class of which nothing is known but how many candidates see an object, summed overlaps.

    What they say together grows with their number: with its root, since they do not all say the same.
    """
    return Line(1.0, float(-CONSENT * np.log(max(looks, 1.0))))


def log_odds(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Scores in [0, 1] as log-odds."""
    chance = np.clip(np.asarray(scores, np.float64), CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(chance / (1 - chance)))


def settled(found: Detections, *, floor: float, lines: Sequence[Line | None]) -> Detections:
    """What is shown of candidates: the best of each object, its box and its score as all say that see the object.

    What all say together is twice the logarithm of the sum of the roots of all scores of its class that overlap a box
    by `CONSENT_IOU`, each times that overlap: roots, so that many that are half sure count more than one that is. The
    box is the mean of those that overlap it by `AVERAGED_IOU`, each as heavy as it is sure (Gidaris and Komodakis 2015,
    https://arxiv.org/abs/1505.01749, "voting"): what a box was off by, its neighbours were off by otherwise.

    Args:
        found: Candidates in any order, down to `FAINTEST`.
        floor: The lowest score that is shown.
        lines: Of each class: how the log-odds are calibrated; None where the score of a box is its own.

    Returns:
        Best first.
    """
    found = found[found.scores >= FAINTEST]
    kept = suppress(found, iou=SUPPRESS_IOU)
    if not len(kept):
        return kept
    overlap = np.where(kept.classes[:, None] == found.classes, cross_iou(kept.boxes, found.boxes), 0)
    voices = np.sqrt(found.scores.astype(np.float64))
    together = np.where(overlap >= CONSENT_IOU, overlap, 0) @ voices
    odds = (1 - CONSENT) * log_odds(kept.scores) + CONSENT * 2 * np.log(np.maximum(together, CERTAIN))
    told = [line or Line() for line in lines]
    stretch, shift = (np.array([getattr(line, what) for line in told])[kept.classes] for what in ("stretch", "shift"))
    agreed = np.array([line is not None for line in lines], bool)[kept.classes]
    scores = np.where(agreed, 1 / (1 + np.exp(-(stretch * odds + shift))), kept.scores).astype(np.float32)
    shown = replace(kept, boxes=_averaged(kept, found, overlap), scores=scores)
    order = np.argsort(-scores, kind="stable")
    return shown[order[scores[order] >= floor]]


def _averaged(kept: Detections, found: Detections, overlap: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    heard = (overlap >= AVERAGED_IOU) & (found.scores >= VOICE * kept.scores[:, None])
    weights = np.where(heard, found.scores, 0).astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    own = kept.boxes.astype(np.float64)  # a box without area overlaps nothing, itself neither
    boxes = np.divide(weights @ found.boxes.astype(np.float64), total, out=own, where=total > 0)
    return np.asarray(boxes, np.float32)
