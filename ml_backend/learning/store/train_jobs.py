"""Fine-tunings as jobs: one open job a project, leased to the worker or a trainer, taken over after its lease."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import Clock, begin_read, begin_relaxed, database_clock
from ml_backend.finetune.protocol import LEASE_S, MAX_REASON, TrainProgress
from ml_backend.learning.store.tables import TRAIN_JOBS, TRAINERS

State = Literal["waiting", "running", "returned", "judging", "published", "refused", "failed"]

# States in words.
STATES: Mapping[State, str] = {
    "waiting": "waiting for a trainer or the worker",
    "running": "running",
    "returned": "handed back, waiting to be evaluated",
    "judging": "being evaluated",
    "published": "published",
    "refused": "trained, not published",
    "failed": "failed",
}
OPEN: tuple[State, ...] = ("waiting", "running", "returned", "judging")

# Leases that may be lost before a job fails.
MAX_ATTEMPTS = 3

# Jobs of a project that are kept.
MAX_JOBS = 20

# Seconds after which a trainer that asks no more is forgotten; and most of them.
FORGET_S, MAX_TRAINERS = 7 * 86400.0, 100


def returned_key(job: int) -> str:
    """Key on the store of the model that a trainer handed back."""
    return f"train/{job}/returned.onnx"


class TrainJob(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table `learn_train_jobs`; see there for the fields."""

    id: int
    project: int
    state: State
    created_at: float
    labelled: int
    place: str
    minutes: float
    cores: int
    memory_bytes: int
    started_at: float | None = None
    finished_at: float | None = None
    holder: str = ""
    token: str = ""
    leased_until: float | None = None
    attempts: int = 0
    base: str = ""
    classes: tuple[str, ...] = ()
    progress: TrainProgress = TrainProgress()
    version: str = ""
    reason: str = ""


class KnownTrainer(msgspec.Struct, frozen=True):
    """A trainer on another machine, by its last call (seconds since 1970)."""

    name: str
    device: str
    seen_at: float


