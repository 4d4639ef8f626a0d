"""A job that ended its worker twice is run in a process of its own, and takes nothing else along."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from labelloop.cli.isolated_job import handler_of
from labelloop.cli.worker import handlers
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Backoff, Claim, Event, Inbox
from labelloop.service.jobs.isolated_job import IsolatedJobRunner
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio

# The handlers are the subject's name in code, so that each test says what its job does.
CHILD = """
import os, sys
from labelloop.service.jobs.isolated_job import run_child
from labelloop.service.jobs.jobs import Reject
from labelloop.service.jobs.worker import run_worker
run_child(lambda topic: lambda subject, events: exec(subject), int(sys.argv[1]))
"""
COMMAND = (sys.executable, "-c", CHILD)
MIB = 2**20

# A worker that runs every job in its own process: a bomb takes it down.
WORKER = f"""
import os, sys
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings
settings = Settings()
jobs = Jobs(
    settings, Inbox.from_settings(settings, open_database(settings)),
    {{"t": lambda subject, events: exec(subject)}}, isolated_command=(sys.executable, "-c", {CHILD!r}),
)
run_worker(jobs, 2)
"""
BOMB = "os.kill(os.getpid(), 9)"


def claim_of(code: str) -> Claim:
    return Claim("t", code, "token", (Event(1, "t", code, "k", {"a": [1, None]}, 3, 0.5),), 2)


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("assert events[0].payload == {'a': [1, None]} and events[0].attempts == 3", "done", ""),
        ("raise Reject('gone')", "dead", "gone"),
        ("raise OSError('no route')", "retry", "OSError: no route"),
        (BOMB, "killed", "was ended by signal 9 (SIGKILL)"),
        ("os.abort()", "killed", "was ended by signal 6 (SIGABRT)"),
        ("bytearray(3 * 2**30)", "exhausted", "ran out of memory"),
        ("__import__('numpy').ones(3 * 2**30, dtype='u1')", "exhausted", "ran out of memory"),
        ("os._exit(7)", "retry", "its process ended with exit status 7"),
    ],
)
def test_outcome_of_an_isolated_job(code, kind, reason):
    outcome = IsolatedJobRunner(COMMAND, 1024 * MIB, 60.0).run(claim_of(code))
    assert (outcome.kind, outcome.reason) == (kind, reason)


def test_a_job_that_hangs_is_ended_with_its_children(tmp_path, wait_until):
    pid = tmp_path / "pid"
    code = f"p = __import__('subprocess').Popen(['sleep', '600']); open({str(pid)!r}, 'w').write(str(p.pid)); p.wait()"
    for limit in (3.0, 60.0):  # a busy machine may need more than 3 s to start the process
        outcome = IsolatedJobRunner(COMMAND, 1024 * MIB, limit).run(claim_of(code))
        assert (outcome.kind, outcome.reason) == (
            "exhausted",
            f"did not end within {limit:.0f} s (LABELLOOP_JOB_ISOLATED_S)",
        )
        if pid.exists() and pid.read_text():
            break

    def gone():
        stat = Path(f"/proc/{pid.read_text()}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"

    wait_until(gone)


PARENT = f"""
import sys
from labelloop.service.jobs.isolated_job import IsolatedJobRunner
from labelloop.service.jobs.inbox import Claim
IsolatedJobRunner((sys.executable, "-c", {CHILD!r}), 2**30, 600.0).run(Claim("t", sys.argv[1], "token", (), 2))
"""


def test_a_job_that_runs_alone_ends_with_its_worker(tmp_path, wait_until):
    pid = tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid())); __import__('time').sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code])
    try:
        wait_until(lambda: pid.exists() and pid.read_text())
    finally:
        parent.kill()
        parent.wait()

    def gone():
        stat = Path(f"/proc/{pid.read_text()}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"

    wait_until(gone)


def lose_a_worker(inbox: Inbox, subject: str) -> Claim:
    """Claims a subject and never comes back."""
    claim = inbox.claim("t", subject, "lost")
    with inbox.engine.begin() as connection:
        connection.execute(sa.text("UPDATE inbox_claims SET leased_until = 0"))
    return claim


def test_an_event_that_lost_two_workers_runs_isolated(database):
    inbox = Inbox(database, backoff=Backoff(attempts=8))
    inbox.put("t", "bomb", "1", {})
    assert [lose_a_worker(inbox, "bomb").isolated for _ in range(3)] == [False, False, True]
    inbox.put("t", "other", "2", {})
    assert not inbox.claim("t", "other", "me").isolated


def test_later_events_of_that_subject_run_isolated_too(database):
    inbox = Inbox(database)
    inbox.put("t", "bomb", "1", {})
    for _ in range(2):
        lose_a_worker(inbox, "bomb")
    inbox.mark_dead(inbox.claim("t", "bomb", "me"), "killed", killed=True)
    inbox.put("t", "bomb", "2", {})
    claim = inbox.claim("t", "bomb", "me")
    assert claim.isolated
    inbox.mark_done(claim)
    assert inbox.replay("all") == 1
    assert inbox.claim("t", "bomb", "me").isolated


def test_the_process_ends_in_order(capfd):
    """It waits for the worker's end meanwhile, in a thread that must not abort the interpreter."""
    assert IsolatedJobRunner(COMMAND, 1024 * MIB, 60.0).run(claim_of("pass")).kind == "done"
    assert capfd.readouterr().err == ""


