"""Table `learn_opinions`: the label error notes on tasks."""

import time
from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, begin_relaxed
from ml_backend.learning.store.tables import LABEL_ERROR_NOTES


@dataclass(frozen=True)
class LabelErrorNote:
    """The label error note of a task.

    Attributes:
        task: The task id.
        note: Text, most confident issue first.
        score: Confidence of that issue, in [0, 1].
    """

    task: int
    note: str
    score: float


class LabelErrorStore:
    """The table `learn_opinions`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def all(self, project: int) -> list[LabelErrorNote]:
        """Return every note of a project, most confident first."""
        query = sa.select(LABEL_ERROR_NOTES).where(LABEL_ERROR_NOTES.c.project == project)
        with begin_read(self.engine) as connection:
            rows = connection.execute(query.order_by(LABEL_ERROR_NOTES.c.score.desc(), LABEL_ERROR_NOTES.c.task))
            return [LabelErrorNote(row.task, row.note, row.score) for row in rows]

    def save(self, project: int, entry: LabelErrorNote) -> None:
        """Insert or replace the note of a task."""
        where = (LABEL_ERROR_NOTES.c.project == project) & (LABEL_ERROR_NOTES.c.task == entry.task)
        with begin_relaxed(self.engine) as connection:
            connection.execute(sa.delete(LABEL_ERROR_NOTES).where(where))
            row = {"task": entry.task, "note": entry.note, "score": entry.score, "told_at": time.time()}
            connection.execute(sa.insert(LABEL_ERROR_NOTES).values(project=project, **row))

    def drop(self, project: int, task: int | None = None) -> None:
        """Delete the note of a task, or all notes of the project."""
        where = LABEL_ERROR_NOTES.c.project == project
        with begin_relaxed(self.engine) as connection:
            connection.execute(
                sa.delete(LABEL_ERROR_NOTES).where(
                    where if task is None else where & (LABEL_ERROR_NOTES.c.task == task)
                )
            )
