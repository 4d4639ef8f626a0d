"""Heartbeats of workers: by them the services know that one is alive and what it does."""

from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import Clock, database_clock, insert_new, quick, reading

BEAT_S = 5.0
"""Pause between two heartbeats."""

FRESH_S = 30.0
"""A worker whose last heartbeat is older is taken for ended."""

_FORGOTTEN_S = 86400.0
_BUSY = "working"

WORKERS = sa.Table(
    "workers",
    sa.MetaData(),
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("state", sa.Text),
    sa.Column("started_at", sa.Double),
    sa.Column("seen_at", sa.Double),
)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last heartbeat of a worker.

    Attributes:
        age_s: Seconds since it.
        state: What the worker does: `working`, or what it waits for.
    """

    age_s: float
    state: str

    @property
    def alive(self) -> bool:
        """Whether it is fresh."""
        return self.age_s <= FRESH_S

    @property
    def working(self) -> bool:
        """Whether its worker is alive and takes jobs."""
        return self.alive and self.state == _BUSY


class Workers:
    """The heartbeats in the database. Safe from any thread."""

    def __init__(self, engine: sa.Engine, *, clock: Clock = database_clock) -> None:
        self._engine, self._clock = engine, clock

    def beat(self, worker: str, state: str = _BUSY) -> None:
        """Say that a worker is alive, and forget those that were last seen a day ago."""
        with quick(self._engine) as connection:
            now = self._clock(connection)
            row = {"worker": worker, "state": state, "started_at": now, "seen_at": now}
            if not insert_new(connection, WORKERS, row, conflict=("worker",)):
                mine = sa.update(WORKERS).where(WORKERS.c.worker == worker)
                connection.execute(mine.values(state=state, seen_at=now))
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen_at < now - _FORGOTTEN_S))

    def leave(self, worker: str) -> None:
        """Say that a worker has ended in order."""
        with quick(self._engine) as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker == worker))

    def newest(self) -> Heartbeat | None:
        """The newest heartbeat, of a worker that works before one that waits; None: there was none within a day."""
        with reading(self._engine) as connection:
            now = self._clock(connection)
            rows = connection.execute(sa.select(WORKERS.c.seen_at, WORKERS.c.state)).all()
        beats = [Heartbeat(max(0.0, now - row.seen_at), row.state) for row in rows]
        return min(beats, key=lambda beat: (not beat.working, beat.age_s), default=None)