def test_the_process_knows_the_handler_of_every_topic_of_the_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    settings = Settings()
    for topic in handlers(settings, Studio.from_settings(settings), open_database(settings)):
        assert callable(handler_of(topic))


def test_a_worker_that_stops_in_order_counts_as_no_loss(database):
    inbox = Inbox(database)
    inbox.put("t", "s", "1", {})
    for _ in range(5):
        inbox.release(inbox.claim("t", "s", "me"))
    assert not inbox.claim("t", "s", "me").isolated


def test_a_bomb_becomes_a_dead_letter_and_starves_nobody(queue_settings, wait_until):
    """One thread, a slow bomb that is to run alone: the other jobs of the project do not wait for it."""
    settings = queue_settings.replace(job_memory_bytes=512 * MIB, job_backoff_s=0.01)
    inbox = Inbox.from_settings(settings, open_database(settings))
    handled = []
    jobs = Jobs(settings, inbox, {"t": lambda subject, _events: handled.append(subject)}, isolated_command=COMMAND)
    bombs = ["import time; time.sleep(1); " + BOMB, "bytearray(2**31)"]
    for bomb in bombs:
        inbox.put("t", bomb, bomb, {})
        for _ in range(2):
            lose_a_worker(inbox, bomb)
    for number in range(5):
        jobs.submit("t", f"good {number}", f"{number}", {})
    stop = threading.Event()
    worker = threading.Thread(target=run_worker, args=(jobs, 1), kwargs={"stop": stop})
    worker.start()
    try:
        wait_until(lambda: len(handled) == 5)
        assert inbox.counts()["dead"] < 2
        wait_until(lambda: inbox.counts()["dead"] == 2)
    finally:
        stop.set()
        worker.join()
        jobs.close()
    reasons = {letter.event.subject: letter.reason for letter in inbox.dead_letters()}
    inbox.engine.dispose()
    assert reasons[bombs[0]].startswith("it was ended by signal 9 (SIGKILL): 2 workers were lost")
    assert reasons[bombs[1]].startswith("it ran out of memory: 2 workers were lost")
    assert "512 MiB" in reasons[bombs[1]]
    assert not set(handled) & set(bombs)


def test_stopping_gives_back_what_runs_alone(tmp_path, wait_until):
    settings = Settings(home=tmp_path / "home", job_stop_s=0.1)
    inbox = Inbox.from_settings(settings, open_database(settings))
    began = tmp_path / "began"
    slow = f"open({str(began)!r}, 'w'); __import__('time').sleep(600)"
    inbox.put("t", slow, "1", {})
    for _ in range(2):
        lose_a_worker(inbox, slow)
    jobs, stop = Jobs(settings, inbox, {"t": lambda *_: None}, isolated_command=COMMAND), threading.Event()
    worker = threading.Thread(target=run_worker, args=(jobs, 1), kwargs={"stop": stop})
    worker.start()
    wait_until(began.exists)
    stop.set()
    worker.join(30)
    assert inbox.counts() == {"pending": 1, "claimed": 0, "done": 0, "dead": 0}
    inbox.engine.dispose()


@pytest.mark.system
def test_a_bomb_takes_two_workers_down_and_not_the_third(tmp_path, wait_until):
    settings = Settings(home=tmp_path / "home")
    inbox = Inbox.from_settings(settings, open_database(settings))
    inbox.put("t", BOMB, "1", {})
    environment = os.environ | {"LABELLOOP_HOME": str(settings.home)}
    codes = []
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", WORKER], env=environment, timeout=120, check=False)
        codes.append(ended.returncode)
    third = subprocess.Popen([sys.executable, "-c", WORKER], env=environment)
    try:
        wait_until(lambda: inbox.counts()["dead"] == 1)
        inbox.put("t", "pass", "2", {})
        wait_until(lambda: inbox.counts()["done"] == 1)
        assert third.poll() is None
    finally:
        third.terminate()
        third.wait()
    assert codes == [-9, -9]
    assert "signal 9" in inbox.dead_letters()[0].reason
    inbox.engine.dispose()
