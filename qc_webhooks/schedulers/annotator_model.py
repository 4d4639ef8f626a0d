"""Estimates each project's annotator model, and rechecks tasks whose consensus is uncertain under it."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
import structlog

from labelloop.labeling.consensus.consensus import AnnotatorModel, fit_annotator_model
from labelloop.labeling.consensus.voiced import with_voice
from labelloop.service.db.engine import begin_read
from labelloop.service.jobs.inbox import Inbox
from qc_webhooks.decision.expected_gain import expected_gain
from qc_webhooks.events import uncertain_consensus_event
from qc_webhooks.policy import Policy
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import CROWDS, TASKS
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.task_facts import TaskFacts

# Fewest tasks with two annotators for an estimate.
MIN_TASKS = 20
# Newest tasks used: they reflect how annotators work now, and bound the time of an estimate.
MAX_TASKS = 20_000
# Newly judged tasks that trigger an estimate: at least this number and this share of all tasks.
_MIN_CHANGED, _CHANGED_SHARE = 5, 0.02
# Maximum share of a worker's time for estimates.
_MAX_TIME_SHARE = 0.05

log = structlog.get_logger(__name__)


class AnnotatorModelStore:
    """Annotator models in the database. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._cache: dict[int, tuple[float, AnnotatorModel]] = {}  # project -> (made_at, model)

    def load(self, project: int) -> AnnotatorModel | None:
        """Annotator model of a project; None without enough tasks."""
        of_project = CROWDS.c.project == project
        with begin_read(self.engine) as connection:
            made_at = connection.scalar(sa.select(CROWDS.c.made_at).where(of_project))
            if made_at is None:
                return None
            cached = self._cache.get(project)
            if cached is None or cached[0] != made_at:
                row = connection.execute(sa.select(CROWDS.c.made_at, CROWDS.c.crowd).where(of_project)).one()
                cached = self._cache[project] = row.made_at, _decode(row.crowd)
        return cached[1]

    def save(self, project: int, model: AnnotatorModel, *, tasks: int, newest: float, took_s: float) -> None:
        """Replace the project's annotator model."""
        row = {
            "project": project, "made_at": time.time(), "took_s": took_s, "tasks": tasks, "newest": newest,
            "crowd": msgspec.json.encode(model, enc_hook=_encode_array).decode(),
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(CROWDS).where(CROWDS.c.project == project))
            connection.execute(sa.insert(CROWDS).values(row))

    def is_due(self, project: int, *, tasks: int, newest: float, now: float) -> bool:
        """Whether enough tasks were judged since the last estimate, and the time budget allows another."""
        query = sa.select(CROWDS.c.made_at, CROWDS.c.took_s, CROWDS.c.tasks, CROWDS.c.newest)
        with begin_read(self.engine) as connection:
            row = connection.execute(query.where(CROWDS.c.project == project)).one_or_none()
            if row is None:
                return tasks >= MIN_TASKS
            since = sa.and_(TASKS.c.project == project, TASKS.c.decided_at > row.newest)
            changed = connection.scalar(sa.select(sa.func.count()).select_from(TASKS).where(since)) or 0
        enough = changed >= max(_MIN_CHANGED, _CHANGED_SHARE * row.tasks) or (
            newest > row.newest and now > row.made_at + 300
        )
        return bool(enough and now >= row.made_at + row.took_s / _MAX_TIME_SHARE)


class AnnotatorModelScheduler:
    """Updates the annotator models of all connected projects.

    Args:
        engine: The migrated database.
        inbox: Receives the tasks to recheck.
        policy: Returns a project's policy.
    """

    def __init__(self, engine: sa.Engine, inbox: Inbox, policy: Callable[[int], Policy]) -> None:
        self._engine, self._inbox, self._policy = engine, inbox, policy
        self._facts, self._models, self._projects = FactStore(engine), AnnotatorModelStore(engine), ProjectStore(engine)

    def run(self) -> None:
        """Update the models that are due."""
        for project in [connected.project for connected in self._projects.all()]:
            extent = self._facts.extent(project)
            if self._models.is_due(project, tasks=extent.tasks, newest=extent.newest, now=time.time()):
                self.update(project)

    def update(self, project: int) -> int:
        """Estimate one project's annotator model and submit uncertain tasks for a recheck. Returns their number."""
        started, extent = time.monotonic(), self._facts.extent(project)
        facts = [
            record for record in self._facts.iter_project(project, latest=MAX_TASKS) if len(record.annotations) > 1
        ]
        if len(facts) < MIN_TASKS:
            return 0
        model = with_voice(
            fit_annotator_model(record.evidence() for record in facts),
            [record.heard for record in facts if record.heard is not None],
        )
        rechecked = self._recheck_uncertain(project, facts, model, self._policy(project))
        took_s = time.monotonic() - started
        self._models.save(project, model, tasks=len(facts), newest=extent.newest, took_s=took_s)
        log.info("crowd_estimated", project=project, tasks=len(facts), again=rechecked, seconds=round(took_s, 2))
        return rechecked

    def _recheck_uncertain(self, project: int, facts: list[TaskFacts], model: AnnotatorModel, policy: Policy) -> int:
        """Submit tasks whose consensus is uncertain under the model, once per state of a task. Returns their number."""
        query = sa.select(TASKS.c.task, TASKS.c.fingerprint).where(
            TASKS.c.project == project,
            TASKS.c.outcome.in_(("agreed", "disputed")),
            TASKS.c.annotators < policy.max_annotators,
            sa.or_(TASKS.c.asked_at.is_(None), TASKS.c.asked_at != TASKS.c.annotators),
        )
        with begin_read(self._engine) as connection:
            states = {int(row.task): str(row.fingerprint) for row in connection.execute(query)}
        rechecked = 0
        for record in facts:
            if record.task not in states or any(annotation.ground_truth for annotation in record.annotations):
                continue
            if expected_gain(record.evidence(), model, max_annotators=policy.max_annotators).gain >= policy.least_gain:
                hint = uncertain_consensus_event(project, record.task, states[record.task], source="crowd")
                rechecked += self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
        return rechecked


def _encode_array(value: Any) -> Any:
    return value.tolist()


def _decode(text: str) -> AnnotatorModel:
    return msgspec.json.decode(text, type=AnnotatorModel, dec_hook=lambda _, value: np.array(value, dtype=np.float64))
