"""Answers about single objects (per-region Choices, Taxonomy, Rating), learned from the frozen features of the object.

The place and size of the box and its label are features too: what an edge of the image cuts is rarely "complete".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml_backend.detection.detections import Floats
from ml_backend.heads.answers import (
    AnsweredExamples,
    AnswersHead,
    LearnedControl,
    head_result,
    learn_control,
    questions,
)
from ml_backend.heads.base import FitInput, HeadExample, HeadKind, HeadResult, ImagePrediction
from ml_backend.heads.image_labels import shown

NAME = "region_labels"

# A box within this share of the image's side from its edge is cut by it.
EDGE = 0.005

# Why nothing is learned with a model whose boxes cannot be trained.
NO_FEATURES = "the served model gives no features of its boxes, so answers about objects are not learned"


def fit_region_labels(inputs: FitInput) -> HeadResult | None:
    """Fit and judge a model for each control about objects; None where there is none or none was ever answered."""
    parent: AnswersHead | None = inputs.parent
    names = tuple(sorted({*inputs.names, *(label for example in inputs.examples for label in example.labels)}))
    if parent is not None:
        parent_labels = tuple(parent.extra.get("labels", ()))
        names = parent_labels if set(names) <= set(parent_labels) else names
    results = {}
    for control in questions(inputs.config, per_region=True):
        choices = [
            answers[control.name]
            for example in inputs.examples
            for answers in example.region_choices
            if control.name in answers
        ]
        if not choices:
            continue
        question = LearnedControl.of(control, choices)
        examples = answered_regions(question, inputs.examples, names)
        results[control.name] = learn_control(
            question,
            examples,
            answered_regions(question, inputs.held_out, names),
            parent=parent.controls.get(control.name) if parent is not None else None,
            tolerance=inputs.tolerance,
        )
    if results and not any(example.embeddings.shape[1] for example in inputs.examples if any(example.region_choices)):
        return HeadResult(None, "accuracy", None, None, passed=False, reason=NO_FEATURES, judged_by="nothing")
    held_out = sum(any(example.region_choices) for example in inputs.held_out)
    return head_result(results, parent=parent, held_out=held_out, extra={"labels": names})


def answered_regions(
    question: LearnedControl, examples: Sequence[HeadExample], labels: Sequence[str]
) -> AnsweredExamples:
    """The objects with an answer of a control; no tag counts as an answer from the first task that has one."""
    parts: list[Floats] = []
    answers: list[tuple[str, ...]] = []
    tasks: list[int] = []
    regions: list[int] = []
    for example in examples:
        if len(example.region_choices) != len(example.boxes) or not example.embeddings.shape[1]:
            continue
        rows = [
            row
            for row, choices in enumerate(example.region_choices)
            if question.name in choices
            or (question.empty_means_none and answers and _asked(question, example.labels[row]))
        ]
        if rows:
            features = region_features(
                example.embeddings, example.boxes, example.labels, labels, width=example.width, height=example.height
            )
            parts.append(features[rows])
            answers += [example.region_choices[row].get(question.name, ()) for row in rows]
            tasks += [example.task] * len(rows)
            regions += rows
    width = parts[-1].shape[1] if parts else 0
    complete = [part.shape[1] == width for part in parts for _ in part]
    features = np.concatenate([part for part in parts if part.shape[1] == width] or [np.zeros((0, 0), np.float32)])
    return AnsweredExamples(
        features,
        tuple(answer for answer, keep in zip(answers, complete, strict=True) if keep),
        tuple(task for task, keep in zip(tasks, complete, strict=True) if keep),
        tuple(region for region, keep in zip(regions, complete, strict=True) if keep),
    )


def region_features(
    embeddings: Floats, boxes: Floats, labels: Sequence[str], names: Sequence[str], *, width: int, height: int
) -> Floats:
    """Features of objects, (n, d + 9 + names) float32: embedding, place and size of the box, label.

    Args:
        embeddings: (n, d) frozen features.
        boxes: (n, 4) x_min, y_min, x_max, y_max in pixels of the image.
        labels: Label of each.
        names: Labels that have a column.
        width: Of the image, pixels.
        height: Of the image, pixels.
    """
    sides = np.array([max(width, 1), max(height, 1)] * 2, np.float32)
    relative = np.asarray(boxes, np.float32).reshape(-1, 4) / sides
    size = np.maximum(relative[:, 2:] - relative[:, :2], 1e-4)
    pixels = np.maximum(size * sides[:2], 1.0)
    geometry = np.concatenate(
        [
            (relative[:, :2] + relative[:, 2:]) / 2,
            np.log(size),
            np.log(pixels[:, :1] / pixels[:, 1:]),
            relative[:, :2] <= EDGE,
            relative[:, 2:] >= 1 - EDGE,
        ],
        axis=1,
    )
    column = {name: index for index, name in enumerate(names)}
    is_label = np.zeros((len(geometry), len(names)), np.float32)
    for row, label in enumerate(labels):
        if label in column:
            is_label[row, column[label]] = 1.0
    return np.asarray(np.concatenate([embeddings, geometry, is_label], axis=1), np.float32)


def apply_region_labels(head: AnswersHead, prediction: ImagePrediction) -> ImagePrediction:
    """Add the predicted answers about each detection."""
    detections = prediction.detections
    if not len(detections) or detections.embeddings is None or not head.controls:
        return prediction
    labels = [prediction.names[index] for index in detections.classes.tolist()]
    features = region_features(
        detections.embeddings,
        detections.boxes,
        labels,
        head.extra["labels"],
        width=prediction.width,
        height=prediction.height,
    )
    by_control = {
        name: served.answers(features)
        for name, served in head.controls.items()
        if len(served.model.mean) == features.shape[1]
    }
    before = prediction.region_choices or ({},) * len(detections)
    rows = tuple(
        {**earlier, **shown(head, {name: answers[row] for name, answers in by_control.items()}, labels[row])}
        for row, earlier in enumerate(before)
    )
    return replace(prediction, region_choices=rows)


def _asked(question: LearnedControl, label: str) -> bool:
    return not question.condition.labels or label in question.condition.labels


KIND = HeadKind(NAME, AnswersHead.from_bytes, fit_region_labels, apply_region_labels)
