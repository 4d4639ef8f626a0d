"""Keeps the facts of tasks in the database, and gives them back one project at a time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import quick, reading
from qc_webhooks.decision.dispute_drawing import Drawing
from qc_webhooks.store.tables import FACTS
from qc_webhooks.verdict.task_facts import Facts

_ROWS_AT_A_TIME = 2000


@dataclass(frozen=True)
class Extent:
    """How much is kept of a project: the number of tasks, and when the newest was kept (seconds since 1970)."""

    tasks: int
    newest: float


class FactStore:
    """Facts by project and task. Safe from any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def keep(self, project: int, facts: Facts, drawing: Drawing | None) -> None:
        """Keeps a task's facts in place of older ones; a task that nobody annotated has none."""
        with quick(self.engine) as connection:
            connection.execute(sa.delete(FACTS).where(_is(project, facts.task)))
            if facts.turns:
                connection.execute(sa.insert(FACTS).values(row_of(project, facts, drawing)))

    def forget(self, project: int, task: int) -> None:
        """Drops the facts of a task that is gone."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(FACTS).where(_is(project, task)))

    def facts(self, project: int, task: int) -> Facts | None:
        """The facts of one task."""
        with reading(self.engine) as connection:
            found = connection.scalar(sa.select(FACTS.c.facts).where(_is(project, task)))
        return None if found is None else msgspec.json.decode(found, type=Facts)

    def all(self, project: int, *, latest: int | None = None) -> Iterator[Facts]:
        """The facts of every task of a project (or of the latest ones), the newest work first."""
        query = sa.select(FACTS.c.facts).where(FACTS.c.project == project).order_by(FACTS.c.at.desc()).limit(latest)
        decoder = msgspec.json.Decoder(Facts)
        with reading(self.engine) as connection:
            rows = connection.execution_options(yield_per=_ROWS_AT_A_TIME).scalars(query)
            for found in rows:
                yield decoder.decode(found)

    def extent(self, project: int) -> Extent:
        """How much is kept of a project."""
        query = sa.select(sa.func.count(), sa.func.max(FACTS.c.kept_at)).where(FACTS.c.project == project)
        with reading(self.engine) as connection:
            count, newest = connection.execute(query).one()
        return Extent(int(count), float(newest or 0.0))


def row_of(project: int, facts: Facts, drawing: Drawing | None) -> dict[str, object]:
    """A row of ``qc_facts``."""
    kinds = sorted({said.type for said in drawing.conflicts}) if drawing else []
    return {
        "project": project,
        "task": facts.task,
        "at": facts.at,
        "kept_at": time.time(),
        "kinds": f" {' '.join(kinds)} ",
        "people": f" {' '.join(str(turn.annotator) for turn in facts.turns)} ",
        "facts": msgspec.json.encode(facts).decode(),
        "drawing": None if drawing is None else msgspec.json.encode(drawing).decode(),
    }


def _is(project: int, task: int) -> sa.ColumnElement[bool]:
    return sa.and_(FACTS.c.project == project, FACTS.c.task == task)
