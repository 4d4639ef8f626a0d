"""Owns connecting a project to learning: its submits are learned from then on, and its open tasks have an order."""

import sqlalchemy as sa

from labelloop.labeling.errors import MalformedConfig
from labelloop.service.connect_report import Change
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.events import queue_hint, sweep_hint
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_support import controls_of, reasons
from ml_backend.serving import activation


def connect(studio: Studio, project: int, settings: Settings, engine: sa.Engine) -> list[Change]:
    """Has a worker learn what is labelled already and put the open tasks in order. Twice changes nothing.

    Returns:
        Whether the project learns, then a note for each control that is not pre-labelled or not learned from.

    Raises:
        LearningPolicyError: The project's learn.toml cannot be used.
        StudioError: Label Studio cannot be asked.
    """
    policy = read_learning_policy(settings.home, project)
    try:
        supported = controls_of(studio.label_config(project), activation.served_outputs(settings, project))
    except MalformedConfig as error:
        said = f"Project {project} does not learn: its label config cannot be read ({error.reason})"
        return [Change(said, done=False, note=True)]
    new = TrainingDataStore(engine).connect(project)
    notes = [Change(one, done=False, note=True) for one in reasons(supported)]
    if not policy.learn:
        return [Change(f"Project {project} does not learn: its learn.toml says so", done=False, note=True), *notes]
    if not any(one.learns for one in supported):
        said = f"Project {project} does not learn: no control of it can be learned from"
        return [Change(said, done=False, note=True), *notes]
    if new:
        inbox = Inbox.from_settings(settings, engine)
        for hint in (sweep_hint(project, source="connect"), queue_hint(project, source="connect")):
            inbox.put(hint.topic, str(project), hint.key, hint.payload)
    learned = ", ".join(dict.fromkeys(one.control for one in supported if one.learns))
    said = f"Project {project} learns {learned} from {policy.first} labelled tasks on"
    return [Change(said, done=new), *notes]
