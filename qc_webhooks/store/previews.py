"""Stores the verdict on each task under the newest defaults, for projects that keep older ones."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, begin_relaxed
from qc_webhooks.store.tables import PREVIEWS, TASKS


@dataclass(frozen=True)
class DefaultsPreview:
    """What the newest defaults change in a project.

    Attributes:
        tasks: Judged tasks with enough annotators.
        known: Those of them whose verdict under the newest defaults is known.
        disputed: Tasks that agree now and would be disputed, the first 1,000 ids.
        disputed_count: Number of these tasks.
        kinds: Type of conflict -> number of these tasks.
        agreed_count: Tasks that are disputed now and would agree.
    """

    tasks: int
    known: int
    disputed: tuple[int, ...]
    disputed_count: int
    kinds: Counter[str]
    agreed_count: int


class PreviewStore:
    """Previews by project and task."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def save(self, project: int, task: int, outcome: str, kinds: Iterable[str]) -> None:
        """Save the verdict on a task under the newest defaults."""
        row = {"project": project, "task": task, "outcome": outcome, "kinds": " ".join(sorted(set(kinds)))}
        with begin_relaxed(self.engine) as connection:  # lost in a power cut it is computed again
            connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.project == project, PREVIEWS.c.task == task))
            connection.execute(sa.insert(PREVIEWS).values(row))

    def missing(self, project: int, *, limit: int) -> list[int]:
        """Judged tasks without a preview, at most ``limit``."""
        known = sa.exists().where(PREVIEWS.c.project == TASKS.c.project, PREVIEWS.c.task == TASKS.c.task)
        query = sa.select(TASKS.c.task).where(*_judged(project), sa.not_(known)).order_by(TASKS.c.task).limit(limit)
        with begin_read(self.engine) as connection:
            return [int(task) for task in connection.scalars(query)]

    def delete_project(self, project: int) -> None:
        """Delete the previews of a project."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.project == project))

    def summary(self, project: int) -> DefaultsPreview:
        """What the newest defaults change in a project."""
        same = sa.and_(PREVIEWS.c.project == TASKS.c.project, PREVIEWS.c.task == TASKS.c.task)
        joined = sa.select(TASKS.c.task, TASKS.c.outcome, PREVIEWS.c.outcome.label("preview"), PREVIEWS.c.kinds)
        query = joined.select_from(TASKS.outerjoin(PREVIEWS, same)).where(*_judged(project)).order_by(TASKS.c.task)
        tasks = known = disputed_count = agreed_count = 0
        disputed: list[int] = []
        kinds: Counter[str] = Counter()
        with begin_read(self.engine) as connection:
            for row in connection.execution_options(yield_per=2000).execute(query):
                tasks += 1
                known += row.preview is not None
                if row.outcome != "disputed" and row.preview == "disputed":
                    disputed_count += 1
                    kinds.update(row.kinds.split())
                    if len(disputed) < 1000:
                        disputed.append(int(row.task))
                agreed_count += row.outcome == "disputed" and row.preview == "agreed"
        return DefaultsPreview(tasks, known, tuple(disputed), disputed_count, kinds, agreed_count)


def _judged(project: int) -> tuple[sa.ColumnElement[bool], ...]:
    return TASKS.c.project == project, TASKS.c.outcome.in_(("agreed", "disputed", "not_judged"))
