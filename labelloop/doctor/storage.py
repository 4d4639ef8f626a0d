"""Checks of what keeps labelloop's own state: settings, disk, database, inbox, queue, store."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.db.engine import create_engine, require_newest_schema
from labelloop.service.errors import DatabaseError, HomeUnusable, LabelloopError, SchemaTooNew
from labelloop.service.jobs.heartbeats import WORKERS
from labelloop.service.jobs.inbox import EVENTS, Inbox
from labelloop.service.readiness import DatabaseChecks, NotReady, require_home, require_whole, sqlite_file
from labelloop.service.settings import hide_password, unknown_settings

MIB, GIB = 2**20, 2**30
DISK_PROBLEM_BYTES = 500 * MIB
DISK_WARNING_BYTES = 5 * GIB
LOCK_S = 3.0
CONNECT_S = 3.0
INTEGRITY_S = 10.0


def settings(context: Context) -> Finding:
    """Are there settings that nothing reads? Most often a typing error."""
    home = context.settings.home
    unknown = unknown_settings(home)
    if unknown:
        return warning(
            f"Nothing reads {', '.join(unknown)}.", "Correct the name: docs/reference/settings.md lists all settings."
        )
    return ok(f"every LABELLOOP_ setting is known; home is {home}")


def disk(context: Context) -> Finding:
    """Is there room where labelloop keeps its state?"""
    place = context.settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    fix = f"Make room on the disk of {place}, or set LABELLOOP_HOME to a folder on another one."
    if free < DISK_PROBLEM_BYTES:
        return problem(f"Only {free / MIB:.0f} MiB are free on the disk of {place}: writes will soon fail.", fix)
    if free < DISK_WARNING_BYTES:
        return warning(f"Only {free / GIB:.1f} GiB are free on the disk of {place}.", fix)
    return ok(f"{free / GIB:.0f} GiB free on the disk of {place}")


def database(context: Context) -> Finding:
    """Does the database answer, may it be written, and has it the schema of this release?"""
    url, shown = context.settings.database_url, hide_password(context.settings.database_url)
    if path := sqlite_file(url):
        if not path.exists():
            return ok(f"{shown} is not there yet; the first service that starts makes it")
        if locked := _locked(path):
            return problem(
                f"The database {shown} cannot be written: {locked}.",
                "If it is locked, end the program that holds it (`fuser -v` on the file names it); "
                "if it is read-only, give the folder to the user that runs labelloop.",
            )
    engine = create_engine(url)
    try:
        require_newest_schema(engine)
    except SchemaTooNew as error:
        return problem(error.message, error.fix)
    except DatabaseError as error:
        return warning(error.message, error.fix)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return problem(
            f"The database {shown} cannot be opened: {context.redact(reason)}.",
            "Start it, or correct LABELLOOP_DATABASE_URL (user, password, host and name).",
        )
    finally:
        engine.dispose()
    return ok(f"{shown} answers and has the newest schema")


def integrity(context: Context) -> Finding:
    """Are the pages of the SQLite file in order?"""
    file = sqlite_file(context.settings.database_url)
    if file is None or not file.exists():
        return ok("nothing to check" if file is None else "no database yet")
    if require_whole(file, within_s=INTEGRITY_S):
        return ok(f"every page of {file} is in order")
    return ok(f"{file} is large: what was checked of it within {INTEGRITY_S:.0f} s is in order")


def home(context: Context) -> Finding:
    """Can the home folder be written?"""
    try:
        require_home(context.settings)
    except HomeUnusable as error:
        return problem(error.message, error.fix)
    return ok(f"{context.settings.home} can be written")


def worker(context: Context) -> Finding:
    """Is a worker alive, and does it take events?"""
    return _asked(context, DatabaseChecks.worker, "a worker is alive and takes events")


def events(context: Context) -> Finding:
    """Is every event finished in time?"""
    most_s = context.settings.job_age_limit_s
    return _asked(context, DatabaseChecks.events, f"no event is unfinished for longer than {most_s:.0f} s")


def _asked(context: Context, check: Callable[[DatabaseChecks], None], good: str) -> Finding:
    """What a check of `/ready` says here."""
    if (file := sqlite_file(context.settings.database_url)) and not file.exists():
        return skipped("The database is not there yet; the first service that starts makes it.")
    engine = create_engine(context.settings.database_url)
    try:
        if not sa.inspect(engine).has_table(WORKERS.name):
            return skipped("The database has an older schema; the next service that starts brings it up to date.")
        check(DatabaseChecks(context.settings, engine))
    except NotReady as error:
        return problem(error.message, error.fix)
    finally:
        engine.dispose()
    return ok(good)


def inbox(context: Context) -> Finding:
    """Are there events that were given up, or that wait too long?"""
    url = context.settings.database_url
    if (path := sqlite_file(url)) and not path.exists():
        return ok("no event yet")
    engine = create_engine(url)
    try:
        if not sa.inspect(engine).has_table(EVENTS.name):
            return skipped("The database has no inbox yet; the first service that starts makes it.")
        events = Inbox.from_settings(context.settings, engine)
        counts, letters, lag = events.counts(), events.dead_letters(limit=1), events.lag_s()
    finally:
        engine.dispose()
    if letters:
        dead = counts["dead"]
        letter = letters[0]
        return problem(
            f"{dead} event{'s were' if dead != 1 else ' was'} given up; the last one, {letter.event.topic} "
            f"{letter.event.subject}: {context.redact(letter.reason)}",
            "`labelloop inbox dead` lists them and why; when the cause is gone: `labelloop inbox replay --all`. "
            "What is not needed: `labelloop inbox discard --all`.",
        )
    if lag > max(60.0, 4 * context.settings.poll_seconds):
        return warning(
            f"{counts['pending']} events wait, the oldest for {lag:.0f} s.",
            "Is `labelloop worker` running? If it is, it has too much to do: start another one.",
        )
    return ok(f"{counts['pending'] + counts['claimed']} events to do, {counts['done']} done, none given up")


def queue(context: Context) -> Finding:
    """Does the queue that wakes the workers answer?"""
    url, shown = context.settings.queue_url, hide_password(context.settings.queue_url)
    probe = _QUEUES.get(url.partition(":")[0], _ask_postgres)
    try:
        probe(url)
    except LabelloopError:
        raise
    except Exception as error:  # noqa: BLE001 - each engine has a family of errors of its own
        return problem(
            f"The queue {shown} does not answer: {context.redact(str(error).strip().splitlines()[0])}.",
            "Start it, or correct LABELLOOP_QUEUE_URL. No event is lost meanwhile: they wait in the database.",
        )
    return ok(f"{shown} answers")


def store(context: Context) -> Finding:
    """Can objects be written, read back, listed and deleted?"""
    seen = context.store()
    url = context.settings.store_url
    if seen.writable:
        return ok(f"{url} can be written and read")
    return problem(
        f"The store {url} does not keep what is written to it. {seen.detail}",
        "Give the user of LABELLOOP_S3_ACCESS_KEY_ID the right to read, write, list and delete in this bucket.",
    )


def store_conditions(context: Context) -> Finding:
    """Does the server itself decide who was first, when two write at once?"""
    seen = context.store()
    if seen.create_only and seen.compare_and_swap:
        return ok("create-only and compare-and-swap writes are kept by the server")
    return warning(
        f"{context.settings.store_url}: {seen.detail}",
        "Let labelloop alone write there, or use a server with conditional writes, such as AWS S3.",
    )


def _locked(path: Path) -> str:
    """Why the SQLite file cannot be written now; empty when it can."""
    try:
        connection = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
    except sqlite3.Error as error:
        return str(error)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    finally:
        connection.close()
    return ""


def _ask_sqlite(url: str) -> None:
    path = Path(urlsplit(url).path)
    if path.exists() and (reason := _locked(path)):
        raise OSError(reason)


def _ask_redis(url: str) -> None:
    import redis

    redis.Redis.from_url(url, socket_timeout=CONNECT_S, socket_connect_timeout=CONNECT_S).ping()


def _ask_postgres(url: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    engine.dispose()


_QUEUES = {"sqlite": _ask_sqlite, "redis": _ask_redis, "rediss": _ask_redis, "unix": _ask_redis}
