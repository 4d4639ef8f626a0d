"""Training examples: an image's candidates with its labelled boxes, and their matching."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Floats, Ints, cross_iou
from ml_backend.detection.fit import Fit
from ml_backend.training.backbone import CandidateFeatures


@dataclass(frozen=True, eq=False)
class Example:
    """One labelled image.

    Attributes:
        candidates: Candidates of all levels.
        drawn: (m, 4) float32 labelled boxes, x_min, y_min, x_max, y_max in pixels of the image.
        labels: Class name of each.
        complete: Whether every object is labelled. Where not, confident candidates that match no box are ignored
            instead of being negatives.
        ignored: (k, 4) float32 boxes of objects that this view of the image does not show well, pixels of the image:
            candidates on them are neither positive nor negative.
        image: Number of the image that this is a view of; views of one image are held out together. -1: of its own.
    """

    candidates: CandidateFeatures
    drawn: Floats
    labels: tuple[str, ...]
    complete: bool = True
    ignored: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    image: int = -1

    @property
    def boxes(self) -> Floats:
        """The labelled boxes (m, 4) float32 in pixels of the network's input."""
        return boxes_to_input(self.candidates.fit, self.drawn)


def boxes_to_input(fit: Fit, boxes: Floats) -> Floats:
    """Map boxes (m, 4) from pixels of the original image to pixels of the network's input."""
    left, top = fit.to_input_point(boxes[:, 0], boxes[:, 1])  # type: ignore[arg-type]
    right, bottom = fit.to_input_point(boxes[:, 2], boxes[:, 3])  # type: ignore[arg-type]
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def clip_to_image(boxes: Floats, fit: Fit) -> Floats:
    """Clip boxes (n, 4) to the image, in pixels of the network's input."""
    limits = boxes_to_input(fit, np.array([[0, 0, fit.width, fit.height]], np.float32))[0]
    return np.clip(boxes, limits[[0, 1, 0, 1]], limits[[2, 3, 2, 3]])


# Share of a box on an ignored object from which it is ignored too.
IGNORED_SHARE = 0.3


def is_ignored(boxes: Floats, ignored: Floats) -> npt.NDArray[np.bool_]:
    """Whether boxes (n, 4) lie on ignored objects (k, 4), both in the same pixels; (n,) bool."""
    if not len(ignored) or not len(boxes):
        return np.zeros(len(boxes), np.bool_)
    low, high = (
        np.maximum(boxes[:, None, :2], ignored[None, :, :2]),
        np.minimum(boxes[:, None, 2:], ignored[None, :, 2:]),
    )
    inside = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 1e-6, None), axis=1)
    return np.asarray((inside.max(axis=1) / areas) >= IGNORED_SHARE)


@dataclass(frozen=True, eq=False)
class CandidateMatch:
    """Overlaps of an example's candidates with its labelled boxes.

    Attributes:
        iou: (n, m) float32 IoU of candidate and labelled box.
        best: (n,) float32 row maxima of `iou`; 0 without boxes.
        owner: (n,) int64 index of the best box; -1 without boxes.
    """

    iou: Floats
    best: Floats
    owner: Ints

    def __getitem__(self, keep: Ints) -> CandidateMatch:
        """Select candidates by index."""
        return CandidateMatch(self.iou[keep], self.best[keep], self.owner[keep])


def match_candidates(example: Example) -> CandidateMatch:
    """Compute the IoU of the visible part of every candidate with every labelled box."""
    if not len(example.drawn):
        no_overlaps = np.zeros((len(example.candidates), 0), np.float32)
        return CandidateMatch(
            no_overlaps, np.zeros(len(example.candidates), np.float32), np.full(len(example.candidates), -1)
        )
    iou = cross_iou(clip_to_image(example.candidates.boxes, example.candidates.fit), example.boxes)
    return CandidateMatch(iou, iou.max(axis=1), iou.argmax(axis=1))
