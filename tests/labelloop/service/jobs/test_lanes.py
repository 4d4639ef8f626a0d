"""Short jobs wait for no other; long ones run one at a time in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.lanes import LongJob, LongJobs, ThreadSlots, may_leave_thread, require_own_process
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings

# The handlers run the subject, which is code; in a worker, code that sleeps leaves its thread.
CHILD = """
import sys
from labelloop.service.jobs.isolated_job import run_child
run_child(lambda topic: lambda subject, events: exec(subject), int(sys.argv[1]))
"""
COMMAND = (sys.executable, "-c", CHILD)

WORKER = f"""
import sys
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.lanes import require_own_process
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings
settings = Settings()
def handler(subject, events):
    require_own_process()
jobs = Jobs(
    settings, Inbox.from_settings(settings, open_database(settings)), {{"t": handler}},
    isolated_command=(sys.executable, "-c", {CHILD!r}),
)
run_worker(jobs, 2)
"""


@pytest.fixture
def settings(queue_settings) -> Settings:
    return queue_settings.replace(job_backoff_s=0.01)


@pytest.fixture
def inbox(settings):
    inbox = Inbox.from_settings(settings, open_database(settings))
    yield inbox
    inbox.engine.dispose()


@contextmanager
def running(jobs: Jobs, threads: int):
    stop = threading.Event()
    worker = threading.Thread(target=run_worker, args=(jobs, threads), kwargs={"stop": stop})
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join(60)
        jobs.close()
    assert not worker.is_alive()


def lines(path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def writes(path, name: str, seconds: float) -> str:
    """Code that writes "<name" at its start and "name>" at its end."""
    write = f"open({str(path)!r}, 'a').write"
    return f"import time; {write}('<{name} '); time.sleep({seconds}); {write}('{name}> ')"


def test_long_jobs_run_one_at_a_time_and_no_other_waits_for_them(settings, inbox, wait_until, tmp_path):
    done, effects = [], tmp_path / "effects"

    def handler(subject, _events):
        if "sleep" in subject:
            require_own_process()
        done.append(subject)

    jobs = Jobs(settings, inbox, {"t": handler}, isolated_command=COMMAND)
    for number in range(3):
        jobs.submit("t", writes(effects, str(number), 1.0), f"long {number}", {})
    with running(jobs, 1):
        wait_until(lambda: lines(effects))
        jobs.submit("t", "short", "short", {})
        wait_until(lambda: done == ["short"])
        assert inbox.counts()["done"] < 3, "the long ones still run"
        jobs.submit("t", writes(effects, "0", 1.0), "again", {})  # while it runs, or after
        wait_until(lambda: inbox.counts()["done"] == 5, 240)  # four processes, each at low priority
    seen = lines(effects)
    assert sorted(seen) == sorted(["<0", "0>"] * 2 + ["<1", "1>", "<2", "2>"])
    assert all(begun[1:] == ended[:-1] for begun, ended in zip(seen[::2], seen[1::2], strict=True)), "one at a time"


def test_a_long_job_in_a_worker_without_a_process_runs_in_its_thread(settings, inbox, wait_until):
    done = []
    jobs = Jobs(settings, inbox, {"t": lambda subject, _: (require_own_process(), done.append(subject))})
    jobs.submit("t", "s", "k", {})
    with running(jobs, 1):
        wait_until(lambda: done == ["s"])


def test_a_long_job_whose_process_is_killed_is_tried_again(settings, inbox, wait_until, tmp_path):
    """Out of memory, the kernel ends that process first, whoever took the memory."""
    effects = tmp_path / "effects"
    kill_first = (
        f"import os; first = not os.path.exists({str(effects)!r}); open({str(effects)!r}, 'a').write('x '); "
        "first and os.kill(os.getpid(), 9)"
    )
    jobs = Jobs(settings, inbox, {"t": lambda *_: require_own_process()}, isolated_command=COMMAND)
    jobs.submit("t", kill_first, "k", {})
    with running(jobs, 1):
        wait_until(lambda: inbox.counts()["done"] == 1)
    assert lines(effects) == ["x", "x"]


def test_a_long_job_without_enough_memory_is_a_dead_letter_with_the_limit(settings, inbox, wait_until):
    settings = settings.replace(job_memory_bytes=512 * 2**20)
    jobs = Jobs(settings, inbox, {"t": lambda *_: require_own_process()}, isolated_command=COMMAND)
    jobs.submit("t", "bytearray(2**31)", "k", {})
    with running(jobs, 1):
        wait_until(lambda: inbox.counts()["dead"] == 1)
    (letter,) = inbox.dead_letters()
    assert letter.reason == "it ran out of memory: it ran isolated with 512 MiB of memory (LABELLOOP_JOB_MEMORY_BYTES)"


def test_short_jobs_run_while_others_hold_all_threads(settings, inbox, wait_until, monkeypatch):
    """And a job that found all threads held starts once one is free: no sweep is due meanwhile."""
    monkeypatch.setattr("labelloop.service.jobs.worker.SWEEP_S", 3600.0)
    release, started, done = {name: threading.Event() for name in "abc"}, [], []

    def slow(subject, _events):
        started.append(subject)
        assert release[subject].wait(60)

    handlers = {"slow": slow, "short": lambda subject, _: done.append(subject)}
    jobs = Jobs(settings, inbox, handlers, short_topics=["short"])
    try:
        with running(jobs, 2):
            for name in "ab":
                jobs.submit("slow", name, name, {})
            wait_until(lambda: len(started) == 2)
            jobs.submit("slow", "c", "c", {})
            for number in range(20):
                jobs.submit("short", str(number), str(number), {})
            wait_until(lambda: len(done) == 20)
            assert sorted(started) == ["a", "b"], "short jobs run beyond the threads, others do not"
            release["a"].set()
            wait_until(lambda: "c" in started)
            for event in release.values():
                event.set()
    finally:
        for event in release.values():
            event.set()


def test_short_jobs_leave_a_thread_to_the_others():
    """At most `threads` at once; beyond them one short job, and only where others hold the threads."""
    freed = []
    slots = ThreadSlots(2, ["short"], lambda: freed.append(1))
    assert slots.consumers == 3
    with slots.hold("short"), slots.hold("a") as a:
        assert a
        waits = threading.Thread(target=lambda: slots.hold("short").__enter__())
        waits.start()
        waits.join(0.2)
        assert waits.is_alive(), "one short and one other hold both threads"
        with slots.hold("b") as b, slots.hold("c") as c:
            assert (b, c) == (True, False)
            assert slots.open_topics() == {"short"}
        assert freed == [1]
        assert slots.open_topics() is None
    waits.join(10)
    assert not waits.is_alive()


def test_jobs_that_killed_a_worker_come_after_the_long_ones():
    jobs = LongJobs()
    jobs.add(("t", "bomb"), is_last=True)
    jobs.add(("t", "long"))
    jobs.add(("t", "long"))
    assert jobs.next() == ("t", "long")
    assert ("t", "long") in jobs, "contained while it runs"
    jobs.remove(("t", "long"))
    assert jobs.next() == ("t", "bomb")
    jobs.close()
    assert jobs.next() is None


def test_only_a_worker_moves_long_jobs():
    require_own_process()
    with pytest.raises(LongJob), may_leave_thread():
        require_own_process()
    require_own_process()


@pytest.mark.system
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ended_in_the_middle_of_a_long_job_loses_none_and_runs_none_twice_at_once(
    settings, inbox, wait_until, tmp_path, how
):
    effects = tmp_path / "effects"
    for number in range(3):
        inbox.put("t", writes(effects, str(number), 2.0), str(number), {})
    environment = os.environ | {
        "LABELLOOP_HOME": str(settings.home), "LABELLOOP_QUEUE_URL": settings.queue_url, "LABELLOOP_JOB_STOP_S": "0.1"
    }  # fmt: skip
    first = subprocess.Popen([sys.executable, "-c", WORKER], env=environment)
    wait_until(lambda: lines(effects))
    first.send_signal(how)
    first.wait()
    second = subprocess.Popen([sys.executable, "-c", WORKER], env=environment)
    try:
        wait_until(lambda: inbox.counts()["done"] == 3)
    finally:
        second.terminate()
        second.wait()
    seen = lines(effects)
    begun = [word for word in seen if word.startswith("<")]
    ended = [word for word in seen if word.endswith(">")]
    assert sorted(ended) == ["0>", "1>", "2>"], "each came to its end once"
    assert len(begun) == 4, "the one in the middle began again"
