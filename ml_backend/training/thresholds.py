"""Learn per-class score thresholds from the edits of pre-labels. Pure functions.

A kept or moved pre-label is a true positive, a deleted one a false positive, and an added box a false negative. Edits
thus give P(correct | score) per class. One probability threshold, the one that maximises F1 or minimises the cost of
edits, then gives a score threshold per class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.detection.detections import Detections
from ml_backend.detection.logits import expit, logit
from ml_backend.training.calibration import Doubles, fit_shared_platt, match_detections
from ml_backend.training.metrics import GroundTruth

# Probability threshold without data: half of the F1 of a typical useful detector (0.6); see `f1_optimal_probability`.
DEFAULT_PROBABILITY = 0.3

# Weight of that prior F1, in objects.
PRIOR_OBJECTS = 30.0

# Bounds of thresholds; the backend never requests weaker detections.
MIN_THRESHOLD, MAX_THRESHOLD = 0.01, 0.99


@dataclass(frozen=True)
class ScoredEdits:
    """What annotators did to the pre-labels of one class.

    Attributes:
        accepted: Scores of pre-labels that were kept or moved.
        deleted: Scores of pre-labels that were deleted or changed to another class.
        added: Number of boxes drawn where there was no pre-label.
    """

    accepted: Sequence[float] = ()
    deleted: Sequence[float] = ()
    added: int = 0

    @property
    def objects(self) -> int:
        """Number of objects, without deleted pre-labels."""
        return len(self.accepted) + self.added

    def __add__(self, other: ScoredEdits) -> ScoredEdits:
        """Concatenate the edits of two sets of images."""
        return ScoredEdits((*self.accepted, *other.accepted), (*self.deleted, *other.deleted), self.added + other.added)


def edits_of(detections: Detections, truth: GroundTruth, *, names: Sequence[str]) -> dict[str, ScoredEdits]:
    """Derive the edits per class that turn an image's detections into its submitted labels.

    Args:
        detections: All of them, also below the current threshold: a lower threshold may be better.
        truth: The submitted labels.
        names: Class names of the detections.
    """
    correct = match_detections(detections, truth, names=names)
    edits = {}
    for label in sorted({*truth.labels, *(names[index] for index in detections.classes.tolist())}):
        of_class = np.array([names[index] == label for index in detections.classes.tolist()], bool)
        accepted = detections.scores[of_class & correct].tolist()
        labelled = sum(name == label for name in truth.labels)
        edits[label] = ScoredEdits(
            tuple(accepted), tuple(detections.scores[of_class & ~correct].tolist()), labelled - len(accepted)
        )
    return edits


def edits_of_all(
    answers: Iterable[tuple[Sequence[str], Detections, GroundTruth]], *, names: Collection[str]
) -> dict[str, ScoredEdits]:
    """Sum the edits of many images per class.

    Args:
        answers: (class names of the detections, detections, submitted labels) of each image.
        names: Classes to count; each is in the result, also without edits.
    """
    totals = {name: ScoredEdits() for name in sorted(names)}
    for classes, detections, truth in answers:
        for name, edits in edits_of(detections, truth, names=classes).items():
            if name in totals:
                totals[name] += edits
    return totals


def learned_thresholds(
    edits: Mapping[str, ScoredEdits], *, default: float = DEFAULT_PROBABILITY, drawing_cost: float = 0.0
) -> dict[str, float]:
    """Compute the score threshold of each class.

    One Platt calibration maps scores to probabilities for all classes, with a random intercept per class
    (`calibration.fit_shared_platt`): a class without edits uses the shared one.

    Args:
        edits: Edits per class.
        default: Probability threshold without data.
        drawing_cost: Cost of drawing a box, in deletions; 0: maximise F1.

    Returns:
        Score thresholds in [0.01, 0.99] by class.
    """
    prior = 1 / (1 + drawing_cost) if drawing_cost else default
    classes = np.repeat(
        np.arange(len(edits)), [len(class_edits.accepted) + len(class_edits.deleted) for class_edits in edits.values()]
    )
    logits = logit(
        np.array(
            [score for class_edits in edits.values() for score in (*class_edits.accepted, *class_edits.deleted)],
            np.float64,
        )
    )
    correct = np.array(
        [
            is_correct
            for class_edits in edits.values()
            for is_correct in [True] * len(class_edits.accepted) + [False] * len(class_edits.deleted)
        ],
        bool,
    )
    calibration, offsets = fit_shared_platt(logits, correct, classes, len(edits), around=float(logit(np.array(prior))))
    probabilities = expit(calibration.slope * logits + calibration.intercept + offsets[classes])
    objects = sum(class_edits.objects for class_edits in edits.values())
    minimum = prior if drawing_cost else f1_optimal_probability(probabilities, objects=objects, default=default)
    scores = expit((logit(np.array(minimum)) - calibration.intercept - offsets) / calibration.slope)
    return {
        name: round(score, 4)
        for name, score in zip(edits, np.clip(scores, MIN_THRESHOLD, MAX_THRESHOLD).tolist(), strict=True)
    }


def f1_optimal_probability(probabilities: Doubles, *, objects: int, default: float = DEFAULT_PROBABILITY) -> float:
    """Compute the probability threshold that maximises F1 over all boxes: half of that F1.

    Lipton et al. 2014, https://arxiv.org/abs/1402.1892, theorem 4. The F1 is the expected one under the probabilities,
    which has less variance than the observed F1 while there are few boxes.

    Args:
        probabilities: (n,) float64 of being correct, per detection.
        objects: Number of objects on the same images, detected or not.
        default: The answer without detections.
    """
    expected_correct = np.sort(probabilities)[::-1].cumsum()
    rank = np.arange(1, len(probabilities) + 1)
    f1 = 2 * (expected_correct + default * PRIOR_OBJECTS) / (rank + objects + PRIOR_OBJECTS)
    return float(f1.max(initial=2 * default * PRIOR_OBJECTS / (objects + PRIOR_OBJECTS)) / 2)
