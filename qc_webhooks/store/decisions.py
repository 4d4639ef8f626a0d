"""Stores the decision about each task, the annotation versions it was made from, and the log of writes."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labelloop.labeling.studio.task import Annotation
from labelloop.service.db.engine import begin_read, begin_relaxed
from qc_webhooks.decision.context import LastDecision
from qc_webhooks.events import StoredAnnotation
from qc_webhooks.store.tables import (
    ACTIONS,
    ANNOTATIONS,
    BOARDS,
    CONFIRMED_TRUTHS,
    COPIES,
    CROWDS,
    FACTS,
    PREVIEWS,
    PROJECTS,
    REVIEWS,
    SEND_BACKS,
    TASKS,
    TRUTHS,
)
from qc_webhooks.verdict.verdict import TaskVerdict

_IDS_PER_QUERY = 500

# Newest writes per task that are kept for `labelloop qc undo`.
MAX_LOGGED_WRITES = 100


@dataclass(frozen=True)
class WriteLogEntry:
    """One logged write to a task in Label Studio.

    Attributes:
        id: Row id.
        before: Values before, only of the changed fields: ``keys`` (qc_*), ``overlap``, ``is_labeled``,
            ``ground_truth`` (an annotation's id), ``overlays`` (their marks).
        after: The written values of the same fields.
        task: The task's id.
        route: Keys of ROUTES, joined by +.
    """

    id: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    task: int = 0
    route: str = ""


class DecisionStore:
    """Decisions in the database. Thread-safe; the inbox guarantees one worker per task."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def locate_annotations(self, annotations: Iterable[int]) -> dict[int, list[StoredAnnotation]]:
        """Annotation id -> tasks it was read in: two entries where Label Studio reused the id."""
        places: dict[int, list[StoredAnnotation]] = {}
        ids = sorted(set(annotations))
        with begin_read(self.engine) as connection:
            for start in range(0, len(ids), _IDS_PER_QUERY):
                chunk = ids[start : start + _IDS_PER_QUERY]
                rows = connection.execute(sa.select(ANNOTATIONS).where(ANNOTATIONS.c.annotation.in_(chunk)))
                for row in rows:
                    places.setdefault(row.annotation, []).append(
                        StoredAnnotation(row.project, row.task, row.updated_at)
                    )
        return places

    def annotation_versions(self, project: int, tasks: Sequence[int] | None = None) -> dict[int, dict[int, str]]:
        """Task id -> {annotation: updated_at} of the project (or of these tasks) at the last check."""
        query = sa.select(ANNOTATIONS).where(ANNOTATIONS.c.project == project)
        if tasks is not None:
            query = query.where(ANNOTATIONS.c.task.in_(list(tasks)))
        versions: dict[int, dict[int, str]] = {}
        with begin_read(self.engine) as connection:
            for row in connection.execute(query):
                versions.setdefault(row.task, {})[row.annotation] = row.updated_at
        return versions

    def annotated_tasks(self, project: int) -> set[int]:
        """Tasks of a project with known annotations."""
        query = sa.select(ANNOTATIONS.c.task).distinct().where(ANNOTATIONS.c.project == project)
        with begin_read(self.engine) as connection:
            return set(connection.scalars(query))

    def count_annotations(self, project: int) -> int:
        """Number of known annotations of a project, skipped ones included."""
        query = sa.select(sa.func.count()).select_from(ANNOTATIONS).where(ANNOTATIONS.c.project == project)
        with begin_read(self.engine) as connection:
            return connection.scalar(query) or 0

    def judged_tasks(self, project: int) -> set[int]:
        """Judged tasks of a project."""
        with begin_read(self.engine) as connection:
            return set(connection.scalars(sa.select(TASKS.c.task).where(TASKS.c.project == project)))

    def task_stamps(self, project: int, tasks: Sequence[int]) -> dict[int, str | None]:
        """Task -> its updated_at at the last comparison, of those tasks that were judged."""
        stamps: dict[int, str | None] = {}
        with begin_read(self.engine) as connection:
            for start in range(0, len(tasks), _IDS_PER_QUERY):
                chunk = TASKS.c.task.in_(list(tasks[start : start + _IDS_PER_QUERY]))
                query = sa.select(TASKS.c.task, TASKS.c.stamp).where(TASKS.c.project == project, chunk)
                stamps |= {int(row.task): row.stamp for row in connection.execute(query)}
        return stamps

    def save_stamps(self, project: int, stamps: Mapping[int, str]) -> None:
        """Save the updated_at at which these tasks were found unchanged."""
        with self.engine.begin() as connection:
            for task, stamp in stamps.items():
                connection.execute(sa.update(TASKS).where(_is_task(TASKS, project, task)).values(stamp=stamp))

    def delete_project(self, project: int) -> None:
        """Delete a project's rows from all tables except the write log."""
        with self.engine.begin() as connection:
            for table in (TASKS, ANNOTATIONS, CROWDS, FACTS, BOARDS, TRUTHS, COPIES, REVIEWS, PREVIEWS, SEND_BACKS,
                          CONFIRMED_TRUTHS, PROJECTS):  # fmt: skip
                connection.execute(sa.delete(table).where(table.c.project == project))

    def last_decision(self, project: int, task: int, *, task_created_at: str) -> LastDecision | None:
        """Last decision about the task created at ``task_created_at``; None without one."""
        with begin_read(self.engine) as connection:
            row = connection.execute(sa.select(TASKS).where(_is_task(TASKS, project, task))).one_or_none()
        if row is None or row.born != task_created_at:
            return None
        keys = None if row.keys is None else json.loads(row.keys)
        return LastDecision(row.fingerprint, keys, row.asked_overlap, row.asked_at, row.found_overlap, row.overlay)

    def save_decision(
        self,
        project: int,
        task: int,
        decision: LastDecision,
        verdict: TaskVerdict,
        annotations: Iterable[Annotation],
        *,
        born: str,
        review: bool,
        stamp: str = "",
    ) -> None:
        """Save a verdict, the values written to the task, and the annotation versions the verdict is based on."""
        row = {
            "project": project, "task": task, "born": born, "fingerprint": decision.fingerprint,
            "outcome": verdict.outcome, "agreement": verdict.agreement, "annotators": verdict.annotators,
            "review": review, "keys": None if decision.keys is None else json.dumps(dict(decision.keys)),
            "asked_overlap": decision.asked_overlap, "asked_at": decision.asked_at,
            "found_overlap": decision.found_overlap,
            "decided_at": time.time(), "overlay": decision.overlay, "stamp": stamp,
        }  # fmt: skip
        rows = [
            {
                "annotation": annotation.id,
                "project": project,
                "task": task,
                "updated_at": annotation.updated_at,
                "annotator": annotation.completed_by,
            }
            for annotation in annotations
            if annotation.id is not None
        ]
        with begin_relaxed(self.engine) as connection:  # lost in a power cut it is redone: the event is open too then
            _delete_task(connection, project, task)
            connection.execute(sa.insert(TASKS).values(row))
            if rows:
                connection.execute(sa.insert(ANNOTATIONS), rows)

    def delete_task(self, project: int, task: int) -> None:
        """Delete a task's rows from all tables except the write log."""
        with self.engine.begin() as connection:
            _delete_task(connection, project, task)
            for table in (PREVIEWS, SEND_BACKS, CONFIRMED_TRUTHS):
                connection.execute(sa.delete(table).where(_is_task(table, project, task)))

    def reset_overlaps(self, project: int) -> None:
        """Clear the overlaps saved for a project, after Label Studio has reset them all."""
        cleared = {"asked_overlap": None, "asked_at": None, "found_overlap": None}
        with self.engine.begin() as connection:
            connection.execute(sa.update(TASKS).where(TASKS.c.project == project).values(cleared))

    def planned_writes(self, project: int, task: int) -> list[WriteLogEntry]:
        """Writes begun and never finished by a killed worker."""
        open_ = sa.select(ACTIONS).where(_is_task(ACTIONS, project, task), ACTIONS.c.state == "planned")
        with begin_read(self.engine) as connection:
            rows = connection.execute(open_.order_by(ACTIONS.c.id)).all()
        return [_entry_of(row) for row in rows]

    def finished_writes(self, project: int, *, task: int | None = None, last: int | None = None) -> list[WriteLogEntry]:
        """Finished writes to a project (or one task) that were not undone, newest first."""
        query = sa.select(ACTIONS).where(ACTIONS.c.project == project, ACTIONS.c.state == "done")
        if task is not None:
            query = query.where(ACTIONS.c.task == task)
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(ACTIONS.c.id.desc()).limit(last)).all()
        return [_entry_of(row) for row in rows]

    def reviews_without_overlays(self, project: int) -> dict[int, str]:
        """Task id -> fingerprint of tasks that wait for a reviewer and have no overlays yet."""
        waits = sa.and_(TASKS.c.project == project, TASKS.c.review, TASKS.c.overlay.is_(None))
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(TASKS.c.task, TASKS.c.fingerprint).where(waits)).all()
        return {int(row.task): str(row.fingerprint) for row in rows}

    def reviews_without_copy(self, project: int) -> dict[int, str]:
        """Task id -> fingerprint of tasks that wait for a reviewer and have no copy in a review project."""
        copied = sa.exists().where(COPIES.c.project == TASKS.c.project, COPIES.c.task == TASKS.c.task)
        waits = sa.and_(TASKS.c.project == project, TASKS.c.review, sa.not_(copied))
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(TASKS.c.task, TASKS.c.fingerprint).where(waits)).all()
        return {int(row.task): str(row.fingerprint) for row in rows}

    def begin_write(
        self, project: int, task: int, *, route: str, reason: str, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> WriteLogEntry:
        """Log a write before it is made, and delete the task's oldest beyond ``MAX_LOGGED_WRITES``."""
        row = {
            "project": project, "task": task, "route": route, "reason": reason, "before": json.dumps(dict(before)),
            "after": json.dumps(dict(after)), "state": "planned", "created_at": time.time(),
        }  # fmt: skip
        own = _is_task(ACTIONS, project, task)
        oldest = sa.select(ACTIONS.c.id).where(own).order_by(ACTIONS.c.id.desc()).offset(MAX_LOGGED_WRITES - 1).limit(1)
        with self.engine.begin() as connection:
            connection.execute(sa.delete(ACTIONS).where(own, ACTIONS.c.id <= oldest.scalar_subquery()))
            key = connection.execute(sa.insert(ACTIONS).values(row)).inserted_primary_key
        return WriteLogEntry(int(key[0]) if key else 0, before, after, task, route)

    def finish_write(self, write: WriteLogEntry, *, done: bool) -> None:
        """Close a logged write: done, or overtaken where the task has another state by now."""
        self.set_write_state(write, "done" if done else "overtaken")

    def set_write_state(self, write: WriteLogEntry, state: str) -> None:
        """Set the state of a logged write; see the table ``qc_actions``."""
        with begin_relaxed(self.engine) as connection:  # a write that stays planned is compared with the task later
            connection.execute(sa.update(ACTIONS).where(ACTIONS.c.id == write.id).values(state=state))


def _entry_of(row: Any) -> WriteLogEntry:
    return WriteLogEntry(row.id, json.loads(row.before), json.loads(row.after), row.task, row.route)


def _is_task(table: sa.Table, project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.project == project, table.c.task == task)


def _delete_task(connection: sa.Connection, project: int, task: int) -> None:
    for table in (TASKS, ANNOTATIONS):
        connection.execute(sa.delete(table).where(_is_task(table, project, task)))
