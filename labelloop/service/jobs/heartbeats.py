"""Heartbeats of the workers in the database, which tell the services whether a worker is alive and working."""

from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import Clock, begin_read, begin_relaxed, database_clock, insert_if_absent

HEARTBEAT_INTERVAL_S = 5.0
# A worker whose last heartbeat is older counts as dead.
HEARTBEAT_TTL_S = 30.0

_RETENTION_S = 86400.0
_WORKING = "working"

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
        age_s: Seconds since the heartbeat.
        state: `working`, or what the worker waits for.
    """

    age_s: float
    state: str

    @property
    def alive(self) -> bool:
        """Whether the heartbeat is at most `HEARTBEAT_TTL_S` old."""
        return self.age_s <= HEARTBEAT_TTL_S

    @property
    def working(self) -> bool:
        """Whether the worker is alive and takes jobs."""
        return self.alive and self.state == _WORKING


class WorkerHeartbeats:
    """The table of worker heartbeats. Thread-safe."""

    def __init__(self, engine: sa.Engine, *, clock: Clock = database_clock) -> None:
        self._engine, self._clock = engine, clock

    def record(self, worker: str, state: str = _WORKING) -> None:
        """Record a heartbeat, and delete workers last seen more than a day ago."""
        with begin_relaxed(self._engine) as connection:
            now = self._clock(connection)
            row = {"worker": worker, "state": state, "started_at": now, "seen_at": now}
            if not insert_if_absent(connection, WORKERS, row, conflict=("worker",)):
                existing = sa.update(WORKERS).where(WORKERS.c.worker == worker)
                connection.execute(existing.values(state=state, seen_at=now))
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen_at < now - _RETENTION_S))

    def remove(self, worker: str) -> None:
        """Delete a worker that shut down cleanly."""
        with begin_relaxed(self._engine) as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker == worker))

    def latest(self) -> Heartbeat | None:
        """The latest heartbeat, working workers before waiting ones; None: there was none within a day."""
        with begin_read(self._engine) as connection:
            now = self._clock(connection)
            rows = connection.execute(sa.select(WORKERS.c.seen_at, WORKERS.c.state)).all()
        heartbeats = [Heartbeat(max(0.0, now - row.seen_at), row.state) for row in rows]
        return min(heartbeats, key=lambda heartbeat: (not heartbeat.working, heartbeat.age_s), default=None)
