"""Owns `LabelloopModel`: what this backend serves, as a class for upstream's own server, label-studio-ml 2.x.

    echo "from ml_backend.server.label_studio_ml_adapter import LabelloopModel" > model.py
    label-studio-ml create labelloop --script model.py:LabelloopModel
    label-studio-ml start labelloop

Upstream makes an object for every request; what takes time is made once a process and shared between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from label_studio_ml.model import LabelStudioMLBase

from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.service import LearningService
from ml_backend.malloc import give_memory_back
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import read_config, read_options, with_thresholds
from ml_backend.serving.model_server import ModelServer
from ml_backend.smart import SmartTools


@dataclass(frozen=True)
class Kit:
    """What the objects of one process share."""

    serving: ModelServer
    predictor: Predictor
    smart: SmartTools
    door: LearningService


@cache
def kit() -> Kit:
    """From the environment, as `labelloop ml serve` reads it; begins to load the model."""
    settings = Settings()
    give_memory_back()
    photos = Media(settings, Studio.from_settings(settings) if settings.label_studio_api_key else None)
    serving = ModelServer.from_settings(settings)
    serving.start()
    predictor = Predictor(photos, score_threshold=settings.score_threshold)
    return Kit(serving, predictor, SmartTools(photos, settings=settings), LearningService(settings))


class LabelloopModel(LabelStudioMLBase):  # type: ignore[misc]  # upstream has no types
    """The served model of a project. Its version changes when another is activated, so Label Studio asks again."""

    def setup(self) -> None:
        """The version of the project, known before the model is in memory."""
        version = kit().serving.version(self.project_id)
        if self.get("model_version") != version:
            self.set("model_version", version)

    def set_extra_params(self, extra_params: Any) -> None:
        """Keeps what the connection asks for; upstream keeps text alone, and Label Studio sends JSON."""
        self.set("extra_params", extra_params if isinstance(extra_params, str) else json.dumps(extra_params))

    def predict(
        self, tasks: list[dict[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One prediction a task, in Label Studio's JSON; with a context, a smart tool's answer.

        Args:
            tasks: As Label Studio sends them.
            context: What an annotator drew; empty where tasks are pre-labelled.
            kwargs: Label Studio's `login` and `password`, of which nothing is made.
        """
        del kwargs
        config, shared = read_config(self.label_config), kit()
        if context:
            return [msgspec.to_builtins(shared.smart.answer(task, config, context)) for task in tasks]
        served = shared.serving.served(self.project_id)
        detector = served.detector
        entries = shared.predictor.predict(
            tasks,
            detector=detector,
            targets=find_targets(config, detector.names.names, gives=detector.gives, points=detector.points),
            options=with_thresholds(read_options(self.get("extra_params")), served.thresholds),
        )
        return [msgspec.to_builtins(entry) for entry in entries]

    def fit(self, event: str, data: Mapping[str, Any], **additional_params: Any) -> dict[str, int]:
        """Puts the event in the inbox, in milliseconds: the worker (`labelloop worker`) learns from it.

        Args:
            event: Label Studio's action.
            data: The webhook's body without it.
            additional_params: Of upstream's, unused.
        """
        del additional_params
        made, new = kit().door.tell({**data, "action": event})
        return {"events": made, "new": new}
