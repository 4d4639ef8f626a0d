"""Keeps what is known of each project's annotators, and looks again at doubtful tasks in the light of it."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
import structlog

from labelloop.labeling.consensus.consensus import AnnotatorModel, estimate_crowd
from labelloop.service.db.engine import reading
from labelloop.service.jobs.inbox import Inbox
from qc_webhooks.decision.expected_gain import expected_gain
from qc_webhooks.events import gain_hint
from qc_webhooks.policy import Policy
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import CROWDS, TASKS
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.task_facts import Facts

# Below so many tasks with two annotators nothing is known of anybody.
LEAST_TASKS = 20
# The newest tasks say how people work now, and how long an estimate takes.
MOST_TASKS = 20_000
# Estimated again when so many more tasks were judged: at least so many, and this share of all.
_MORE, _SHARE = 5, 0.02
# An estimate takes at most this share of a worker's time.
_OF_TIME = 0.05

log = structlog.get_logger(__name__)


class CrowdStore:
    """The estimates in the database. Safe from any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._kept: dict[int, tuple[float, AnnotatorModel]] = {}

    def crowd(self, project: int) -> AnnotatorModel | None:
        """What is known of the project's annotators; None: too little."""
        of_project = CROWDS.c.project == project
        with reading(self.engine) as connection:
            made_at = connection.scalar(sa.select(CROWDS.c.made_at).where(of_project))
            if made_at is None:
                return None
            kept = self._kept.get(project)
            if kept is None or kept[0] != made_at:
                row = connection.execute(sa.select(CROWDS.c.made_at, CROWDS.c.crowd).where(of_project)).one()
                kept = self._kept[project] = row.made_at, _decode(row.crowd)
        return kept[1]

    def keep(self, project: int, crowd: AnnotatorModel, *, tasks: int, newest: float, took_s: float) -> None:
        """Puts an estimate in the place of the last one."""
        row = {
            "project": project, "made_at": time.time(), "took_s": took_s, "tasks": tasks, "newest": newest,
            "crowd": msgspec.json.encode(crowd, enc_hook=_listed).decode(),
        }  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(CROWDS).where(CROWDS.c.project == project))
            connection.execute(sa.insert(CROWDS).values(row))

    def is_due(self, project: int, *, tasks: int, newest: float, now: float) -> bool:
        """Whether enough was judged since the last estimate, and another is affordable."""
        query = sa.select(CROWDS.c.made_at, CROWDS.c.took_s, CROWDS.c.tasks, CROWDS.c.newest)
        with reading(self.engine) as connection:
            row = connection.execute(query.where(CROWDS.c.project == project)).one_or_none()
            if row is None:
                return tasks >= LEAST_TASKS
            since = sa.and_(TASKS.c.project == project, TASKS.c.decided_at > row.newest)
            changed = connection.scalar(sa.select(sa.func.count()).select_from(TASKS).where(since)) or 0
        enough = changed >= max(_MORE, _SHARE * row.tasks) or (newest > row.newest and now > row.made_at + 300)
        return bool(enough and now >= row.made_at + row.took_s / _OF_TIME)


class AnnotatorModelScheduler:
    """Estimates the annotators of all connected projects when there is news of them.

    Args:
        engine: The migrated database.
        inbox: Where tasks go that are to be judged again.
        policy: The policy of a project.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        engine: sa.Engine,
        inbox: Inbox,
        policy: Callable[[int], Policy],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._inbox, self._policy, self._clock = engine, inbox, policy, clock
        self._facts, self._crowds, self._projects = FactStore(engine), CrowdStore(engine), ProjectStore(engine)

    def run(self) -> None:
        """Estimates what is due."""
        for project in [each.project for each in self._projects.all()]:
            extent = self._facts.extent(project)
            if self._crowds.is_due(project, tasks=extent.tasks, newest=extent.newest, now=self._clock()):
                self.make(project)

    def make(self, project: int) -> int:
        """Estimates one project's annotators now, and has doubtful tasks judged again. Returns how many."""
        started, extent = time.monotonic(), self._facts.extent(project)
        facts = [each for each in self._facts.all(project, latest=MOST_TASKS) if len(each.turns) > 1]
        if len(facts) < LEAST_TASKS:
            return 0
        crowd = estimate_crowd(each.evidence() for each in facts)
        asked = self._look_again(project, facts, crowd, self._policy(project))
        took_s = time.monotonic() - started
        self._crowds.keep(project, crowd, tasks=len(facts), newest=extent.newest, took_s=took_s)
        log.info("crowd_estimated", project=project, tasks=len(facts), again=asked, seconds=round(took_s, 2))
        return asked

    def _look_again(self, project: int, facts: list[Facts], crowd: AnnotatorModel, policy: Policy) -> int:
        """Tasks whose consensus is doubtful by what is known now are judged again, once a state of them."""
        settled = sa.select(TASKS.c.task, TASKS.c.fingerprint).where(
            TASKS.c.project == project,
            TASKS.c.outcome.in_(("agreed", "disputed")),
            TASKS.c.annotators < policy.max_annotators,
            sa.or_(TASKS.c.asked_at.is_(None), TASKS.c.asked_at != TASKS.c.annotators),
        )
        with reading(self._engine) as connection:
            states = {int(row.task): str(row.fingerprint) for row in connection.execute(settled)}
        again = 0
        for each in facts:
            if each.task not in states or any(turn.truth for turn in each.turns):
                continue
            if expected_gain(each.evidence(), crowd, most=policy.max_annotators).gain >= policy.least_gain:
                hint = gain_hint(project, each.task, states[each.task], source="crowd")
                again += self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
        return again


def _listed(value: Any) -> Any:
    return value.tolist()


def _decode(text: str) -> AnnotatorModel:
    return msgspec.json.decode(text, type=AnnotatorModel, dec_hook=lambda _, value: np.array(value, dtype=np.float64))
