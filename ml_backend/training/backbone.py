"""Frozen backbone: a detector that returns candidate boxes with their features, and is never trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import structlog

from ml_backend.checksums import ModelDamaged, sidecar_of, verify_file, write_checksum
from ml_backend.detection.detections import Floats
from ml_backend.detection.fit import Fit
from ml_backend.detection.onnx_graph import IMAGE_FEATURES, Arrays
from ml_backend.detection.preprocess import InputSpec, Prepared, RgbImage, prepare
from ml_backend.errors import NotLearnable
from ml_backend.inference.detector import Detector, load_detector
from ml_backend.inference.session import Engine
from ml_backend.layouts.labelloop import EMBEDDINGS
from ml_backend.training.feature_export import LEVELS, export_features, export_image_features, not_learnable_reason
from ml_backend.training.lent_features import LENT
from ml_backend.training.mapped_file import MappedFile

log = structlog.get_logger(__name__)

# Ending of an exported graph; changes when a release exports another graph from the same file.
SUFFIX = ".features3.onnx"

# Endings of earlier releases: their graphs may lack features of images.
OUTDATED = (".features.onnx", ".features2.onnx")

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
        image_features: (g,) float32 frozen features of the whole image; None where the graph gives none.
        file: The file that the arrays of the candidates are mapped from; None: they are in memory.
    """

    boxes: Floats
    objectness: Floats
    scores: Floats
    embeddings: Floats
    fit: Fit
    image_features: Floats | None = None
    file: MappedFile | None = None

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.boxes)

    def release(self) -> None:
        """Give the memory of a mapped file back; the arrays stay valid."""
        if self.file is not None:
            self.file.release()

    def half_precision(self) -> CandidateFeatures:
        """The features in half precision, as a cache stores them: half the memory, and fits of the same bits."""
        return replace(
            self,
            scores=self.scores.astype(np.float16, copy=False),
            embeddings=self.embeddings.astype(np.float16, copy=False),
        )

    def __getitem__(self, keep: npt.NDArray[Any]) -> CandidateFeatures:
        """Select candidates by index or mask."""
        return replace(
            self,
            boxes=self.boxes[keep],
            objectness=self.objectness[keep],
            scores=self.scores[keep],
            embeddings=self.embeddings[keep],
            file=None,
        )


@dataclass(frozen=True)
class FrozenBackbone:
    """A model that returns its features.

    Attributes:
        detector: Runs the graph of `export_features`, whose layout is `labelloop`, or of `export_image_features`.
        version: Version of the model that it was made from.
        levels: Number of candidates per level, in their order; empty where only image features are given.
        no_boxes: Why boxes cannot be trained on it; empty where they can.
    """

    detector: Detector
    version: str
    levels: tuple[int, ...]
    no_boxes: str = ""

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
        names = (*(OUTPUTS if self.levels else ()), *self.image_outputs)
        outputs = self.detector.engine.run([image.tensor for image in images], names)
        return split_candidates(outputs, [image.fit for image in images])

    def extract_tiles(self, image: RgbImage, parts: Sequence[tuple[int, int, int, int]]) -> list[CandidateFeatures]:
        """Extract the candidate features of parts of a full-size image (h, w, 3) uint8, given in its pixels.

        Raises:
            ModelBroken: The session failed.
        """
        return [
            features
            for start in range(0, len(parts), self.batch)
            for features in self.extract_features(
                [prepare(image, self.spec, part=part) for part in parts[start : start + self.batch]]
            )
        ]

    @property
    def lent(self) -> str:
        """Why its features of images are those of the embedded model; empty where they are its own."""
        return self.detector.engine.graph.metadata.get(LENT, "")

    @property
    def cache_key(self) -> str:
        """Its part of the keys of cached features; features from before it was lent those of images are others."""
        return f"{self.version}-lent" if self.lent else self.version

    @property
    def image_outputs(self) -> tuple[str, ...]:
        """The output with image features; empty without."""
        return (IMAGE_FEATURES,) if self.detector.engine.graph.image_features else ()


def split_candidates(outputs: Arrays, fits: Sequence[Fit]) -> list[CandidateFeatures]:
    """Split the outputs of a backbone's run by image.

    Args:
        outputs: Arrays of `OUTPUTS`, if any, and of image features, if any, with the batch axis first.
        fits: Position of each image in the input.
    """
    widths = {"boxes": (4,), "objectness": (), "scores": (0,), EMBEDDINGS: (0,)}
    arrays = [
        np.asarray(outputs[name] if name in outputs else np.zeros((len(fits), 0, *widths[name])), np.float32)
        for name in OUTPUTS
    ]
    of_image = outputs.get(IMAGE_FEATURES)
    return [
        CandidateFeatures(
            boxes,
            objectness,
            scores,
            embeddings,
            fit,
            None if of_image is None else np.asarray(of_image[index], np.float32),
        )
        for index, (boxes, objectness, scores, embeddings, fit) in enumerate(zip(*arrays, fits, strict=True))
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
        path: An ONNX model.
        folder: Where the feature graph is stored, named by the model's version.
        layout: Forced layout; empty: recognised.
        threads: Threads per run; 0: one per core.

    Raises:
        NotLearnable: It has no features, neither of boxes nor of images.
        ModelError: It cannot be loaded.
    """
    detector = load_detector(path, layout=layout, threads=threads)
    exported = folder / f"{detector.version}{SUFFIX}"
    if not _is_intact(exported):
        folder.mkdir(parents=True, exist_ok=True)
        partial = exported.with_suffix(".partial")
        exported_model = _exported(detector)
        reason = next((entry.value for entry in exported_model.metadata_props if entry.key == LENT), "")
        if reason:
            log.warning("features_lent", model=detector.version, by="the embedded model", reason=reason)
        onnx.save(exported_model, partial)
        sidecar_of(exported).unlink(missing_ok=True)
        partial.replace(exported)
        write_checksum(exported)
        for outdated in (folder / f"{detector.version}{ending}" for ending in OUTDATED):
            outdated.unlink(missing_ok=True)
            sidecar_of(outdated).unlink(missing_ok=True)
    if not _has_levels(exported):
        reason = not_learnable_reason(detector) or "it has no features of its boxes"
        of_images = replace(detector, path=exported, engine=Engine(exported, threads=threads))
        return FrozenBackbone(of_images, detector.version, (), reason)
    feature_detector = load_detector(exported, threads=threads)
    levels = json.loads(feature_detector.engine.graph.metadata[LEVELS])
    return FrozenBackbone(feature_detector, detector.version, tuple(int(size) for size in levels))


def _has_levels(exported: Path) -> bool:
    """Whether an exported graph gives features of boxes."""
    model = onnx.load(exported, load_external_data=False)
    return any(entry.key == LEVELS for entry in model.metadata_props)


def _exported(detector: Detector) -> onnx.ModelProto:
    """The graph with features of boxes, else with features of images alone."""
    try:
        return export_features(detector)
    except NotLearnable as error:
        try:
            return export_image_features(detector)
        except NotLearnable:
            raise error from None
