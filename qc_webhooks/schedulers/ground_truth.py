"""Keeps which tasks have a ground truth, and serves them to annotators as the policy's ``ground_truth_share`` asks.

A task is opened by the same check as every other (the route ``seed``): this only decides for whom and which.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
import structlog

from labelloop.service.db.engine import reading
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import Studio
from qc_webhooks.decision.ground_truth_sampling import Known, RequestedOverlap, long_ago, streams, tasks_to_serve
from qc_webhooks.events import seed_hint
from qc_webhooks.policy import Policy
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import ANNOTATIONS, TRUTHS

# Of so many annotations of a project, the newest, it is looked up who did what last.
_LATEST = 20_000
# So many tasks are chosen among: a project of thousands of settled disputes has more than anybody can be measured by.
_MOST_KNOWN = 500
# Numbers of wishes count from here, so that they stay small.
_EPOCH = 1_760_000_000
# At most this share of a worker's time.
_SHARE = 0.05
# Without any news it is looked again after so long: somebody may have gone.
_AGAIN_S = 60

log = structlog.get_logger(__name__)


class TruthStore:
    """The tasks with a ground truth in the database. Safe from any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def wish(self, project: int, task: int) -> RequestedOverlap:
        """How a task is to be served."""
        query = sa.select(TRUTHS.c.wanted, TRUTHS.c.revision).where(_is(project, task))
        with reading(self.engine) as connection:
            row = connection.execute(query).one_or_none()
        return RequestedOverlap() if row is None else RequestedOverlap(row.wanted, row.revision)

    def keep(
        self, project: int, task: int, *, truth: int | None, annotators: int, ours: bool, carried: RequestedOverlap
    ) -> None:
        """Notes that a task has a ground truth, the annotation of that id, or has none.

        Args:
            project: The project's id.
            task: The task's id.
            truth: The annotation; None: there is none.
            annotators: How many annotated the task.
            ours: Whether nobody but us changed its overlap.
            carried: The wish that it was brought to.
        """
        held = {"annotation": truth, "annotators": annotators, "ours": ours, "carried": carried.revision}
        if truth is None:
            with reading(self.engine) as connection:  # most tasks have none and had none: nothing is to be written
                there = connection.scalar(sa.select(TRUTHS.c.task).where(_is(project, task)))
            if there is not None:
                self.forget(project, task)
            return
        with self.engine.begin() as connection:
            if not connection.execute(sa.update(TRUTHS).where(_is(project, task)).values(held)).rowcount:
                # A truth that comes back is wished for under new numbers: the inbox has done the old ones.
                number = int(time.time()) - _EPOCH
                row = {"project": project, "task": task, "wanted": None, "revision": number, **held, "carried": number}
                connection.execute(sa.insert(TRUTHS).values(row))

    def forget(self, project: int, task: int) -> None:
        """Drops a task that is gone."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(TRUTHS).where(_is(project, task)))

    def want(self, project: int, task: int, overlap: int | None) -> None:
        """Gives a task another overlap to be brought to."""
        values = {"wanted": overlap, "revision": TRUTHS.c.revision + 1}
        with self.engine.begin() as connection:
            connection.execute(sa.update(TRUTHS).where(_is(project, task)).values(values))

    def open_wishes(self, project: int) -> dict[int, int]:
        """Task -> the number of its wish, where the task was not brought to it yet."""
        differs = sa.and_(TRUTHS.c.project == project, TRUTHS.c.carried != TRUTHS.c.revision)
        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(TRUTHS.c.task, TRUTHS.c.revision).where(differs))
            return {int(row.task): int(row.revision) for row in rows}

    def rows(self, project: int) -> Mapping[int, Any]:
        """Task -> its row."""
        with reading(self.engine) as connection:
            return {row.task: row for row in connection.execute(sa.select(TRUTHS).where(TRUTHS.c.project == project))}


class GroundTruthScheduler:
    """Decides who is measured by which task, of all connected projects.

    Args:
        engine: The migrated database.
        studio: Label Studio.
        inbox: Where tasks go that are to be brought to another overlap.
        policy: The policy of a project.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        engine: sa.Engine,
        studio: Studio,
        inbox: Inbox,
        policy: Callable[[int], Policy],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._studio, self._inbox = engine, studio, inbox
        self._policy, self._clock = policy, clock
        self._truths, self._projects = TruthStore(engine), ProjectStore(engine)
        self._looked: dict[int, tuple[Any, ...]] = {}
        self._rests: dict[int, float] = {}

    def run(self) -> None:
        """Looks at the projects in which something happened since the last time."""
        for connected in self._projects.all():
            project = connected.project
            try:
                policy = self._policy(project)
                if not policy.ground_truth_share and not connected.evaluates:
                    continue
                state = self._state(project), policy, self._clock() // _AGAIN_S
                if state == self._looked.get(project) or time.monotonic() < self._rests.get(project, 0.0):
                    continue
                started = time.monotonic()
                self.seed(project, policy, evaluates=connected.evaluates)
                self._looked[project], ended = state, time.monotonic()
                self._rests[project] = ended + (ended - started) / _SHARE - (ended - started)
            except LabelloopError as error:
                log.warning("seeding_failed", project=project, reason=str(error))

    def seed(self, project: int, policy: Policy, *, evaluates: bool) -> int:
        """Opens and closes the tasks of one project. Returns how many are to change.

        Args:
            project: The project's id.
            policy: Its policy.
            evaluates: Whether Label Studio serves open tasks with a ground truth first by now.
        """
        rows = self._truths.rows(project)
        measures = bool(policy.ground_truth_share and rows)
        if measures and not evaluates:
            self._let_serve(project, True)
        wished = self._wished(project, policy, rows) if measures else {}
        for task, row in rows.items():
            # An overlap that was reached is nobody's wish any more, and stays until there is another.
            reached = row.wanted is not None and row.wanted <= row.annotators and task not in wished
            if not measures or (wished.get(task) != row.wanted and not reached):
                self._truths.want(project, task, wished.get(task))
        changed = 0
        for task, revision in self._truths.open_wishes(project).items():
            hint = seed_hint(project, task, revision)
            changed += self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
        if not measures and evaluates:
            self._let_serve(project, False)
        if changed:
            log.info("seeded", project=project, changed=changed, served=len(wished))
        return changed

    def _wished(self, project: int, policy: Policy, rows: Mapping[int, Any]) -> dict[int, int]:
        here, seen = ANNOTATIONS.c, dict[int, set[int]]()
        truths = {task: row.annotation for task, row in rows.items()}
        of_project = (here.project == project, here.annotator.is_not(None))
        of_known = sa.select(here.annotator, here.task).join(
            TRUTHS, sa.and_(TRUTHS.c.project == here.project, TRUTHS.c.task == here.task)
        )
        newest = sa.select(here.annotation, here.annotator, here.task, here.updated_at).where(*of_project)
        with reading(self._engine) as connection:
            for row in connection.execute(of_known.where(*of_project)):
                seen.setdefault(row.task, set()).add(row.annotator)
            work = connection.execute(newest.order_by(here.updated_at.desc()).limit(_LATEST)).all()
        known = [
            Known(task, row.annotators, frozenset(seen.get(task, ())), row.wanted)
            for task, row in rows.items()
            if row.ours
        ]
        known = sorted(known, key=lambda each: (not each.is_open, each.price, each.task))[:_MOST_KNOWN]
        done = streams(
            (
                (each.annotator, each.task, each.annotation, each.updated_at)
                for each in reversed(work)
                if truths.get(each.task) != each.annotation
            ),
            truths,
            present=long_ago(self._clock()),
            share=policy.ground_truth_share,
        )
        return tasks_to_serve(known, [each for each in done if each.recent], first=policy.ground_truth_first)

    def _state(self, project: int) -> tuple[Any, ...]:
        here = ANNOTATIONS.c
        query = sa.select(sa.func.max(here.updated_at), sa.func.count()).where(here.project == project)
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).one())

    def _let_serve(self, project: int, serve: bool) -> None:
        """Has Label Studio serve open tasks with a ground truth before others; told once, so that people may change it.

        Without it they come by chance or, where annotators overlap, before everything else, and nobody's share is kept.
        """
        self._studio.update_project(project, annotator_evaluation_enabled=serve)
        self._projects.evaluate(project, serve)
        log.info("ground_truth_first", project=project, serve=serve)


def _is(project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(TRUTHS.c.project == project, TRUTHS.c.task == task)
