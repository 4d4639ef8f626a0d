"""Owns `Example`: what a backbone sees on a photo beside what an annotator drew on it; and which candidate is what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml_backend.detection.detections import Floats, Ints, cross_iou
from ml_backend.detection.preprocess import Fit
from ml_backend.training.backbone import CandidateFeatures


@dataclass(frozen=True, eq=False)
class Example:
    """One labelled photo.

    Attributes:
        sight: What the backbone sees.
        drawn: (m, 4) float32, what the annotator drew, corners in pixels of the photo.
        labels: The class of each.
        complete: Whether every object on the photo was drawn. Where not, confident candidates that match nothing are
            left out instead of being taken for background.
    """

    sight: CandidateFeatures
    drawn: Floats
    labels: tuple[str, ...]
    complete: bool = True

    @property
    def boxes(self) -> Floats:
        """What the annotator drew, in pixels of the network's input."""
        return to_input(self.sight.fit, self.drawn)


def to_input(fit: Fit, boxes: Floats) -> Floats:
    """Boxes (m, 4) in pixels of the original photo -> pixels of the network's input."""
    left, top = fit.place(boxes[:, 0], boxes[:, 1])  # type: ignore[arg-type]
    right, bottom = fit.place(boxes[:, 2], boxes[:, 3])  # type: ignore[arg-type]
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def visible(sight: CandidateFeatures) -> Floats:
    """The candidates' boxes cut to the photo, as they will be shown: (n, 4), pixels of the network's input."""
    fit = sight.fit
    edge = to_input(fit, np.array([[0, 0, fit.width, fit.height]], np.float32))[0]
    return np.clip(sight.boxes, edge[[0, 1, 0, 1]], edge[[2, 3, 2, 3]])


@dataclass(frozen=True, eq=False)
class Match:
    """How the candidates of an example lie to what was drawn.

    Attributes:
        iou: (n, m) overlap of candidate and drawn box.
        best: (n,) the largest of them, 0 where nothing was drawn.
        owner: (n,) index of that drawn box, -1 where nothing was drawn.
    """

    iou: Floats
    best: Floats
    owner: Ints

    def __getitem__(self, kept: Ints) -> Match:
        """Of the candidates at these indices."""
        return Match(self.iou[kept], self.best[kept], self.owner[kept])


def match(one: Example) -> Match:
    """Overlaps of the visible part of every candidate with every drawn box."""
    if not len(one.drawn):
        nothing = np.zeros((len(one.sight), 0), np.float32)
        return Match(nothing, np.zeros(len(one.sight), np.float32), np.full(len(one.sight), -1))
    iou = cross_iou(visible(one.sight), one.boxes)
    return Match(iou, iou.max(axis=1), iou.argmax(axis=1))
