"""Publish learned versions: store the candidate, announce it to Label Studio, remove old versions."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import structlog

from labelloop.service.scratch import scratch_folder
from labelloop.service.store import Store, StoreError
from ml_backend.detection.onnx_graph import IMAGE_FEATURES
from ml_backend.inference.detector import load_detector
from ml_backend.layouts.image_processor import processor_of
from ml_backend.layouts.layout_file import layout_file_of
from ml_backend.learning.base_models import LEARNER, BaseModels, ServedModel, is_learned
from ml_backend.learning.context import LearningContext
from ml_backend.serving import activation
from ml_backend.serving.active_versions import read_pointer, remove_from_history
from ml_backend.serving.registry import Registry, VersionManifest
from ml_backend.serving.smoke_test import ModelSummary
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.feature_export import export_image_features
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.onnx_export import write_learned

# Most refused candidates of a project that are kept for inspection.
MAX_REFUSED = 3

# Seconds after which a served version is announced to Label Studio even if the next tasks have no pre-labels of it.
# Until then tasks come in the order of the previous version, with pre-labels of the new one when opened.
ANNOUNCE_AFTER_S = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class VersionParts:
    """What a candidate is made of.

    Attributes:
        head: Its last layer; None: it keeps the boxes of the served version.
        heads: Its heads by kind, see `ml_backend.heads`.
        thresholds: Lowest score of a pre-label by class.
        drawn: Whether the project draws anything, so that features of boxes are needed.
    """

    head: LinearHead | None
    heads: Mapping[str, Any]
    thresholds: Mapping[str, float]
    drawn: bool = True


def store_candidate(
    base_models: BaseModels,
    backbone: FrozenBackbone,
    parts: VersionParts,
    *,
    served: ServedModel,
    project: int,
    tasks: int,
    metrics: Mapping[str, Any],
) -> VersionManifest:
    """Add a candidate to the store, without activating it.

    Its ONNX model has the learned last layer; without one it is the file of the served version, or the base with the
    outputs of its features.

    Args:
        base_models: The models, with the registry of the store.
        backbone: The backbone that it was trained on.
        parts: What it is made of.
        served: The served version and its base.
        project: The project that it was trained for.
        tasks: Number of labelled tasks that it was trained on; part of its name.
        metrics: Metrics of the candidate.

    Raises:
        StoreError: The store cannot be written.
    """
    version_metrics = {
        "learner": LEARNER, "base_pointer": served.pointer, "base": served.base, "tasks": tasks, **metrics,
    }  # fmt: skip
    with scratch_folder() as folder:
        file = folder / f"learned-{tasks}.onnx"
        layout = ""
        if parts.head is not None:
            write_learned(file, backbone, parts.head)
            summary = ModelSummary("", "labelloop", "it was learned here", parts.head.names, "metadata")
        elif served.learned and base_models.has_base(served):
            source, manifest = base_models.file(served.version)
            layout, summary = manifest.layout, _copy_model(source, file, manifest.classes, manifest.layout)
            is_old = "base" not in manifest.metrics  # of an earlier release, without features of images
            if is_old or (backbone.lent and not _gives_image_features(source)):
                onnx.save(export_image_features(load_detector(source, layout=manifest.layout, threads=1)), file)
        elif parts.drawn and backbone.levels:
            summary = _copy_model(backbone.detector.path, file, backbone.names, "labelloop")
        else:
            layout, summary = served.layout, _write_with_image_features(file, backbone, served)
        return base_models.registry.add(
            file, layout=layout, thresholds=parts.thresholds, metrics=version_metrics, parent=served.version,
            project=str(project), note=f"learned from {tasks} labelled tasks", summary=summary, heads=parts.heads,
        )  # fmt: skip


def _copy_model(source: Path, file: Path, names: Sequence[str], layout: str) -> ModelSummary:
    """Copy a model with its external weights, names and layout file."""
    shutil.copyfile(source, file)
    for ending in (".data", ".layout.toml"):
        sidecar = source.with_name(f"{source.name}{ending}")
        if sidecar.is_file():
            shutil.copyfile(sidecar, file.with_name(f"{file.name}{ending}"))
    has_names = source.with_name(f"{source.name}.names").is_file()
    return ModelSummary("", layout, "it was learned here", tuple(names), "the version" if has_names else "metadata")


def _gives_image_features(file: Path) -> bool:
    """Whether a model has the output of its image features: versions from before it was lent them have none."""
    return any(output.name == IMAGE_FEATURES for output in onnx.load(file, load_external_data=False).graph.output)


def _write_with_image_features(file: Path, backbone: FrozenBackbone, served: ServedModel) -> ModelSummary:
    """Write the base with the output of its image features alone; its boxes and classes are untouched."""
    if backbone.levels:
        detector = load_detector(served.path, layout=served.layout, threads=1)
        onnx.save(export_image_features(detector), file)
    else:
        detector = backbone.detector
        shutil.copyfile(detector.path, file)
    layout_file = layout_file_of(served.path)
    if layout_file is not None:
        shutil.copyfile(layout_file, file.with_name(f"{file.name}.layout.toml"))
    processor = processor_of(served.path)
    if processor is not None:
        shutil.copyfile(processor, file.with_name(processor.name))
    source = "metadata" if detector.names.source == "metadata" else "the base"
    return ModelSummary("", detector.layout, "it was learned here", detector.names.names, source)


def announce_version(context: LearningContext, project: int, version: str) -> None:
    """Set a version in Label Studio; on failure the poller retries in its next round."""
    _, notes = activation.follow([(project, version)], context.settings, context.studio)
    for note in notes:
        log.warning("label_studio_not_told", project=project, reason=note)
    fields = {"swept_at": 0.0} if notes else {}
    context.training_data.update_project(project, untold_since=None, **fields)


def remove_old_versions(store: Store, registry: Registry, project: int, *, keep: int) -> list[str]:
    """Delete the oldest learned versions of a project beyond `keep`, and old refused candidates; never an active one.

    Returns:
        The deleted versions.
    """
    learned = [
        manifest for manifest in registry.versions() if is_learned(manifest) and manifest.project == str(project)
    ]
    refused = [manifest for manifest in learned if manifest.metrics.get("verdict") == "refused"]
    good = [manifest for manifest in learned if manifest.metrics.get("verdict") != "refused"]
    active = read_pointer(store)[0].used()
    surplus = [*good[: max(len(good) - keep, 0)], *refused[: max(len(refused) - MAX_REFUSED, 0)]]
    gone = [manifest.version for manifest in surplus if manifest.version not in active]
    if gone:
        remove_from_history(
            store, frozenset(gone), str(project)
        )  # first, so that a rollback cannot reach a deleted version
        for version in gone:
            with suppress(StoreError):
                registry.remove(version)
        log.info("old_versions_removed", project=project, versions=len(gone))
    return gone
