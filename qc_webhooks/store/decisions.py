"""What quality control remembers of tasks and annotations: the map from deleted ids, and what we wrote last."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labelloop.labeling.studio.task import Annotation
from labelloop.service.db.engine import quick, reading
from qc_webhooks.decision.context import LastDecision
from qc_webhooks.events import Known
from qc_webhooks.store.tables import (
    ACTIONS,
    ANNOTATIONS,
    BOARDS,
    COPIES,
    CROWDS,
    FACTS,
    PROJECTS,
    REVIEWS,
    TASKS,
    TRUTHS,
)
from qc_webhooks.verdict.verdict import Verdict

_IDS_A_QUERY = 500


KEPT_WRITES = 100
"""Writes to one task that are remembered, for `labelloop qc undo`."""


@dataclass(frozen=True)
class WriteLogEntry:
    """One change of a task in Label Studio, as the log keeps it.

    Attributes:
        id: Its row.
        before: What was there, only the fields that change: ``keys`` (qc_*), ``overlap``, ``is_labeled``,
            ``ground_truth`` (an annotation's id), ``overlays`` (their marks).
        after: The same fields as we set them.
        task: The task's id.
        route: Keys of ROUTES, joined by +.
    """

    id: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    task: int = 0
    route: str = ""


class DecisionStore:
    """Remembers in the database. Safe from any thread; one worker at a time handles a task (the inbox sees to it)."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def known(self, annotations: Iterable[int]) -> dict[int, list[Known]]:
        """Annotation id -> where we have read it before: one place, or two where Label Studio gave an id anew."""
        found: dict[int, list[Known]] = {}
        ids = sorted(set(annotations))
        with reading(self.engine) as connection:
            for start in range(0, len(ids), _IDS_A_QUERY):
                chunk = ids[start : start + _IDS_A_QUERY]
                rows = connection.execute(sa.select(ANNOTATIONS).where(ANNOTATIONS.c.annotation.in_(chunk)))
                for row in rows:
                    found.setdefault(row.annotation, []).append(Known(row.project, row.task, row.updated_at))
        return found

    def known_in(self, project: int, tasks: Sequence[int] | None = None) -> dict[int, dict[int, str]]:
        """Task id -> {annotation: updated_at} of the project (or of these tasks), as we have read them last."""
        query = sa.select(ANNOTATIONS).where(ANNOTATIONS.c.project == project)
        if tasks is not None:
            query = query.where(ANNOTATIONS.c.task.in_(list(tasks)))
        found: dict[int, dict[int, str]] = {}
        with reading(self.engine) as connection:
            for row in connection.execute(query):
                found.setdefault(row.task, {})[row.annotation] = row.updated_at
        return found

    def annotated(self, project: int) -> set[int]:
        """The tasks of a project of which we know annotations."""
        query = sa.select(ANNOTATIONS.c.task).distinct().where(ANNOTATIONS.c.project == project)
        with reading(self.engine) as connection:
            return set(connection.scalars(query))

    def count_annotations(self, project: int) -> int:
        """How many annotations of a project we know, skipped ones too."""
        query = sa.select(sa.func.count()).select_from(ANNOTATIONS).where(ANNOTATIONS.c.project == project)
        with reading(self.engine) as connection:
            return connection.scalar(query) or 0

    def tasks(self, project: int) -> set[int]:
        """The tasks of a project that we have judged."""
        with reading(self.engine) as connection:
            return set(connection.scalars(sa.select(TASKS.c.task).where(TASKS.c.project == project)))

    def stamps(self, project: int, tasks: Sequence[int]) -> dict[int, str | None]:
        """Task -> its own updated_at when it was compared last, of these tasks that we have judged."""
        found: dict[int, str | None] = {}
        with reading(self.engine) as connection:
            for start in range(0, len(tasks), _IDS_A_QUERY):
                those = TASKS.c.task.in_(list(tasks[start : start + _IDS_A_QUERY]))
                query = sa.select(TASKS.c.task, TASKS.c.stamp).where(TASKS.c.project == project, those)
                found |= {int(row.task): row.stamp for row in connection.execute(query)}
        return found

    def stamp(self, project: int, stamps: Mapping[int, str]) -> None:
        """Notes that these tasks were compared as they were then, and found as we know them."""
        with self.engine.begin() as connection:
            for task, stamp in stamps.items():
                connection.execute(sa.update(TASKS).where(_is(TASKS, project, task)).values(stamp=stamp))

    def forget_project(self, project: int) -> None:
        """Drops all we know of a project that is gone. The log of what we wrote stays."""
        with self.engine.begin() as connection:
            for table in (TASKS, ANNOTATIONS, CROWDS, FACTS, BOARDS, TRUTHS, COPIES, REVIEWS, PROJECTS):
                connection.execute(sa.delete(table).where(table.c.project == project))

    def recall(self, project: int, task: int, *, task_created_at: str) -> LastDecision | None:
        """What we decided last about the task that was created at ``born``; None: nothing."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(TASKS).where(_is(TASKS, project, task))).one_or_none()
        if row is None or row.born != task_created_at:
            return None
        keys = None if row.keys is None else json.loads(row.keys)
        return LastDecision(row.fingerprint, keys, row.asked_overlap, row.asked_at, row.found_overlap, row.overlay)

    def remember(
        self,
        project: int,
        task: int,
        memory: LastDecision,
        verdict: Verdict,
        annotations: Iterable[Annotation],
        *,
        born: str,
        review: bool,
        stamp: str = "",
    ) -> None:
        """Keeps a verdict, what we left in the task, and the versions of the annotations it was drawn from."""
        row = {
            "project": project, "task": task, "born": born, "fingerprint": memory.fingerprint,
            "outcome": verdict.outcome, "agreement": verdict.agreement, "annotators": verdict.annotators,
            "review": review, "keys": None if memory.keys is None else json.dumps(dict(memory.keys)),
            "asked_overlap": memory.asked_overlap, "asked_at": memory.asked_at, "found_overlap": memory.found_overlap,
            "decided_at": time.time(), "overlay": memory.overlay, "stamp": stamp,
        }  # fmt: skip
        rows = [
            {
                "annotation": each.id,
                "project": project,
                "task": task,
                "updated_at": each.updated_at,
                "annotator": each.completed_by,
            }
            for each in annotations
            if each.id is not None
        ]
        with quick(self.engine) as connection:  # found out again when a power cut took it: then the event is open too
            _forget(connection, project, task)
            connection.execute(sa.insert(TASKS).values(row))
            if rows:
                connection.execute(sa.insert(ANNOTATIONS), rows)

    def forget(self, project: int, task: int) -> None:
        """Drops all we know of a task that is gone. The log of what we wrote stays."""
        with self.engine.begin() as connection:
            _forget(connection, project, task)

    def forget_overlaps(self, project: int) -> None:
        """Drops what we know of the project's overlaps: Label Studio has just set them all anew."""
        gone = {"asked_overlap": None, "asked_at": None, "found_overlap": None}
        with self.engine.begin() as connection:
            connection.execute(sa.update(TASKS).where(TASKS.c.project == project).values(gone))

    def planned(self, project: int, task: int) -> list[WriteLogEntry]:
        """Writes that were begun and never finished: a worker was killed in between."""
        open_ = sa.select(ACTIONS).where(_is(ACTIONS, project, task), ACTIONS.c.state == "planned")
        with reading(self.engine) as connection:
            rows = connection.execute(open_.order_by(ACTIONS.c.id)).all()
        return [_write(row) for row in rows]

    def done(self, project: int, *, task: int | None = None, last: int | None = None) -> list[WriteLogEntry]:
        """The writes to a project (or one task) that were carried out and not undone, the newest first."""
        query = sa.select(ACTIONS).where(ACTIONS.c.project == project, ACTIONS.c.state == "done")
        if task is not None:
            query = query.where(ACTIONS.c.task == task)
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(ACTIONS.c.id.desc()).limit(last)).all()
        return [_write(row) for row in rows]

    def without_overlays(self, project: int) -> dict[int, str]:
        """Task id -> fingerprint of the disputes that wait for a reviewer and whose overlays are not settled."""
        waits = sa.and_(TASKS.c.project == project, TASKS.c.review, TASKS.c.overlay.is_(None))
        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(TASKS.c.task, TASKS.c.fingerprint).where(waits)).all()
        return {int(row.task): str(row.fingerprint) for row in rows}

    def uncopied(self, project: int) -> dict[int, str]:
        """Task id -> fingerprint of what waits for a reviewer and has no copy in a review project."""
        copied = sa.exists().where(COPIES.c.project == TASKS.c.project, COPIES.c.task == TASKS.c.task)
        waits = sa.and_(TASKS.c.project == project, TASKS.c.review, sa.not_(copied))
        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(TASKS.c.task, TASKS.c.fingerprint).where(waits)).all()
        return {int(row.task): str(row.fingerprint) for row in rows}

    def begin(
        self, project: int, task: int, *, route: str, reason: str, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> WriteLogEntry:
        """Logs a write that is about to be made; of a task the newest `KEPT_WRITES` stay."""
        row = {
            "project": project, "task": task, "route": route, "reason": reason, "before": json.dumps(dict(before)),
            "after": json.dumps(dict(after)), "state": "planned", "created_at": time.time(),
        }  # fmt: skip
        own = _is(ACTIONS, project, task)
        oldest = sa.select(ACTIONS.c.id).where(own).order_by(ACTIONS.c.id.desc()).offset(KEPT_WRITES - 1).limit(1)
        with self.engine.begin() as connection:
            connection.execute(sa.delete(ACTIONS).where(own, ACTIONS.c.id <= oldest.scalar_subquery()))
            key = connection.execute(sa.insert(ACTIONS).values(row)).inserted_primary_key
        return WriteLogEntry(int(key[0]) if key else 0, before, after, task, route)

    def finish(self, write: WriteLogEntry, *, done: bool) -> None:
        """Closes a logged write: done, or overtaken because the task is in another state by now."""
        self.mark(write, "done" if done else "overtaken")

    def mark(self, write: WriteLogEntry, state: str) -> None:
        """Sets the state of a logged write; see the table ``qc_actions``."""
        with quick(self.engine) as connection:  # one that stays planned is compared with the task, and closed then
            connection.execute(sa.update(ACTIONS).where(ACTIONS.c.id == write.id).values(state=state))


def _write(row: Any) -> WriteLogEntry:
    return WriteLogEntry(row.id, json.loads(row.before), json.loads(row.after), row.task, row.route)


def _is(table: sa.Table, project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.project == project, table.c.task == task)


def _forget(connection: sa.Connection, project: int, task: int) -> None:
    for table in (TASKS, ANNOTATIONS):
        connection.execute(sa.delete(table).where(_is(table, project, task)))
