"""Serves tasks with a ground truth to annotators, as the policy's ``ground_truth_share`` requests.

This module only decides which tasks and for whom; the regular check opens them (the route ``seed``).
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
import structlog

from labelloop.service.db.engine import begin_read
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import Studio
from qc_webhooks.decision.ground_truth_sampling import (
    GroundTruthTask,
    RequestedOverlap,
    active_since,
    annotator_quotas,
    tasks_to_serve,
)
from qc_webhooks.events import ground_truth_event
from qc_webhooks.policy import Policy
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import ANNOTATIONS, TRUTHS

# Newest annotations read per project to find who annotated what last.
_MAX_ANNOTATIONS = 20_000
# Maximum number of candidate tasks: a project may have thousands of resolved disputes.
_MAX_CANDIDATES = 500
# Revisions are seconds since this time, so that they stay small.
_REVISION_EPOCH = 1_760_000_000
# Maximum share of a worker's time.
_MAX_TIME_SHARE = 0.05
# Seconds between runs without new annotations: an annotator may have left.
_REFRESH_S = 60

log = structlog.get_logger(__name__)


class GroundTruthStore:
    """Tasks with a ground truth in the database. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def requested_overlap(self, project: int, task: int) -> RequestedOverlap:
        """Overlap requested for a task."""
        query = sa.select(TRUTHS.c.wanted, TRUTHS.c.revision).where(_is_task(project, task))
        with begin_read(self.engine) as connection:
            row = connection.execute(query).one_or_none()
        return RequestedOverlap() if row is None else RequestedOverlap(row.wanted, row.revision)

    def save(
        self, project: int, task: int, *, truth: int | None, annotators: int, ours: bool, carried: RequestedOverlap
    ) -> None:
        """Save the ground truth of a task, or that it has none.

        Args:
            project: The project's id.
            task: The task's id.
            truth: Id of the ground truth annotation; None without one.
            annotators: Number of annotators of the task.
            ours: Whether only quality control changed its overlap.
            carried: The requested overlap that was applied.
        """
        values = {"annotation": truth, "annotators": annotators, "ours": ours, "carried": carried.revision}
        if truth is None:
            with begin_read(self.engine) as connection:  # most tasks never had one: nothing to write
                exists = connection.scalar(sa.select(TRUTHS.c.task).where(_is_task(project, task)))
            if exists is not None:
                self.delete(project, task)
            return
        with self.engine.begin() as connection:
            if not connection.execute(sa.update(TRUTHS).where(_is_task(project, task)).values(values)).rowcount:
                # A restored ground truth gets a new revision: the inbox has done the old ones.
                revision = int(time.time()) - _REVISION_EPOCH
                row = {
                    "project": project,
                    "task": task,
                    "wanted": None,
                    "revision": revision,
                    **values,
                    "carried": revision,
                }
                connection.execute(sa.insert(TRUTHS).values(row))

    def delete(self, project: int, task: int) -> None:
        """Delete a task's row."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(TRUTHS).where(_is_task(project, task)))

    def request_overlap(self, project: int, task: int, overlap: int | None) -> None:
        """Request another overlap for a task."""
        values = {"wanted": overlap, "revision": TRUTHS.c.revision + 1}
        with self.engine.begin() as connection:
            connection.execute(sa.update(TRUTHS).where(_is_task(project, task)).values(values))

    def pending_requests(self, project: int) -> dict[int, int]:
        """Task -> revision of requests that were not applied yet."""
        differs = sa.and_(TRUTHS.c.project == project, TRUTHS.c.carried != TRUTHS.c.revision)
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(TRUTHS.c.task, TRUTHS.c.revision).where(differs))
            return {int(row.task): int(row.revision) for row in rows}

    def rows(self, project: int) -> Mapping[int, Any]:
        """Row of each task with a ground truth, by task id."""
        with begin_read(self.engine) as connection:
            return {row.task: row for row in connection.execute(sa.select(TRUTHS).where(TRUTHS.c.project == project))}


class GroundTruthScheduler:
    """Decides which annotator is measured on which task, in all connected projects.

    Args:
        engine: The migrated database.
        studio: Label Studio.
        inbox: Receives the tasks whose overlap changes.
        policy: Returns a project's policy.
        clock: Returns seconds since 1970.
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
        self._ground_truths, self._projects = GroundTruthStore(engine), ProjectStore(engine)
        self._states: dict[int, tuple[Any, ...]] = {}
        self._next_run_at: dict[int, float] = {}

    def run(self) -> None:
        """Update the projects that changed since the last run."""
        for connected in self._projects.all():
            project = connected.project
            try:
                policy = self._policy(project)
                if not policy.ground_truth_share and not connected.evaluates:
                    continue
                state = self._state(project), policy, self._clock() // _REFRESH_S
                if state == self._states.get(project) or time.monotonic() < self._next_run_at.get(project, 0.0):
                    continue
                started = time.monotonic()
                self.update(project, policy, evaluates=connected.evaluates)
                self._states[project], ended = state, time.monotonic()
                self._next_run_at[project] = ended + (ended - started) / _MAX_TIME_SHARE - (ended - started)
            except LabelloopError as error:
                log.warning("seeding_failed", project=project, reason=str(error))

    def update(self, project: int, policy: Policy, *, evaluates: bool) -> int:
        """Request overlaps for the tasks of one project. Returns the number of tasks that change.

        Args:
            project: The project's id.
            policy: Its policy.
            evaluates: Whether Label Studio serves open tasks with a ground truth first now.
        """
        rows = self._ground_truths.rows(project)
        measures = bool(policy.ground_truth_share and rows)
        if measures and not evaluates:
            self._set_served_first(project, True)
        requested = self._requests(project, policy, rows) if measures else {}
        for task, row in rows.items():
            # A reached overlap stays until another is requested.
            is_reached = row.wanted is not None and row.wanted <= row.annotators and task not in requested
            if not measures or (requested.get(task) != row.wanted and not is_reached):
                self._ground_truths.request_overlap(project, task, requested.get(task))
        changed = 0
        for task, revision in self._ground_truths.pending_requests(project).items():
            hint = ground_truth_event(project, task, revision)
            changed += self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
        if not measures and evaluates:
            self._set_served_first(project, False)
        if changed:
            log.info("seeded", project=project, changed=changed, served=len(requested))
        return changed

    def _requests(self, project: int, policy: Policy, rows: Mapping[int, Any]) -> dict[int, int]:
        columns, annotators_by_task = ANNOTATIONS.c, dict[int, set[int]]()
        truths = {task: row.annotation for task, row in rows.items()}
        of_project = (columns.project == project, columns.annotator.is_not(None))
        of_known = sa.select(columns.annotator, columns.task).join(
            TRUTHS, sa.and_(TRUTHS.c.project == columns.project, TRUTHS.c.task == columns.task)
        )
        newest = sa.select(columns.annotation, columns.annotator, columns.task, columns.updated_at).where(*of_project)
        with begin_read(self._engine) as connection:
            for row in connection.execute(of_known.where(*of_project)):
                annotators_by_task.setdefault(row.task, set()).add(row.annotator)
            work = connection.execute(newest.order_by(columns.updated_at.desc()).limit(_MAX_ANNOTATIONS)).all()
        candidates = [
            GroundTruthTask(task, row.annotators, frozenset(annotators_by_task.get(task, ())), row.wanted)
            for task, row in rows.items()
            if row.ours
        ]
        candidates = sorted(candidates, key=lambda row: (not row.is_open, row.due_threshold, row.task))[
            :_MAX_CANDIDATES
        ]
        histories = annotator_quotas(
            (
                (row.annotator, row.task, row.annotation, row.updated_at)
                for row in reversed(work)
                if truths.get(row.task) != row.annotation
            ),
            truths,
            since=active_since(self._clock()),
            share=policy.ground_truth_share,
        )
        return tasks_to_serve(candidates, [row for row in histories if row.recent], first=policy.ground_truth_first)

    def _state(self, project: int) -> tuple[Any, ...]:
        columns = ANNOTATIONS.c
        query = sa.select(sa.func.max(columns.updated_at), sa.func.count()).where(columns.project == project)
        with begin_read(self._engine) as connection:
            return tuple(connection.execute(query).one())

    def _set_served_first(self, project: int, serve: bool) -> None:
        """Set whether Label Studio serves open tasks with a ground truth first; set once, so that people may change it.

        Otherwise they are served at random or, where annotators overlap, before all other tasks, and the requested
        share is not met.
        """
        self._studio.update_project(project, annotator_evaluation_enabled=serve)
        self._projects.set_evaluates(project, serve)
        log.info("ground_truth_first", project=project, serve=serve)


def _is_task(project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(TRUTHS.c.project == project, TRUTHS.c.task == task)
