"""The durable inbox: one row an event, one claim a subject. The row is the truth; the queue only lowers the latency."""

from __future__ import annotations

import math
import random
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import Clock, database_clock, insert_new, quick, reading
from labelloop.service.jobs.worker_id import is_dead
from labelloop.service.settings import Settings

metadata = sa.MetaData()
EVENTS = sa.Table(
    "inbox_events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("topic", sa.Text),
    sa.Column("subject", sa.Text),
    sa.Column("key", sa.Text),
    sa.Column("payload", sa.Text),
    sa.Column("state", sa.Text),  # pending -> claimed -> done | dead; a retry goes back to pending
    sa.Column("attempts", sa.Integer),
    sa.Column("created_at", sa.Double),
    sa.Column("due_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("claim", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("kills", sa.Integer),  # how often a worker was lost while it held the event
)
CLAIMS = sa.Table(
    "inbox_claims",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("token", sa.Text),
    sa.Column("worker", sa.Text),
    sa.Column("leased_until", sa.Double),
)
_OPEN = sa.or_(EVENTS.c.state == "pending", EVENTS.c.state == "claimed")
STATES = ("pending", "claimed", "done", "dead")
# Most events of one claim; the others follow in the next.
CLAIM_LIMIT = 1000
# A job whose worker was lost so often is run alone; the partial index `inbox_events_kills` has the same number.
MOST_KILLS = 2
_KILLER = sa.text(f"inbox_events.kills > {MOST_KILLS - 1}")
# Rows that one transaction deletes: others write in between.
PRUNED_AT_ONCE = 1000
# Rows that one look for due subjects reads at a time.
_LOOK = 500
KILLED = "the worker ended {attempts} times while it handled this event"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a subject. `attempts` counts the present one; `created_at` is seconds since 1970."""

    id: int
    topic: str
    subject: str
    key: str
    payload: Any
    attempts: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to handle a subject's events until the lease ends; `token` proves it.

    Attributes:
        topic: Names the handler.
        subject: What the events are about.
        token: Proves the claim.
        events: The events, oldest first.
        kills: How often a worker was lost while it held an event of the subject; from `MOST_KILLS` on, the events are
            to be handled alone.
    """

    topic: str
    subject: str
    token: str
    events: tuple[Event, ...]
    kills: int = 0

    @property
    def alone(self) -> bool:
        """Whether the events are to be handled in a process of their own."""
        return self.kills >= MOST_KILLS


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was given up, with the reason; `finished_at` is seconds since 1970."""

    event: Event
    reason: str
    finished_at: float


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often a failing event is tried and how long it waits in between.

    The pause after attempt n is `base_s * 2**(n - 1)`, at most `max_s`, times a random factor in [0.5, 1): jitter,
    so that what failed together does not come back together.
    """

    attempts: int = 8
    base_s: float = 2.0
    max_s: float = 600.0

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after the given attempt (1, 2, ...)."""
        ceiling: float = min(self.max_s, self.base_s * 2.0 ** min(attempt - 1, 60))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


class Inbox:
    """Events in the database: stored once, claimed by subject, finished or given up, never lost.

    Every method is one short transaction and safe from any thread, process or machine.
    """

    def __init__(
        self, engine: sa.Engine, *, lease_s: float = 30.0, backoff: Backoff | None = None, clock: Clock = database_clock
    ) -> None:
        self.engine = engine
        self.lease_s = lease_s
        self.backoff = backoff or Backoff()
        self._clock = clock
        # SQLite lets one write at a time and lets the others sleep and ask again; threads are better off in a queue.
        sqlite = engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[Any] = threading.Lock() if sqlite else nullcontext()

    @classmethod
    def from_settings(cls, settings: Settings, engine: sa.Engine) -> Inbox:
        """An inbox on `engine` with the settings' lease and backoff."""
        backoff = Backoff(settings.job_attempts, settings.job_backoff_s, settings.job_backoff_max_s)
        return cls(engine, lease_s=settings.job_lease_s, backoff=backoff)

    def put(self, topic: str, subject: str, key: str, payload: Any, *, delay_s: float = 0.0) -> bool:
        """Store an event; it is durable when this returns.

        Args:
            topic: names the handler.
            subject: what the event is about; events of one subject are handled together and never at the same time.
            key: unique within the topic; the same event told twice has the same key.
            payload: anything that is JSON.
            delay_s: seconds before it becomes due; it goes along earlier when another event of its subject is due.

        Returns:
            False when the (topic, key) was there already; nothing is stored then.
        """
        text = msgspec.json.encode(payload).decode()
        with self._turn, self.engine.begin() as connection:
            now = self._clock(connection)
            row = {
                "topic": topic, "subject": subject, "key": key, "payload": text, "state": "pending", "attempts": 0,
                "created_at": now, "due_at": now + delay_s, "reason": "",
            }  # fmt: skip
            return insert_new(connection, EVENTS, row, conflict=("topic", "key"))

    def claim(self, topic: str, subject: str, worker: str) -> Claim | None:
        """Take all events of a subject (at most `CLAIM_LIMIT`): due, not yet tried, or left by a lost worker.

        Returns:
            None when nothing is due or when another worker holds the subject.
        """
        token = uuid.uuid4().hex
        with self._turn, quick(self.engine) as connection:
            now = self._clock(connection)
            if not self._lease(connection, (topic, subject), token, worker):
                return None
            # Nobody else changes these rows: we hold the subject. Those still claimed were a worker's that is gone.
            left, due = EVENTS.c.state == "claimed", EVENTS.c.due_at <= now
            query = sa.select(EVENTS).where(EVENTS.c.topic == topic, EVENTS.c.subject == subject, _OPEN)
            query = query.where(sa.or_(left, due, EVENTS.c.attempts == 0))
            # "claimed" comes before "pending": what a lost worker left is never left behind.
            query = query.order_by(EVENTS.c.state, EVENTS.c.due_at).limit(CLAIM_LIMIT)
            rows = sorted(connection.execute(query).all(), key=lambda row: int(row.id))
            killed = {row.id for row in rows if row.state == "claimed" and row.attempts >= self.backoff.attempts}
            if killed:
                reason = KILLED.format(attempts=self.backoff.attempts)
                connection.execute(sa.update(EVENTS).where(EVENTS.c.id.in_(killed)).values(_dead(reason, now)))
            taken = [row for row in rows if row.id not in killed]
            if not any(row.state == "claimed" or row.due_at <= now for row in taken):
                connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.token == token))
                return None
            lost = sa.case((EVENTS.c.state == "claimed", 1), else_=0)
            values = {
                "state": "claimed", "claim": token, "attempts": EVENTS.c.attempts + 1, "kills": EVENTS.c.kills + lost
            }  # fmt: skip
            connection.execute(sa.update(EVENTS).where(EVENTS.c.id.in_([row.id for row in taken])).values(values))
            events = tuple(_event(row, attempts=row.attempts + 1) for row in taken)
            killer = sa.select(sa.func.max(EVENTS.c.kills)).where(
                EVENTS.c.topic == topic, EVENTS.c.subject == subject, _KILLER
            )
            return Claim(topic, subject, token, events, connection.scalar(killer) or 0)

    def heartbeat(self, claim: Claim) -> bool:
        """Prolong the lease; False when the claim was lost to another worker or is finished."""
        with self._turn, quick(self.engine) as connection:
            until = self._clock(connection) + self.lease_s
            changed = connection.execute(
                sa.update(CLAIMS).where(CLAIMS.c.token == claim.token).values(leased_until=until)
            )
            return changed.rowcount == 1

    def done(self, claim: Claim) -> bool:
        """Finish the claim's events; False when the claim had been lost (another worker handles them again)."""
        return self._finish(claim, lambda now: [(_mine(claim), {"state": "done", "finished_at": now, "reason": ""})])

    def dead(self, claim: Claim, reason: str, *, killed: bool = False) -> bool:
        """Give the claim's events up, with the reason; `replay` brings them back.

        Args:
            claim: The claim.
            reason: Why.
            killed: Whether they ended the process that handled them: the subject's events are then handled alone.
        """
        kills = {"kills": max(MOST_KILLS, claim.kills)} if killed else {}
        return self._finish(claim, lambda now: [(_mine(claim), _dead(reason, now) | kills)])

    def retry(self, claim: Claim, reason: str) -> bool:
        """Put the claim's events back for later, with backoff; those out of attempts become dead letters."""

        def changes(now: float) -> list[tuple[sa.ColumnElement[bool], dict[str, Any]]]:
            last = EVENTS.c.attempts >= self.backoff.attempts
            pause_s = self.backoff.pause_s(max(event.attempts for event in claim.events))
            again = {"state": "pending", "due_at": now + pause_s, "reason": reason, "claim": None}
            return [(_mine(claim) & last, _dead(reason, now)), (_mine(claim), again)]

        return self._finish(claim, changes)

    def release(self, claim: Claim, *, delay_s: float = 0.0) -> bool:
        """Put the claim's events back as they were, due now or after `delay_s`, for who cannot handle them yet."""
        values = {"state": "pending", "claim": None, "attempts": EVENTS.c.attempts - 1}
        return self._finish(
            claim, lambda now: [(_mine(claim), values | ({"due_at": now + delay_s} if delay_s else {}))]
        )

    def due(self, limit: int) -> list[tuple[str, str]]:
        """Subjects (topic, subject) with events to handle and no living claim, the longest waiting first.

        The rows are read in the order of the index `inbox_events_due` and no further than needed, however many wait.
        """
        with reading(self.engine) as connection:
            now = self._clock(connection)
            claims = connection.execute(sa.select(CLAIMS)).all()
            held = {(row.topic, row.subject) for row in claims}
            found = [(row.topic, row.subject) for row in claims if row.leased_until < now][:limit]  # left behind
            since = -math.inf
            while len(found) < limit:
                seen = [*held, *found]
                query = sa.select(EVENTS.c.topic, EVENTS.c.subject, EVENTS.c.due_at).where(
                    EVENTS.c.state == "pending", EVENTS.c.due_at <= now, EVENTS.c.due_at >= since
                )
                if seen:
                    query = query.where(sa.tuple_(EVENTS.c.topic, EVENTS.c.subject).not_in(seen))
                rows = connection.execute(query.order_by(EVENTS.c.due_at).limit(_LOOK)).all()
                found += list(dict.fromkeys((row.topic, row.subject) for row in rows))[: limit - len(found)]
                if len(rows) < _LOOK:
                    break
                since = rows[-1].due_at
        return found

    def is_due(self, topic: str, subject: str) -> bool:
        """Whether `claim` would find something to take; a look costs far less than a claim."""
        with reading(self.engine) as connection:
            # "+ 0" keeps SQLite from the index of what is due: that holds every subject's events.
            due = EVENTS.c.due_at + 0 <= self._clock(connection)
            query = sa.select(EVENTS.c.id).where(EVENTS.c.topic == topic, EVENTS.c.subject == subject, _OPEN, due)
            return connection.scalar(query.limit(1)) is not None

    def open_events(self, topic: str, subject: str) -> tuple[Event, ...]:
        """The subject's events that are neither done nor given up, whether somebody is at work on them or not."""
        with reading(self.engine) as connection:
            query = sa.select(EVENTS).where(EVENTS.c.topic == topic, EVENTS.c.subject == subject, _OPEN)
            return tuple(_event(row) for row in connection.execute(query.order_by(EVENTS.c.id)))

    def free_ended(self) -> int:
        """End the leases of workers of this host whose process is gone, so that nobody waits for them to run out."""
        with reading(self.engine) as connection:
            held = connection.execute(sa.select(CLAIMS.c.token, CLAIMS.c.worker)).all()
        ended = [row.token for row in held if is_dead(row.worker)]
        if ended:
            with self._turn, quick(self.engine) as connection:
                connection.execute(sa.update(CLAIMS).where(CLAIMS.c.token.in_(ended)).values(leased_until=0.0))
        return len(ended)

    def counts(self) -> dict[str, int]:
        """How many events are in each state."""
        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(EVENTS.c.state, sa.func.count()).group_by(EVENTS.c.state)).all()
        return dict.fromkeys(STATES, 0) | {str(state): int(count) for state, count in rows}

    def lag_s(self) -> float:
        """Seconds that the longest waiting due event has waited; 0 when none waits."""
        with reading(self.engine) as connection:
            now = self._clock(connection)
            oldest = connection.scalar(sa.select(sa.func.min(EVENTS.c.due_at)).where(EVENTS.c.state == "pending"))
        return max(0.0, now - oldest) if oldest is not None else 0.0

    def oldest_age_s(self) -> float:
        """Seconds since the oldest unfinished event was stored; 0 when there is none.

        Events that are not due for the first time yet do not count.
        """
        with reading(self.engine) as connection:
            now = self._clock(connection)
            started = sa.or_(EVENTS.c.due_at <= now, EVENTS.c.attempts > 0)
            # What is unfinished, as the partial index `inbox_events_open` says it.
            unfinished = sa.select(EVENTS.c.created_at).where(EVENTS.c.finished_at.is_(None), started)
            oldest = connection.scalar(unfinished.order_by(EVENTS.c.created_at).limit(1))
        return max(0.0, now - oldest) if oldest is not None else 0.0

    def dead_letters(self, *, limit: int = 1000, ids: Sequence[int] | None = None) -> list[DeadLetter]:
        """The events that were given up, the newest first; with `ids`, those of them."""
        with reading(self.engine) as connection:
            query = sa.select(EVENTS).where(_chosen(ids)).order_by(EVENTS.c.finished_at.desc()).limit(limit)
            return [DeadLetter(_event(row), row.reason, row.finished_at) for row in connection.execute(query)]

    def replay(self, ids: Sequence[int] | Literal["all"]) -> int:
        """Bring dead letters back with fresh attempts, due now; returns how many.

        What ended its worker is run alone from the start.
        """
        chosen = _chosen(None if ids == "all" else ids)
        with self._turn, self.engine.begin() as connection:
            fresh = {"state": "pending", "attempts": 0, "due_at": self._clock(connection), "finished_at": None}
            return connection.execute(
                sa.update(EVENTS).where(chosen).values(fresh | {"reason": "", "claim": None})
            ).rowcount

    def discard(self, ids: Sequence[int] | Literal["all"]) -> int:
        """Delete dead letters for good; returns how many. Their keys are forgotten: told again, they are new."""
        with self._turn, self.engine.begin() as connection:
            return connection.execute(sa.delete(EVENTS).where(_chosen(None if ids == "all" else ids))).rowcount

    def prune(self, older_than_s: float, *, state: Literal["done", "dead"] = "done") -> int:
        """Delete events that were done (or given up) more than `older_than_s` ago. Returns how many."""
        pruned = 0
        while True:
            with self._turn, quick(self.engine) as connection:
                old = (EVENTS.c.state == state) & (EVENTS.c.finished_at < self._clock(connection) - older_than_s)
                some = sa.select(EVENTS.c.id).where(old).limit(PRUNED_AT_ONCE).scalar_subquery()
                gone = connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(some))).rowcount
            pruned += gone
            if gone < PRUNED_AT_ONCE:
                return pruned

    def _lease(self, connection: sa.Connection, of: tuple[str, str], token: str, worker: str) -> bool:
        (topic, subject), now = of, self._clock(connection)
        held = (CLAIMS.c.topic == topic) & (CLAIMS.c.subject == subject)
        mine = {"token": token, "worker": worker, "leased_until": now + self.lease_s}
        taken = connection.execute(sa.update(CLAIMS).where(held & (CLAIMS.c.leased_until < now)).values(mine))
        if taken.rowcount:
            return True
        return insert_new(
            connection, CLAIMS, mine | {"topic": topic, "subject": subject}, conflict=("topic", "subject")
        )

    def _finish(
        self, claim: Claim, changes: Callable[[float], list[tuple[sa.ColumnElement[bool], dict[str, Any]]]]
    ) -> bool:
        with self._turn, quick(self.engine) as connection:
            # Deleting the claim first both proves that it is ours and lets the subject go.
            if connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.token == claim.token)).rowcount == 0:
                return False
            for which, values in changes(self._clock(connection)):
                connection.execute(sa.update(EVENTS).where(which).values(values))
            return True


def _mine(claim: Claim) -> sa.ColumnElement[bool]:
    return sa.and_(EVENTS.c.claim == claim.token, EVENTS.c.state == "claimed")


def _chosen(ids: Sequence[int] | None) -> sa.ColumnElement[bool]:
    """The dead letters, or those of them with these ids."""
    dead = EVENTS.c.state == "dead"
    return dead if ids is None else dead & EVENTS.c.id.in_(list(ids))


def _dead(reason: str, now: float) -> dict[str, Any]:
    return {"state": "dead", "reason": reason, "finished_at": now}


def _event(row: Any, *, attempts: int | None = None) -> Event:
    payload = msgspec.json.decode(row.payload)
    tried = row.attempts if attempts is None else attempts
    return Event(row.id, row.topic, row.subject, row.key, payload, tried, row.created_at)
