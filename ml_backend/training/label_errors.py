"""Find label errors: where an out-of-fold head disagrees with the labels, how, and how confidently. Pure functions.

Scores are calibrated, so the confidence of a missing object is the probability that an annotator would have drawn it.
For a class that is often left undrawn, many issues are `missing`: review them by kind.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from labelloop.labeling.geometry.overlap import iter_box_iou
from ml_backend.detection.detections import Detections, Floats
from ml_backend.training.examples import Example
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.model_selection import select_and_fit

Kind = Literal["missing", "spurious", "class", "loose"]

# Cross-validation folds: each image is checked by a head fitted on seven eighths of the images.
FOLDS = 8

# A candidate supports a labelled box from this IoU.
SUPPORT_IOU = 0.5

# Below this IoU a detection is unrelated to a labelled box.
UNRELATED_IOU = 0.3

# Exponent: the confidence of a missing object falls with the share of its box that labelled boxes and better issues
# cover. Two halves of neighbouring boxes look like an object between them.
COVERAGE_EXPONENT = 1.5

# Confidence that a labelled box without any support is spurious. Of such boxes of blood cells, 25 to 40 % were empty at
# a base rate of 5 %: the rest are misses of the model.
UNSUPPORTED_CONFIDENCE = 0.35

# Pseudo-score in the denominator of a class issue, for evidence of neither class.
EVIDENCE_PSEUDO_SCORE = 0.2

# Sample points along each side of a box, to measure how much of it is covered.
COVERAGE_SAMPLES = 12

# A detection below this IoU with the labelled box of its class suggests that the box is loose.
LOOSE_IOU = 0.7

# A better-fitting detection from this score on overrules a `loose` issue.
OVERRULING_SCORE = 0.05

# Minimum confidence of an issue, and minimum score of a candidate that supports a labelled box.
FLOOR, MIN_SUPPORT_SCORE = 0.02, 0.01


@dataclass(frozen=True)
class LabelIssue:
    """One disagreement between the model and the labels.

    Attributes:
        kind: `missing`: an undrawn object; `spurious`: a labelled box without an object of any class; `class`: a
            labelled box with an object of another class; `loose`: a labelled box that fits its object badly.
        confidence: In [0, 1].
        box: x_min, y_min, x_max, y_max in pixels of the image: the detection; of a spurious box, the labelled box.
        label: The predicted class; of a spurious box, the labelled one.
        drawn: Index of the labelled box; None for a missing object.
    """

    kind: Kind
    confidence: float
    box: tuple[float, float, float, float]
    label: str
    drawn: int | None = None


def find_label_issues(example: Example, head: LinearHead) -> list[LabelIssue]:
    """List the label issues of an image, most confident first.

    Args:
        example: The image with its labels.
        head: A head that was not fitted on it. Labels of classes that it lacks are skipped.
    """
    boxes, scores = head.score_candidates(example.candidates, exact=False)
    detections = head.postprocess(example.candidates, boxes, scores, floor=FLOOR)
    overlaps: Floats = np.zeros((len(detections), 0), np.float32)
    if len(example.drawn):
        overlaps = np.concatenate(
            [part.astype(np.float32) for _, part in iter_box_iou(detections.boxes, example.drawn)], axis=1
        )
    loose = dict(_loose(detections, overlaps, example, head))
    issues = [*_missing(detections, overlaps, example, head, matched=loose), *loose.values()]
    support = class_support(example, boxes, scores)
    for index, label in enumerate(example.labels):
        if label in head.names:
            near = float(detections.scores[overlaps[:, index] >= UNRELATED_IOU].max(initial=0))
            issues += _box_issues(index, example, dict(zip(head.names, support[index].tolist(), strict=True)), near)
    confident = [issue for issue in issues if issue.confidence >= FLOOR]
    return sorted(confident, key=lambda issue: -issue.confidence)


def cross_validated_issues(
    examples: Sequence[Example],
    *,
    levels: Sequence[int],
    backbone_classes: Sequence[tuple[str, int]] = (),
    folds: int = FOLDS,
) -> Iterator[tuple[int, list[LabelIssue]]]:
    """Yield (image index, label issues) for every image, from heads not fitted on it, fold by fold.

    Args:
        examples: Labelled images; fewer than two yield nothing.
        levels: Number of candidates per level.
        backbone_classes: As in `select_and_fit`.
        folds: Number of heads.
    """
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    for fold in range(min(folds, len(examples))):
        held_out = set(order[fold::folds])
        fitted_on = [example for index, example in enumerate(examples) if index not in held_out]
        if not any(example.labels for example in fitted_on):
            continue
        head = select_and_fit(fitted_on, levels=levels, backbone_classes=backbone_classes).head
        for index in sorted(held_out):
            yield index, find_label_issues(examples[index], head)


def class_support(example: Example, boxes: Floats, scores: Floats) -> Floats:
    """Compute the best score (m, classes) of each class among the candidates that cover each labelled box."""
    support = np.zeros((len(example.labels), scores.shape[1]), np.float32)
    likely = np.flatnonzero(scores.max(axis=1) >= MIN_SUPPORT_SCORE)
    if not len(likely) or not len(example.drawn):
        return support
    likely_scores = scores[likely]
    for columns, part in iter_box_iou(boxes[likely], example.boxes):
        for row, covers in enumerate((part >= SUPPORT_IOU).T, start=columns.start):
            support[row] = likely_scores[covers].max(axis=0, initial=0)
    return support


def _missing(
    detections: Detections, overlaps: Floats, example: Example, head: LinearHead, *, matched: Collection[int]
) -> Iterator[LabelIssue]:
    """Yield detections without a labelled box, less confident the more of them is covered.

    Args:
        detections: Best first.
        overlaps: (detections, labelled boxes) IoU.
        example: The image.
        head: Names the classes.
        matched: Detections with an issue of a labelled box.
    """
    covering = [example.drawn]
    for index in np.flatnonzero(overlaps.max(axis=1, initial=0) < SUPPORT_IOU).tolist():
        if index in matched:
            continue
        box = detections.boxes[index]
        share = 1 - _covered(box, np.concatenate(covering))
        yield LabelIssue(
            "missing",
            float(detections.scores[index]) * share**COVERAGE_EXPONENT,
            _box(box),
            head.names[detections.classes[index]],
        )
        covering.append(box[None])


def _covered(box: Floats, others: Floats) -> float:
    """Estimate the share of a box that others (n, 4) cover, on a grid of COVERAGE_SAMPLES points per side."""
    steps = (np.arange(COVERAGE_SAMPLES) + 0.5) / COVERAGE_SAMPLES
    across, down = box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])
    within_x = (across[:, None] >= others[:, 0]) & (across[:, None] <= others[:, 2])
    within_y = (down[:, None] >= others[:, 1]) & (down[:, None] <= others[:, 3])
    return float((within_x[:, None] & within_y[None]).any(axis=2).mean())


def _loose(
    detections: Detections, overlaps: Floats, example: Example, head: LinearHead
) -> Iterator[tuple[int, LabelIssue]]:
    """Yield (detection index, issue) of detections that overlap the labelled box of their class, but badly."""
    for index in range(len(detections)):
        label = head.names[detections.classes[index]]
        same = [row for row, drawn_label in enumerate(example.labels) if drawn_label == label]
        if not same:
            continue
        row = same[int(overlaps[index, same].argmax())]
        looseness = (LOOSE_IOU - overlaps[index, row]) / (LOOSE_IOU - UNRELATED_IOU)
        if (
            0 < looseness <= 1
            and detections.scores[overlaps[:, row] > overlaps[index, row]].max(initial=0) < OVERRULING_SCORE
        ):
            confidence = float(detections.scores[index] * looseness)
            yield index, LabelIssue("loose", confidence, _box(detections.boxes[index]), label, row)


def _box_issues(index: int, example: Example, support: Mapping[str, float], near: float) -> Iterator[LabelIssue]:
    """Yield the class issue and the spurious issue of one labelled box.

    Args:
        index: Of the box.
        example: The image.
        support: Best score of each class among the candidates that cover the box.
        near: Best score of a detection that overlaps it a little.
    """
    label, box = example.labels[index], _box(example.drawn[index])
    own = support[label]
    best_other, other_label = max(
        ((score, name) for name, score in support.items() if name != label), default=(0.0, label)
    )
    yield LabelIssue("class", best_other / (best_other + own + EVIDENCE_PSEUDO_SCORE), box, other_label, index)
    # The model may miss small objects, so only boxes without support for any class count.
    yield LabelIssue("spurious", UNSUPPORTED_CONFIDENCE * (1 - max(own, best_other, near)) ** 2, box, label, index)


def _box(corners: Floats) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in corners)
    return left, top, right, bottom
