"""A worker process: claim events, call handlers, renew leases, sweep for missed events, stop cleanly."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import structlog

from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.heartbeats import HEARTBEAT_INTERVAL_S, WorkerHeartbeats
from labelloop.service.jobs.inbox import Claim
from labelloop.service.jobs.isolated_job import IsolatedJobRunner
from labelloop.service.jobs.jobs import Jobs, PeriodicJob, Reject
from labelloop.service.jobs.lanes import LongJob, LongJobs, ThreadSlots, may_leave_thread
from labelloop.service.jobs.periodic_leases import PeriodicLeases
from labelloop.service.jobs.wakeup_queue import WakeupQueue
from labelloop.service.jobs.worker_id import current_worker
from labelloop.service.logging import redact, settings_secrets
from labelloop.service.signals import on_stop_signals

SWEEP_S = 1.0
# Interval of the sweep while more subjects are due than one sweep takes.
BACKLOG_SWEEP_S = 0.2
# The sweep fills the queue up to this size, so that a long backlog does not pile up in it.
SWEEP_LIMIT = 100
# The sweep skips a queue that holds more than this: it already has the oldest due subjects.
SWEEP_BELOW = 25
HEALTH_CHECK_S = 10.0
PRUNE_EVERY_S = 3600.0
REASON_LIMIT = 2000
# Delay of a long job that finds `lanes.MAX_LONG_JOBS` waiting, which take hours.
LONG_RETRY_S = 3600.0
log = structlog.get_logger(__name__)


def run_worker(jobs: Jobs, threads: int | None = None, *, stop: threading.Event | None = None) -> None:
    """Handle events and run periodic jobs until SIGINT, SIGTERM or `stop`.

    Running handlers get `job_stop_s` seconds to finish, then their claims are released. A second signal stops at once.
    Signals are handled in the main thread only.

    Args:
        jobs: Handlers and periodic jobs.
        threads: Concurrent handlers; default: `job_threads`. A short one may run beyond them.
        stop: Stops the worker when set, for a worker embedded in another program.
    """
    Worker(jobs, threads or jobs.settings.job_threads).run(stop or threading.Event())


class LeaseRenewer:
    """Renew the leases of the running jobs of this process from a background thread."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._callbacks: dict[str, Callable[[], bool]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def renewing(self, token: str, renew: Callable[[], bool]) -> Iterator[None]:
        """Call `renew` periodically while the block runs."""
        with self._lock:
            self._callbacks[token] = renew
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(token, None)

    def run(self, stop: threading.Event) -> None:
        """Renew all leases every `every_s` seconds until `stop`."""
        while not stop.wait(self._every_s):
            with self._lock:
                callbacks = list(self._callbacks.items())
            for token, renew in callbacks:
                try:
                    owned = renew()
                except Exception:  # the database may be unreachable for a moment; the next round retries
                    log.warning("heartbeat_failed", exc_info=True)
                    continue
                if not owned and token in self._callbacks:
                    log.warning("lease_lost", token=token)


