"""Owns consent: what all candidates that see one object say together: where it is, and how sure that is.

A head fitted on few photos errs from one candidate to the next. A detector looks at an object from several cells, and
what is no object seldom fools all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats, Ints, cross_iou, suppress
from ml_backend.detection.preprocess import Fit

NMS_IOU = 0.4
"""Overlap above which two boxes of a class are one object."""

BOX_VOTING_IOU = 0.5
"""Overlap from which two boxes of a class see the same object, where boxes are averaged."""

VOTE_MIN_SCORE_RATIO = 0.25
"""A candidate is heard on where a box lies when it is at least this share as sure of it."""

SCORE_FUSION_IOU = 0.7
"""Overlap from which the score of a candidate counts for a box: what lies that near can only see the same object."""

FUSED_SCORE_WEIGHT = 0.75
"""Share of what all say together in the log-odds of a box, beside its own."""

MIN_CANDIDATE_SCORE = 0.005
"""Candidates below are neither shown nor heard, whatever the lowest score that is asked for."""

EDGE = 0.01
"""A box that comes as near to the edge of its photo, in shares of the longer side, is cut by it."""

MOST_OBLONG = 4.0
"""A box seven times as long as wide is as oblong as can be."""

PROB_EPS = 1e-6
"""Chances are kept this far from 0 and 1 before their log-odds are taken."""


@dataclass(frozen=True)
class PlattCalibration:
    """Calibrated log-odds = stretch x log-odds + shift (Platt 1999) + cut and oblong x the box's `marks`."""

    stretch: float = 1.0
    shift: float = 0.0
    cut: float = 0.0
    oblong: float = 0.0

    def __call__(self, before: PlattCalibration) -> PlattCalibration:
        """This line after another one."""
        return PlattCalibration(
            self.stretch * before.stretch,
            self.stretch * before.shift + self.shift,
            self.stretch * before.cut + self.cut,
            self.stretch * before.oblong + self.oblong,
        )


def edge_aspect_features(boxes: Floats, width: int, height: int) -> npt.NDArray[np.float64]:
    """What tells beside the score of a box whether an annotator would draw it: (n, 2) numbers.

    In how many directions the photo's edge cuts it, across and down: some draw what they see only a part of, some do
    not. And the square of the logarithm of how much wider it is than high: what has another form than its class is
    often a part, or two in one.

    Args:
        boxes: (n, 4) in pixels of the photo, clipped to it.
        width: Of the photo, in pixels.
        height: The same.
    """
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    near = EDGE * max(width, height)
    cut = ((low <= near) | (high >= np.array([width, height]) - near)).sum(axis=1)
    sides = np.log(np.maximum(high - low, 1.0))
    return np.stack([cut, np.minimum((sides[:, 0] - sides[:, 1]) ** 2, MOST_OBLONG)], axis=1)


def apply_calibration(
    odds: npt.NDArray[np.float64], marked: npt.NDArray[np.float64], lines: Sequence[PlattCalibration], classes: Ints
) -> npt.NDArray[np.float64]:
    """(n,) log-odds as the lines of their classes have them; `marked` is as `marks` gives it."""
    all_of = [(one.stretch, one.shift, one.cut, one.oblong) for one in lines]
    own = np.array(all_of, np.float64).reshape(-1, 4)[classes]
    return np.asarray(own[:, 0] * odds + own[:, 1] + (own[:, 2:] * marked).sum(axis=1), np.float64)


def prior_calibration(looks: float) -> PlattCalibration:
    """How sure boxes are of a class of which nothing is known but how many candidates see an object, summed overlaps.

    What they say together grows with their number: with its root, since they do not all say the same.
    """
    return PlattCalibration(1.0, float(-FUSED_SCORE_WEIGHT * np.log(max(looks, 1.0))))


def logit(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Scores in [0, 1] as log-odds."""
    chance = np.clip(np.asarray(scores, np.float64), PROB_EPS, 1 - PROB_EPS)
    return np.asarray(np.log(chance / (1 - chance)))


def sigmoid(odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-odds as chances: `log_odds` turned round."""
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -50, 50))), np.float64)


def fuse_candidates(
    found: Detections, fit: Fit, *, floor: float, lines: Sequence[PlattCalibration | None]
) -> Detections:
    """What is shown of candidates: the best of each object, its box and its score as all say that see the object.

    What all say together is twice the logarithm of the sum of the roots of all scores of its class that overlap a box
    by `CONSENT_IOU`, each times that overlap: roots, so that many that are half sure count more than one that is. The
    box is the mean of those that overlap it by `AVERAGED_IOU`, each as heavy as it is sure (Gidaris and Komodakis 2015,
    https://arxiv.org/abs/1505.01749, "voting"): what a box was off by, its neighbours were off by otherwise.

    Args:
        found: Candidates in any order, down to `FAINTEST`, in pixels of the network's input.
        fit: Where the photo lies in it.
        floor: The lowest score that is shown.
        lines: Of each class: how the log-odds are calibrated; None where the score of a box is its own.

    Returns:
        Best first, in pixels of the network's input.
    """
    found = found[found.scores >= MIN_CANDIDATE_SCORE]
    kept = suppress(found, iou=NMS_IOU)
    if not len(kept):
        return kept
    overlap = np.where(kept.classes[:, None] == found.classes, cross_iou(kept.boxes, found.boxes), 0)
    voices = np.sqrt(found.scores.astype(np.float64))
    together = np.where(overlap >= SCORE_FUSION_IOU, overlap, 0) @ voices
    odds = (1 - FUSED_SCORE_WEIGHT) * logit(kept.scores) + FUSED_SCORE_WEIGHT * 2 * np.log(
        np.maximum(together, PROB_EPS)
    )
    boxes = _averaged(kept, found, overlap)
    odds = apply_calibration(
        odds,
        edge_aspect_features(fit.boxes(boxes), fit.width, fit.height),
        [one or PlattCalibration() for one in lines],
        kept.classes,
    )
    agreed = np.array([line is not None for line in lines], bool)[kept.classes]
    scores = np.where(agreed, sigmoid(odds), kept.scores).astype(np.float32)
    shown = replace(kept, boxes=boxes, scores=scores)
    order = np.argsort(-scores, kind="stable")
    return shown[order[scores[order] >= floor]]


def _averaged(kept: Detections, found: Detections, overlap: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    heard = (overlap >= BOX_VOTING_IOU) & (found.scores >= VOTE_MIN_SCORE_RATIO * kept.scores[:, None])
    weights = np.where(heard, found.scores, 0).astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    own = kept.boxes.astype(np.float64)  # a box without area overlaps nothing, itself neither
    boxes = np.divide(weights @ found.boxes.astype(np.float64), total, out=own, where=total > 0)
    return np.asarray(boxes, np.float32)
