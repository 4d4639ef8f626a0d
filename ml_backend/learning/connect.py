"""Owns connecting a project to learning: its submits are learned from then on, and its open tasks have an order."""

from __future__ import annotations

import sqlalchemy as sa

from labelloop.service.changes import Change
from labelloop.service.inbox import Inbox
from labelloop.service.settings import Settings
from ml_backend.learning.events import queue_hint, sweep_hint
from ml_backend.learning.lessons import Lessons
from ml_backend.learning.policy import read_learning_policy


def connect(project: int, settings: Settings, engine: sa.Engine) -> list[Change]:
    """Has a worker learn what is labelled already and put the open tasks in order. Twice changes nothing.

    Raises:
        LearningPolicyError: The project's learn.toml cannot be used.
    """
    policy = read_learning_policy(settings.home, project)
    new = Lessons(engine).connect(project)
    if not policy.learn:
        return [Change(f"Project {project} does not learn: its learn.toml says so", done=False)]
    if new:
        inbox = Inbox.from_settings(settings, engine)
        for hint in (sweep_hint(project, source="connect"), queue_hint(project, source="connect")):
            inbox.put(hint.topic, str(project), hint.key, hint.payload)
    return [Change(f"Project {project} learns from {policy.first} labelled tasks on", done=new)]
