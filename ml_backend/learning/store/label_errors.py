"""Owns the memory of opinions: on which tasks the model was told to differ, and in which words."""

import time
from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import quick, reading
from ml_backend.learning.store.tables import OPINIONS


@dataclass(frozen=True)
class Opinion:
    """What a task says of the model's opinion.

    Attributes:
        task: Its number.
        note: In words, the surest difference first.
        score: Confidence of that, in [0, 1].
    """

    task: int
    note: str
    score: float


class OpinionStore:
    """The table `learn_opinions`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def all(self, project: int) -> list[Opinion]:
        """Every task of a project that was told something, the surest first."""
        query = sa.select(OPINIONS).where(OPINIONS.c.project == project)
        with reading(self.engine) as connection:
            rows = connection.execute(query.order_by(OPINIONS.c.score.desc(), OPINIONS.c.task))
            return [Opinion(row.task, row.note, row.score) for row in rows]

    def keep(self, project: int, one: Opinion) -> None:
        """Notes what a task is told."""
        mine = (OPINIONS.c.project == project) & (OPINIONS.c.task == one.task)
        with quick(self.engine) as connection:
            connection.execute(sa.delete(OPINIONS).where(mine))
            row = {"task": one.task, "note": one.note, "score": one.score, "told_at": time.time()}
            connection.execute(sa.insert(OPINIONS).values(project=project, **row))

    def drop(self, project: int, task: int | None = None) -> None:
        """Forgets a task, or the whole project."""
        mine = OPINIONS.c.project == project
        with quick(self.engine) as connection:
            connection.execute(sa.delete(OPINIONS).where(mine if task is None else mine & (OPINIONS.c.task == task)))
