"""Workers that are killed with SIGKILL, stopped with SIGTERM and SIGINT: real processes, real engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.settings import Settings

pytestmark = pytest.mark.system

# A worker whose handler writes a line when it starts and a line when it has finished.
WORKER = """
import os, sys, time
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs, PeriodicJob
from labelloop.service.jobs.worker import run_worker
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings

settings = Settings()
setup_logging(settings)
seconds, effects = float(sys.argv[1]), sys.argv[2]

def write(*words):
    with open(effects, "a") as file:
        file.write(" ".join(words) + "\\n")

def handler(subject, events):
    for event in events:
        write("start", event.key)
        time.sleep(seconds)
        write("end", event.key)

jobs = Jobs(settings, Inbox.from_settings(settings, open_database(settings)), {"t": handler})
write("ready", str(os.getpid()))
run_worker(jobs)
"""


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def settings(request, tmp_path) -> Settings:
    """SQLite for both; SQLite with a Redis queue; Postgres for both."""
    urls = {}
    if request.param == "redis":
        urls = {"queue_url": request.getfixturevalue("redis_url")}
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        urls = {"queue_url": url, "database_url": url}
    return Settings(home=tmp_path / "home", job_threads=4, **urls)


class Workers:
    """Worker processes of one test and what their handlers wrote."""

    def __init__(self, settings: Settings, folder) -> None:
        self.effects = folder / "effects"
        self.effects.touch()
        self.log = folder / "worker.log"
        self.environment = os.environ | {
            "LABELLOOP_HOME": str(settings.home), "LABELLOOP_QUEUE_URL": settings.queue_url,
            "LABELLOOP_DATABASE_URL": settings.database_url, "LABELLOOP_JOB_THREADS": "4",
            "LABELLOOP_JOB_LEASE_S": "3600",  # who waits for its end fails
        }  # fmt: skip
        self.processes = []

    def start(self, seconds: float, **environment: str) -> subprocess.Popen:
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(seconds), str(self.effects)],
                env=self.environment | environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def written(self, word: str) -> list[str]:
        return [line.split()[1] for line in self.effects.read_text().splitlines() if line.startswith(f"{word} ")]


@pytest.fixture
def workers(settings, tmp_path):
    started = Workers(settings, tmp_path)
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def jobs(settings):
    opened = Jobs(settings, Inbox.from_settings(settings, open_database(settings)))
    yield opened
    opened.close()
    opened.inbox.engine.dispose()


def test_sigkill_in_the_middle_of_40_jobs_loses_none(jobs, workers, wait_until):
    worker = workers.start(0.6)
    for number in range(40):
        assert jobs.submit("t", str(number), str(number), {"number": number})
    wait_until(lambda: len(workers.written("end")) >= 10)
    wait_until(lambda: len(workers.written("start")) > len(workers.written("end")))
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    unfinished = set(workers.written("start")) - set(workers.written("end"))
    assert unfinished, "it was to be killed while handlers ran"
    assert len(workers.written("end")) < 40

    workers.start(0.05)
    wait_until(lambda: jobs.inbox.counts()["done"] == 40)  # long before the lease is over

    ends = Counter(workers.written("end"))
    assert set(ends) == {str(number) for number in range(40)}, "every effect happened"
    # What had finished is not repeated, save for the moment between the effect and its row.
    repeated = {key for key, count in ends.items() if count > 1}
    assert len(repeated) <= 4
    assert jobs.inbox.counts() == {"pending": 0, "claimed": 0, "done": 40, "dead": 0}


def test_a_living_worker_takes_over_from_a_killed_one_before_its_lease_is_over(jobs, workers, wait_until):
    first = workers.start(600)
    for number in range(4):
        jobs.submit("t", str(number), str(number), {})
    wait_until(lambda: len(workers.written("start")) == 4)
    workers.start(0.01)
    wait_until(lambda: len(workers.written("ready")) == 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_until(lambda: jobs.inbox.counts()["done"] == 4)


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_finishes_what_it_runs_and_leaves_the_rest(jobs, workers, wait_until, how):
    worker = workers.start(1.5)
    for number in range(20):
        jobs.submit("t", str(number), str(number), {})
    wait_until(lambda: len(workers.written("start")) >= 4)
    worker.send_signal(how)
    assert worker.wait(timeout=60) == 0
    starts, ends = workers.written("start"), workers.written("end")
    assert sorted(starts) == sorted(ends), "nothing was cut off"
    counts = jobs.inbox.counts()
    assert (counts["done"], counts["claimed"]) == (len(ends), 0)
    assert counts["pending"] == 20 - len(ends) > 0


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_a_second_signal_does_not_wait_and_gives_the_claims_back(jobs, workers, wait_until):
    worker = workers.start(600)
    jobs.submit("t", "s", "k", {})
    wait_until(lambda: workers.written("start"))
    worker.send_signal(signal.SIGINT)
    wait_until(lambda: "worker_stopping" in workers.log.read_text())
    assert worker.poll() is None, "it waits for its handler"
    worker.send_signal(signal.SIGINT)
    worker.wait(timeout=60)
    assert jobs.inbox.due_subjects(10) == [("t", "s")]
    assert jobs.inbox.counts() == {"pending": 1, "claimed": 0, "done": 0, "dead": 0}


def test_two_worker_processes_share_the_work_and_repeat_none(jobs, workers, wait_until):
    for _ in range(2):
        workers.start(0.05)
    wait_until(lambda: len(workers.written("ready")) == 2)
    for number in range(60):
        jobs.submit("t", str(number % 20), str(number), {})
    wait_until(lambda: jobs.inbox.counts()["done"] == 60)
    assert Counter(workers.written("end")) == Counter({str(number): 1 for number in range(60)})
