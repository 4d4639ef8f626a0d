"""The durable inbox: one row per event, one claim per subject. The wake-up queue only reduces latency."""

from __future__ import annotations

import math
import random
import threading
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import Clock, begin_read, begin_relaxed, database_clock, insert_if_absent
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
    sa.Column("kills", sa.Integer),  # number of workers lost while they held the event
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
_UNFINISHED = sa.or_(EVENTS.c.state == "pending", EVENTS.c.state == "claimed")
STATES = ("pending", "claimed", "done", "dead")
# Maximum number of events in one claim; the rest follow in the next claim.
CLAIM_LIMIT = 1000
# After this many lost workers an event runs isolated; the partial index `inbox_events_kills` uses the same number.
ISOLATE_AFTER_KILLS = 2
_KILLED_OFTEN = sa.text(f"inbox_events.kills > {ISOLATE_AFTER_KILLS - 1}")
# Rows deleted per transaction, so that other writers get in between.
PRUNE_BATCH = 1000
# Rows per page when searching for due subjects.
_DUE_PAGE = 500
KILLED_REASON = "the worker ended {attempts} times while it handled this event"


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a subject. `attempts` includes the current one; `created_at` is a Unix timestamp."""

    id: int
    topic: str
    subject: str
    key: str
    payload: Any
    attempts: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """An exclusive lease on a subject's events, identified by `token`.

    Attributes:
        topic: Selects the handler.
        subject: What the events are about.
        token: Identifies the claim.
        events: The events, oldest first.
        kills: Number of workers lost while they held an event of the subject; from `ISOLATE_AFTER_KILLS` on, the
            events run isolated.
    """

    topic: str
    subject: str
    token: str
    events: tuple[Event, ...]
    kills: int = 0

    @property
    def isolated(self) -> bool:
        """Whether the events must be handled in a separate process."""
        return self.kills >= ISOLATE_AFTER_KILLS


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that failed for good, with the reason; `finished_at` is a Unix timestamp."""

    event: Event
    reason: str
    finished_at: float


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff of a failing event.

    The delay after attempt n is `base_s * 2**(n - 1)`, at most `max_s`, times a random factor in [0.5, 1) (jitter), so
    that events that failed together are not retried together.
    """

    attempts: int = 8
    base_s: float = 2.0
    max_s: float = 600.0

    def pause_s(self, attempt: int) -> float:
        """The delay in seconds after the given attempt (1, 2, ...)."""
        ceiling: float = min(self.max_s, self.base_s * 2.0 ** min(attempt - 1, 60))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


class Inbox:
    """The event store: each event is stored once, claimed by subject, and ends as done or dead.

    Every method is one short transaction, safe to call from any thread, process or machine.
    """

    def __init__(
        self, engine: sa.Engine, *, lease_s: float = 30.0, backoff: Backoff | None = None, clock: Clock = database_clock
    ) -> None:
        self.engine = engine
        self.lease_s = lease_s
        self.backoff = backoff or Backoff()
        self._clock = clock
        # SQLite allows one writer and makes the others poll; a lock queues the threads of this process instead.
        sqlite = engine.dialect.name == "sqlite"
        self._write_lock: AbstractContextManager[Any] = threading.Lock() if sqlite else nullcontext()

    @classmethod
    def from_settings(cls, settings: Settings, engine: sa.Engine) -> Inbox:
        """An inbox on `engine` with the settings' lease and backoff."""
        backoff = Backoff(settings.job_attempts, settings.job_backoff_s, settings.job_backoff_max_s)
        return cls(engine, lease_s=settings.job_lease_s, backoff=backoff)

    def put(self, topic: str, subject: str, key: str, payload: Any, *, delay_s: float = 0.0) -> bool:
        """Store an event; it is durable when this returns.

        Args:
            topic: Selects the handler.
            subject: What the event is about; events of one subject are handled together, one call at a time.
            key: Deduplication key, unique within the topic.
            payload: Any JSON value.
            delay_s: Seconds before the event becomes due; it is handled earlier if another event of its subject is due.

        Returns:
            False if (topic, key) already exists; nothing is stored then.
        """
        text = msgspec.json.encode(payload).decode()
        with self._write_lock, self.engine.begin() as connection:
            now = self._clock(connection)
            row = {
                "topic": topic, "subject": subject, "key": key, "payload": text, "state": "pending", "attempts": 0,
                "created_at": now, "due_at": now + delay_s, "reason": "",
            }  # fmt: skip
            return insert_if_absent(connection, EVENTS, row, conflict=("topic", "key"))

    def claim(self, topic: str, subject: str, worker: str) -> Claim | None:
        """Claim the events of a subject (at most `CLAIM_LIMIT`) that are due, untried, or left by a lost worker.

        Returns:
            None if nothing is due or another worker holds the subject.
        """
        token = uuid.uuid4().hex
        with self._write_lock, begin_relaxed(self.engine) as connection:
            now = self._clock(connection)
            if not self._lease(connection, (topic, subject), token, worker):
                return None
            # We hold the subject, so no other worker changes these rows. Rows still "claimed" belong to a lost worker.
            orphaned, due = EVENTS.c.state == "claimed", EVENTS.c.due_at <= now
            query = sa.select(EVENTS).where(EVENTS.c.topic == topic, EVENTS.c.subject == subject, _UNFINISHED)
            query = query.where(sa.or_(orphaned, due, EVENTS.c.attempts == 0))
            # "claimed" sorts before "pending": events of lost workers come first.
            query = query.order_by(EVENTS.c.state, EVENTS.c.due_at).limit(CLAIM_LIMIT)
            rows = sorted(connection.execute(query).all(), key=lambda row: int(row.id))
            killed = {row.id for row in rows if row.state == "claimed" and row.attempts >= self.backoff.attempts}
            if killed:
                reason = KILLED_REASON.format(attempts=self.backoff.attempts)
                connection.execute(sa.update(EVENTS).where(EVENTS.c.id.in_(killed)).values(_dead_values(reason, now)))
            claimed = [row for row in rows if row.id not in killed]
            if not any(row.state == "claimed" or row.due_at <= now for row in claimed):
                connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.token == token))
                return None
            lost = sa.case((EVENTS.c.state == "claimed", 1), else_=0)
            values = {
                "state": "claimed", "claim": token, "attempts": EVENTS.c.attempts + 1, "kills": EVENTS.c.kills + lost
            }  # fmt: skip
            connection.execute(sa.update(EVENTS).where(EVENTS.c.id.in_([row.id for row in claimed])).values(values))
            events = tuple(_event(row, attempts=row.attempts + 1) for row in claimed)
            kills = sa.select(sa.func.max(EVENTS.c.kills)).where(
                EVENTS.c.topic == topic, EVENTS.c.subject == subject, _KILLED_OFTEN
            )
            return Claim(topic, subject, token, events, connection.scalar(kills) or 0)

    def extend_lease(self, claim: Claim) -> bool:
        """Extend the lease; False if the claim is finished or was lost to another worker."""
        with self._write_lock, begin_relaxed(self.engine) as connection:
            until = self._clock(connection) + self.lease_s
            changed = connection.execute(
                sa.update(CLAIMS).where(CLAIMS.c.token == claim.token).values(leased_until=until)
            )
            return changed.rowcount == 1

    def mark_done(self, claim: Claim) -> bool:
        """Mark the claim's events as done; False if the claim was lost (another worker handles them again)."""
        return self._finish(
            claim, lambda now: [(_claimed_by(claim), {"state": "done", "finished_at": now, "reason": ""})]
        )

    def mark_dead(self, claim: Claim, reason: str, *, killed: bool = False) -> bool:
        """Turn the claim's events into dead letters; `replay` brings them back.

        Args:
            claim: The claim.
            reason: Why they failed.
            killed: Whether they killed the process that handled them; the subject's events then run isolated.
        """
        kills = {"kills": max(ISOLATE_AFTER_KILLS, claim.kills)} if killed else {}
        return self._finish(claim, lambda now: [(_claimed_by(claim), _dead_values(reason, now) | kills)])

    def retry(self, claim: Claim, reason: str) -> bool:
        """Reschedule the claim's events with backoff; events without attempts left become dead letters."""

        def changes(now: float) -> list[tuple[sa.ColumnElement[bool], dict[str, Any]]]:
            last = EVENTS.c.attempts >= self.backoff.attempts
            pause_s = self.backoff.pause_s(max(event.attempts for event in claim.events))
            rescheduled = {"state": "pending", "due_at": now + pause_s, "reason": reason, "claim": None}
            return [(_claimed_by(claim) & last, _dead_values(reason, now)), (_claimed_by(claim), rescheduled)]

        return self._finish(claim, changes)

    def release(self, claim: Claim, *, delay_s: float = 0.0) -> bool:
        """Return the claim's events without counting the attempt, due now or after `delay_s` seconds."""
        values = {"state": "pending", "claim": None, "attempts": EVENTS.c.attempts - 1}
        return self._finish(
            claim, lambda now: [(_claimed_by(claim), values | ({"due_at": now + delay_s} if delay_s else {}))]
        )

    def due_subjects(
        self, limit: int, *, topics: Collection[str] | None = None, without: Collection[tuple[str, str]] = ()
    ) -> list[tuple[str, str]]:
        """Up to `limit` pairs (topic, subject) with due events and no valid claim, the longest waiting first.

        Reads the index `inbox_events_due` in order and stops as soon as possible, so the cost does not grow with the
        backlog.

        Args:
            limit: Maximum number of pairs.
            topics: Only pairs of these topics; None: of all.
            without: Pairs to leave out.
        """
        with begin_read(self.engine) as connection:
            now = self._clock(connection)
            claims = connection.execute(sa.select(CLAIMS)).all()
            skipped = set(without)
            expired = [(row.topic, row.subject) for row in claims if row.leased_until < now]
            due = [pair for pair in expired if (topics is None or pair[0] in topics) and pair not in skipped][:limit]
            held = skipped | {(row.topic, row.subject) for row in claims}
            since = -math.inf
            while len(due) < limit:
                excluded = [*held, *due]
                query = sa.select(EVENTS.c.topic, EVENTS.c.subject, EVENTS.c.due_at).where(
                    EVENTS.c.state == "pending", EVENTS.c.due_at <= now, EVENTS.c.due_at >= since
                )
                if topics is not None:
                    query = query.where(EVENTS.c.topic.in_(topics))
                if excluded:
                    query = query.where(sa.tuple_(EVENTS.c.topic, EVENTS.c.subject).not_in(excluded))
                rows = connection.execute(query.order_by(EVENTS.c.due_at).limit(_DUE_PAGE)).all()
                due += list(dict.fromkeys((row.topic, row.subject) for row in rows))[: limit - len(due)]
                if len(rows) < _DUE_PAGE:
                    break
                since = rows[-1].due_at
        return due

    def has_due_events(self, topic: str, subject: str) -> bool:
        """Whether `claim` would return events; much cheaper than a claim."""
        with begin_read(self.engine) as connection:
            # "+ 0" keeps SQLite from using the index on due_at, which spans all subjects.
            due = EVENTS.c.due_at + 0 <= self._clock(connection)
            query = sa.select(EVENTS.c.id).where(EVENTS.c.topic == topic, EVENTS.c.subject == subject, _UNFINISHED, due)
            return connection.scalar(query.limit(1)) is not None

    def unfinished_events(self, topic: str, subject: str) -> tuple[Event, ...]:
        """The subject's pending and claimed events, oldest first."""
        with begin_read(self.engine) as connection:
            query = sa.select(EVENTS).where(EVENTS.c.topic == topic, EVENTS.c.subject == subject, _UNFINISHED)
            return tuple(_event(row) for row in connection.execute(query.order_by(EVENTS.c.id)))

    def release_dead_workers(self) -> int:
        """Expire the leases of dead processes of this host at once; returns how many."""
        with begin_read(self.engine) as connection:
            held = connection.execute(sa.select(CLAIMS.c.token, CLAIMS.c.worker)).all()
        tokens = [row.token for row in held if is_dead(row.worker)]
        if tokens:
            with self._write_lock, begin_relaxed(self.engine) as connection:
                connection.execute(sa.update(CLAIMS).where(CLAIMS.c.token.in_(tokens)).values(leased_until=0.0))
        return len(tokens)

    def counts(self) -> dict[str, int]:
        """The number of events by state."""
        with begin_read(self.engine) as connection:
            rows = connection.execute(sa.select(EVENTS.c.state, sa.func.count()).group_by(EVENTS.c.state)).all()
        return dict.fromkeys(STATES, 0) | {str(state): int(count) for state, count in rows}

    def lag_s(self) -> float:
        """Seconds that the oldest due event has waited; 0 if none waits."""
        with begin_read(self.engine) as connection:
            now = self._clock(connection)
            oldest = connection.scalar(sa.select(sa.func.min(EVENTS.c.due_at)).where(EVENTS.c.state == "pending"))
        return max(0.0, now - oldest) if oldest is not None else 0.0

    def oldest_age_s(self) -> float:
        """Age in seconds of the oldest unfinished event; 0 if there is none.

        Events whose initial delay has not passed do not count.
        """
        with begin_read(self.engine) as connection:
            now = self._clock(connection)
            started = sa.or_(EVENTS.c.due_at <= now, EVENTS.c.attempts > 0)
            # The same condition as the partial index `inbox_events_open`.
            unfinished = sa.select(EVENTS.c.created_at).where(EVENTS.c.finished_at.is_(None), started)
            oldest = connection.scalar(unfinished.order_by(EVENTS.c.created_at).limit(1))
        return max(0.0, now - oldest) if oldest is not None else 0.0

    def dead_letters(self, *, limit: int = 1000, ids: Sequence[int] | None = None) -> list[DeadLetter]:
        """Dead letters, newest first; `ids` restricts them."""
        with begin_read(self.engine) as connection:
            query = sa.select(EVENTS).where(_dead_letters_with(ids)).order_by(EVENTS.c.finished_at.desc()).limit(limit)
            return [DeadLetter(_event(row), row.reason, row.finished_at) for row in connection.execute(query)]

    def replay(self, ids: Sequence[int] | Literal["all"]) -> int:
        """Reschedule dead letters with fresh attempts, due now; returns how many.

        Events that killed their worker run isolated from the start.
        """
        chosen = _dead_letters_with(None if ids == "all" else ids)
        with self._write_lock, self.engine.begin() as connection:
            fresh = {"state": "pending", "attempts": 0, "due_at": self._clock(connection), "finished_at": None}
            return connection.execute(
                sa.update(EVENTS).where(chosen).values(fresh | {"reason": "", "claim": None})
            ).rowcount

    def discard(self, ids: Sequence[int] | Literal["all"]) -> int:
        """Delete dead letters; returns how many. Their keys may be stored again."""
        with self._write_lock, self.engine.begin() as connection:
            return connection.execute(
                sa.delete(EVENTS).where(_dead_letters_with(None if ids == "all" else ids))
            ).rowcount

    def prune(self, older_than_s: float, *, state: Literal["done", "dead"] = "done") -> int:
        """Delete done (or dead) events that finished more than `older_than_s` seconds ago; returns how many."""
        pruned = 0
        while True:
            with self._write_lock, begin_relaxed(self.engine) as connection:
                old = (EVENTS.c.state == state) & (EVENTS.c.finished_at < self._clock(connection) - older_than_s)
                batch = sa.select(EVENTS.c.id).where(old).limit(PRUNE_BATCH).scalar_subquery()
                deleted = connection.execute(sa.delete(EVENTS).where(EVENTS.c.id.in_(batch))).rowcount
            pruned += deleted
            if deleted < PRUNE_BATCH:
                return pruned

    def _lease(self, connection: sa.Connection, topic_subject: tuple[str, str], token: str, worker: str) -> bool:
        (topic, subject), now = topic_subject, self._clock(connection)
        held = (CLAIMS.c.topic == topic) & (CLAIMS.c.subject == subject)
        values = {"token": token, "worker": worker, "leased_until": now + self.lease_s}
        expired = held & (CLAIMS.c.leased_until < now)
        if connection.execute(sa.update(CLAIMS).where(expired).values(values)).rowcount:
            return True
        return insert_if_absent(
            connection, CLAIMS, values | {"topic": topic, "subject": subject}, conflict=("topic", "subject")
        )

    def _finish(
        self, claim: Claim, changes: Callable[[float], list[tuple[sa.ColumnElement[bool], dict[str, Any]]]]
    ) -> bool:
        with self._write_lock, begin_relaxed(self.engine) as connection:
            # Deleting the claim proves that it is still ours and frees the subject.
            if connection.execute(sa.delete(CLAIMS).where(CLAIMS.c.token == claim.token)).rowcount == 0:
                return False
            for condition, values in changes(self._clock(connection)):
                connection.execute(sa.update(EVENTS).where(condition).values(values))
            return True


def _claimed_by(claim: Claim) -> sa.ColumnElement[bool]:
    return sa.and_(EVENTS.c.claim == claim.token, EVENTS.c.state == "claimed")


def _dead_letters_with(ids: Sequence[int] | None) -> sa.ColumnElement[bool]:
    """Condition: dead letters, optionally with these ids only."""
    dead = EVENTS.c.state == "dead"
    return dead if ids is None else dead & EVENTS.c.id.in_(list(ids))


def _dead_values(reason: str, now: float) -> dict[str, Any]:
    return {"state": "dead", "reason": reason, "finished_at": now}


def _event(row: Any, *, attempts: int | None = None) -> Event:
    payload = msgspec.json.decode(row.payload)
    attempts = row.attempts if attempts is None else attempts
    return Event(row.id, row.topic, row.subject, row.key, payload, attempts, row.created_at)
