"""A worker process: takes claims, calls handlers, keeps leases alive, sweeps up what others left, and stops cleanly."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.heartbeats import BEAT_S, Workers
from labelloop.service.jobs.inbox import Claim
from labelloop.service.jobs.isolated_job import AloneRunner
from labelloop.service.jobs.periodic_leases import PeriodicLeases
from labelloop.service.jobs.wakeup_queue import Queue
from labelloop.service.jobs.worker_id import this_worker
from labelloop.service.logging import redact, settings_secrets
from labelloop.service.signals import on_stop_signals

if TYPE_CHECKING:
    from labelloop.service.jobs.jobs import Jobs, Periodic

SWEEP_S = 1.0
# Pause between two sweeps while more is due than one sweep takes.
BACKLOG_SWEEP_S = 0.2
# The sweep fills the queue up to here and no further: wake-ups for a long backlog would only pile up in it.
SWEEP_LIMIT = 100
# A queue that holds more than this is not filled: the oldest due subjects are those that it holds.
SWEEP_BELOW = 25
HEALTH_CHECK_S = 10.0
PRUNE_EVERY_S = 3600.0
REASON_LIMIT = 2000
# Events that are to be handled alone wait so long while others are.
ALONE_AGAIN_S = 5.0
log = structlog.get_logger(__name__)


class Heartbeats:
    """Prolongs the leases of what this process is working on, from a thread of its own."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._beats: dict[str, Callable[[], bool]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def during(self, token: str, beat: Callable[[], bool]) -> Iterator[None]:
        """Call `beat` now and then while the block runs."""
        with self._lock:
            self._beats[token] = beat
        try:
            yield
        finally:
            with self._lock:
                self._beats.pop(token, None)

    def run(self, stop: threading.Event) -> None:
        """Beat until `stop`."""
        while not stop.wait(self._every_s):
            with self._lock:
                beats = list(self._beats.items())
            for token, beat in beats:
                try:
                    kept = beat()
                except Exception:  # the database may be away for a moment; the next beat tries again
                    log.warning("heartbeat_failed", exc_info=True)
                    continue
                if not kept and token in self._beats:
                    log.warning("lease_lost", token=token)