class Worker:
    """Run the handlers and periodic jobs of a `Jobs`; see `run_worker`."""

    def __init__(self, jobs: Jobs, threads: int) -> None:
        settings = jobs.settings
        self._settings = settings
        self._inbox = jobs.inbox
        self._handlers = jobs.handlers
        self._periodic_leases = PeriodicLeases(jobs.inbox.engine, lease_s=settings.job_lease_s)
        prune = PeriodicJob("inbox-prune", PRUNE_EVERY_S, self._prune)
        self._periodic_jobs: tuple[PeriodicJob, ...] = (*jobs.periodic_jobs, prune)
        self._queue = WakeupQueue(settings, self.handle)
        self._worker_id = current_worker()
        self._workers = WorkerHeartbeats(jobs.inbox.engine)
        self._secrets = settings_secrets(settings)
        self._lease_renewer = LeaseRenewer(settings.job_lease_s / 3)
        self._claims: dict[str, Claim] = {}
        self._active: dict[tuple[str, str], threading.Thread] = {}
        command = jobs.isolated_command
        self._isolated_runner = (
            IsolatedJobRunner(command, settings.job_memory_bytes, settings.job_isolated_s) if command else None
        )
        self._threads = threads
        self._sweep_now = threading.Event()
        self._slots = ThreadSlots(threads, jobs.short_topics, self._sweep_now.set)
        self._long_jobs = LongJobs()
        self._stopping = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Run until a signal or `stop`.

        Args:
            stop: Stops the worker when set; a second signal skips the wait for running handlers.
        """
        stop_now = threading.Event()
        ended = threading.Event()

        def request_stop() -> None:
            (stop_now if stop.is_set() else stop).set()

        with on_stop_signals(request_stop):
            consumer = self._queue.consumer(self._slots.consumers)
            helpers = [self._thread("heartbeats", self._lease_renewer.run, ended)]
            helpers += [self._thread("sweep", self._sweep, stop)]
            helpers += [self._thread("presence", self._send_heartbeats, stop)]
            helpers += [self._thread(job.name, self._run_periodic, job, stop) for job in self._periodic_jobs]
            if self._isolated_runner:
                helpers.append(self._thread("long-jobs", self._run_long_jobs, self._isolated_runner))
            log.info("worker_started", threads=self._threads, topics=sorted(self._handlers))
            consumer.start()
            checked_at = time.monotonic()
            while not stop.wait(0.2):
                if time.monotonic() > checked_at + HEALTH_CHECK_S:
                    checked_at = time.monotonic()
                    consumer.check_worker_health()
            self._stopping.set()
            self._long_jobs.close()
            self._sweep_now.set()
            consumer.stop_flag.set()
            log.info("worker_stopping", running=len(self._claims))
            threads_left = [thread for _, thread in consumer.worker_threads] + helpers[1:]
            deadline = time.monotonic() + self._settings.job_stop_s
            while any(thread.is_alive() for thread in threads_left) and time.monotonic() < deadline:
                if stop_now.wait(0.05):
                    break
            for claim in list(self._claims.values()):
                log.warning("claim_released", topic=claim.topic, subject=claim.subject)
                self._inbox.release(claim)
            if self._isolated_runner:
                self._isolated_runner.stop()
            ended.set()
            with suppress(Exception):  # otherwise its heartbeat expires
                self._workers.remove(self._worker_id)
        self._queue.close()
        log.info("worker_stopped")

    def _send_heartbeats(self, stop: threading.Event) -> None:
        failing = False
        while True:
            try:
                self._workers.record(self._worker_id)
                failing = False
            except Exception:
                if not failing:  # log once, not every few seconds
                    log.exception("presence_failed")
                failing = True
            if stop.wait(HEARTBEAT_INTERVAL_S):
                return

    def handle(self, topic: str, subject: str) -> None:
        """Handle the subject's events until none are due.

        `has_due_events` runs after the claim is released: a worker that was woken for a newer event meanwhile found the
        subject claimed and dropped the wake-up.
        """
        thread = threading.current_thread()
        # After a suspend the lease of a running job is over before it is extended: a claim alone would not do.
        if (topic, subject) in self._long_jobs or self._active.setdefault((topic, subject), thread) is not thread:
            return
        try:
            with self._slots.hold(topic) as may_run:
                while may_run and not self._stopping.is_set() and self._handle_due(topic, subject):
                    pass
        finally:
            del self._active[topic, subject]

    def _handle_due(self, topic: str, subject: str) -> bool:
        """Handle the subject's due events; whether more are due."""
        try:
            claim = self._inbox.claim(topic, subject, self._worker_id)
            if claim is None:
                return False
            if claim.isolated and self._isolated_runner and topic in self._handlers:
                self._run_later_in_process(claim)
                return False
            with self._running(claim):
                self._handle_claim(claim)
            return (topic, subject) not in self._long_jobs and self._inbox.has_due_events(topic, subject)
        except Exception:  # the database is unreachable: the lease expires and a sweep recovers the events
            log.exception("claim_failed", topic=topic, subject=subject)
            return False

    @contextmanager
    def _running(self, claim: Claim) -> Iterator[None]:
        """Extend the claim's lease during the block, and release the claim if the worker stops meanwhile."""
        self._claims[claim.token] = claim
        try:
            with (
                structlog.contextvars.bound_contextvars(topic=claim.topic, subject=claim.subject),
                self._lease_renewer.renewing(claim.token, partial(self._inbox.extend_lease, claim)),
            ):
                yield
        finally:
            self._claims.pop(claim.token, None)

    def _run_later_in_process(self, claim: Claim) -> None:
        """Release a claim whose events are to run in the process of long jobs; those that killed a worker come last."""
        if self._long_jobs.is_full:
            self._inbox.release(claim, delay_s=LONG_RETRY_S)
            log.warning("long_job_delayed", reason="too many wait", seconds=LONG_RETRY_S)
        elif self._inbox.release(claim):
            self._long_jobs.add((claim.topic, claim.subject), is_last=claim.isolated)

    def _run_long_jobs(self, runner: IsolatedJobRunner) -> None:
        while (long_job := self._long_jobs.next()) is not None:
            topic, subject = long_job
            try:
                claim = self._inbox.claim(topic, subject, self._worker_id)
                if claim is not None:  # otherwise another worker has its events
                    with self._running(claim):
                        self._handle_isolated(claim, runner)
            except Exception:  # the database is unreachable: the lease expires and a sweep recovers the events
                log.exception("claim_failed", topic=topic, subject=subject)
            finally:
                self._long_jobs.remove(long_job)
                self._sweep_now.set()  # for events that came meanwhile

    def _handle_isolated(self, claim: Claim, runner: IsolatedJobRunner) -> None:
        started = time.monotonic()
        log.info("event_runs_in_process", events=len(claim.events), kills=claim.kills)
        outcome = runner.run(claim)
        reason = redact(outcome.reason, self._secrets)[:REASON_LIMIT]
        # The first signals may have been meant for another: out of memory, the kernel ends the process of long jobs.
        is_bomb = outcome.kind == "exhausted" or (outcome.kind == "killed" and claim.isolated)
        if outcome.kind == "done":
            owned = self._inbox.mark_done(claim)
            log.info("event_done", events=len(claim.events), seconds=round(time.monotonic() - started, 3), kept=owned)
        elif outcome.kind == "dead" or is_bomb:
            if is_bomb:
                limit = self._settings.job_memory_bytes
                lost = f"{claim.kills} workers were lost while they handled it, then " if claim.isolated else ""
                reason = (
                    f"it {reason}: {lost}it ran isolated with {limit / 2**20:.0f} MiB of memory "
                    "(LABELLOOP_JOB_MEMORY_BYTES)"
                )
            if self._inbox.mark_dead(claim, reason, killed=is_bomb):
                log.error("event_dead", reason=reason, events=len(claim.events))
        else:
            owned = self._inbox.retry(claim, reason)
            log.warning("event_failed", reason=reason, kept=owned)

    def _handle_claim(self, claim: Claim) -> None:
        handler = self._handlers.get(claim.topic)
        started = time.monotonic()
        if handler is None:
            topics = ", ".join(sorted(self._handlers)) or "none"
            self._inbox.mark_dead(claim, f"no handler for the topic {claim.topic!r} (known: {topics})")
            log.error("event_dead", reason="no handler", events=len(claim.events))
            return
        try:
            with may_leave_thread() if self._isolated_runner else nullcontext():
                handler(claim.subject, claim.events)
        except LongJob:
            self._run_later_in_process(claim)
        except Reject as error:
            self._inbox.mark_dead(claim, self._reason(error))
            # An expected error: no traceback.
            log.error("event_dead", reason=self._reason(error), events=len(claim.events))  # noqa: TRY400
        except Exception as error:
            owned = self._inbox.retry(claim, self._reason(error))
            expected = isinstance(error, LabelloopError)  # its message is enough, no traceback
            log.warning("event_failed", reason=self._reason(error), kept=owned, exc_info=None if expected else error)
        else:
            owned = self._inbox.mark_done(claim)
            log.info("event_done", events=len(claim.events), seconds=round(time.monotonic() - started, 3), kept=owned)

    def _sweep(self, stop: threading.Event) -> None:
        failing, pause_s, released_at = False, SWEEP_S, -SWEEP_S
        while True:
            try:
                if time.monotonic() >= released_at + SWEEP_S:
                    released_at = time.monotonic()
                    self._inbox.release_dead_workers()
                    self._periodic_leases.release_dead_workers()
                waiting = self._queue.size()
                if waiting <= SWEEP_BELOW:
                    due = self._inbox.due_subjects(
                        SWEEP_LIMIT - waiting, topics=self._slots.open_topics(), without=self._long_jobs.subjects()
                    )
                    for topic, subject in due:
                        self._queue.wake(topic, subject)
                    pause_s = BACKLOG_SWEEP_S if waiting + len(due) >= SWEEP_LIMIT else SWEEP_S
                failing = False
            except Exception:
                if not failing:  # log once, not every second
                    log.exception("sweep_failed")
                failing, pause_s = True, SWEEP_S
            self._sweep_now.wait(min(pause_s, SWEEP_S))
            self._sweep_now.clear()
            if stop.is_set():
                return

    def _run_periodic(self, job: PeriodicJob, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                pause_s = self._periodic_leases.wait_s(job.name, job.every_s)
                lease = self._periodic_leases.acquire(job.name, job.every_s, self._worker_id) if pause_s <= 0 else None
                if lease is not None:
                    with self._lease_renewer.renewing(lease.token, partial(self._periodic_leases.extend, lease)):
                        try:
                            job.run()
                        except Exception as error:
                            expected = isinstance(error, LabelloopError)
                            exc_info = None if expected else error
                            log.warning("periodic_failed", job=job.name, reason=self._reason(error), exc_info=exc_info)
                    self._periodic_leases.release(lease)
                    continue
            except Exception:
                log.exception("periodic_failed", job=job.name)
                pause_s = 5.0
            # Wait in short steps: another worker's lease may be released meanwhile.
            stop.wait(min(max(pause_s, 0.1), 5.0))

    def _prune(self) -> None:
        pruned = self._inbox.prune(self._settings.job_retention_days * 86400)
        if pruned:
            log.info("inbox_pruned", events=pruned)
        pruned_dead = self._inbox.prune(self._settings.job_dead_days * 86400, state="dead")
        if pruned_dead:
            log.warning("dead_letters_pruned", events=pruned_dead, days=self._settings.job_dead_days)

    def _reason(self, error: BaseException) -> str:
        text = str(error) if isinstance(error, LabelloopError) else f"{type(error).__name__}: {error}"
        return redact(text, self._secrets)[:REASON_LIMIT]

    def _thread(self, name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=f"labelloop-{name}", daemon=True)
        thread.start()
        return thread
