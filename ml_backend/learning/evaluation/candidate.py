"""Evaluate a candidate on held-out images or by cross-validation, and learn its score thresholds."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelloop.service.media import MediaError
from ml_backend.detection.detections import Detections
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import (
    AcceptanceVerdict,
    accept_without_evaluation,
    judge_by_folds,
    judge_held_out,
)
from ml_backend.learning.evaluator import MAX_HEADS, EvaluationResult, labels_of
from ml_backend.learning.features import boxes_on_image
from ml_backend.learning.training_set import RunInput
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.model_selection import FitResult
from ml_backend.training.thresholds import edits_of_all, learned_thresholds

# Most labelled images on which the base is compared with the cross-validated candidate.
MAX_FOLD_IMAGES = 40

# Version of a head that is not published yet.
CANDIDATE = "candidate"


# Most recent tasks that thresholds are learned from: their versions are most similar to the candidate.
MAX_THRESHOLD_TASKS = 60

# Most new tasks per run on which the served version is evaluated before it is replaced.
MAX_PREDICTED_TASKS = 20

# Lowest score and largest number of stored detections per image.
MIN_SCORE, MAX_DETECTIONS = 0.02, 60


@dataclass(frozen=True)
class CandidateResults:
    """Results of a candidate and of the models it is compared with.

    Attributes:
        held_out: The candidate on the held-out images.
        parent: The served version on the held-out images; None with too few of them.
        earlier: Earlier versions on the held-out images.
        base: The base model on the labelled images; None if it was not evaluated.
    """

    held_out: EvaluationResult
    parent: EvaluationResult | None = None
    earlier: Sequence[EvaluationResult] = ()
    base: EvaluationResult | None = None


class CandidateEvaluator:
    """Evaluates the candidates of training runs."""

    def __init__(self, context: LearningContext) -> None:
        """Open nothing yet."""
        self._context = context

    def evaluate(self, inputs: RunInput, backbone: FrozenBackbone, learned: FitResult) -> CandidateResults:
        """Evaluate a candidate on held-out images, and the models it is compared with.

        Args:
            inputs: Inputs of the run.
            backbone: The backbone that the candidate was trained on.
            learned: The candidate, with its cross-validation.
        """
        held_out = [(task, photo) for task, _, photos in inputs.held_out for photo in photos]
        evaluator = self._context.evaluator
        evaluator.add_head(CANDIDATE, learned.head)
        facts: dict[str, Any] = {"backbone": backbone, "base": inputs.served.base, "config": inputs.config}
        result = evaluator.evaluate(CANDIDATE, held_out, **facts) if held_out else EvaluationResult([], [], [])
        if result.enough:
            parent = evaluator.evaluate(inputs.served.version, held_out, **facts)
            earlier = [evaluator.evaluate(version, held_out, **facts) for version in self._earlier(inputs)]
            return CandidateResults(result, parent=parent, earlier=earlier)
        if not learned.scores:
            return CandidateResults(result)
        labelled = _with_boxes(inputs)
        base = evaluator.evaluate(inputs.served.base, labelled[-MAX_FOLD_IMAGES:], **facts)
        return CandidateResults(result, base=base)

    def gate(
        self, inputs: RunInput, backbone: FrozenBackbone, learned: FitResult, results: CandidateResults
    ) -> AcceptanceVerdict:
        """Decide whether a candidate may be published: by held-out tasks, cross-validation, or unevaluated.

        Args:
            inputs: Inputs of the run.
            backbone: The backbone that the candidate was trained on.
            learned: The candidate, with its cross-validation.
            results: Results of `evaluate`.
        """
        tolerance = inputs.policy.tolerance
        if results.parent is not None:
            return judge_held_out(results.held_out, results.parent, tolerance=tolerance, earlier=results.earlier)
        if results.base is None:
            return accept_without_evaluation(knows=self._served_knows(inputs, backbone))
        crossed = EvaluationResult(
            learned.predictions.truths, learned.predictions.detections, learned.predictions.names
        )
        return judge_by_folds(
            float(learned.scores[learned.choice]), results.base, before=self._before(inputs),
            photos=len(_with_boxes(inputs)), tolerance=tolerance, by_class=crossed.by_class(),
        )  # fmt: skip

    def thresholds(self, inputs: RunInput, backbone: FrozenBackbone, learned: FitResult) -> dict[str, float]:
        """Learn score thresholds for the candidate's classes from the annotators' edits.

        Three sources of detections are compared with the submitted boxes: those of earlier served versions before they
        were trained on the task, those of the candidate on held-out tasks, and those of cross-validation. Scores of all
        versions are calibrated, so they can be pooled.

        Returns:
            Threshold of every class of the candidate, by name.
        """
        result = EvaluationResult([], [], [])
        facts: dict[str, Any] = {"backbone": backbone, "base": inputs.served.base, "config": inputs.config}
        if held_out := [(task, photo) for task, _, photos in inputs.held_out for photo in photos]:
            result = self._context.evaluator.evaluate(CANDIDATE, held_out, **facts)
        answers = [
            *_recent_detections(self._context.training_data.predictions(inputs.project)),
            *((tuple(result.names), *pair) for pair in zip(result.detections, result.truths, strict=True)),
            *(
                (learned.predictions.names, *pair)
                for pair in zip(learned.predictions.detections, learned.predictions.truths, strict=True)
            ),
        ]
        edits = edits_of_all(answers, names=learned.head.names)
        return learned_thresholds(
            edits, default=self._context.settings.score_threshold, drawing_cost=inputs.policy.drawing_costs
        )

    def record_predictions(self, inputs: RunInput, backbone: FrozenBackbone) -> None:
        """Store the served version's detections on tasks that this run trains on for the first time."""
        if not inputs.served.learned:
            return
        facts: dict[str, Any] = {"backbone": backbone, "base": inputs.served.base, "config": inputs.config}
        predictions: dict[int, list[LabelledImage]] = {}
        for task, photos in self._context.training_data.tasks_without_prediction(inputs.project)[:MAX_PREDICTED_TASKS]:
            for photo in photos:
                result = self._context.evaluator.evaluate(inputs.served.version, [(task, photo)], **facts)
                for detections in result.detections:
                    fit = self._context.features.features(backbone, photo.url, task=task).fit
                    image = _as_labelled_image(photo.url, (fit.width, fit.height), detections, result.names)
                    predictions.setdefault(task, []).append(image)
        self._context.training_data.save_predictions(inputs.project, predictions)

    def _earlier(self, inputs: RunInput) -> list[str]:
        """Return earlier versions on the same base whose heads are still in memory.

        Empty if training annotations were withdrawn, because these versions may have been trained on them.
        """
        if self._context.training_data.count_withdrawn(inputs.project):
            return []
        runs = self._context.runs.last(inputs.project, MAX_HEADS)
        versions = {run.version for run in runs if run.verdict == "published" and run.base == inputs.served.base}
        return sorted(
            version for version in versions - {inputs.served.version} if self._context.evaluator.head(version)
        )

    def _before(self, inputs: RunInput) -> float | None:
        """Return the cross-validated AP50 of the served version; None if its training annotations were withdrawn."""
        if not inputs.served.learned or self._context.training_data.count_withdrawn(inputs.project):
            return None
        run = self._context.runs.of_version(inputs.project, inputs.served.version)
        while run is not None and run.metrics.boxes_kept:
            run = self._context.runs.of_version(inputs.project, run.parent)
        return run.ap50 if run is not None and run.judged_by == "cross-validation" else None

    def _served_knows(self, inputs: RunInput, backbone: FrozenBackbone) -> list[str]:
        """Return the labelled classes that the served version detects."""
        if inputs.served.learned:
            return list(inputs.classes)
        return sorted(set(labels_of(inputs.config, backbone.names)) & set(inputs.classes))


