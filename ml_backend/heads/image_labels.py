"""Answers about whole images (Choices, Taxonomy, Rating), learned from the frozen features of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml_backend.heads.answers import (
    AnsweredExamples,
    AnswersHead,
    LearnedControl,
    head_result,
    learn_control,
    questions,
)
from ml_backend.heads.base import Answer, FitInput, HeadExample, HeadKind, HeadResult, ImagePrediction

NAME = "image_labels"


def fit_image_labels(inputs: FitInput) -> HeadResult | None:
    """Fit and judge a model for each control about the image; None where there is none or none was ever answered."""
    parent: AnswersHead | None = inputs.parent
    results = {}
    for control in questions(inputs.config, per_region=False):
        answers = [example.choices[control.name] for example in inputs.examples if control.name in example.choices]
        if not answers:
            continue
        question = LearnedControl.of(control, answers)
        examples = answered_images(question, inputs.examples)
        results[control.name] = learn_control(
            question,
            examples,
            answered_images(question, inputs.held_out),
            parent=parent.controls.get(control.name) if parent is not None else None,
            tolerance=inputs.tolerance,
        )
    held_out = sum(bool(example.choices) for example in inputs.held_out)
    return head_result(results, parent=parent, held_out=held_out)


def answered_images(question: LearnedControl, examples: Sequence[HeadExample]) -> AnsweredExamples:
    """The images with an answer of a control.

    No answer of a control of several tags means that none applies, from the first task that has one: a control that was
    added later was not asked before.
    """
    rows: list[HeadExample] = []
    answers: list[tuple[str, ...]] = []
    for example in examples:
        if example.image_features is None:
            continue
        answer = example.choices.get(question.name)
        if answer is None and not (question.empty_means_none and answers):
            continue
        rows.append(example)
        answers.append(answer or ())
    width = len(rows[-1].image_features) if rows and rows[-1].image_features is not None else 0
    same = [
        row
        for row, example in enumerate(rows)
        if example.image_features is not None and len(example.image_features) == width
    ]
    features = np.array([rows[row].image_features for row in same], np.float32).reshape(len(same), width)
    return AnsweredExamples(features, tuple(answers[row] for row in same), tuple(rows[row].task for row in same))


def apply_image_labels(head: AnswersHead, prediction: ImagePrediction) -> ImagePrediction:
    """Add the predicted answers about the image."""
    features = prediction.detections.image_features
    answers: dict[str, Answer] = {}
    if features is not None:
        row = np.asarray(features, np.float32)[None]
        for name, served in head.controls.items():
            if len(served.model.mean) == row.shape[1]:
                answers[name] = served.answers(row)[0]
    return replace(prediction, choices={**prediction.choices, **shown(head, answers)})


def shown(head: AnswersHead, answers: dict[str, Answer], label: str = "") -> dict[str, Answer]:
    """Empty the answers of controls that the other answers hide; in the order of the controls."""
    result: dict[str, Answer] = {}
    for name, answer in answers.items():
        visible = head.controls[name].question.condition.holds(result, label)
        result[name] = answer if visible else replace(answer, values=())
    return result


KIND = HeadKind(NAME, AnswersHead.from_bytes, fit_image_labels, apply_image_labels)
