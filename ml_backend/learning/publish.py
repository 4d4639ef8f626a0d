"""Publish learned versions: store the candidate, announce it to Label Studio, remove old versions."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from labelloop.service.scratch import scratch_folder
from labelloop.service.store import Store, StoreError
from ml_backend.learning.base_models import LEARNER, ServedModel, is_learned
from ml_backend.learning.context import LearningContext
from ml_backend.serving import activation
from ml_backend.serving.active_versions import read_pointer, remove_from_history
from ml_backend.serving.registry import Registry, VersionManifest
from ml_backend.serving.smoke_test import ModelSummary
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.onnx_export import write_learned

# Most refused candidates of a project that are kept for inspection.
MAX_REFUSED = 3

# Seconds after which a served version is announced to Label Studio even if the next tasks have no pre-labels of it.
# Until then tasks come in the order of the previous version, with pre-labels of the new one when opened.
ANNOUNCE_AFTER_S = 60.0

log = structlog.get_logger(__name__)


def store_candidate(
    registry: Registry,
    backbone: FrozenBackbone,
    head: LinearHead,
    *,
    served: ServedModel,
    project: int,
    tasks: int,
    metrics: Mapping[str, Any],
    thresholds: Mapping[str, float],
) -> VersionManifest:
    """Export a head as ONNX and add it to the store, without activating it.

    Args:
        registry: Registry of the store.
        backbone: The backbone that the head was trained on.
        head: The last layer.
        served: The served version and its base.
        project: The project that it was trained for.
        tasks: Number of labelled tasks that it was trained on; part of its name.
        metrics: Metrics of the candidate.
        thresholds: Lowest score of a pre-label by class.

    Raises:
        StoreError: The store cannot be written.
    """
    version_metrics = {"learner": LEARNER, "base_pointer": served.pointer, "tasks": tasks, **metrics}
    with scratch_folder() as folder:
        file = folder / f"learned-{tasks}.onnx"
        write_learned(file, backbone, head)
        summary = ModelSummary("", "labelloop", "it was learned here", head.names, "metadata")
        return registry.add(
            file, thresholds=thresholds, metrics=version_metrics, parent=served.version, project=str(project),
            note=f"learned from {tasks} labelled tasks", summary=summary,
        )  # fmt: skip


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
