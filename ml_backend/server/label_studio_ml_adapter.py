"""`LabelloopModel`: the served model as a class for upstream's own server, label-studio-ml 2.x.

    echo "from ml_backend.server.label_studio_ml_adapter import LabelloopModel" > model.py
    label-studio-ml create labelloop --script model.py:LabelloopModel
    label-studio-ml start labelloop

Upstream creates an object per request; expensive state is created once per process and shared.
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
from ml_backend.malloc import return_freed_memory
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import read_config, read_options, with_thresholds
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.serving.model_server import ModelServer
from ml_backend.smart import SmartTools


@dataclass(frozen=True)
class SharedState:
    """State shared by the model objects of one process."""

    serving: ModelServer
    predictor: Predictor
    smart: SmartTools
    learning: LearningService


@cache
def shared_state() -> SharedState:
    """Create the shared state from the environment, as `labelloop ml serve` does, and start to load the model."""
    settings = Settings()
    return_freed_memory()
    photos = Media(settings, Studio.from_settings(settings) if settings.label_studio_api_key else None)
    serving = ModelServer.from_settings(settings)
    serving.start()
    segmenter = BoxSegmenter(settings)
    predictor = Predictor(photos, score_threshold=settings.score_threshold, segmenter=segmenter)
    return SharedState(serving, predictor, SmartTools(photos, segmenter=segmenter), LearningService(settings))


class LabelloopModel(LabelStudioMLBase):  # type: ignore[misc]  # upstream has no types
    """The served model of a project. Its version changes on activation, so Label Studio asks for predictions again."""

    def setup(self) -> None:
        """Set the version of the project; it is known before the model is loaded."""
        version = shared_state().serving.version(self.project_id)
        if self.get("model_version") != version:
            self.set("model_version", version)

    def set_extra_params(self, extra_params: Any) -> None:
        """Store the extra params; upstream stores text only, and Label Studio sends JSON."""
        self.set("extra_params", extra_params if isinstance(extra_params, str) else json.dumps(extra_params))

    def predict(
        self, tasks: list[dict[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Predict tasks, one entry per task; with a context, run a smart tool.

        Args:
            tasks: As Label Studio sends them.
            context: The annotator's prompt; empty for pre-labelling.
            kwargs: Label Studio's `login` and `password`, unused.
        """
        del kwargs
        config, shared = read_config(self.label_config), shared_state()
        if context:
            return [msgspec.to_builtins(shared.smart.answer(task, config, context)) for task in tasks]
        served = shared.serving.served(self.project_id)
        detector, options = served.detector, read_options(self.get("extra_params"))
        entries = shared.predictor.predict(
            tasks,
            detector=detector,
            targets=find_targets(
                config,
                detector.names.names,
                provides=detector.provides,
                keypoint_names=detector.keypoint_names,
                controls=options.controls,
                answers=detector.answers,
            ),
            options=with_thresholds(options, served.thresholds),
        )
        return [msgspec.to_builtins(entry) for entry in entries]

    def fit(self, event: str, data: Mapping[str, Any], **additional_params: Any) -> dict[str, int]:
        """Store the event for the training worker (`labelloop worker`).

        Args:
            event: Label Studio's action.
            data: The webhook's body without the action.
            additional_params: Unused; part of upstream's signature.
        """
        del additional_params
        stored, new = shared_state().learning.enqueue({**data, "action": event})
        return {"events": stored, "new": new}
