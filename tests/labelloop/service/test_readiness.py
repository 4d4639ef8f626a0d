"""`/ready` says what is missing or broken of what a service needs, and asks no more often than it must."""

from __future__ import annotations

import sqlite3
import threading

import pytest
import sqlalchemy as sa

from labelloop.service.db.engine import open_database
from labelloop.service.errors import DatabaseError, SchemaTooNew
from labelloop.service.jobs.heartbeats import HEARTBEAT_TTL_S, WorkerHeartbeats
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.jobs.worker_id import current_worker
from labelloop.service.readiness import DatabaseChecks, NotReady, cached, require_intact, service_checks
from labelloop.service.settings import Settings
from labelloop.service.web.app import create_web_app


class Clock:
    """A clock that tests move."""

    now = 1_000_000.0

    def __call__(self, _connection) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def checks(database, tmp_path, clock):
    settings = Settings(home=tmp_path / "home")
    if database.dialect.name != "sqlite":
        settings = settings.replace(database_url=database.url.render_as_string(hide_password=False))
    database_checks = DatabaseChecks(settings, database, Inbox(database, clock=clock))
    database_checks.workers = WorkerHeartbeats(database, clock=clock)
    return database_checks


@pytest.fixture
def file(tmp_path):
    return tmp_path / "home" / "labelloop.sqlite3"


def test_a_sound_database_with_a_living_worker_is_ready(checks, clock):
    checks.workers.record(current_worker())
    for check in (checks.reachable, checks.integrity, checks.worker, checks.events):
        check()


def test_a_worker_counts_while_its_heartbeat_is_fresh(checks, clock):
    with pytest.raises(NotReady, match="No worker sends heartbeats: events are stored"):
        checks.worker()
    checks.workers.record("a")
    clock.now += HEARTBEAT_TTL_S - 1
    checks.worker()
    clock.now += 2
    with pytest.raises(NotReady, match=r"the last was 31 s ago.*`labelloop worker`"):
        checks.worker()
    checks.workers.record("b")
    checks.worker()
    checks.workers.remove("b")
    with pytest.raises(NotReady, match="No worker"):
        checks.worker()


def test_a_worker_that_waits_for_label_studio_is_said_to(checks):
    checks.workers.record("a", "waiting for Label Studio at http://x")
    with pytest.raises(NotReady, match="it is waiting for Label Studio at http://x"):
        checks.worker()
    checks.workers.record("b")
    checks.worker()


def test_heartbeats_of_a_day_ago_are_forgotten(checks, database, clock):
    for number in range(5):
        checks.workers.record(f"{number}")
        clock.now += 100_000
    with database.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM workers")) == 1


def test_an_old_unfinished_event_is_not_ready(checks, clock, tmp_path):
    inbox = checks.inbox
    inbox.put("t", "s", "k", {})
    inbox.put("t", "later", "l", {}, delay_s=1e6)
    clock.now += checks._settings.job_age_limit_s - 1
    checks.events()
    clock.now += 2
    with pytest.raises(NotReady, match="1801 s ago; the limit is 1800 s"):
        checks.events()
    claim = inbox.claim("t", "s", "me")
    with pytest.raises(NotReady, match="1801 s ago"):
        checks.events()  # in hands is not finished
    inbox.retry(claim, "no")
    with pytest.raises(NotReady, match="1801 s ago"):
        checks.events()  # nor is what waits for its next attempt
    clock.now += 700
    inbox.mark_done(inbox.claim("t", "s", "me"))
    checks.events()


def test_a_database_of_another_schema_is_not_ready(checks, database):
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0012_learn_config'"))
    with pytest.raises(DatabaseError, match="older schema"):
        checks.reachable()
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999_future'"))
    with pytest.raises(SchemaTooNew, match="newer labelloop"):
        checks.reachable()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_missing_or_replaced_database_file_is_not_ready(checks, file):
    held = file.with_name("held")
    file.rename(held)
    with pytest.raises(DatabaseError, match="is gone"):
        checks.reachable()
    file.write_bytes(held.read_bytes())
    with pytest.raises(DatabaseError, match="was replaced"):
        checks.reachable()
    held.replace(file)
    checks.reachable()


