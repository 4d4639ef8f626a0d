"""Connecting a project: how many annotators, our tabs, the review project, the poller, and the webhook."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError, MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.connect_report import Change
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from qc_webhooks.artifacts.review_copy import NOTE, with_note
from qc_webhooks.errors import NoteRefused
from qc_webhooks.pipeline.review_project import ReviewStore, ensure_review_project
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.schedulers.overlap import count_short, describe_short
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.studio.data_manager_tabs import ensure_tabs
from qc_webhooks.studio.webhook import ensure_webhook

_NOTE = "the note above the photo, which says what is disputed"


def connect(studio: Studio, project_id: int, settings: Settings, engine: Engine) -> list[Change]:
    """Puts a project under quality control. Doing it twice changes nothing.

    Raises:
        NotFound: No such project.
        PolicyError: The policy cannot be followed; nothing was changed.
        HostRefused: Label Studio does not accept our webhook's address. All the rest is done by then: the poller
            carries quality control alone until the address is put right and the project is connected again.
    """
    project = studio.project(project_id)
    policy = read_policy(settings.home, project_id, config=_label_config(project))
    changes = [_ensure_annotators(studio, project, policy, DecisionStore(engine))]
    changes += _short_tasks(studio, studio.project(project_id), policy)
    changes += ensure_tabs(studio, project_id)
    changes.append(_offer_note(project))
    added = ProjectStore(engine).add(project_id)
    changes.append(Change(f"quality control looks at the project every {settings.poll_seconds:g} s", done=added))
    if policy.review_project and (made := ensure_review_project(studio, project_id, settings, ReviewStore(engine))):
        changes.append(made)
    changes.append(ensure_webhook(studio, project_id, settings))
    review = ReviewStore(engine).review_of(project_id) if policy.review_project else None
    if review is not None:
        ensure_webhook(studio, review, settings)
    return changes


def _short_tasks(studio: Studio, project: Mapping[str, Any], policy: Policy) -> list[Change]:
    tasks = count_short(studio, project, policy)
    if not tasks:
        return []
    if policy.raise_overlap:
        return [Change(f"the worker raises the overlap of {tasks:,} tasks to {policy.annotators}", done=False)]
    what = (
        f"{describe_short(tasks, policy)}; `raise_overlap = true` in qc/{project['id']}/policy.toml of the home folder"
    )
    return [Change(f"{what} has the worker raise it", done=False, choice=True)]


def _label_config(project: Mapping[str, Any]) -> LabelConfig | None:
    try:
        return LabelConfig.parse(str(project.get("label_config") or ""))
    except MalformedConfig:
        return None  # an empty or unusual interface: the worker says what is wrong with it


def show_note(studio: Studio, project_id: int) -> Change:
    """Puts the line that shows the note on a task into the labelling interface; somebody asked for it.

    Raises:
        NotFound: No such project.
        StudioRefused: Label Studio does not accept the changed interface.
        NoteRefused: The interface has no place for it.
    """
    interface = str(studio.project(project_id)["label_config"])
    try:
        wanted = with_note(interface)
    except LabelingError as error:
        raise NoteRefused(project_id, str(error)) from error
    if wanted != interface:
        studio.update_project(project_id, label_config=wanted)
    return Change(_NOTE, done=wanted != interface)


def _offer_note(project: Mapping[str, Any]) -> Change:
    if "$qc_note" in str(project.get("label_config") or ""):
        return Change(_NOTE, done=False)
    return Change(
        f"annotators and reviewers do not see why a task is disputed: `labelloop connect {project['id']} --note` puts"
        f" {NOTE} into the labeling interface",
        done=False,
        choice=True,
    )


def _ensure_annotators(studio: Studio, project: Mapping[str, Any], policy: Policy, memory: DecisionStore) -> Change:
    held, number = int(project.get("maximum_annotations") or 1), int(project["id"])
    what = f"at least {policy.annotators} annotators a task"
    if held >= policy.annotators:
        return Change(what, done=False)
    if not policy.set_maximum_annotations:
        return Change(
            f"{held} annotator a task, left as it is: agreement is measured where {policy.annotators} submit, and"
            f" `set_maximum_annotations = true` in qc/{number}/policy.toml of the home folder asks for as many",
            done=False,
            choice=True,
        )
    studio.update_project(number, maximum_annotations=policy.annotators)
    memory.forget_overlaps(number)  # Label Studio has set every task's overlap anew
    return Change(what, done=True)
