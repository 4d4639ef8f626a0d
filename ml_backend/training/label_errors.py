"""Find label errors: where an out-of-fold head disagrees with the labels, how, and how confidently. Pure functions.

Scores are calibrated, so the confidence of a missing object is the probability that an annotator would have drawn it.
That an annotator did not draw it speaks against it. How much, tell the boxes that the model agrees with as confidently:
where a model that found a hundred labelled boxes sees five more, annotators missed them; where it sees a hundred more,
it is wrong. See `rate_issues`. The evidence for another class is no probability; planted errors make it one, see
`planted_errors`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from labelloop.labeling.geometry.overlap import iter_box_iou
from ml_backend.detection.detections import Detections, Floats
from ml_backend.training.examples import Example
from ml_backend.training.linear_head import Doubles, LinearHead
from ml_backend.training.model_selection import select_and_fit
from ml_backend.training.planted_errors import fit_to_planted

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

# Most errors of each kind, as a share of the labels, that annotators are thought to make; beyond, the model is wrong.
PLAUSIBLE_ERRORS: Mapping[Kind, float] = {"missing": 0.15, "class": 0.1, "loose": 0.15, "spurious": 0.1}

# Share of the issues of a kind and class, down to a confidence, that must be plausible errors for them to be raised.
MIN_PLAUSIBLE = 0.5

# Errors of the model that are added to those that were seen: a single issue proves little.
UNSEEN_ERRORS = 1.0

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


@dataclass(frozen=True)
class Agreement:
    """A label that the model would raise no issue of a kind about, with the confidence of that; see `LabelIssue`."""

    kind: Kind
    label: str
    confidence: float


@dataclass(frozen=True)
class LabelCheck:
    """The labels of an image as the model sees them: its issues, most confident first, and its agreements."""

    issues: Sequence[LabelIssue] = ()
    agreements: Sequence[Agreement] = ()


def rate_issues(
    checks: Sequence[LabelCheck], *, least: float = 0.0
) -> tuple[list[list[LabelIssue]], dict[tuple[Kind, str], int]]:
    """Keep the issues that are plausibly errors of the annotators, with the probability that they are.

    Of the issues of a kind and class down to a confidence, at most `PLAUSIBLE_ERRORS` of the agreements down to it are
    errors of annotators; the others are errors of the model, and so is one that was not seen. The probability is the
    confidence times the share of plausible errors; that of class issues is fitted to planted errors of all classes.

    Args:
        checks: Of all images, by heads that were not fitted on them.
        least: Minimum confidence of the withheld issues that are counted.

    Returns:
        The kept issues of each image, most confident first, and the number of withheld ones by (kind, class).
    """
    issues_at = _confidences(issue for check in checks for issue in check.issues)
    agreements_at = _confidences(agreement for check in checks for agreement in check.agreements)
    withheld: dict[tuple[Kind, str], int] = {}
    class_probability = fit_to_planted(
        _pooled(issues_at, "class"),
        _pooled(agreements_at, "class"),
        most=PLAUSIBLE_ERRORS["class"],
        unseen=UNSEEN_ERRORS,
    )

    @cache
    def plausible_at(key: tuple[Kind, str], confidence: float) -> float:
        raised, agreed = issues_at[key], agreements_at.get(key, np.zeros(0))
        # More confident issues are at least as plausible as all from a lower confidence on.
        levels = np.concatenate([raised, agreed])
        levels = levels[levels <= confidence]
        shares = (
            PLAUSIBLE_ERRORS[key[0]] * _counts_from(agreed, levels) / (_counts_from(raised, levels) + UNSEEN_ERRORS)
        )
        return min(1.0, float(shares.max()))

    def rated(issue: LabelIssue) -> LabelIssue | None:
        key = issue.kind, issue.label
        plausible = plausible_at(key, issue.confidence)
        if plausible < MIN_PLAUSIBLE:
            if issue.confidence >= least:
                withheld[key] = withheld.get(key, 0) + 1
            return None
        is_class = issue.kind == "class"
        return replace(
            issue, confidence=class_probability(issue.confidence) if is_class else issue.confidence * plausible
        )

    kept = [[issue for issue in map(rated, check.issues) if issue is not None] for check in checks]
    return [sorted(issues, key=lambda issue: -issue.confidence) for issues in kept], withheld


def _confidences(found: Iterable[LabelIssue | Agreement]) -> dict[tuple[Kind, str], Doubles]:
    by_key: dict[tuple[Kind, str], list[float]] = {}
    for item in found:
        by_key.setdefault((item.kind, item.label), []).append(item.confidence)
    return {key: np.sort(values) for key, values in by_key.items()}


def _pooled(by_key: Mapping[tuple[Kind, str], Doubles], kind: Kind) -> Doubles:
    """Confidences of a kind, of all classes, from the lowest of an issue on."""
    values = np.concatenate([np.zeros(0), *(some for (each, _), some in by_key.items() if each == kind)])
    return values[values >= FLOOR]


def _counts_from(ascending: Doubles, confidences: Doubles) -> Doubles:
    """Number of values from each confidence on."""
    return np.asarray(len(ascending) - np.searchsorted(ascending, confidences, side="left"), np.float64)


def check_labels(example: Example, head: LinearHead) -> LabelCheck:
    """Compare the labels of an image with what a head sees.

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
    agreements = [*_found_boxes(detections, overlaps, example, head), *_same_classes(example, support, head)]
    return LabelCheck(sorted(confident, key=lambda issue: -issue.confidence), agreements)


def cross_validated_issues(
    examples: Sequence[Example],
    *,
    levels: Sequence[int],
    backbone_classes: Sequence[tuple[str, int]] = (),
    folds: int = FOLDS,
) -> Iterator[tuple[int, LabelCheck]]:
    """Yield (image index, check of its labels) for every image, from heads not fitted on it, fold by fold.

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
            yield index, check_labels(examples[index], head)


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


def _found_boxes(detections: Detections, overlaps: Floats, example: Example, head: LinearHead) -> Iterator[Agreement]:
    """Yield the labelled objects that are detected, and those that are located well, each at its best score."""
    for index, label in enumerate(example.labels):
        if label not in head.names:
            continue
        same = detections.classes == head.names.index(label)
        for kind, least in (("missing", SUPPORT_IOU), ("loose", LOOSE_IOU)):
            score = float(detections.scores[same & (overlaps[:, index] >= least)].max(initial=0))
            if score >= FLOOR:
                yield Agreement(kind, label, score)  # type: ignore[arg-type]


def _same_classes(example: Example, support: Floats, head: LinearHead) -> Iterator[Agreement]:
    """Yield the labelled boxes whose class the model supports, and those that it supports at all."""
    for label, scores in zip(example.labels, support.tolist(), strict=True):
        if label in head.names:
            own = scores[head.names.index(label)]
            other = max((score for name, score in zip(head.names, scores, strict=True) if name != label), default=0.0)
            yield Agreement("class", label, own / (own + other + EVIDENCE_PSEUDO_SCORE))
            yield Agreement("spurious", label, UNSUPPORTED_CONFIDENCE * max(own, other) ** 2)


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