def damage(file):
    """Overwrites the pages behind the schema."""
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    with file.open("r+b") as out:
        out.seek(3 * 4096)
        out.write(b"\xff" * 20 * 4096)


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (sqlite3.SQLITE_CANTOPEN, "give the folder"),
        (sqlite3.SQLITE_BUSY, "stop the program"),
        (sqlite3.SQLITE_FULL, "Free space"),
        (sqlite3.SQLITE_IOERR_READ, "Check its disk"),
        (sqlite3.SQLITE_CORRUPT_INDEX, "restore a backup"),
    ],
)
def test_only_damage_is_called_so(tmp_path, monkeypatch, code, fix):
    failure = sqlite3.OperationalError("as SQLite says")
    failure.sqlite_errorcode = code

    def connect(*_args, **_options):
        raise failure

    monkeypatch.setattr(sqlite3, "connect", connect)
    with pytest.raises(DatabaseError) as found:
        require_intact(tmp_path / "labelloop.sqlite3", timeout_s=1.0)
    assert ("is damaged" in found.value.message) == ("restore" in fix)
    assert fix in found.value.fix


def test_damaged_database_is_not_opened_and_names_its_fix(tmp_path):
    settings = Settings(home=tmp_path)
    open_database(settings).dispose()
    file = tmp_path / "labelloop.sqlite3"
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * (file.stat().st_size - 100))
    with pytest.raises(DatabaseError, match="cannot be opened") as found:
        open_database(settings)
    assert "labelloop restore FILE --force" in found.value.fix


def test_damaged_pages_are_found(tmp_path):
    settings = Settings(home=tmp_path)
    open_database(settings).dispose()
    file = tmp_path / "labelloop.sqlite3"
    assert require_intact(file, timeout_s=60)
    damage(file)
    with pytest.raises(DatabaseError, match="is damaged"):
        require_intact(file, timeout_s=60)


def test_a_check_of_pages_ends_in_time(tmp_path, monkeypatch):
    settings = Settings(home=tmp_path)
    open_database(settings).dispose()
    monkeypatch.setattr("labelloop.service.readiness._OPCODES", 1)
    assert not require_intact(tmp_path / "labelloop.sqlite3", timeout_s=0)


def test_a_cached_check_runs_once_for_many_callers():
    runs, failing = [], [True]

    def check():
        runs.append(1)
        if failing:
            raise OSError("no")

    once = cached(check, 3600, failed_s=0)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            once()
    assert len(runs) == 2
    failing.clear()
    threads = [threading.Thread(target=once) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 3


def test_ready_answers_503_with_every_reason_and_no_secret(tmp_path):
    settings = Settings(home=tmp_path, webhook_secret="hunter2hunter2")
    engine = open_database(settings)
    client = create_web_app("x", settings, ready=service_checks(settings, engine)).test_client()
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert {name: outcome == "ok" for name, outcome in answer.json["checks"].items()} == {
        "database": True, "integrity": True, "home": True, "worker": False, "events": True,
    }  # fmt: skip
    assert "hunter2" not in answer.text
    engine.dispose()


def test_a_running_worker_sends_heartbeats_and_takes_leave(tmp_path, wait_until):
    settings = Settings(home=tmp_path)
    engine = open_database(settings)
    jobs, stop = Jobs(settings, Inbox.from_settings(settings, engine), {}), threading.Event()
    worker = threading.Thread(target=run_worker, args=(jobs, 1), kwargs={"stop": stop})
    worker.start()
    wait_until(lambda: (beat := WorkerHeartbeats(engine).latest()) is not None and beat.working)
    stop.set()
    worker.join()
    assert WorkerHeartbeats(engine).latest() is None
    engine.dispose()
