"""Owns `Backbone`: the frozen part of a detector, which sees a photo once and is never trained; and what it saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import structlog

from ml_backend.checksums import ModelDamaged, check_file, keep_checksum, sidecar_of
from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import Fit, InputSpec, Prepared
from ml_backend.inference.detector import Detector, load_detector
from ml_backend.training.feature_export import EMBEDDINGS, LEVELS, expose

log = structlog.get_logger(__name__)

OUTPUTS = ("boxes", "objectness", "scores", EMBEDDINGS)


@dataclass(frozen=True, eq=False)
class CandidateFeatures:
    """What a backbone sees on one photo: n candidate boxes, each with its frozen features.

    Attributes:
        boxes: (n, 4) float32 corners in pixels of the network's input.
        objectness: (n,) float32 in [0, 1].
        scores: (n, classes of the backbone) float32 in [0, 1].
        embeddings: (n, d) float32.
        fit: Where the photo lies in the input.
    """

    boxes: Floats
    objectness: Floats
    scores: Floats
    embeddings: Floats
    fit: Fit

    def __len__(self) -> int:
        """How many candidates."""
        return len(self.boxes)

    def __getitem__(self, keep: npt.NDArray[Any]) -> CandidateFeatures:
        """The candidates at these indices."""
        return CandidateFeatures(
            self.boxes[keep], self.objectness[keep], self.scores[keep], self.embeddings[keep], self.fit
        )


@dataclass(frozen=True)
class FrozenBackbone:
    """A detector that gives out its features.

    Attributes:
        detector: Runs the graph made by `expose`; of the layout `labelloop`.
        version: Of the model that it was made from.
        levels: How many candidates each level of its head has, in their order.
    """

    detector: Detector
    version: str
    levels: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that it knows without having learned here."""
        return self.detector.names.names

    @property
    def spec(self) -> InputSpec:
        """What the network wants to be shown."""
        return self.detector.spec

    @property
    def batch(self) -> int:
        """Photos that one run takes."""
        return self.detector.batch

    def extract_features(self, photos: Sequence[Prepared]) -> list[CandidateFeatures]:
        """What it sees on at most `batch` photos made by `prepare` with its `spec`.

        Raises:
            ModelBroken: The engine failed.
        """
        seen = self.detector.engine.run([photo.tensor for photo in photos], OUTPUTS)
        arrays = [np.asarray(seen[name], np.float32) for name in OUTPUTS]
        return [
            CandidateFeatures(*(array[index] for array in arrays), photo.fit)  # type: ignore[call-arg]
            for index, photo in enumerate(photos)
        ]


def _is_whole(exposed: Path) -> bool:
    """Whether a kept graph is there with its checksum; else it is made again."""
    if not (exposed.is_file() and sidecar_of(exposed).is_file()):
        return False
    try:
        check_file(exposed)
    except ModelDamaged as error:
        log.warning("backbone_damaged", reason=error.reason)
        return False
    return True


def open_backbone(path: Path, *, folder: Path, layout: str = "", threads: int = 0) -> FrozenBackbone:
    """Opens a model to learn on.

    Args:
        path: An ONNX detector.
        folder: Where the graph with its features is kept, named by the model's version.
        layout: Forced layout; empty: recognised.
        threads: Threads of one run; 0: one a core.

    Raises:
        NotLearnable: Its last layer cannot be refitted.
        ModelError: It cannot be served.
    """
    detector = load_detector(path, layout=layout, threads=threads)
    exposed = folder / f"{detector.version}.features.onnx"
    if not _is_whole(exposed):
        folder.mkdir(parents=True, exist_ok=True)
        partial = exposed.with_suffix(".partial")
        onnx.save(expose(detector), partial)
        sidecar_of(exposed).unlink(missing_ok=True)
        partial.replace(exposed)
        keep_checksum(exposed)
    seeing = load_detector(exposed, threads=threads)
    levels = json.loads(seeing.engine.graph.metadata[LEVELS])
    return FrozenBackbone(seeing, detector.version, tuple(int(size) for size in levels))
