"""Owns publishing: a fitted head becomes a version on the store, Label Studio names it, and old ones make room."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from labelloop.service.scratch import scratch_folder
from labelloop.service.store import Store, StoreError
from ml_backend.learning.base_models import LEARNER, Served, is_learned
from ml_backend.learning.context import LearningContext
from ml_backend.serving import activation
from ml_backend.serving.active_versions import forget_in, read_pointer
from ml_backend.serving.registry import Manifest, Registry
from ml_backend.serving.smoke_test import Checked
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.linear_head import Head
from ml_backend.training.onnx_export import write_learned

REFUSED_KEPT = 3
"""Refused candidates of a project that stay, so that somebody may look at them."""

LATEST_TOLD_S = 60.0
"""After so long Label Studio names a version that is served, whether the next tasks have its pre-labels or not. Until
then it serves tasks in the order of the version before, and whoever opens one gets the pre-labels of the new one."""

log = structlog.get_logger(__name__)


def store_candidate(
    registry: Registry,
    backbone: FrozenBackbone,
    head: Head,
    *,
    served: Served,
    project: int,
    tasks: int,
    metrics: Mapping[str, Any],
    thresholds: Mapping[str, float],
) -> Manifest:
    """Writes a head as a plain ONNX and puts it on the store; nothing is activated.

    Args:
        registry: Of the store.
        backbone: What the head was fitted on.
        head: The last layer.
        served: What is served now, and its base.
        project: The project that it was learned for.
        tasks: Labelled tasks that it learned from: they are part of its name.
        metrics: What it was measured to do.
        thresholds: From which score on a class is shown.

    Raises:
        StoreError: The store does not take it.
    """
    told = {"learner": LEARNER, "base_pointer": served.pointer, "tasks": tasks, **metrics}
    with scratch_folder() as folder:
        file = folder / f"learned-{tasks}.onnx"
        write_learned(file, backbone, head)
        found = Checked("", "labelloop", "it was learned here", head.names, "metadata")
        return registry.add(
            file, thresholds=thresholds, metrics=told, parent=served.version, project=str(project),
            note=f"learned from {tasks} labelled tasks", found=found,
        )  # fmt: skip


def tell_version(kit: LearningContext, project: int, version: str) -> None:
    """Label Studio names a version; where that fails the poller does it, at its next round."""
    _, notes = activation.follow([(project, version)], kit.settings, kit.studio)
    for note in notes:
        log.warning("label_studio_not_told", project=project, reason=note)
    again = {"swept_at": 0.0} if notes else {}
    kit.lessons.update_project(project, untold_since=None, **again)


def make_room(store: Store, registry: Registry, project: int, *, keep: int) -> list[str]:
    """Removes the oldest learned versions of a project beyond `keep`, and refused candidates; never what is active.

    Returns:
        The versions that were removed.
    """
    mine = [one for one in registry.versions() if is_learned(one) and one.project == str(project)]
    refused = [one for one in mine if one.metrics.get("verdict") == "refused"]
    good = [one for one in mine if one.metrics.get("verdict") != "refused"]
    active = read_pointer(store)[0].used()
    surplus = [*good[: max(len(good) - keep, 0)], *refused[: max(len(refused) - REFUSED_KEPT, 0)]]
    gone = [one.version for one in surplus if one.version not in active]
    if gone:
        forget_in(store, frozenset(gone), str(project))  # first: a rollback may not lead to what is not there
        for version in gone:
            with suppress(StoreError):
                registry.remove(version)
        log.info("old_versions_removed", project=project, versions=len(gone))
    return gone
