"""The model's second opinion against ObjectLab of cleanlab, on the same out-of-fold detections.

ObjectLab (Tkachenko et al. 2023, https://arxiv.org/abs/2309.00832) is compared where cleanlab is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labelloop.labeling.geometry.overlap import box_iou
from ml_backend.detection.detections import Detections
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import FLOOR, FOLDS, LabelCheck, check_labels
from ml_backend.training.model_selection import select_and_fit

Error = tuple[str, np.ndarray, str]
"""(kind, true box, true label)."""

Spoilt = tuple[Sequence[Example], Sequence[Sequence[Error]]]

SAME_IOU = 0.5


@dataclass(frozen=True)
class Reviewed:
    """An image with planted errors, as a head sees it that was not fitted on it.

    Attributes:
        example: The image with its spoilt labels.
        errors: What was planted.
        detections: Of the head.
        names: Its classes.
        check: What labelloop says.
    """

    example: Example
    errors: Sequence[Error]
    detections: Detections
    names: tuple[str, ...]
    check: LabelCheck


def reviewed(spoilt: Spoilt, levels: Sequence[int]) -> Iterator[Reviewed]:
    """Review every image by a head that was not fitted on it."""
    examples, errors = spoilt
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    for fold in range(FOLDS):
        held = set(order[fold::FOLDS])
        rest = [one for index, one in enumerate(examples) if index not in held]
        head = select_and_fit(rest, levels=levels, backbone_classes=()).head
        for index in sorted(held):
            one = examples[index]
            boxes, scores = head.score_candidates(one.candidates, exact=False)
            found = head.postprocess(one.candidates, boxes, scores, floor=FLOOR)
            yield Reviewed(one, errors[index], found, head.names, check_labels(one, head))


def rows(draws: Mapping[str, Callable[[], tuple[Spoilt, Spoilt]]], *, levels: Sequence[int]) -> Iterator[str]:
    """A table of AUROC by data set and kind, in Markdown.

    Args:
        draws: Data set -> (with left-out and wrongly named boxes, with misplaced boxes).
        levels: Number of candidates per level.
    """
    if importlib.util.find_spec("cleanlab") is None:
        yield "ObjectLab is not compared: cleanlab is not installed."
        return
    yield "AUROC of planted errors among all labelled boxes (missing: among all detections), one draw of each set;"
    yield "ObjectLab (cleanlab, its default thresholds) scores the same detections of the same heads. Of missing"
    yield "boxes those count that are detected at all; detections below its threshold have no score of ObjectLab:"
    yield ""
    yield "| data | kind | planted | labelloop | ObjectLab |"
    yield "|---|---|---|---|---|"
    for name, draw in draws.items():
        spoilt, misplaced = draw()
        some, others = list(reviewed(spoilt, levels)), list(reviewed(misplaced, levels))
        one_class = len({label for image in some for label in image.example.labels}) < 2
        for kind, images in (("class", some), ("missing", some), ("loose", others)):
            if kind != "class" or not one_class:
                yield row(name, kind, images)


def row(name: str, kind: str, images: Sequence[Reviewed]) -> str:
    """One row of the table."""
    from sklearn.metrics import roc_auc_score

    planted, own, others = [], [], []
    for image, theirs in zip(images, _objectlab(kind, images), strict=True):
        for index, is_planted in _counted(kind, image):
            planted.append(is_planted)
            own.append(_own(kind, image, index))
            others.append(theirs[index])
    figures = [roc_auc_score(planted, scores) for scores in (own, others)]
    best = [f"**{value:.3f}**" if value == max(figures) else f"{value:.3f}" for value in figures]
    return f"| {name} | {kind} | {sum(planted)} | {best[0]} | {best[1]} |"


def _counted(kind: str, image: Reviewed) -> Iterator[tuple[int, bool]]:
    """(labelled box or detection, whether an error was planted there); boxes around nothing do not count."""
    boxes = image.detections.boxes if kind == "missing" else image.example.drawn
    errors = {what: [error for error in image.errors if error[0] == what] for what in (kind, "spurious")}
    for index in range(len(boxes)):
        if any(_iou(boxes[index], box) > 0.999 for _, box, _ in errors["spurious"]):
            continue
        if kind == "missing":
            name = image.names[image.detections.classes[index]]
            yield index, any(label == name and _iou(boxes[index], box) >= SAME_IOU for _, box, label in errors[kind])
        elif kind == "class":
            yield index, any(_iou(boxes[index], box) > 0.999 for _, box, _ in errors[kind])
        else:  # moved by a third of its sides: an IoU of a half with where it was
            yield (
                index,
                any(
                    label == image.example.labels[index] and abs(_iou(boxes[index], box) - 0.5) < 0.01
                    for _, box, label in errors[kind]
                ),
            )


def _own(kind: str, image: Reviewed, index: int) -> float:
    issues = [issue for issue in image.check.issues if issue.kind == kind]
    if kind != "missing":
        return max((issue.confidence for issue in issues if issue.drawn == index), default=0.0)
    box, name = image.detections.boxes[index], image.names[image.detections.classes[index]]
    same = [one for one in issues if one.label == name and np.allclose(one.box, box, atol=1e-3)]
    return max((one.confidence for one in same), default=0.0)


def _objectlab(kind: str, images: Sequence[Reviewed]) -> Iterator[np.ndarray]:
    """Suspicion of ObjectLab, of each labelled box or detection."""
    from cleanlab.object_detection import rank

    score = {
        "class": rank.compute_swap_box_scores,
        "missing": rank.compute_overlooked_box_scores,
        "loose": rank.compute_badloc_box_scores,
    }[kind]
    classes = sorted({label for image in images for label in (*image.example.labels, *image.names)})
    labels = [
        {
            "bboxes": np.asarray(image.example.drawn, float).reshape(-1, 4),
            "labels": np.array([classes.index(label) for label in image.example.labels], int),
        }
        for image in images
    ]
    members = [
        [[at for at, number in enumerate(image.detections.classes) if image.names[number] == name] for name in classes]
        for image in images
    ]
    found = []
    for image, by_class in zip(images, members, strict=True):
        rows_of = np.empty(len(classes), object)
        for number, indices in enumerate(by_class):
            rows_of[number] = np.c_[image.detections.boxes[indices], image.detections.scores[indices]].astype(float)
        found.append(rows_of)
    for by_class, values in zip(members, score(labels=labels, predictions=found), strict=True):
        suspicion = 1 - np.nan_to_num(np.asarray(values, float), nan=1.0)
        if kind == "missing":  # in the order of the classes
            ordered = np.empty_like(suspicion)
            ordered[[at for indices in by_class for at in indices]] = suspicion
            suspicion = ordered
        yield suspicion


def _iou(box: np.ndarray, other: np.ndarray) -> float:
    return float(box_iou(np.asarray(box, np.float32)[None], np.asarray(other, np.float32)[None])[0, 0])
