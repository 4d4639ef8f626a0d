"""Workers with the queue on SQLite, on a real Redis and on a real Postgres."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
import structlog
from huey.registry import Message

from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs, PeriodicJob, Reject
from labelloop.service.jobs.periodic_leases import PeriodicLeases
from labelloop.service.jobs.wakeup_queue import JsonSerializer, WakeupQueue
from labelloop.service.jobs.worker import run_worker
from labelloop.service.jobs.worker_id import WorkerIdentity, current_worker, is_dead
from labelloop.service.settings import Settings


@contextmanager
def running(*jobs: Jobs, threads: int = 2):
    """Workers, each in a thread of this process, for the length of the block."""
    stop = threading.Event()
    workers = [threading.Thread(target=run_worker, args=(job, threads), kwargs={"stop": stop}) for job in jobs]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)


@pytest.fixture
def make(tmp_path):
    """make(handlers, periodic_jobs, **settings): a `Jobs` of its own on the database of this test."""
    created = []

    def make_jobs(handlers=None, periodic_jobs=(), **changes) -> Jobs:
        chosen = Settings(**{"home": tmp_path / "home", "job_backoff_s": 0.01} | changes)
        created.append(Jobs(chosen, Inbox.from_settings(chosen, open_database(chosen)), handlers, periodic_jobs))
        return created[-1]

    yield make_jobs
    for jobs in created:
        jobs.close()
        jobs.inbox.engine.dispose()


@pytest.fixture
def make_jobs(make, queue_settings):
    """As `make`, with the queue on each engine."""
    return partial(make, queue_url=queue_settings.queue_url)


def test_a_submitted_event_reaches_its_handler_by_the_queue(make_jobs, wait_until, monkeypatch):
    swept, handled = [], []
    monkeypatch.setattr("labelloop.service.jobs.worker.SWEEP_S", 3600.0)
    jobs = make_jobs({"t": lambda subject, events: handled.append((subject, [event.payload for event in events]))})
    monkeypatch.setattr(jobs.inbox, "due_subjects", lambda limit, **_: swept.append(limit) or [])
    with running(jobs):
        wait_until(lambda: swept)  # what comes now comes by the queue, or not at all
        assert jobs.submit("t", "task:1", "a", {"x": 1})
        wait_until(lambda: handled)
        assert not jobs.submit("t", "task:1", "a", {"x": 2})
        wait_until(lambda: jobs.inbox.counts()["done"] == 1)
    assert handled == [("task:1", [{"x": 1}])]


def test_events_that_were_put_while_no_worker_ran_are_handled(make_jobs, wait_until):
    handled = Counter()
    jobs = make_jobs({"t": lambda subject, events: handled.update(event.key for event in events)})
    for number in range(20):
        jobs.submit("t", str(number % 4), str(number), {})
    with running(jobs):
        wait_until(lambda: jobs.inbox.counts()["done"] == 20)
    assert handled == Counter({str(number): 1 for number in range(20)})


def test_the_sweep_recovers_a_lost_wake_up(make_jobs, wait_until):
    jobs = make_jobs({"t": lambda *_: None})
    jobs.inbox.put("t", "s", "k", {})  # and no wake-up
    with running(jobs):
        wait_until(lambda: jobs.inbox.counts()["done"] == 1)


def test_two_workers_never_handle_one_subject_at_the_same_time(make_jobs, wait_until):
    inside, overlaps, handled = Counter(), [], []

    def handler(subject, events):
        inside[subject] += 1
        if inside[subject] > 1:
            overlaps.append(subject)
        time.sleep(0.02)
        inside[subject] -= 1
        handled.extend(event.key for event in events)

    first, second = make_jobs({"t": handler}), make_jobs({"t": handler})
    with running(first, second, threads=3):
        for number in range(40):
            (first, second)[number % 2].submit("t", str(number % 3), str(number), {})
        wait_until(lambda: first.inbox.counts()["done"] == 40)
    assert overlaps == []
    assert Counter(handled) == Counter({str(number): 1 for number in range(40)})


def test_a_worker_repeats_no_job_whose_lease_ended_while_it_was_suspended(make, wait_until):
    """A laptop wakes up an hour later: the clock is past the lease before the lease is extended."""
    entered, release = [], threading.Event()

    def handler(_subject, _events):
        entered.append(1)
        release.wait(60)

    jobs = make({"t": handler}, job_lease_s=3600.0)
    jobs.submit("t", "s", "k", {})
    with running(jobs, threads=2):
        try:
            wait_until(lambda: entered)
            with jobs.inbox.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE inbox_claims SET leased_until = 0")
            assert jobs.inbox.due_subjects(1) == [("t", "s")]
            time.sleep(2.5)  # two sweeps
            assert len(entered) == 1
        finally:
            release.set()
        wait_until(lambda: jobs.inbox.counts()["done"] == 1)


def test_events_of_a_busy_subject_are_batched(make, wait_until):
    calls, go = [], threading.Event()

    def handler(_subject, events):
        calls.append([event.key for event in events])
        go.wait(60)

    jobs = make({"t": handler})
    with running(jobs):
        jobs.submit("t", "s", "0", {})
        wait_until(lambda: calls)
        for number in range(1, 6):
            jobs.submit("t", "s", str(number), {})
        time.sleep(0.3)
        go.set()
        wait_until(lambda: jobs.inbox.counts()["done"] == 6)
    assert calls == [["0"], ["1", "2", "3", "4", "5"]]


def test_a_failing_handler_is_tried_again_and_then_given_up(make, wait_until):
    attempts = []

    def handler(_subject, events):
        attempts.append(events[0].attempts)
        raise RuntimeError("no connection to http://user:hunter2@studio")

    jobs = make({"t": handler}, job_attempts=3)
    with running(jobs):
        jobs.submit("t", "s", "k", {})
        wait_until(lambda: jobs.inbox.counts()["dead"] == 1)
    assert attempts == [1, 2, 3]
    (letter,) = jobs.inbox.dead_letters()
    assert letter.reason == "RuntimeError: no connection to http://user:********@studio"


def test_a_handler_that_recovers_finishes_its_event(make, wait_until):
    def handler(_subject, events):
        if events[0].attempts < 3:
            raise LabelloopError("not yet")

    jobs = make({"t": handler})
    with running(jobs):
        jobs.submit("t", "s", "k", {})
        wait_until(lambda: jobs.inbox.counts()["done"] == 1)


def test_a_rejected_event_and_one_without_handler_die_at_once(make, wait_until):
    def handler(_subject, _events):
        raise Reject("the task was deleted")

    jobs = make({"t": handler})
    with running(jobs):
        jobs.submit("t", "s", "k", {})
        jobs.submit("unknown", "s", "k", {})
        wait_until(lambda: jobs.inbox.counts()["dead"] == 2)
    letters = {letter.event.topic: (letter.event.attempts, letter.reason) for letter in jobs.inbox.dead_letters()}
    assert letters["t"] == (1, "the task was deleted")
    assert letters["unknown"] == (1, "no handler for the topic 'unknown' (known: t)")


def test_a_handler_longer_than_the_lease_runs_once(make, wait_until):
    runs = []

    def handler(_subject, _events):
        runs.append(1)
        time.sleep(4)

    first, second = (make({"t": handler}, job_lease_s=1.5) for _ in range(2))
    with running(first, second):
        first.submit("t", "s", "k", {})
        wait_until(lambda: first.inbox.counts()["done"] == 1)
    assert runs == [1]


def test_stopping_waits_for_the_running_handler(make, wait_until):
    started, finished = threading.Event(), []

    def handler(_subject, _events):
        started.set()
        time.sleep(0.5)
        finished.append(1)

    jobs = make({"t": handler})
    with running(jobs):
        jobs.submit("t", "s", "k", {})
        assert started.wait(60)
    assert finished == [1]
    assert jobs.inbox.counts() == {"pending": 0, "claimed": 0, "done": 1, "dead": 0}


def test_a_slow_handler_releases_its_claim_at_stop(make):
    started, go = threading.Event(), threading.Event()

    def handler(_subject, _events):
        started.set()
        go.wait(60)

    jobs = make({"t": handler}, job_stop_s=0.2)
    with running(jobs):
        jobs.submit("t", "s", "k", {})
        assert started.wait(60)
    assert jobs.inbox.counts() == {"pending": 1, "claimed": 0, "done": 0, "dead": 0}
    assert jobs.inbox.due_subjects(10) == [("t", "s")]
    go.set()


def test_a_periodic_job_runs_on_one_worker_at_its_interval(make, wait_until):
    inside, overlaps, starts = [], [], []

    def job():
        starts.append(1)
        inside.append(1)
        if len(inside) > 1:
            overlaps.append(1)
        time.sleep(0.1)
        inside.pop()

    workers = [make(periodic_jobs=[PeriodicJob("poll", 0.4, job)]) for _ in range(3)]
    with running(*workers):
        began = time.monotonic()
        wait_until(lambda: len(starts) >= 5)
        lasted = time.monotonic() - began
    assert overlaps == []
    assert len(starts) - 1 <= lasted / 0.4 + 1


def test_a_long_periodic_job_does_not_overlap_itself(make, wait_until):
    inside, most = [], []

    def job():
        inside.append(1)
        most.append(len(inside))
        time.sleep(3)
        inside.pop()

    workers = [make(periodic_jobs=[PeriodicJob("poll", 0.1, job)], job_lease_s=1.5) for _ in range(2)]
    with running(*workers):
        wait_until(lambda: len(most) >= 2)
    assert max(most) == 1


def test_a_failing_periodic_job_runs_again(make, wait_until):
    runs = []

    def job():
        runs.append(1)
        raise RuntimeError("Label Studio is away")

    with running(make(periodic_jobs=[PeriodicJob("poll", 0.1, job)])):
        wait_until(lambda: len(runs) >= 3)


def test_finished_events_are_pruned_by_the_worker(make, wait_until):
    jobs = make({"t": lambda *_: None}, job_retention_days=0)
    jobs.inbox.put("t", "s", "k", {})
    jobs.inbox.mark_done(jobs.inbox.claim("t", "s", "me"))
    time.sleep(0.01)
    with running(jobs):
        wait_until(lambda: jobs.inbox.counts()["done"] == 0)


def test_leases_of_a_dead_worker_are_released(database):
    leases = PeriodicLeases(database, lease_s=3600)
    gone = msgspec.json.encode(
        msgspec.structs.replace(msgspec.json.decode(current_worker(), type=WorkerIdentity), pid=2**22 + 1)
    )
    assert leases.acquire("poll", 0.0, gone.decode()) is not None
    assert leases.acquire("poll", 0.0, current_worker()) is None
    assert leases.wait_s("poll", 0.0) > 3000
    assert leases.release_dead_workers() == 1
    lease = leases.acquire("poll", 0.0, current_worker())
    assert leases.extend(lease)
    assert leases.release_dead_workers() == 0
    leases.release(lease)
    assert not leases.extend(lease)


def test_a_long_backlog_does_not_pile_up_in_the_queue(make, wait_until, monkeypatch):
    """The sweep wakes the same subjects repeatedly; the queue stays bounded."""
    monkeypatch.setattr("labelloop.service.jobs.worker.SWEEP_S", 0.2)
    go, sweeps = threading.Event(), []
    jobs = make({"t": lambda *_: go.wait(60)})
    due = jobs.inbox.release_dead_workers
    monkeypatch.setattr(jobs.inbox, "release_dead_workers", lambda: sweeps.append(1) or due())
    for number in range(150):
        jobs.inbox.put("t", str(number), str(number), {})
    queue = WakeupQueue(jobs.settings)
    with running(jobs, threads=1):
        wait_until(lambda: len(sweeps) >= 5)
        size = queue.size()
        go.set()
    queue.close()
    assert 50 <= size <= 101


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_a_web_process_answers_while_the_queue_is_away(make, free_port, scheme):
    """The event is stored, and the caller does not wait."""
    jobs = make(queue_url=f"{scheme}://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    assert jobs.submit("t", "s", "1", {})
    assert jobs.submit("t", "s", "2", {})
    assert time.monotonic() - started < 20
    assert jobs.inbox.counts()["pending"] == 2


def test_a_worker_goes_on_when_the_queue_comes_back(make, free_port, wait_until):
    """Redis is away when the worker starts: errors once, not at every look, and work resumes by itself."""
    port = free_port()
    jobs = make({"t": lambda *_: None}, queue_url=f"redis://127.0.0.1:{port}/0")
    with structlog.testing.capture_logs() as lines, running(jobs, threads=2):
        jobs.submit("t", "s", "1", {})
        wait_until(lambda: any(line["event"] == "queue_unreachable" and line["log_level"] == "error" for line in lines))
        time.sleep(2)
        server = subprocess.Popen(
            [shutil.which("redis-server") or pytest.skip("no redis-server"), "--port", str(port), "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: jobs.inbox.counts()["done"] == 1)
            errors = [line for line in lines if line["event"] == "queue_unreachable" and line["log_level"] == "error"]
            assert 1 <= len(errors) <= 2, "once a thread"
        finally:
            server.terminate()
            server.wait()


def test_what_others_put_into_the_queue_is_never_unpickled(make_jobs, wait_until, tmp_path):
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {trap}",))

    handled = []
    jobs = make_jobs({"t": lambda _subject, events: handled.extend(event.key for event in events)})
    queue = WakeupQueue(jobs.settings)
    for junk in (
        pickle.dumps(Bomb()),
        pickle.dumps(Message("1", "labelloop.service.jobs.wakeup_queue.queuecmd_wake")),
        b"{}",
        b"[1]",
        b"",
    ):
        queue._huey.storage.enqueue(junk)
    queue.close()
    with running(jobs):
        jobs.submit("t", "s", "k", {})
        wait_until(lambda: handled == ["k"])
    assert not trap.exists()


def test_the_serializer_keeps_a_message_and_takes_only_names():
    message = Message("id", "name", None, 0, 0, None, ("topic", "subject"), {})
    assert JsonSerializer().deserialize(JsonSerializer().serialize(message)) == message
    with pytest.raises(msgspec.ValidationError):
        JsonSerializer().deserialize(JsonSerializer().serialize(message._replace(args=({"a": 1}, "subject"))))


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),  # above the kernel's largest pid
        ({"started": "1"}, True),  # the pid was given to another process
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),  # not ours to judge
    ],
)
def test_an_ended_worker_is_told_from_a_living_one(change, ended):
    identity = msgspec.json.decode(current_worker(), type=WorkerIdentity)
    assert is_dead(msgspec.json.encode(msgspec.structs.replace(identity, **change)).decode()) is ended


def test_an_unreadable_identity_has_not_ended():
    assert not is_dead("me")
