"""Overlays: predictions that show a dispute to its reviewer, how they are recognised, and which one was accepted.

Label Studio shows a task's predictions as tabs, the newest first, to everybody who opens the task. A reviewer
duplicates one, corrects it and submits it; the annotation's ``parent_prediction`` then says what was accepted.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.studio.task import Prediction, Task

# Label Studio cuts longer names than 15 characters out of the middle.
CONSENSUS = "QC consensus"
STANCE = "QC: {letter}"
_NAMES = re.compile(r"QC consensus|QC: [A-Z]")

# An overlay as it is told apart from others: its name, and a digest of its results.
Mark = tuple[str, str]


@dataclass(frozen=True)
class Overlay:
    """A prediction that is shown to reviewers and to no model.

    Attributes:
        version: Its name, which stands on its tab (Label Studio's ``model_version``).
        result: Its results as Label Studio's JSON.
        score: What stands under the name as percent: of a stance the share of annotators, of the consensus how likely
            it is right; None where that is not known.
    """

    version: str
    result: Sequence[Mapping[str, Any]]
    score: float | None

    @property
    def mark(self) -> Mark:
        """What it is recognised by in Label Studio."""
        return self.version, digest(self.result)


def is_overlay(prediction: Prediction) -> bool:
    """Whether a prediction is one of ours, by its name."""
    return _NAMES.fullmatch(prediction.model_version) is not None


def overlays_of(task: Task) -> tuple[Prediction, ...]:
    """The overlays that a task holds now, the oldest (rightmost) first."""
    found = [each for each in task.predictions if each.id is not None and is_overlay(each)]
    return tuple(sorted(found, key=lambda each: each.id or 0))


def mark_of(prediction: Prediction) -> Mark:
    """What an overlay in Label Studio is recognised by."""
    return prediction.model_version, digest([result.raw for result in prediction.results])


def accepted_annotation(task: Task) -> int | None:
    """The annotation that somebody made from an overlay; the newest, should there be several; None: nobody did."""
    ours = {overlay.id for overlay in overlays_of(task)}
    made = [
        annotation.id
        for annotation in task.annotations
        if annotation.id is not None and annotation.parent_prediction in ours and not annotation.was_cancelled
    ]
    return max(made, default=None)


def digest(result: Sequence[Mapping[str, Any]]) -> str:
    """A short hash of results, the same before Label Studio stored them and after."""
    text = json.dumps(_plain(list(result)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    # 10.0 comes back from some databases as 10.
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
