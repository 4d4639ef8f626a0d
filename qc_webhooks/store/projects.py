"""The connected projects, and how far the poller has read each."""

import time
from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import reading
from qc_webhooks.store.tables import PROJECTS


@dataclass(frozen=True)
class Connected:
    """A project that quality control watches.

    Attributes:
        project: Its id.
        cursor: The newest ``updated_at`` of a task that was compared; empty: none yet.
        settled: Whether a poll found nothing newer since.
        polled_at: Seconds since 1970 of the last poll; None: never.
        swept_at: Seconds since 1970 of the last comparison of every task; None: never.
        evaluates: Whether we have let Label Studio serve tasks with a ground truth first.
    """

    project: int
    cursor: str = ""
    settled: bool = False
    polled_at: float | None = None
    swept_at: float | None = None
    evaluates: bool = False


class ProjectStore:
    """Keeps the connected projects in the database."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def all(self) -> list[Connected]:
        """Every connected project, by id."""
        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(PROJECTS).order_by(PROJECTS.c.project)).all()
        return [
            Connected(row.project, row.cursor, row.settled, row.polled_at, row.swept_at, bool(row.evaluates))
            for row in rows
        ]

    def get(self, project: int) -> Connected | None:
        """One connected project; None: it is not connected."""
        return next((item for item in self.all() if item.project == project), None)

    def add(self, project: int) -> bool:
        """Connects a project; False when it was connected already."""
        with self.engine.begin() as connection:
            if connection.scalar(sa.select(PROJECTS.c.project).where(PROJECTS.c.project == project)) is not None:
                return False
            row = {"project": project, "connected_at": time.time(), "cursor": "", "settled": False}
            connection.execute(sa.insert(PROJECTS).values(row))
            return True

    def evaluate(self, project: int, evaluates: bool) -> None:
        """Notes whether Label Studio was let serve tasks with a ground truth first."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(evaluates=evaluates))

    def advance(self, project: int, *, cursor: str, settled: bool, swept: bool) -> None:
        """Notes how far a poll came."""
        values = {"cursor": cursor, "settled": settled, "polled_at": time.time()}
        if swept:
            values["swept_at"] = time.time()
        with self.engine.begin() as connection:
            connection.execute(sa.update(PROJECTS).where(PROJECTS.c.project == project).values(values))
