"""Owns calibration: scores made to mean what they say, as far as what is labelled can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from labelloop.labeling.geometry.overlap import box_blocks
from ml_backend.detection.box_voting import PlattCalibration, edge_aspect_features, logit, sigmoid
from ml_backend.detection.detections import Detections, Floats, Ints
from ml_backend.training.linear_head import Head
from ml_backend.training.metrics import GroundTruth

Doubles = npt.NDArray[np.float64]

TRUE_IOU = 0.5
"""A detection that covers a drawn box of its class this far is right."""

PRIOR = 5.0
"""What is taken for known before: as heavy as so many detections at the odds where a sigmoid is steepest."""

CLASS_SHIFT_PRECISION = 16.0
"""How much alike classes are taken for: one over the variance of their shifts, in log-odds."""

COVARIATE_PRECISION = 4.0
"""How little marks are taken to tell: one over the variance of their weights, in log-odds."""

STEEPEST, FLATTEST = 4.0, 0.25
"""Log-odds are stretched within these: two dozen detections cannot tell more."""

STEEPEST_OF_ALL = 50.0
"""Those of a model that was made elsewhere by more, where many edits say so: all of its scores may be nearly alike."""


def fit_line(odds: Doubles, right: npt.NDArray[np.bool_], marked: Doubles | None = None) -> PlattCalibration:
    """The line that makes (n,) log-odds those of being right, kept near to what they are while there are few.

    Platt's targets, which never say never, and a penalty towards the line that changes nothing.

    Args:
        odds: (n,) log-odds of detections.
        right: (n,) which of them are right.
        marked: (n, 2) their `consent.marks`; None: these tell nothing.
    """
    if not len(odds):
        return PlattCalibration()
    hits = int(right.sum())
    truth = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    marked = np.zeros((len(odds), 0)) if marked is None else marked
    line, _ = _fit(odds, truth, np.zeros(len(odds), np.int64), 0, marked=marked, steepest=STEEPEST)
    return line


def fit_together(
    odds: Doubles, right: npt.NDArray[np.bool_], classes: Ints, count: int, *, around: float
) -> tuple[PlattCalibration, Doubles]:
    """One line for all classes, and by how much the log-odds of each are shifted beside it.

    A class of which little is known is like the others, however many there are: its shift is a random effect.

    Args:
        odds: (n,) log-odds of detections.
        right: (n,) which of them are right.
        classes: (n,) the class of each, below `count`.
        count: Number of classes.
        around: Log-odds at which few detections move the line least, however they tilt it.
    """
    none = np.zeros((len(odds), 0))
    return _fit(odds, right.astype(np.float64), classes, count, marked=none, steepest=STEEPEST_OF_ALL, around=around)


def _fit(
    odds: Doubles, truth: Doubles, classes: Ints, count: int, *, marked: Doubles, steepest: float, around: float = 0.0
) -> tuple[PlattCalibration, Doubles]:
    moved = np.array([[1.0, 0.0], [around, 1.0]])

    def loss(at: Doubles) -> tuple[float, Doubles]:
        line, shifts, weights = np.split(at, [2, 2 + count])
        own = np.append(shifts, 0.0)[classes]  # the last is for where classes have no shift of their own
        logits = line[0] * odds + line[1] + own + marked @ weights
        away = moved @ (line - (1.0, 0.0))
        likely = (np.logaddexp(0, logits) - truth * logits).sum()
        value = (
            likely
            + PRIOR / 8 * away @ away
            + CLASS_SHIFT_PRECISION / 2 * shifts @ shifts
            + COVARIATE_PRECISION / 2 * weights @ weights
        )
        error = sigmoid(logits) - truth
        slopes = [
            np.array([error @ odds, error.sum()]) + PRIOR / 4 * away @ moved,
            np.bincount(classes, error, minlength=count)[:count] + CLASS_SHIFT_PRECISION * shifts,
            error @ marked + COVARIATE_PRECISION * weights,
        ]
        return float(value), np.concatenate(slopes)

    start = np.concatenate([[1.0, 0.0], np.zeros(count + marked.shape[1])])
    bounds = [(FLATTEST, steepest), *[(-20.0, 20.0)] * (len(start) - 1)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    line, shifts, weights = np.split(found.x, [2, 2 + count])
    return PlattCalibration(*line.tolist(), *weights.tolist()), np.asarray(shifts, np.float64)


def match_detections(found: Detections, truth: GroundTruth, *, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which detections of a photo are right: each drawn box counts once, for the best that covers it, as in COCO.

    Args:
        found: Best first.
        truth: What is on the photo.
        names: Classes of the detections.
    """
    right = np.zeros(len(found), bool)
    if not len(truth.boxes):
        return right
    order = np.argsort(-found.scores, kind="stable")
    labels, free = np.array(truth.labels, object), np.ones(len(truth.boxes), bool)
    for some, part in box_blocks(truth.boxes, found.boxes[order]):
        for index, overlap in zip(order[some].tolist(), part.T, strict=True):
            mine = np.where(free & (labels == names[found.classes[index]]), overlap, 0)
            place = int(mine.argmax())
            if mine[place] >= TRUE_IOU:
                right[index] = True
                free[place] = False
    return right


def fit_calibrations(
    found: Sequence[Detections],
    truths: Sequence[GroundTruth],
    sizes: Sequence[tuple[int, int]],
    *,
    names: Sequence[str],
) -> dict[str, PlattCalibration]:
    """The line of each class, from detections on photos of these sizes that took no part in the fit."""
    right = [match_detections(one, truth, names=names) for one, truth in zip(found, truths, strict=True)]
    marked = [edge_aspect_features(one.boxes, *size) for one, size in zip(found, sizes, strict=True)]
    odds = logit(np.concatenate([one.scores for one in found] or [np.zeros(0, np.float32)]))
    classes = np.concatenate([one.classes for one in found] or [np.zeros(0, np.int64)])
    hits, tells = np.concatenate(right or [np.zeros(0, bool)]), np.concatenate(marked or [np.zeros((0, 2))])
    parts = [classes == index for index in range(len(names))]
    return {name: fit_line(odds[mine], hits[mine], tells[mine]) for name, mine in zip(names, parts, strict=True)}


def calibrated(head: Head, found: Mapping[str, PlattCalibration]) -> Head:
    """The head with the boxes of its learned classes stretched and shifted; the order of a class's boxes stays."""
    after = [found.get(name, PlattCalibration()) for name in head.names]
    both = [None if before is None else line(before) for before, line in zip(head.lines, after, strict=True)]
    return replace(head, calibration=tuple(line for line in both if line is not None))


def expected_error(scores: Floats, right: npt.NDArray[np.bool_], *, bins: int = 10) -> float:
    """Expected calibration error: mean distance of score and share that is right, over bins as full as each other."""
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(scores[part].mean() - right[part].mean()) for part in parts) / max(len(order), 1))
