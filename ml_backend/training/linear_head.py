"""Linear last layer fitted on frozen candidate features, for the classes of a project.

Numbers are computed in double precision and returned in single, so that numpy and the exported ONNX graph
(`onnx_export.py`) return the same bits although they sum in different orders.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.box_voting import MIN_CANDIDATE_SCORE, PlattCalibration, fuse_candidates
from ml_backend.detection.class_names import ClassNames
from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.fit import Fit
from ml_backend.detection.logits import PROB_EPS, expit
from ml_backend.detection.onnx_graph import Arrays
from ml_backend.inference.detector import Detector
from ml_backend.layouts import best_class
from ml_backend.training.backbone import OUTPUTS, CandidateFeatures, FrozenBackbone, split_candidates

Doubles = npt.NDArray[np.float64]

# Minimum side of a box, in pixels of the network's input.
MIN_SIDE = 1.0

# Added to a feature's standard deviation on a level of an image: features that hardly vary carry no signal.
MIN_SPREAD = 0.05

# Logits are clipped to +-MAX_LOGIT; beyond it, single precision saturates.
MAX_LOGIT = 50.0

# A regressed box moves by at most its own size, and scales by at most a factor of e.
MAX_BOX_DELTA = 1.0

# Scores do not depend on the position of the image in the input.
_NO_FIT = Fit(1.0, 1.0, 0, 0, 1, 1)


def feature_matrix(
    candidates: CandidateFeatures, levels: Sequence[int], *, prior_classes: Sequence[int] = (), exact: bool = True
) -> npt.NDArray[Any]:
    """Build the design matrix of one image's candidates, (n, d + 5 + prior).

    Columns: embeddings standardised per level and image, which removes lighting, stain and scale differences between
    levels; log width and log height, and their squares; the logit of the objectness; the logits of backbone classes
    that the project uses.

    Args:
        candidates: Of all levels of one image.
        levels: Number of candidates per level.
        prior_classes: Backbone classes whose logits become features, by index.
        exact: Compute in float64, as exported heads do; else float32, which is enough for training.

    Returns:
        (n, d + 5 + prior) float64 or float32.
    """
    dtype = np.float64 if exact else np.float32
    parts = np.split(candidates.embeddings.astype(dtype, copy=False), np.cumsum(levels)[:-1])
    embeddings = np.concatenate([standardise(part) for part in parts])
    boxes: npt.NDArray[Any] = candidates.boxes.astype(dtype, copy=False)
    log_sides: npt.NDArray[Any] = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE))
    objectness: npt.NDArray[Any] = candidates.objectness.astype(dtype, copy=False)[:, None]
    probabilities = np.concatenate(
        [objectness, candidates.scores[:, list(prior_classes)].astype(dtype) * objectness], axis=1
    )
    probabilities = np.clip(probabilities, PROB_EPS, 1 - PROB_EPS)
    candidates.release()
    return np.concatenate(
        [embeddings, log_sides, log_sides * log_sides, np.log(probabilities / (1 - probabilities))], axis=1
    )


def standardise(features: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Standardise the features (n, d) of one level of an image: mean 0, standard deviation about 1."""
    centred = features - features.mean(axis=0)
    centred /= np.sqrt((centred * centred).mean(axis=0)) + MIN_SPREAD
    return np.asarray(centred)


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear last layer for the classes of a project.

    Attributes:
        names: Class names: the fitted ones, one column of `weights` each, then those of `backbone_classes`.
        levels: Number of candidates per level.
        weights: (levels, d + 5 + prior, fitted) float64; logits of a level = `feature_matrix(...) @ weights + bias`.
        bias: (levels, fitted) float64.
        backbone_classes: Backbone classes, by index, whose scores are returned unchanged: they have no labels yet.
        prior_classes: Backbone classes, by index, whose logits are features.
        box_regressor: (d + 6 + prior, 4) float64; `[features, 1] @ box_regressor` are the offsets of the centre in
            widths and heights, and the logarithms of the scales (R-CNN box deltas, https://arxiv.org/abs/1311.2524,
            appendix C); None: boxes stay.
        platt: Score calibration per fitted class; empty: the identity.
        tiles: Tiles along an image's longer side that it was fitted on; 1: whole images.
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    weights: Doubles
    bias: Doubles
    backbone_classes: tuple[int, ...] = ()
    prior_classes: tuple[int, ...] = ()
    box_regressor: Doubles | None = None
    platt: tuple[PlattCalibration, ...] = ()
    tiles: int = 1

    @property
    def calibrations(self) -> tuple[PlattCalibration | None, ...]:
        """Calibration per class name for `fuse_candidates`; None for unfitted backbone classes."""
        learned = self.weights.shape[-1]
        return (*(self.platt or (PlattCalibration(),) * learned), *(None for _ in self.backbone_classes))

    def score_candidates(self, candidates: CandidateFeatures, *, exact: bool = True) -> tuple[Floats, Floats]:
        """Score all candidates of one image.

        Args:
            candidates: Of all levels of one image.
            exact: Return the same bits as the exported model; else nearly so, in half the time.

        Returns:
            Boxes (n, 4) float32 in pixels of the network's input, and scores (n, classes) float32 in [0, 1].
        """
        features = feature_matrix(candidates, self.levels, prior_classes=self.prior_classes, exact=exact)
        dtype = features.dtype
        parts = np.split(features, np.cumsum(self.levels)[:-1])
        logits = np.concatenate(
            [part @ rows.astype(dtype) + bias for part, rows, bias in zip(parts, self.weights, self.bias, strict=True)]
        )
        fitted = expit(np.clip(logits, -MAX_LOGIT, MAX_LOGIT))
        unfitted = (
            candidates.scores[:, list(self.backbone_classes)].astype(np.float64)
            * candidates.objectness.astype(np.float64)[:, None]
        )
        scores = np.concatenate([fitted, unfitted], axis=1).astype(np.float32)
        if self.box_regressor is None:
            return candidates.boxes, scores
        return apply_box_deltas(
            candidates.boxes, features @ self.box_regressor[:-1].astype(dtype) + self.box_regressor[-1]
        ), scores

    def detect(self, candidates: CandidateFeatures, *, floor: float, exact: bool = True) -> Detections:
        """Detect objects in pixels of the image, best first, as the exported model does; see `postprocess`."""
        return self.postprocess(candidates, *self.score_candidates(candidates, exact=exact), floor=floor)

    def postprocess(self, candidates: CandidateFeatures, boxes: Floats, scores: Floats, *, floor: float) -> Detections:
        """Fuse scored candidates into detections in pixels of the image, best first; see `fuse_candidates`.

        Args:
            candidates: Of all levels of one image.
            boxes: (n, 4) float32 in pixels of the network's input.
            scores: (n, classes) float32 in [0, 1].
            floor: Minimum score.
        """
        detections = best_class(boxes, scores, MIN_CANDIDATE_SCORE)
        return fuse_candidates(detections, candidates.fit, floor=floor, calibrations=self.calibrations).to_image(
            candidates.fit
        )


