"""Platt calibration of detection scores against labelled boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from labelloop.labeling.geometry.overlap import iter_box_iou
from ml_backend.detection.box_voting import PlattCalibration, edge_aspect_features
from ml_backend.detection.detections import Detections, Ints
from ml_backend.detection.logits import logit
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth

Doubles = npt.NDArray[np.float64]

# A detection is a true positive from this IoU with a box of its class.
TRUE_IOU = 0.5

# Strength of the prior towards the identity, in detections at a logit of 0, where the sigmoid is max_slope.
PRIOR = 5.0

# Prior precision (1 / variance) of the per-class intercepts, in logits.
CLASS_SHIFT_PRECISION = 16.0

# Prior precision (1 / variance) of the covariate weights, in logits.
COVARIATE_PRECISION = 4.0

# Bounds of the slope: a few dozen detections support no more.
MAX_SLOPE, MIN_SLOPE = 4.0, 0.25

# Upper bound of the slope for foreign models with many edits: their scores may be nearly constant.
MAX_SLOPE_SHARED = 50.0


def fit_platt(logits: Doubles, correct: npt.NDArray[np.bool_], covariates: Doubles | None = None) -> PlattCalibration:
    """Fit Platt scaling (Platt 1999) for one class, shrunk towards the identity while there are few detections.

    Uses Platt's smoothed targets, and a Gaussian prior around slope 1 and intercept 0.

    Args:
        logits: (n,) float64 logits of detections.
        correct: (n,) bool, true positives.
        covariates: (n, 2) float64 from `edge_aspect_features`; None: without covariates.
    """
    if not len(logits):
        return PlattCalibration()
    hits = int(correct.sum())
    truth = np.where(correct, (hits + 1) / (hits + 2), 1 / (len(correct) - hits + 2))
    covariates = np.zeros((len(logits), 0)) if covariates is None else covariates
    calibration, _ = _fit(logits, truth, np.zeros(len(logits), np.int64), 0, covariates=covariates, max_slope=MAX_SLOPE)
    return calibration


def fit_shared_platt(
    logits: Doubles, correct: npt.NDArray[np.bool_], classes: Ints, count: int, *, around: float
) -> tuple[PlattCalibration, Doubles]:
    """Fit one Platt calibration for all classes, with a random intercept per class.

    A class with little data stays close to the shared calibration.

    Args:
        logits: (n,) float64 logits of detections.
        correct: (n,) bool, true positives.
        classes: (n,) int64 in [0, count).
        count: Number of classes.
        around: Logit at which the prior fixes the calibration most strongly, whatever its slope.

    Returns:
        The shared calibration, and the intercept offsets (count,) float64.
    """
    no_covariates = np.zeros((len(logits), 0))
    return _fit(
        logits,
        correct.astype(np.float64),
        classes,
        count,
        covariates=no_covariates,
        max_slope=MAX_SLOPE_SHARED,
        around=around,
    )


def _fit(
    logits: Doubles,
    truth: Doubles,
    classes: Ints,
    count: int,
    *,
    covariates: Doubles,
    max_slope: float,
    around: float = 0.0,
) -> tuple[PlattCalibration, Doubles]:
    prior_basis = np.array([[1.0, 0.0], [around, 1.0]])

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        slope_intercept, offsets, weights = np.split(parameters, [2, 2 + count])
        class_offsets = np.append(offsets, 0.0)[classes]  # the last element serves fits without class offsets
        calibrated_logits = slope_intercept[0] * logits + slope_intercept[1] + class_offsets + covariates @ weights
        deviation = prior_basis @ (slope_intercept - (1.0, 0.0))
        log_loss = (np.logaddexp(0, calibrated_logits) - truth * calibrated_logits).sum()
        value = (
            log_loss
            + PRIOR / 8 * deviation @ deviation
            + CLASS_SHIFT_PRECISION / 2 * offsets @ offsets
            + COVARIATE_PRECISION / 2 * weights @ weights
        )
        residual = expit(calibrated_logits) - truth
        gradient = [
            np.array([residual @ logits, residual.sum()]) + PRIOR / 4 * deviation @ prior_basis,
            np.bincount(classes, residual, minlength=count)[:count] + CLASS_SHIFT_PRECISION * offsets,
            residual @ covariates + COVARIATE_PRECISION * weights,
        ]
        return float(value), np.concatenate(gradient)

    start = np.concatenate([[1.0, 0.0], np.zeros(count + covariates.shape[1])])
    bounds = [(MIN_SLOPE, max_slope), *[(-20.0, 20.0)] * (len(start) - 1)]
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    slope_intercept, offsets, weights = np.split(solution.x, [2, 2 + count])
    return PlattCalibration(*slope_intercept.tolist(), *weights.tolist()), np.asarray(offsets, np.float64)


def match_detections(detections: Detections, truth: GroundTruth, *, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mark the true positives of an image: each box matches its best unmatched detection, as in COCO.

    Args:
        detections: In any order.
        truth: Ground truth of the image.
        names: Class names of the detections.

    Returns:
        (n,) bool.
    """
    correct = np.zeros(len(detections), bool)
    if not len(truth.boxes):
        return correct
    order = np.argsort(-detections.scores, kind="stable")
    labels, free = np.array(truth.labels, object), np.ones(len(truth.boxes), bool)
    for rows, overlaps in iter_box_iou(truth.boxes, detections.boxes[order]):
        for index, overlap in zip(order[rows].tolist(), overlaps.T, strict=True):
            candidates = np.where(free & (labels == names[detections.classes[index]]), overlap, 0)
            best = int(candidates.argmax())
            if candidates[best] >= TRUE_IOU:
                correct[index] = True
                free[best] = False
    return correct


def fit_calibrations(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    sizes: Sequence[tuple[int, int]],
    *,
    names: Sequence[str],
) -> dict[str, PlattCalibration]:
    """Fit the calibration of each class from out-of-fold detections.

    Args:
        detections: One per image, from heads that were not fitted on it.
        truths: Ground truth of each image.
        sizes: (width, height) of each image, pixels.
        names: Class names.
    """
    correct = [
        match_detections(image_detections, truth, names=names)
        for image_detections, truth in zip(detections, truths, strict=True)
    ]
    covariates = [
        edge_aspect_features(image_detections.boxes, *size)
        for image_detections, size in zip(detections, sizes, strict=True)
    ]
    logits = logit(
        np.concatenate([image_detections.scores for image_detections in detections] or [np.zeros(0, np.float32)])
    )
    classes = np.concatenate([image_detections.classes for image_detections in detections] or [np.zeros(0, np.int64)])
    all_correct, all_covariates = (
        np.concatenate(correct or [np.zeros(0, bool)]),
        np.concatenate(covariates or [np.zeros((0, 2))]),
    )
    masks = [classes == index for index in range(len(names))]
    return {
        name: fit_platt(logits[mask], all_correct[mask], all_covariates[mask])
        for name, mask in zip(names, masks, strict=True)
    }


def calibrate_head(head: LinearHead, calibrations: Mapping[str, PlattCalibration]) -> LinearHead:
    """Compose a head's calibrations with further ones; the ranking within a class does not change."""
    further = [calibrations.get(name, PlattCalibration()) for name in head.names]
    composed = [
        None if current is None else calibration(current)
        for current, calibration in zip(head.calibrations, further, strict=True)
    ]
    return replace(head, platt=tuple(calibration for calibration in composed if calibration is not None))
