"""A simulated annotator: corrects the pre-labels of a model that learns from the photos before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.labelled import drawn
from ml_backend.detection.detections import Detections
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.evaluation.candidate import MAX_THRESHOLD_TASKS
from ml_backend.learning.report.prelabel_edits import PrelabelEdits, edits_of
from ml_backend.learning.task_order import HEAD
from ml_backend.training.acquisition import (
    COLD_START_IMAGES,
    LabelCounts,
    UnlabelledImage,
    image_vector,
    next_images,
    object_weights,
    uncertainty,
)
from ml_backend.training.acquisition import FLOOR as LOOK_FLOOR
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.model_selection import select_and_fit
from ml_backend.training.thresholds import edits_of_all, learned_thresholds

Order = Literal["chance", "queue"]
FITS = (1, 2, 3, 5, 8, 12, 17, 24, 34, 48, 68)
"""Photos labelled when the annotator gets a new model: rarer than in service, which learns at each pause."""

GOOD_IOU, SAME_IOU = 0.75, 0.5
"""A pre-label that covers its object this far is accepted; one that covers it by half is moved."""

FLOOR = 0.03
Cuts = Mapping[str, float] | float
Answers = Sequence[tuple[Sequence[str], Detections, GroundTruth]]


@dataclass(frozen=True)
class Photo:
    """A photo as its annotator met it.

    Attributes:
        example: The photo itself.
        head: The model; None: there was none yet.
        names: Its classes.
        found: All that the model found, also what was too weak to be shown.
        truth: What the annotator left.
        cuts: From which score on a class was shown, by what drawing a box is said to cost (0: best F1).
    """

    example: Example
    head: LinearHead | None
    names: Sequence[str]
    found: Detections
    truth: GroundTruth
    cuts: Mapping[float, Mapping[str, float]]

    def edits(self, cuts: Cuts) -> PrelabelEdits:
        """What has to be done where pre-labels are shown from these scores on."""
        shown = cut(self.found, self.names, cuts)
        labels = tuple(self.names[index] for index in shown.classes.tolist())
        return edits_of([_lesson(shown.boxes, labels)], [_lesson(self.truth.boxes, self.truth.labels)],
                        same=GOOD_IOU, moved=SAME_IOU)  # fmt: skip


def annotate(
    examples: Sequence[Example],
    backbone: FrozenBackbone,
    *,
    photos: int,
    seed: int,
    order: Order,
    costs: Sequence[float],
) -> Iterator[Photo]:
    """Photos one after the other, by chance or in the order in which the queue would serve them."""
    head: LinearHead | None = None
    labelled: list[Example] = []
    answered: list[tuple[Sequence[str], Detections, GroundTruth]] = []
    cuts: dict[float, Mapping[str, float]] = {cost: {} for cost in costs}
    left, coming = drawn(examples, seed), list[Example]()
    while len(labelled) < photos and (coming or left):
        if len(labelled) in FITS:
            learned = select_and_fit(labelled, levels=backbone.levels)
            head, crossed = learned.head, learned.predictions
            known = [*answered[-MAX_THRESHOLD_TASKS:]]
            known += [(crossed.names, *one) for one in zip(crossed.detections, crossed.truths, strict=True)]
            cuts = {cost: thresholds(known, names=head.names, drawing=cost) for cost in costs}
        if not coming:
            coming, left = _next(left, labelled, head if order == "queue" else None)
        one = coming.pop(0)
        found = head.detect(one.candidates, floor=FLOOR) if head else Detections.empty()
        names, truth = head.names if head else (), GroundTruth(one.drawn, one.labels)
        yield Photo(one, head, names, found, truth, cuts)
        if head:
            answered.append((names, found, truth))
        labelled.append(one)


def thresholds(answered: Answers, *, names: Collection[str], drawing: float = 0.0) -> dict[str, float]:
    """The thresholds that service would learn from these answers."""
    return learned_thresholds(edits_of_all(answered, names=names), drawing_cost=drawing)


def cut(found: Detections, names: Sequence[str], cuts: Cuts) -> Detections:
    """What is shown."""
    if not len(found) or isinstance(cuts, float):
        return found[found.scores >= cuts] if len(found) else found
    return found[found.scores >= np.array([cuts[names[index]] for index in found.classes.tolist()])]


def _next(
    left: list[Example], labelled: Sequence[Example], head: LinearHead | None
) -> tuple[list[Example], list[Example]]:
    """What is labelled next, and what is left then."""
    if head is None or len(labelled) < COLD_START_IMAGES:
        return left[:1], left[1:]
    counts = LabelCounts.from_images((one.labels, _weights(one.drawn, one)) for one in labelled)
    looks = []
    for one in left:
        found = head.detect(one.candidates, floor=LOOK_FLOOR, exact=False)
        looks.append(
            UnlabelledImage(
                image_vector(one.candidates),
                uncertainty(found, _weights(found.boxes, one), names=head.names, labelled=counts),
            )
        )
    taken = np.array([image_vector(one.candidates) for one in labelled], np.float32)
    chosen = next_images(looks, taken, min(HEAD, len(left)))
    return [left[index] for index in chosen], [one for index, one in enumerate(left) if index not in set(chosen)]


def _weights(boxes: np.ndarray, one: Example) -> np.ndarray:
    return object_weights(boxes, width=one.candidates.fit.width, height=one.candidates.fit.height)


def _lesson(boxes: np.ndarray, labels: Sequence[str]) -> LabelledImage:
    return LabelledImage("photo", boxes=tuple(map(tuple, np.asarray(boxes).tolist())), labels=tuple(labels))
