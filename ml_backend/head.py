"""Owns `Head`: the refitted last layer. It scores the candidates of a backbone for the classes of a project.

Every number is computed in double precision and answered in single, so that numpy here and ONNX Runtime in the learned
model (`learned.py`) give the same bits though they sum in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.backbone import Sight
from ml_backend.detections import Detections, Floats, suppress
from ml_backend.layouts import best_class

Doubles = npt.NDArray[np.float64]

SUPPRESS_IOU = 0.45
"""As the layout `labelloop`, which every learned model has."""

SMALLEST_SIDE = 1.0
"""Pixels of the network's input; smaller sides count as this."""

CERTAIN = 1e-6
"""Objectness is kept this far from 0 and 1 before its log-odds are taken."""

MOST_SHIFT = 1.0
"""A refitted box moves by at most its own size, and grows or shrinks by at most e."""


def describe(sight: Sight) -> Doubles:
    """What a head sees of each candidate: (n, d + 5) float64.

    The embeddings; the logarithms of the box's width and height and their squares, since the size of things tells much
    where photos are taken from one distance; and the log-odds of the objectness.
    """
    boxes = sight.boxes.astype(np.float64)
    sides = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], SMALLEST_SIDE))
    presence = np.clip(sight.objectness.astype(np.float64), CERTAIN, 1 - CERTAIN)
    odds = np.log(presence / (1 - presence))
    return np.concatenate([sight.embeddings.astype(np.float64), sides, sides * sides, odds[:, None]], axis=1)


def split(array: npt.NDArray[Any], groups: Sequence[int]) -> list[npt.NDArray[Any]]:
    """The rows of each group."""
    return np.split(array, np.cumsum(groups)[:-1])


@dataclass(frozen=True, eq=False)
class Head:
    """A last layer.

    Attributes:
        names: The classes it answers: first the learned ones, a column of `weights` each, then those of `known`.
        groups: How many candidates in turn share their rows: one number a level where the backbone's levels have last
            layers of their own, else the number of all candidates.
        weights: (groups, d + 5, learned) float64: log-odds of a class = `describe(sight) @ weights + bias`.
        bias: (groups, learned) float64.
        known: Classes of the backbone that are answered as they come from it, by index: nobody drew one yet.
        shift: (groups, d + 6, 4) float64, how boxes are moved: `[describe(sight), 1] @ shift` are the shifts of the
            centre in widths and heights and the logarithms of the growth; None where boxes stay.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]
    weights: Doubles
    bias: Doubles
    known: tuple[int, ...] = ()
    shift: Doubles | None = None

    def scores(self, sight: Sight) -> Floats:
        """(n, classes) float32 in [0, 1]."""
        learned = 1 / (1 + np.exp(-self._apply(sight, self.weights, self.bias)))
        base = sight.scores[:, list(self.known)].astype(np.float64) * sight.objectness.astype(np.float64)[:, None]
        return np.asarray(np.concatenate([learned, base], axis=1), np.float32)

    def boxes(self, sight: Sight) -> Floats:
        """(n, 4) float32 corners in pixels of the network's input."""
        if self.shift is None:
            return sight.boxes
        return move(sight.boxes, self._apply(sight, self.shift[:, :-1], self.shift[:, -1]))

    def _apply(self, sight: Sight, weights: Doubles, bias: Doubles) -> Doubles:
        parts = zip(split(describe(sight), self.groups), weights, bias, strict=True)
        return np.concatenate([part @ weight + constant for part, weight, constant in parts])

    def detect(self, sight: Sight, *, floor: float) -> Detections:
        """The boxes on the photo, in its own pixels, best first: what the learned model answers."""
        found = best_class(self.boxes(sight), self.scores(sight), floor)
        return sight.fit.to_photo(suppress(found, iou=SUPPRESS_IOU))


def move(boxes: Floats, shift: Doubles) -> Floats:
    """Boxes (n, 4) moved by (n, 4): the centre by shares of the sides, the sides by the exponent."""
    corners = boxes.astype(np.float64)
    bounded = np.clip(shift, -MOST_SHIFT, MOST_SHIFT)
    sides = np.maximum(corners[:, 2:] - corners[:, :2], SMALLEST_SIDE)
    centre = (corners[:, :2] + corners[:, 2:]) / 2 + bounded[:, :2] * sides
    half = sides * np.exp(bounded[:, 2:]) / 2
    return np.asarray(np.concatenate([centre - half, centre + half], axis=1), np.float32)


def shift_to(boxes: Floats, targets: Floats) -> Doubles:
    """The (n, 4) by which `move` takes boxes to their targets."""
    start, goal = boxes.astype(np.float64), targets.astype(np.float64)
    sides = np.maximum(start[:, 2:] - start[:, :2], SMALLEST_SIDE)
    wanted = np.maximum(goal[:, 2:] - goal[:, :2], SMALLEST_SIDE)
    centre = (goal[:, :2] + goal[:, 2:] - start[:, :2] - start[:, 2:]) / 2 / sides
    return np.concatenate([centre, np.log(wanted / sides)], axis=1)