class TrainJobStore:
    """The fine-tunings of all projects. Thread-safe; several processes may share it."""

    def __init__(self, engine: sa.Engine, *, clock: Clock = database_clock) -> None:
        """Read nothing yet.

        Args:
            engine: The migrated database.
            clock: Seconds since 1970, the same for all processes.
        """
        self._engine = engine
        self._clock = clock

    def create(
        self, project: int, *, labelled: int, place: str, minutes: float, cores: int, memory_bytes: int
    ) -> TrainJob | None:
        """Create a waiting job; None if the project has an open one. Old jobs of the project are deleted."""
        with self._engine.begin() as connection:
            # A write first: on SQLite the transaction then holds the lock, so that of two creators one sees the other.
            old = (
                sa.select(TRAIN_JOBS.c.id)
                .where(TRAIN_JOBS.c.project == project, TRAIN_JOBS.c.state.not_in(OPEN))
                .order_by(TRAIN_JOBS.c.id.desc())
                .offset(MAX_JOBS - 1)
            )
            gone = list(connection.execute(old).scalars())
            connection.execute(sa.delete(TRAIN_JOBS).where(TRAIN_JOBS.c.id.in_(gone)))
            is_open = sa.select(TRAIN_JOBS.c.id).where(TRAIN_JOBS.c.project == project, TRAIN_JOBS.c.state.in_(OPEN))
            if connection.execute(is_open).first() is not None:
                return None
            row = {
                "project": project, "state": "waiting", "created_at": self._clock(connection), "labelled": labelled,
                "place": place, "minutes": minutes, "cores": cores, "memory_bytes": memory_bytes, "holder": "",
                "token": "", "attempts": 0, "base": "", "classes": "[]", "progress": "{}", "version": "", "reason": "",
            }  # fmt: skip
            number = connection.execute(sa.insert(TRAIN_JOBS).values(row).returning(TRAIN_JOBS.c.id)).scalar_one()
        return self.job(int(number))

    def job(self, number: int) -> TrainJob | None:
        """Return a job; None if there is none."""
        with begin_read(self._engine) as connection:
            row = connection.execute(sa.select(TRAIN_JOBS).where(TRAIN_JOBS.c.id == number)).first()
        return _job(row) if row is not None else None

    def last(self, project: int, count: int = MAX_JOBS) -> list[TrainJob]:
        """Return the last jobs of a project, newest first."""
        query = sa.select(TRAIN_JOBS).where(TRAIN_JOBS.c.project == project).order_by(TRAIN_JOBS.c.id.desc())
        with begin_read(self._engine) as connection:
            return [_job(row) for row in connection.execute(query.limit(count))]

    def open(self, *states: State) -> list[TrainJob]:
        """Return the jobs in these states, default all open ones, oldest first."""
        query = sa.select(TRAIN_JOBS).where(TRAIN_JOBS.c.state.in_(states or OPEN)).order_by(TRAIN_JOBS.c.id)
        with begin_read(self._engine) as connection:
            return [_job(row) for row in connection.execute(query)]

    def claim(self, number: int, holder: str, *, lease_s: float = LEASE_S) -> TrainJob | None:
        """Lease a waiting job to train it, or a returned one to judge it; None if another was faster."""
        token = secrets.token_hex(16)
        with self._engine.begin() as connection:
            now = self._clock(connection)
            for before, after in (("waiting", "running"), ("returned", "judging")):
                values: dict[str, Any] = {
                    "state": after, "holder": holder, "token": token, "leased_until": now + lease_s,
                    "attempts": TRAIN_JOBS.c.attempts + 1,
                }  # fmt: skip
                if after == "running":
                    values |= {"started_at": now, "reason": ""}
                where = (TRAIN_JOBS.c.id == number) & (TRAIN_JOBS.c.state == before)
                if connection.execute(sa.update(TRAIN_JOBS).where(where).values(values)).rowcount == 1:
                    break
            else:
                return None
        return self.job(number)

    def heartbeat(
        self, number: int, token: str, progress: TrainProgress | None = None, *, lease_s: float = LEASE_S
    ) -> bool:
        """Renew a lease and record the progress; False if the lease was lost.

        A lease that expired is taken up again while the job waits: the trainer could not be heard, but trained on.
        """
        resumed = sa.case((TRAIN_JOBS.c.state == "waiting", "running"), else_=TRAIN_JOBS.c.state)
        values: dict[str, Any] = {"state": resumed}
        if progress is not None:
            values["progress"] = msgspec.json.encode(progress).decode()
        with begin_relaxed(self._engine) as connection:
            values["leased_until"] = self._clock(connection) + lease_s
            return connection.execute(self._update(number, token).values(values)).rowcount == 1

    def begin(
        self, project: int, holder: str, *, labelled: int, minutes: float, cores: int, memory_bytes: int
    ) -> TrainJob | None:
        """Lease a job for a training that was started by hand: the waiting one, or a new one.

        Returns:
            None if another runs.
        """
        job = self.create(
            project, labelled=labelled, place="worker", minutes=minutes, cores=cores, memory_bytes=memory_bytes
        ) or next(iter(self.last(project, 1)), None)
        return self.claim(job.id, holder) if job is not None and job.state == "waiting" else None

    def handed(self, number: int, token: str, *, base: str, classes: Sequence[str]) -> bool:
        """Record the base and the classes of the data that a trainer was handed; False if the lease was lost."""
        values = {"base": base, "classes": msgspec.json.encode(tuple(classes)).decode()}
        with self._engine.begin() as connection:
            return connection.execute(self._update(number, token).values(values)).rowcount == 1

    def returned(self, number: int, token: str) -> bool:
        """A trainer handed its model back: end the lease; False if it was lost."""
        values = {"state": "returned", "token": "", "leased_until": None, "attempts": 0}
        with self._engine.begin() as connection:
            return connection.execute(self._update(number, token).values(values)).rowcount == 1

    def finish(self, number: int, token: str, *, state: State, reason: str, version: str = "") -> bool:
        """End a job; False if the lease was lost."""
        with self._engine.begin() as connection:
            values = {
                "state": state, "reason": reason[:MAX_REASON], "version": version, "token": "", "leased_until": None,
                "finished_at": self._clock(connection),
            }  # fmt: skip
            return connection.execute(self._update(number, token).values(values)).rowcount == 1

    def release(
        self, number: int, token: str, *, reason: str, lost: bool = False, expired: float | None = None
    ) -> bool:
        """Give a job back, so that another runs it; False if the lease was lost.

        Args:
            number: The job.
            token: Its lease.
            reason: Why, in words.
            lost: Whether it was not given back in order: after `MAX_ATTEMPTS` of these it fails.
            expired: Only if its lease has not been renewed since: it ended at this time. The token stays valid until
                another claims the job.
        """
        job = self.job(number)
        if job is None or job.token != token:
            return False
        values: dict[str, Any] = {
            "state": "waiting" if job.state in {"running", "waiting"} else "returned", "leased_until": None,
            "token": job.token if expired is not None and job.state == "running" else "",
            "reason": reason[:MAX_REASON],
        }  # fmt: skip
        if not lost:
            values["attempts"] = max(job.attempts - 1, 0)
        elif job.attempts >= MAX_ATTEMPTS:
            reason = f"{reason[: MAX_REASON - 20]} ({job.attempts} attempts)"
            values |= {"state": "failed", "reason": reason, "token": ""}
        update = self._update(number, token)
        if expired is not None:
            update = update.where(TRAIN_JOBS.c.leased_until == expired)
        with self._engine.begin() as connection:
            if values["state"] == "failed":
                values["finished_at"] = self._clock(connection)
            return connection.execute(update.values(values)).rowcount == 1

    def expire(self) -> list[TrainJob]:
        """Give back the jobs whose lease has expired: their trainer or worker is dead or unreachable."""
        with begin_read(self._engine) as connection:
            query = sa.select(TRAIN_JOBS).where(
                TRAIN_JOBS.c.token != "", TRAIN_JOBS.c.leased_until < self._clock(connection)
            )
            expired = [_job(row) for row in connection.execute(query)]
        return [
            job
            for job in expired
            if self.release(
                job.id, job.token, reason=f"{job.holder} sent no more heartbeats", lost=True, expired=job.leased_until
            )
        ]

    def drop(self, project: int) -> None:
        """Delete the jobs of a project."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(TRAIN_JOBS).where(TRAIN_JOBS.c.project == project))

    def heard(self, name: str, device: str) -> None:
        """Record that a trainer asked for work; those not heard for a week are forgotten."""
        with begin_relaxed(self._engine) as connection:
            now = self._clock(connection)
            connection.execute(
                sa.delete(TRAINERS).where((TRAINERS.c.name == name) | (TRAINERS.c.seen_at < now - FORGET_S))
            )
            keep = sa.select(TRAINERS.c.name).order_by(TRAINERS.c.seen_at.desc()).limit(MAX_TRAINERS - 1)
            connection.execute(sa.delete(TRAINERS).where(TRAINERS.c.name.not_in(list(connection.scalars(keep)))))
            connection.execute(sa.insert(TRAINERS).values(name=name, device=device, seen_at=now))

    def trainers(self, *, within_s: float = FORGET_S) -> list[KnownTrainer]:
        """Return the trainers heard within some seconds, the last one first."""
        with begin_read(self._engine) as connection:
            since = self._clock(connection) - within_s
            query = sa.select(TRAINERS).where(TRAINERS.c.seen_at >= since).order_by(TRAINERS.c.seen_at.desc())
            return [KnownTrainer(row.name, row.device, row.seen_at) for row in connection.execute(query)]

    def now(self) -> float:
        """The clock that leases are measured by, seconds since 1970."""
        with begin_read(self._engine) as connection:
            return self._clock(connection)

    def _update(self, number: int, token: str) -> sa.Update:
        leased = (TRAIN_JOBS.c.id == number) & (TRAIN_JOBS.c.token == token) & (TRAIN_JOBS.c.token != "")
        return sa.update(TRAIN_JOBS).where(leased)


def _job(row: Any) -> TrainJob:
    values = {name: getattr(row, name) for name in TrainJob.__struct_fields__}
    values["progress"] = msgspec.json.decode(values["progress"], type=TrainProgress)
    values["classes"] = msgspec.json.decode(values["classes"], type=tuple[str, ...])
    return TrainJob(**values)
