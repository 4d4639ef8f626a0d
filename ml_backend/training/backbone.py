"""Frozen backbone: a detector that returns candidate boxes with their features, and is never trained."""

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

from ml_backend.checksums import ModelDamaged, sidecar_of, verify_file, write_checksum
from ml_backend.detection.detections import Floats
from ml_backend.detection.fit import Fit
from ml_backend.detection.onnx_graph import Arrays
from ml_backend.detection.preprocess import InputSpec, Prepared
from ml_backend.inference.detector import Detector, load_detector
from ml_backend.training.feature_export import EMBEDDINGS, LEVELS, export_features

log = structlog.get_logger(__name__)

OUTPUTS = ("boxes", "objectness", "scores", EMBEDDINGS)


@dataclass(frozen=True, eq=False)
class CandidateFeatures:
    """The candidate boxes of one image with their frozen features.

    Attributes:
        boxes: (n, 4) float32 x_min, y_min, x_max, y_max in pixels of the network's input.
        objectness: (n,) float32 in [0, 1].
        scores: (n, backbone classes) float32 in [0, 1].
        embeddings: (n, d) float32.
        fit: Position of the image in the network's input.
    """

    boxes: Floats
    objectness: Floats
    scores: Floats
    embeddings: Floats
    fit: Fit

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.boxes)

    def __getitem__(self, keep: npt.NDArray[Any]) -> CandidateFeatures:
        """Select candidates by index or mask."""
        return CandidateFeatures(
            self.boxes[keep], self.objectness[keep], self.scores[keep], self.embeddings[keep], self.fit
        )


@dataclass(frozen=True)
class FrozenBackbone:
    """A detector that returns its candidate features.

    Attributes:
        detector: Runs the graph of `export_features`; its layout is `labelloop`.
        version: Version of the model that it was made from.
        levels: Number of candidates per level, in their order.
    """

    detector: Detector
    version: str
    levels: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The pretrained class names."""
        return self.detector.names.names

    @property
    def spec(self) -> InputSpec:
        """The network's input format."""
        return self.detector.spec

    @property
    def batch(self) -> int:
        """Images per run."""
        return self.detector.batch

    def extract_features(self, images: Sequence[Prepared]) -> list[CandidateFeatures]:
        """Extract the candidate features of at most `batch` images made by `prepare` with its `spec`.

        Raises:
            ModelBroken: The session failed.
        """
        outputs = self.detector.engine.run([image.tensor for image in images], OUTPUTS)
        return split_candidates(outputs, [image.fit for image in images])


def split_candidates(outputs: Arrays, fits: Sequence[Fit]) -> list[CandidateFeatures]:
    """Split the outputs of a backbone's run by image.

    Args:
        outputs: Arrays of `OUTPUTS`, with the batch axis first.
        fits: Position of each image in the input.
    """
    arrays = [np.asarray(outputs[name], np.float32) for name in OUTPUTS]
    return [
        CandidateFeatures(boxes, objectness, scores, embeddings, fit)
        for boxes, objectness, scores, embeddings, fit in zip(*arrays, fits, strict=True)
    ]


def _is_intact(exported: Path) -> bool:
    """Whether the exported graph exists and matches its checksum; else it is exported again."""
    if not (exported.is_file() and sidecar_of(exported).is_file()):
        return False
    try:
        verify_file(exported)
    except ModelDamaged as error:
        log.warning("backbone_damaged", reason=error.reason)
        return False
    return True


def open_backbone(path: Path, *, folder: Path, layout: str = "", threads: int = 0) -> FrozenBackbone:
    """Open a model as a backbone; export its feature graph on the first call.

    Args:
        path: An ONNX detector.
        folder: Where the feature graph is stored, named by the model's version.
        layout: Forced layout; empty: recognised.
        threads: Threads per run; 0: one per core.

    Raises:
        NotLearnable: It has no features to fit a head on.
        ModelError: It cannot be loaded.
    """
    detector = load_detector(path, layout=layout, threads=threads)
    exported = folder / f"{detector.version}.features.onnx"
    if not _is_intact(exported):
        folder.mkdir(parents=True, exist_ok=True)
        partial = exported.with_suffix(".partial")
        onnx.save(export_features(detector), partial)
        sidecar_of(exported).unlink(missing_ok=True)
        partial.replace(exported)
        write_checksum(exported)
    feature_detector = load_detector(exported, threads=threads)
    levels = json.loads(feature_detector.engine.graph.metadata[LEVELS])
    return FrozenBackbone(feature_detector, detector.version, tuple(int(size) for size in levels))
