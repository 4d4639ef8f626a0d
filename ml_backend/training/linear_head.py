"""Owns `Head`: the refitted last layer. It scores the candidates of a backbone for the classes of a project.

Every number is computed in double precision and answered in single, so that numpy here and ONNX Runtime in the learned
model (`learned.py`) give the same bits though they sum in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.box_voting import MIN_CANDIDATE_SCORE, PROB_EPS, PlattCalibration, fuse_candidates
from ml_backend.detection.detections import Detections, Floats
from ml_backend.layouts import best_class
from ml_backend.training.backbone import CandidateFeatures

Doubles = npt.NDArray[np.float64]

SMALLEST_SIDE = 1.0
"""Pixels of the network's input; smaller sides count as this."""

LEAST_SPREAD = 0.05
"""Added to the deviation of a feature on a level of a photo: what hardly varies there tells nothing."""

MOST_ODDS = 50.0
"""Log-odds are kept within: single precision knows no surer answer."""

MOST_SHIFT = 1.0
"""A refitted box moves by at most its own size, and grows or shrinks by at most e."""


def feature_matrix(
    sight: CandidateFeatures, levels: Sequence[int], *, prior: Sequence[int] = (), exact: bool = True
) -> npt.NDArray[Any]:
    """What a head sees of each candidate: (n, d + 5 + prior) numbers.

    The embeddings, as they differ from the others of their level on the same photo, so that neither the light nor the
    stain of a photo matters, nor that levels count in other units; the logarithms of the box's width and height and
    their squares, since the size of things tells much where photos are taken from one distance; the log-odds of the
    objectness, and those of the classes that the backbone knows and the project uses.

    Args:
        sight: Of a whole photo.
        levels: Of the backbone.
        prior: Those classes, by index.
        exact: In double precision, as heads answer; else in single, which is enough to learn from.
    """
    kind = np.float64 if exact else np.float32
    parts = np.split(sight.embeddings.astype(kind, copy=False), np.cumsum(levels)[:-1])
    embeddings = np.concatenate([standardise(part) for part in parts])
    boxes: npt.NDArray[Any] = sight.boxes.astype(kind, copy=False)
    sides: npt.NDArray[Any] = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], SMALLEST_SIDE))
    presence: npt.NDArray[Any] = sight.objectness.astype(kind, copy=False)[:, None]
    chances = np.concatenate([presence, sight.scores[:, list(prior)].astype(kind) * presence], axis=1)
    chances = np.clip(chances, PROB_EPS, 1 - PROB_EPS)
    return np.concatenate([embeddings, sides, sides * sides, np.log(chances / (1 - chances))], axis=1)


def standardise(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The features (n, d) of one level of a photo, each with mean 0 and a deviation of about 1."""
    away = part - part.mean(axis=0)
    return np.asarray(away / (np.sqrt((away * away).mean(axis=0)) + LEAST_SPREAD))


@dataclass(frozen=True, eq=False)
class Head:
    """A last layer.

    Attributes:
        names: The classes it answers: first the learned ones, a column of `weights` each, then those of `known`.
        levels: Of the backbone.
        weights: (levels, d + 5 + prior, learned) float64, of each level its own: log-odds of a class =
            `describe(sight) @ weights + bias`.
        bias: (levels, learned) float64.
        known: Classes of the backbone that are answered as they come from it, by index: nobody drew one yet.
        prior: Classes of the backbone whose log-odds are features too, by index.
        shift: (d + 6 + prior, 4) float64, how boxes are moved: `[describe(sight), 1] @ shift` are the shifts of the
            centre in widths and heights and the logarithms of the growth; None where boxes stay.
        calibration: Of each learned class, how sure the boxes that are shown are; empty: as `consent.settled` has it.
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    weights: Doubles
    bias: Doubles
    known: tuple[int, ...] = ()
    prior: tuple[int, ...] = ()
    shift: Doubles | None = None
    calibration: tuple[PlattCalibration, ...] = ()

    @property
    def lines(self) -> tuple[PlattCalibration | None, ...]:
        """What `consent.settled` needs, in the order of the names."""
        learned = self.weights.shape[-1]
        return (*(self.calibration or (PlattCalibration(),) * learned), *(None for _ in self.known))

    def score_candidates(self, sight: CandidateFeatures, *, exact: bool = True) -> tuple[Floats, Floats]:
        """Boxes (n, 4) in pixels of the network's input, and scores (n, classes) in [0, 1], both float32.

        Args:
            sight: Of a whole photo.
            exact: To the bit what the learned model answers; else nearly that, in half the time.
        """
        seen = feature_matrix(sight, self.levels, prior=self.prior, exact=exact)
        kind = seen.dtype
        parts = np.split(seen, np.cumsum(self.levels)[:-1])
        odds = np.concatenate(
            [part @ rows.astype(kind) + bias for part, rows, bias in zip(parts, self.weights, self.bias, strict=True)]
        )
        learned = 1 / (1 + np.exp(-np.clip(odds, -MOST_ODDS, MOST_ODDS)))
        base = sight.scores[:, list(self.known)].astype(np.float64) * sight.objectness.astype(np.float64)[:, None]
        scores = np.concatenate([learned, base], axis=1).astype(np.float32)
        if self.shift is None:
            return sight.boxes, scores
        return apply_box_deltas(sight.boxes, seen @ self.shift[:-1].astype(kind) + self.shift[-1]), scores

    def detect(self, sight: CandidateFeatures, *, floor: float, exact: bool = True) -> Detections:
        """The boxes on the photo, in its own pixels, best first: what the learned model answers; see `answer`."""
        return self.postprocess(sight, *self.score_candidates(sight, exact=exact), floor=floor)

    def postprocess(self, sight: CandidateFeatures, boxes: Floats, scores: Floats, *, floor: float) -> Detections:
        """What is shown of an answer, in pixels of the photo, best first: see `consent.settled`."""
        found = best_class(boxes, scores, MIN_CANDIDATE_SCORE)
        return sight.fit.to_photo(fuse_candidates(found, sight.fit, floor=floor, lines=self.lines))


def apply_box_deltas(boxes: Floats, shift: Doubles) -> Floats:
    """Boxes (n, 4) moved by (n, 4): the centre by shares of the sides, the sides by the exponent."""
    corners = boxes.astype(np.float64)
    bounded = np.clip(shift, -MOST_SHIFT, MOST_SHIFT)
    sides = np.maximum(corners[:, 2:] - corners[:, :2], SMALLEST_SIDE)
    centre = (corners[:, :2] + corners[:, 2:]) / 2 + bounded[:, :2] * sides
    half = sides * np.exp(bounded[:, 2:]) / 2
    return np.asarray(np.concatenate([centre - half, centre + half], axis=1), np.float32)


def encode_box_deltas(boxes: Floats, targets: Floats) -> Doubles:
    """The (n, 4) by which `move` takes boxes to their targets."""
    start, goal = boxes.astype(np.float64), targets.astype(np.float64)
    sides = np.maximum(start[:, 2:] - start[:, :2], SMALLEST_SIDE)
    wanted = np.maximum(goal[:, 2:] - goal[:, :2], SMALLEST_SIDE)
    centre = (goal[:, :2] + goal[:, 2:] - start[:, :2] - start[:, 2:]) / 2 / sides
    return np.concatenate([centre, np.log(wanted / sides)], axis=1)