def _with_boxes(inputs: RunInput) -> list[tuple[int, LabelledImage]]:
    return [(task, photo) for task, _, photos in inputs.training for photo in photos if photo.labels]


def _recent_detections(
    answered: Sequence[tuple[Sequence[LabelledImage], Sequence[LabelledImage]]],
) -> Iterator[tuple[tuple[str, ...], Detections, GroundTruth]]:
    """Yield (class names, detections, ground truth) of each image of the most recently annotated tasks."""
    for drawn, predicted in answered[:MAX_THRESHOLD_TASKS]:
        by_url = {image.url: image for image in drawn}
        for image in predicted:
            if image.url not in by_url:
                continue
            names = tuple(dict.fromkeys(image.labels))
            boxes, scores = np.asarray(image.boxes, np.float32).reshape(-1, 4), np.asarray(image.scores, np.float32)
            detections = Detections(boxes, scores, np.array([names.index(label) for label in image.labels], np.int64))
            truth = by_url[image.url]
            with contextlib.suppress(MediaError):  # labels for other pixels: the run names them
                yield names, detections, GroundTruth(boxes_on_image(truth, image.width, image.height), truth.labels)


def _as_labelled_image(url: str, size: tuple[int, int], detections: Detections, names: Sequence[str]) -> LabelledImage:
    """Convert detections on an image of size (width, height) to the stored form."""
    strong = np.flatnonzero(detections.scores >= MIN_SCORE).tolist()
    indices = [index for index in strong if names[detections.classes[index]]][:MAX_DETECTIONS]
    return LabelledImage(
        url=url, width=size[0], height=size[1],
        boxes=tuple(
            tuple(round(float(side), 1) for side in detections.boxes[index]) for index in indices  # type: ignore[misc]
        ),
        labels=tuple(names[detections.classes[index]] for index in indices),
        scores=tuple(round(float(detections.scores[index]), 4) for index in indices),
    )  # fmt: skip
