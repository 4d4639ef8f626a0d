"""The model's prediction of a task as one more voice of its consensus, where it is independent of the annotators.

A prediction is independent if it was made before the task had an annotation, so that the model cannot have learned from
them (out of fold), and if no annotation was started from a prediction, so that the annotators did not copy it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from labelloop.labeling.consensus.model_voice import VoiceRegions
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Task
from qc_webhooks.agreement.answers import Answers, read_prediction
from qc_webhooks.artifacts.overlays import is_overlay
from qc_webhooks.verdict.dispute_card import annotator_view

# Why a task's prediction is not heard.
NO_PREDICTION = "no prediction of a model"
LATE = "the prediction is newer than the first annotation: the model may have learned from it"
SHOWN = "an annotation was started from a prediction"
UNSCORED = "the prediction's regions have no score"

# Results that were made from a prediction, by their ``origin``.
_FROM_PREDICTION = frozenset({"prediction", "prediction-changed"})


class Hearing(NamedTuple):
    """The voice of a task, or why there is none."""

    voice: VoiceRegions | None
    reason: str = ""


def hear_prediction(task: Task, answers: Sequence[Answers], *, config: LabelConfig | None = None) -> Hearing:
    """Read the newest prediction that is older than every annotation of the task.

    Args:
        task: The task with its predictions.
        answers: One entry per annotator; without any, nothing is heard.
        config: The project's label config.
    """
    predictions = [prediction for prediction in task.predictions if not is_overlay(prediction)]
    if not predictions or not answers:
        return Hearing(None, NO_PREDICTION)
    annotations = latest_annotations(task.annotations)
    if any(
        annotation.parent_prediction is not None
        or any(result.origin in _FROM_PREDICTION for result in annotation.results)
        for annotation in annotations
    ):
        return Hearing(None, SHOWN)
    first = min((_time(annotation.created_at) for annotation in task.annotations), default=None)
    early = [prediction for prediction in predictions if first and (at := _time(prediction.created_at)) and at < first]
    if not early:
        return Hearing(None, LATE)
    newest = max(early, key=lambda prediction: (prediction.created_at, prediction.id or 0))
    regions = annotator_view(read_prediction(newest, task, config=config)).regions
    if regions and all(region.score is None for region in regions):
        return Hearing(None, UNSCORED)
    return Hearing(VoiceRegions.heard(newest.model_version, regions))


def _time(text: str) -> float:
    """Label Studio's timestamp in seconds since 1970; 0 if unknown, which is before everything."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
