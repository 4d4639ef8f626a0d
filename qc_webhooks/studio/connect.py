"""Connects a project: annotators per task, tabs, the review project, the poller, and the webhook."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError, MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.charts import pluralize
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from qc_webhooks.artifacts.review_copy import NOTE, with_note
from qc_webhooks.errors import QualityControlError
from qc_webhooks.pipeline.review_project import ReviewStore, ensure_review_project
from qc_webhooks.policy import Policy
from qc_webhooks.schedulers.overlap import count_low_overlap, describe_low_overlap
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import NEWEST_DEFAULTS, ProjectStore
from qc_webhooks.studio.data_manager_tabs import ensure_tabs
from qc_webhooks.studio.webhook import ensure_webhook

_NOTE = "the note above the image, which says what is disputed"


def connect(studio: Studio, project_id: int, settings: Settings, engine: Engine) -> list[ConnectionChange]:
    """Put a project under quality control. Idempotent.

    Raises:
        StudioNotFound: No such project.
        PolicyError: The policy is invalid; nothing was changed.
        HostRefused: Label Studio does not accept the webhook's address. All other steps are done by then: the poller
            finds changes until the address is fixed and the project is connected again.
    """
    project = studio.project(project_id)
    policy = ProjectStore(engine).policy(settings.home, project_id, config=_label_config(project))
    changes = [_ensure_annotators(studio, project, policy, DecisionStore(engine))]
    changes += _short_tasks(studio, studio.project(project_id), policy)
    changes += ensure_tabs(studio, project_id)
    changes.append(_offer_note(project))
    changes += _offer_defaults(ProjectStore(engine), project_id, policy)
    added = ProjectStore(engine).add(project_id)
    changes.append(ConnectionChange(f"quality control polls the project every {settings.poll_seconds:g} s", done=added))
    if policy.review_project and (change := ensure_review_project(studio, project_id, settings, ReviewStore(engine))):
        changes.append(change)
    changes.append(ensure_webhook(studio, project_id, settings))
    review = ReviewStore(engine).review_of(project_id) if policy.review_project else None
    if review is not None:
        ensure_webhook(studio, review, settings)
    return changes


def _short_tasks(studio: Studio, project: Mapping[str, Any], policy: Policy) -> list[ConnectionChange]:
    tasks = count_low_overlap(studio, project, policy)
    if not tasks:
        return []
    if policy.raise_overlap:
        return [
            ConnectionChange(
                f"the worker raises the overlap of {pluralize(tasks, 'task')} to {policy.annotators}", done=False
            )
        ]
    what = (
        f"{describe_low_overlap(tasks, policy)}; `raise_overlap = true` in qc/{project['id']}/policy.toml of the"
        " home folder"
    )
    return [ConnectionChange(f"{what} lets the worker raise it", done=False, choice=True)]


def _label_config(project: Mapping[str, Any]) -> LabelConfig | None:
    try:
        return LabelConfig.parse(str(project.get("label_config") or ""))
    except MalformedConfig:
        return None  # the worker reports what is wrong with the interface


def show_note(studio: Studio, project_id: int) -> ConnectionChange:
    """Add the line that shows a task's note to the labeling interface.

    Raises:
        StudioNotFound: No such project.
        StudioRefused: Label Studio does not accept the changed interface.
        QualityControlError: The interface has no place for the note.
    """
    interface = str(studio.project(project_id)["label_config"])
    try:
        wanted = with_note(interface)
    except LabelingError as error:
        raise QualityControlError(
            f"The note cannot be shown in project {project_id}: {error}.",
            fix='Add <Header value="$qc_note"/> to the labeling interface where the note should be shown.',
            code="note_refused",
        ) from error
    if wanted != interface:
        studio.update_project(project_id, label_config=wanted)
    return ConnectionChange(_NOTE, done=wanted != interface)


def _offer_note(project: Mapping[str, Any]) -> ConnectionChange:
    if "$qc_note" in str(project.get("label_config") or ""):
        return ConnectionChange(_NOTE, done=False)
    return ConnectionChange(
        f"annotators and reviewers do not see why a task is disputed: `labelloop connect {project['id']} --note` puts"
        f" {NOTE} into the labeling interface",
        done=False,
        choice=True,
    )


def _offer_defaults(projects: ProjectStore, project: int, policy: Policy) -> list[ConnectionChange]:
    """Say that a project connected under older defaults keeps them."""
    connected = projects.get(project)
    if connected is None or connected.defaults >= NEWEST_DEFAULTS or policy.conflicts.by_objects:
        return []
    what = (
        "a missing or mislabelled object is no dispute while the mean agreement suffices, as when the project was"
        f" connected: `labelloop qc what-if {project}` shows what the new default would dispute,"
        f" `labelloop qc adopt {project}` adopts it"
    )
    return [ConnectionChange(what, done=False, choice=True)]


def _ensure_annotators(
    studio: Studio, project: Mapping[str, Any], policy: Policy, decisions: DecisionStore
) -> ConnectionChange:
    current, number = int(project.get("maximum_annotations") or 1), int(project["id"])
    what = f"at least {policy.annotators} annotators per task"
    if current >= policy.annotators:
        return ConnectionChange(what, done=False)
    if not policy.set_maximum_annotations:
        return ConnectionChange(
            f"{current} annotator per task, unchanged: agreement needs {policy.annotators}. To request them, put"
            f" `set_maximum_annotations = true` in qc/{number}/policy.toml of the home folder",
            done=False,
            choice=True,
        )
    studio.update_project(number, maximum_annotations=policy.annotators)
    decisions.reset_overlaps(number)  # Label Studio has reset every task's overlap
    return ConnectionChange(what, done=True)
