"""Fuse overlapping candidates of one class (box voting) and calibrate the fused score.

A head fitted on few images makes errors that are nearly independent between candidates. A detector covers an object
from several cells, and few false positives score high in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Detections, Floats, Ints, cross_iou, non_max_suppression
from ml_backend.detection.fit import Fit
from ml_backend.detection.logits import PROB_EPS, expit, logit

# IoU above which two boxes of a class are one object.
NMS_IOU = 0.4

# IoU from which candidates vote on a box's position.
BOX_VOTING_IOU = 0.5

# A candidate votes on a box's position from this share of the box's score on.
VOTE_MIN_SCORE_RATIO = 0.25

# IoU from which a candidate's score is fused into a box's score.
SCORE_FUSION_IOU = 0.7

# Weight of the fused score in a box's logit; the rest is the box's own score.
FUSED_SCORE_WEIGHT = 0.75

# Candidates below are dropped, whatever score floor is requested.
MIN_CANDIDATE_SCORE = 0.005

# A box within this share of the longer side from the image edge counts as cut.
EDGE = 0.01

# Upper bound of the squared log aspect ratio: a ratio of about 7.
MAX_SQUARED_LOG_ASPECT = 4.0


@dataclass(frozen=True)
class PlattCalibration:
    """Platt calibration of a score (Platt 1999) with covariates.

    Calibrated logit = slope x logit + intercept + (edge_weight, aspect_weight) @ `edge_aspect_features`.
    """

    slope: float = 1.0
    intercept: float = 0.0
    edge_weight: float = 0.0
    aspect_weight: float = 0.0

    def __call__(self, before: PlattCalibration) -> PlattCalibration:
        """Compose: apply this calibration after `before`."""
        return PlattCalibration(
            self.slope * before.slope,
            self.slope * before.intercept + self.intercept,
            self.slope * before.edge_weight + self.edge_weight,
            self.slope * before.aspect_weight + self.aspect_weight,
        )


def edge_aspect_features(boxes: Floats, width: int, height: int) -> npt.NDArray[np.float64]:
    """Compute calibration covariates that predict, beyond the score, whether an annotator draws a box.

    Args:
        boxes: (n, 4) x_min, y_min, x_max, y_max in pixels of the image, clipped to it.
        width: Of the image, pixels.
        height: Of the image, pixels.

    Returns:
        (n, 2) float64: the number of axes along which the image edge cuts the box, 0 to 2, since annotation of
        truncated objects varies; and the squared log aspect ratio, since unusual shapes are often parts or merged
        objects.
    """
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    near = EDGE * max(width, height)
    cut = ((low <= near) | (high >= np.array([width, height]) - near)).sum(axis=1)
    sides = np.log(np.maximum(high - low, 1.0))
    return np.stack([cut, np.minimum((sides[:, 0] - sides[:, 1]) ** 2, MAX_SQUARED_LOG_ASPECT)], axis=1)


def apply_calibration(
    logits: npt.NDArray[np.float64],
    covariates: npt.NDArray[np.float64],
    calibrations: Sequence[PlattCalibration],
    classes: Ints,
) -> npt.NDArray[np.float64]:
    """Apply each detection's per-class Platt calibration to its logit.

    Args:
        logits: (n,) float64.
        covariates: (n, 2) float64 from `edge_aspect_features`.
        calibrations: One per class.
        classes: (n,) int64 indices into `calibrations`.

    Returns:
        (n,) float64.
    """
    parameters = [
        (calibration.slope, calibration.intercept, calibration.edge_weight, calibration.aspect_weight)
        for calibration in calibrations
    ]
    per_detection = np.array(parameters, np.float64).reshape(-1, 4)[classes]
    return np.asarray(
        per_detection[:, 0] * logits + per_detection[:, 1] + (per_detection[:, 2:] * covariates).sum(axis=1), np.float64
    )


def prior_calibration(overlap_mass: float) -> PlattCalibration:
    """Calibration of a class without calibration data, from its `mean_overlap_mass`.

    The fused score grows with the number of candidates per object: with its square root, since their errors are
    correlated.
    """
    return PlattCalibration(1.0, float(-FUSED_SCORE_WEIGHT * np.log(max(overlap_mass, 1.0))))


def fuse_candidates(
    candidates: Detections, fit: Fit, *, floor: float, calibrations: Sequence[PlattCalibration | None]
) -> Detections:
    """Suppress candidates, average the boxes of each object and fuse its scores.

    The fused logit is 2 ln(sum over candidates with IoU >= `SCORE_FUSION_IOU` of IoU x sqrt(score)); the root weights
    several moderate scores above a single high one. The box is the score-weighted mean of the candidates with IoU >=
    `BOX_VOTING_IOU` (Gidaris and Komodakis 2015, https://arxiv.org/abs/1505.01749, box voting).

    Args:
        candidates: In any order, down to `MIN_CANDIDATE_SCORE`, in pixels of the network's input.
        fit: Position of the image in the input.
        floor: Minimum score of the result.
        calibrations: One per class; None where a box keeps its own score.

    Returns:
        Detections, best first, in pixels of the network's input.
    """
    candidates = candidates[candidates.scores >= MIN_CANDIDATE_SCORE]
    detections = non_max_suppression(candidates, iou=NMS_IOU)
    if not len(detections):
        return detections
    overlaps = np.where(
        detections.classes[:, None] == candidates.classes, cross_iou(detections.boxes, candidates.boxes), 0
    )
    root_scores = np.sqrt(candidates.scores.astype(np.float64))
    fused = np.where(overlaps >= SCORE_FUSION_IOU, overlaps, 0) @ root_scores
    logits = (1 - FUSED_SCORE_WEIGHT) * logit(detections.scores) + FUSED_SCORE_WEIGHT * 2 * np.log(
        np.maximum(fused, PROB_EPS)
    )
    boxes = _vote_boxes(detections, candidates, overlaps)
    logits = apply_calibration(
        logits,
        edge_aspect_features(fit.boxes(boxes), fit.width, fit.height),
        [calibration or PlattCalibration() for calibration in calibrations],
        detections.classes,
    )
    is_calibrated = np.array([calibration is not None for calibration in calibrations], bool)[detections.classes]
    scores = np.where(is_calibrated, expit(logits), detections.scores).astype(np.float32)
    calibrated = replace(detections, boxes=boxes, scores=scores)
    order = np.argsort(-scores, kind="stable")
    return calibrated[order[scores[order] >= floor]]


def _vote_boxes(
    detections: Detections, candidates: Detections, overlaps: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Average m candidates into n detections, weighted by score; boxes (n, 4) float32 from IoU `overlaps` (n, m)."""
    votes = (overlaps >= BOX_VOTING_IOU) & (candidates.scores >= VOTE_MIN_SCORE_RATIO * detections.scores[:, None])
    weights = np.where(votes, candidates.scores, 0).astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    own = detections.boxes.astype(np.float64)  # a box without area has no overlap, not even with itself
    boxes = np.divide(weights @ candidates.boxes.astype(np.float64), total, out=own, where=total > 0)
    return np.asarray(boxes, np.float32)