def head_detector(backbone: FrozenBackbone, head: LinearHead, *, version: str) -> Detector:
    """Build a detector that runs the backbone's session and scores its candidates with a head.

    It returns the detections of the model exported from both, to the bit, without a session of its own.
    """

    def decode(outputs: Arrays, floor: float) -> list[Detections]:
        images = split_candidates(outputs, [_NO_FIT] * len(outputs[OUTPUTS[0]]))
        return [best_class(*head.score_candidates(image), floor) for image in images]

    reader = replace(
        backbone.detector.reader, classes=len(head.names), decode=decode, outputs=OUTPUTS,
        calibrations=head.calibrations,
    )  # fmt: skip
    names = ClassNames(head.names, "the head")
    return replace(backbone.detector, version=version, names=names, reader=reader, units_checked=True, tiles=head.tiles)


def apply_box_deltas(boxes: Floats, deltas: Doubles) -> Floats:
    """Apply box deltas (R-CNN, https://arxiv.org/abs/1311.2524, appendix C).

    Args:
        boxes: (n, 4) float32 x_min, y_min, x_max, y_max.
        deltas: (n, 4) float64 offsets of the centre in side lengths, and log scales; clipped to +-MAX_BOX_DELTA.

    Returns:
        (n, 4) float32.
    """
    corners = boxes.astype(np.float64)
    bounded = np.clip(deltas, -MAX_BOX_DELTA, MAX_BOX_DELTA)
    sides = np.maximum(corners[:, 2:] - corners[:, :2], MIN_SIDE)
    centre = (corners[:, :2] + corners[:, 2:]) / 2 + bounded[:, :2] * sides
    half = sides * np.exp(bounded[:, 2:]) / 2
    return np.asarray(np.concatenate([centre - half, centre + half], axis=1), np.float32)


def encode_box_deltas(boxes: Floats, targets: Floats) -> Doubles:
    """Compute the deltas with which `apply_box_deltas` maps boxes to targets.

    Args:
        boxes: (n, 4) float32 x_min, y_min, x_max, y_max.
        targets: (n, 4) float32.

    Returns:
        (n, 4) float64.
    """
    source, target = boxes.astype(np.float64), targets.astype(np.float64)
    sides = np.maximum(source[:, 2:] - source[:, :2], MIN_SIDE)
    target_sides = np.maximum(target[:, 2:] - target[:, :2], MIN_SIDE)
    centre = (target[:, :2] + target[:, 2:] - source[:, :2] - source[:, 2:]) / 2 / sides
    return np.concatenate([centre, np.log(target_sides / sides)], axis=1)