class Worker:
    """Runs the handlers and periodic jobs of a `Jobs`; see `Jobs.run_worker`."""

    def __init__(self, jobs: Jobs) -> None:
        from labelloop.service.jobs.jobs import Periodic

        settings = jobs.settings
        self._settings = settings
        self._inbox = jobs.inbox
        self._handlers = jobs.handlers
        self._turns = PeriodicLeases(jobs.inbox.engine, lease_s=settings.job_lease_s)
        prune = Periodic("inbox-prune", PRUNE_EVERY_S, self._prune)
        self._periodics: tuple[Periodic, ...] = (*jobs.periodics, prune)
        self._queue = Queue(settings, self.handle)
        self._me = this_worker()
        self._workers = Workers(jobs.inbox.engine)
        self._secrets = settings_secrets(settings)
        self._beats = Heartbeats(settings.job_lease_s / 3)
        self._claims: dict[str, Claim] = {}
        self._alone = AloneRunner(jobs.alone, settings.job_memory_bytes) if jobs.alone else None
        self._alone_free = threading.Semaphore()
        self._to_run_alone: queue.SimpleQueue[Claim | None] = queue.SimpleQueue()
        self._stopping = threading.Event()

    def run(self, threads: int, stop: threading.Event) -> None:
        """Work until a signal or `stop`."""
        hurry = threading.Event()
        ended = threading.Event()

        def asked_to_stop() -> None:
            (hurry if stop.is_set() else stop).set()

        with on_stop_signals(asked_to_stop):
            consumer = self._queue.consumer(threads)
            helpers = [self._thread("heartbeats", self._beats.run, ended), self._thread("sweep", self._sweep, stop)]
            helpers += [self._thread("presence", self._say_alive, stop)]
            helpers += [self._thread(job.name, self._run_periodic, job, stop) for job in self._periodics]
            helpers += [self._thread("alone", self._handle_alone, self._alone)] if self._alone else []
            log.info("worker_started", threads=threads, topics=sorted(self._handlers))
            consumer.start()
            checked = time.monotonic()
            while not stop.wait(0.2):
                if time.monotonic() > checked + HEALTH_CHECK_S:
                    checked = time.monotonic()
                    consumer.check_worker_health()
            self._stopping.set()
            self._to_run_alone.put(None)
            consumer.stop_flag.set()
            log.info("worker_stopping", running=len(self._claims))
            threads_left = [thread for _, thread in consumer.worker_threads] + helpers[1:]
            deadline = time.monotonic() + self._settings.job_stop_s
            while any(thread.is_alive() for thread in threads_left) and time.monotonic() < deadline:
                if hurry.wait(0.05):
                    break
            for claim in list(self._claims.values()):
                log.warning("claim_released", topic=claim.topic, subject=claim.subject)
                self._inbox.release(claim)
            if self._alone:
                self._alone.stop()
            ended.set()
            with suppress(Exception):  # else it is known by its age
                self._workers.leave(self._me)
        self._queue.close()
        log.info("worker_stopped")

    def _say_alive(self, stop: threading.Event) -> None:
        failing = False
        while True:
            try:
                self._workers.beat(self._me)
                failing = False
            except Exception:
                if not failing:  # once, not every few seconds
                    log.exception("presence_failed")
                failing = True
            if stop.wait(BEAT_S):
                return

    def handle(self, topic: str, subject: str) -> None:
        """Handle the subject's events until none are due.

        The last look comes after the claim is let go: a wake-up for an event that came in the meantime was
        dropped by whoever found the subject taken.
        """
        while not self._stopping.is_set():
            try:
                claim = self._inbox.claim(topic, subject, self._me)
                if claim is None:
                    return
                if claim.alone and self._alone and topic in self._handlers:
                    self._hand_over(claim)
                    return
                self._claims[claim.token] = claim
                try:
                    with (
                        structlog.contextvars.bound_contextvars(topic=topic, subject=subject),
                        self._beats.during(claim.token, lambda claim=claim: self._inbox.heartbeat(claim)),  # type: ignore[misc]
                    ):
                        self._call(claim)
                finally:
                    self._claims.pop(claim.token, None)
                if not self._inbox.is_due(topic, subject):
                    return
            except Exception:  # the database is away: the lease runs out and a sweep brings the events back
                log.exception("claim_failed", topic=topic, subject=subject)
                return

    def _hand_over(self, claim: Claim) -> None:
        """Leave a claim to the thread for jobs that run alone, where that is free: no other thread waits for them."""
        if not self._alone_free.acquire(blocking=False):
            self._inbox.release(claim, delay_s=ALONE_AGAIN_S)
            return
        self._claims[claim.token] = claim
        self._to_run_alone.put(claim)

    def _handle_alone(self, runner: AloneRunner) -> None:
        while (claim := self._to_run_alone.get()) is not None:
            try:
                with (
                    structlog.contextvars.bound_contextvars(topic=claim.topic, subject=claim.subject),
                    self._beats.during(claim.token, lambda claim=claim: self._inbox.heartbeat(claim)),  # type: ignore[misc]
                ):
                    self._call_alone(claim, runner)
            except Exception:  # the database is away: the lease runs out and a sweep brings the events back
                log.exception("claim_failed", topic=claim.topic, subject=claim.subject)
            finally:
                self._claims.pop(claim.token, None)
                self._alone_free.release()

    def _call_alone(self, claim: Claim, runner: AloneRunner) -> None:
        started = time.monotonic()
        log.warning("event_runs_alone", events=len(claim.events), kills=claim.kills)
        outcome = runner.run(claim)
        reason = redact(outcome.reason, self._secrets)[:REASON_LIMIT]
        if outcome.kind == "done":
            kept = self._inbox.done(claim)
            log.info("event_done", events=len(claim.events), seconds=round(time.monotonic() - started, 3), kept=kept)
        elif outcome.kind == "retry":
            kept = self._inbox.retry(claim, reason)
            log.warning("event_failed", reason=reason, kept=kept)
        else:
            if outcome.kind == "killed":
                most = self._settings.job_memory_bytes
                reason = (
                    f"it {reason}: {claim.kills} workers were lost while they handled it, then it was run alone with "
                    f"{most / 2**20:.0f} MiB of memory (LABELLOOP_JOB_MEMORY_BYTES)"
                )
            if self._inbox.dead(claim, reason, killed=outcome.kind == "killed"):
                log.error("event_dead", reason=reason, events=len(claim.events))

    def _call(self, claim: Claim) -> None:
        from labelloop.service.jobs.jobs import Reject

        handler = self._handlers.get(claim.topic)
        started = time.monotonic()
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            self._inbox.dead(claim, f"no handler for the topic {claim.topic!r} (known: {known})")
            log.error("event_dead", reason="no handler", events=len(claim.events))
            return
        try:
            handler(claim.subject, claim.events)
        except Reject as error:
            self._inbox.dead(claim, self._reason(error))
            log.error("event_dead", reason=self._reason(error), events=len(claim.events))  # noqa: TRY400 - it was foreseen
        except Exception as error:
            kept = self._inbox.retry(claim, self._reason(error))
            expected = isinstance(error, LabelloopError)  # says by itself what is wrong
            log.warning("event_failed", reason=self._reason(error), kept=kept, exc_info=None if expected else error)
        else:
            kept = self._inbox.done(claim)
            log.info("event_done", events=len(claim.events), seconds=round(time.monotonic() - started, 3), kept=kept)

    def _sweep(self, stop: threading.Event) -> None:
        failing, pause_s, looked_at = False, SWEEP_S, -SWEEP_S
        while True:
            try:
                if time.monotonic() >= looked_at + SWEEP_S:
                    looked_at = time.monotonic()
                    self._inbox.free_ended()
                    self._turns.free_ended()
                waiting = self._queue.size()
                if waiting <= SWEEP_BELOW:
                    due = self._inbox.due(SWEEP_LIMIT - waiting)
                    for topic, subject in due:
                        self._queue.wake(topic, subject)
                    pause_s = BACKLOG_SWEEP_S if waiting + len(due) >= SWEEP_LIMIT else SWEEP_S
                failing = False
            except Exception:
                if not failing:  # once, not every second
                    log.exception("sweep_failed")
                failing, pause_s = True, SWEEP_S
            if stop.wait(min(pause_s, SWEEP_S)):
                return

    def _run_periodic(self, job: Periodic, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                pause_s = self._turns.wait_s(job.name, job.every_s)
                turn = self._turns.take(job.name, job.every_s, self._me) if pause_s <= 0 else None
                if turn is not None:
                    with self._beats.during(turn.token, lambda turn=turn: self._turns.heartbeat(turn)):  # type: ignore[misc]
                        try:
                            job.run()
                        except Exception as error:
                            expected = isinstance(error, LabelloopError)
                            exc_info = None if expected else error
                            log.warning("periodic_failed", job=job.name, reason=self._reason(error), exc_info=exc_info)
                    self._turns.finish(turn)
                    continue
            except Exception:
                log.exception("periodic_failed", job=job.name)
                pause_s = 5.0
            # Not the whole pause at once: another worker's turn may be freed in the meantime.
            stop.wait(min(max(pause_s, 0.1), 5.0))

    def _prune(self) -> None:
        pruned = self._inbox.prune(self._settings.job_retention_days * 86400)
        if pruned:
            log.info("inbox_pruned", events=pruned)
        forgotten = self._inbox.prune(self._settings.job_dead_days * 86400, state="dead")
        if forgotten:
            log.warning("dead_letters_pruned", events=forgotten, days=self._settings.job_dead_days)

    def _reason(self, error: BaseException) -> str:
        text = str(error) if isinstance(error, LabelloopError) else f"{type(error).__name__}: {error}"
        return redact(text, self._secrets)[:REASON_LIMIT]

    def _thread(self, name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=f"labelloop-{name}", daemon=True)
        thread.start()
        return thread
