"""Turns of periodic jobs: who may run one now, so that it runs on one worker at a time and never over itself."""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa

from labelloop.service.db.engine import Clock, database_clock, insert_new, reading
from labelloop.service.jobs.worker_id import is_dead

TURNS = sa.Table(
    "periodic_turns",
    sa.MetaData(),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("token", sa.Text),  # empty: nobody runs it
    sa.Column("worker", sa.Text),
    sa.Column("leased_until", sa.Double),
    sa.Column("started_at", sa.Double),
)


@dataclass(frozen=True, slots=True)
class PeriodicLease:
    """The right to run a periodic job once; `token` proves it."""

    name: str
    token: str


class PeriodicLeases:
    """Leases of periodic jobs, shared by all workers of a database."""

    def __init__(self, engine: sa.Engine, *, lease_s: float, clock: Clock = database_clock) -> None:
        self.engine = engine
        self.lease_s = lease_s
        self._clock = clock

    def wait_s(self, name: str, every_s: float) -> float:
        """Seconds until the job may start: its interval has passed since its last start and nobody runs it."""
        with reading(self.engine) as connection:
            row = connection.execute(sa.select(TURNS).where(TURNS.c.name == name)).first()
            if row is None:
                return 0.0
            now = self._clock(connection)
        held_s = row.leased_until - now if row.token else 0.0
        return float(max(0.0, row.started_at + every_s - now, held_s))

    def take(self, name: str, every_s: float, worker: str) -> PeriodicLease | None:
        """Start the job's turn; None when it is not due or another worker has it."""
        token = uuid.uuid4().hex
        with self.engine.begin() as connection:
            now = self._clock(connection)
            fresh = {"name": name, "token": "", "worker": "", "leased_until": 0.0, "started_at": 0.0}
            insert_new(connection, TURNS, fresh, conflict=("name",))
            free = (TURNS.c.leased_until < now) & (TURNS.c.started_at <= now - every_s)
            mine = {"token": token, "worker": worker, "leased_until": now + self.lease_s, "started_at": now}
            changed = connection.execute(sa.update(TURNS).where((TURNS.c.name == name) & free).values(mine))
            return PeriodicLease(name, token) if changed.rowcount else None

    def heartbeat(self, turn: PeriodicLease) -> bool:
        """Prolong the lease; False when it was lost."""
        with self.engine.begin() as connection:
            until = self._clock(connection) + self.lease_s
            mine = sa.update(TURNS).where(TURNS.c.token == turn.token).values(leased_until=until)
            return connection.execute(mine).rowcount == 1

    def finish(self, turn: PeriodicLease) -> None:
        """End the turn."""
        with self.engine.begin() as connection:
            free = {"token": "", "worker": "", "leased_until": 0.0}
            connection.execute(sa.update(TURNS).where(TURNS.c.token == turn.token).values(free))

    def free_ended(self) -> int:
        """End the leases of workers of this host whose process is gone."""
        with reading(self.engine) as connection:
            held = connection.execute(sa.select(TURNS.c.token, TURNS.c.worker).where(TURNS.c.token != "")).all()
        ended = [PeriodicLease("", row.token) for row in held if is_dead(row.worker)]
        for turn in ended:
            self.finish(turn)
        return len(ended)
