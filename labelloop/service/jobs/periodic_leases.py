"""Leases of periodic jobs, so that a job runs on one worker at a time and never overlaps itself."""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import begin_read, database_clock, insert_if_absent
from labelloop.service.jobs.worker_id import is_dead

PERIODIC_LEASES = sa.Table(
    "periodic_turns",
    sa.MetaData(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("token", sa.Text),  # empty: not running
    sa.Column("worker", sa.Text),
    sa.Column("leased_until", sa.Double),
    sa.Column("started_at", sa.Double),
)


@dataclass(frozen=True, slots=True)
class PeriodicLease:
    """An exclusive lease to run a periodic job once, identified by `token`."""

    name: str
    token: str


class PeriodicLeases:
    """The table of periodic leases, shared by all workers of a database."""

    def __init__(self, engine: sa.Engine, *, lease_s: float) -> None:
        self.engine = engine
        self.lease_s = lease_s

    def wait_s(self, name: str, every_s: float) -> float:
        """Seconds until the job may start: its interval has passed since the last start and no lease is held."""
        with begin_read(self.engine) as connection:
            row = connection.execute(sa.select(PERIODIC_LEASES).where(PERIODIC_LEASES.c.name == name)).first()
            if row is None:
                return 0.0
            now = database_clock(connection)
        held_s = row.leased_until - now if row.token else 0.0
        return float(max(0.0, row.started_at + every_s - now, held_s))

    def acquire(self, name: str, every_s: float, worker: str) -> PeriodicLease | None:
        """Acquire the job's lease; None if it is not due or another worker holds it."""
        token = uuid.uuid4().hex
        with self.engine.begin() as connection:
            now = database_clock(connection)
            fresh = {"name": name, "token": "", "worker": "", "leased_until": 0.0, "started_at": 0.0}
            insert_if_absent(connection, PERIODIC_LEASES, fresh, conflict=("name",))
            free = (PERIODIC_LEASES.c.leased_until < now) & (PERIODIC_LEASES.c.started_at <= now - every_s)
            values = {"token": token, "worker": worker, "leased_until": now + self.lease_s, "started_at": now}
            changed = connection.execute(
                sa.update(PERIODIC_LEASES).where((PERIODIC_LEASES.c.name == name) & free).values(values)
            )
            return PeriodicLease(name, token) if changed.rowcount else None

    def extend(self, lease: PeriodicLease) -> bool:
        """Extend the lease; False if it was lost."""
        with self.engine.begin() as connection:
            until = database_clock(connection) + self.lease_s
            statement = (
                sa.update(PERIODIC_LEASES).where(PERIODIC_LEASES.c.token == lease.token).values(leased_until=until)
            )
            return connection.execute(statement).rowcount == 1

    def release(self, lease: PeriodicLease) -> None:
        """Release the lease."""
        with self.engine.begin() as connection:
            free = {"token": "", "worker": "", "leased_until": 0.0}
            connection.execute(sa.update(PERIODIC_LEASES).where(PERIODIC_LEASES.c.token == lease.token).values(free))

    def release_dead_workers(self) -> int:
        """Release the leases of dead processes of this host; returns how many."""
        with begin_read(self.engine) as connection:
            held = connection.execute(
                sa.select(PERIODIC_LEASES.c.token, PERIODIC_LEASES.c.worker).where(PERIODIC_LEASES.c.token != "")
            ).all()
        orphaned = [PeriodicLease("", row.token) for row in held if is_dead(row.worker)]
        for lease in orphaned:
            self.release(lease)
        return len(orphaned)
