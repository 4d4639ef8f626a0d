"""Opening and migrating the database on SQLite and on a real Postgres."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from labelloop.service.db.engine import (
    BUSY_TIMEOUT_S,
    LOCK_SPIN_S,
    MIGRATIONS,
    begin_read,
    create_engine,
    database_clock,
    migrate,
    open_database,
    revisions,
    supported_revisions,
)
from labelloop.service.errors import DatabaseError, LabelloopError
from labelloop.service.jobs.inbox import Inbox, metadata
from labelloop.service.settings import Settings


def open_and_put(settings: Settings, number: int, answers) -> None:
    try:
        engine = open_database(settings)
        Inbox(engine).put("t", "s", str(number), {})
        engine.dispose()
        answers.put("ok")
    except LabelloopError as error:
        answers.put(repr(error))


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_four_processes_that_start_at_once_migrate_once(request, tmp_path, engine):
    url = "" if engine == "sqlite" else request.getfixturevalue("postgres_url")
    settings = Settings(home=tmp_path / "home", database_url=url)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=open_and_put, args=(settings, number, answers)) for number in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=200) for _ in processes] == ["ok"] * 4
    for process in processes:
        process.join()
    database = open_database(settings)
    assert Inbox(database).counts()["pending"] == 4
    database.dispose()


def test_the_code_and_the_migrations_agree_on_the_tables(database):
    """Types apart: SQLite has no exact ones. Tables of other modules are not ours to judge."""
    with database.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_object": lambda thing, name, kind, *_: kind != "index" and _ours(name, kind, thing)},
        )
        assert [change for change in compare_metadata(context, metadata) if _matters(change)] == []


def _ours(name, kind, thing) -> bool:
    return (thing.name if kind == "table" else thing.table.name) in metadata.tables


def _matters(change) -> bool:
    return not isinstance(change, list) and change[0] in {"add_table", "remove_table", "add_column", "remove_column"}


def test_the_files_of_the_migrations_are_their_revisions_in_one_line(database):
    """So that alembic, which takes 10 MB, is loaded by migrations alone."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert supported_revisions() == {script.revision for script in scripts.walk_revisions()}
    assert {max(supported_revisions())} == set(scripts.get_heads()) == revisions(database)


def test_a_current_database_is_opened_without_alembic(settings):
    open_database(settings).dispose()
    code = (
        "import sys; from labelloop.service.db.engine import open_database; "
        "from labelloop.service.settings import Settings; "
        f"open_database(Settings(home={str(settings.home)!r})); sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_migrating_again_changes_nothing(database):
    Inbox(database).put("t", "s", "k", {})
    migrate(database)
    assert Inbox(database).counts()["pending"] == 1


def test_the_clock_is_about_now(database):
    import time

    with begin_read(database) as connection:
        assert database_clock(connection) == pytest.approx(time.time(), abs=2)


def test_sqlite_is_durable_and_readers_do_not_wait(settings):
    engine = open_database(settings)
    with engine.begin() as connection:
        assert connection.scalar(sa.text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(sa.text("PRAGMA synchronous")) == 2
        with begin_read(engine) as reader:  # while `connection` holds the write lock
            assert reader.scalar(sa.text("SELECT count(*) FROM inbox_events")) == 0
    engine.dispose()


def test_two_writers_wait_for_each_other(settings):
    """Reading and then writing in one transaction is where SQLite says "database is locked" unless it is IMMEDIATE."""
    engine = open_database(settings)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE n (v INTEGER)")
        connection.exec_driver_sql("INSERT INTO n VALUES (0)")
    errors = []

    def count() -> None:
        try:
            for _ in range(50):
                with engine.begin() as connection:
                    value = connection.exec_driver_sql("SELECT v FROM n").scalar()
                    connection.exec_driver_sql("UPDATE n SET v = ?", (value + 1,))
        except sa.exc.SQLAlchemyError as error:
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with begin_read(engine) as connection:
        assert connection.exec_driver_sql("SELECT v FROM n").scalar() == 200
    engine.dispose()


def test_an_unreachable_postgres_is_said_without_its_password(tmp_path, free_port):
    url = f"postgresql://u:hunter2@127.0.0.1:{free_port()}/d"
    with pytest.raises(DatabaseError) as error:
        open_database(Settings(home=tmp_path, database_url=url))
    assert "127.0.0.1" in str(error.value)
    assert "LABELLOOP_DATABASE_URL" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_file_that_is_no_database_is_said(tmp_path):
    file = tmp_path / "not.sqlite3"
    file.write_text("hello, this is a text file that is certainly not a database" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        open_database(Settings(home=tmp_path, database_url=f"sqlite:///{file}"))


def test_a_database_in_memory_is_refused(tmp_path):
    with pytest.raises(DatabaseError, match="cannot be shared"):
        open_database(Settings(home=tmp_path, database_url="sqlite:///:memory:"))


def test_a_newer_schema_than_the_code_is_not_touched(settings):
    """Someone goes back to an older release: say so instead of failing somewhere in the middle."""
    open_database(settings).dispose()
    with sqlite3.connect(settings.database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_future'")
    connection.close()
    with pytest.raises(DatabaseError, match="9999_future"):
        open_database(settings)


@pytest.mark.parametrize("held_s", [0.05, 2 * LOCK_SPIN_S])
def test_a_writer_waits_for_the_previous_writer(tmp_path, held_s):
    engine = create_engine(f"sqlite:///{tmp_path}/turns.sqlite3")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE turns (who TEXT)"))
    begun = threading.Event()

    def first():
        with engine.begin() as connection:
            begun.set()
            time.sleep(held_s)
            connection.execute(sa.text("INSERT INTO turns VALUES ('first')"))

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    with engine.begin() as connection:
        assert connection.scalar(sa.text("SELECT who FROM turns")) == "first"
        assert connection.scalar(sa.text("PRAGMA busy_timeout")) == 1000 * BUSY_TIMEOUT_S
    thread.join()
    engine.dispose()
