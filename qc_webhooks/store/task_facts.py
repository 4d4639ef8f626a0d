"""Stores the facts of tasks in the database."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, begin_relaxed
from qc_webhooks.decision.dispute_drawing import DisputeDrawing
from qc_webhooks.store.tables import FACTS
from qc_webhooks.verdict.task_facts import TaskFacts

_BATCH_ROWS = 2000


@dataclass(frozen=True)
class FactsExtent:
    """Number of stored tasks of a project, and the time of the newest write (seconds since 1970)."""

    tasks: int
    newest: float


class FactStore:
    """Facts by project and task. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def save(self, project: int, facts: TaskFacts, drawing: DisputeDrawing | None) -> None:
        """Replace the facts of a task; a task without annotations has none."""
        with begin_relaxed(self.engine) as connection:
            connection.execute(sa.delete(FACTS).where(_is_task(project, facts.task)))
            if facts.annotations:
                connection.execute(sa.insert(FACTS).values(facts_row(project, facts, drawing)))

    def delete(self, project: int, task: int) -> None:
        """Delete the facts of a task."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(FACTS).where(_is_task(project, task)))

    def load(self, project: int, task: int) -> TaskFacts | None:
        """Facts of one task; None where none are stored."""
        with begin_read(self.engine) as connection:
            encoded = connection.scalar(sa.select(FACTS.c.facts).where(_is_task(project, task)))
        return None if encoded is None else msgspec.json.decode(encoded, type=TaskFacts)

    def iter_project(self, project: int, *, latest: int | None = None) -> Iterator[TaskFacts]:
        """Facts of all tasks of a project, or of the latest ones, newest annotation first."""
        query = sa.select(FACTS.c.facts).where(FACTS.c.project == project).order_by(FACTS.c.at.desc()).limit(latest)
        decoder = msgspec.json.Decoder(TaskFacts)
        with begin_read(self.engine) as connection:
            rows = connection.execution_options(yield_per=_BATCH_ROWS).scalars(query)
            for encoded in rows:
                yield decoder.decode(encoded)

    def extent(self, project: int) -> FactsExtent:
        """Number of stored tasks of a project, and the time of the newest."""
        query = sa.select(sa.func.count(), sa.func.max(FACTS.c.kept_at)).where(FACTS.c.project == project)
        with begin_read(self.engine) as connection:
            count, newest = connection.execute(query).one()
        return FactsExtent(int(count), float(newest or 0.0))


def facts_row(project: int, facts: TaskFacts, drawing: DisputeDrawing | None) -> dict[str, object]:
    """Row of ``qc_facts`` by column name."""
    kinds = sorted({conflict.type for conflict in drawing.conflicts}) if drawing else []
    return {
        "project": project,
        "task": facts.task,
        "at": facts.last_annotated_at,
        "kept_at": time.time(),
        "kinds": f" {' '.join(kinds)} ",
        "people": f" {' '.join(str(annotation.annotator) for annotation in facts.annotations)} ",
        "facts": msgspec.json.encode(facts).decode(),
        "drawing": None if drawing is None else msgspec.json.encode(drawing).decode(),
    }


def _is_task(project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(FACTS.c.project == project, FACTS.c.task == task)
