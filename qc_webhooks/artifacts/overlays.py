"""Overlays: predictions that show a dispute to its reviewer. Recognise them, and find the accepted one.

Label Studio shows a task's predictions as tabs, the newest first, to all users who open the task. A reviewer duplicates
one, corrects it and submits it; the annotation's ``parent_prediction`` is then the accepted overlay.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.studio.task import ModelPrediction, Task

# Label Studio abbreviates names with more than 15 characters.
CONSENSUS = "QC consensus"
STANCE = "QC: {letter}"
_NAMES = re.compile(r"QC consensus|QC: [A-Z]")

# Identity of an overlay: its name and a digest of its results.
OverlayKey = tuple[str, str]


@dataclass(frozen=True)
class Overlay:
    """A prediction that shows annotations to reviewers; not made by a model.

    Attributes:
        version: Its name, shown on its tab (Label Studio's ``model_version``).
        result: Its results as Label Studio's JSON.
        score: Shown under the name as percent: share of annotators in the group, or probability of the consensus; None
            if unknown.
    """

    version: str
    result: Sequence[Mapping[str, Any]]
    score: float | None

    @property
    def key(self) -> OverlayKey:
        """Its identity in Label Studio."""
        return self.version, digest(self.result)


def is_overlay(prediction: ModelPrediction) -> bool:
    """Whether a prediction is an overlay, by its name."""
    return _NAMES.fullmatch(prediction.model_version) is not None


def overlays_of(task: Task) -> tuple[ModelPrediction, ...]:
    """The overlays on a task, oldest (rightmost) first."""
    overlays = [prediction for prediction in task.predictions if prediction.id is not None and is_overlay(prediction)]
    return tuple(sorted(overlays, key=lambda prediction: prediction.id or 0))


def overlay_key(prediction: ModelPrediction) -> OverlayKey:
    """Identity of an overlay in Label Studio."""
    return prediction.model_version, digest([result.raw for result in prediction.results])


def accepted_annotation(task: Task) -> int | None:
    """Id of the annotation that a reviewer made from an overlay; the newest of several; None without one."""
    overlay_ids = {overlay.id for overlay in overlays_of(task)}
    accepted = [
        annotation.id
        for annotation in task.annotations
        if annotation.id is not None and annotation.parent_prediction in overlay_ids and not annotation.was_cancelled
    ]
    return max(accepted, default=None)


def digest(result: Sequence[Mapping[str, Any]]) -> str:
    """A short hash of results; equal before and after Label Studio stored them."""
    sha256 = hashlib.sha256(b"[")  # as one JSON array, but never in memory as a whole
    for index, entry in enumerate(result):
        text = json.dumps(_plain(entry), sort_keys=True, separators=(",", ":"))
        sha256.update(f"{',' if index else ''}{text}".encode())
    sha256.update(b"]")
    return sha256.hexdigest()[:16]


def _plain(value: Any) -> Any:
    # Some databases return 10.0 as 10.
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
