"""Checks of labelloop's own state: settings, disk, database, inbox, queue, store."""

import shutil
import sqlite3
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.db.engine import create_engine, database_fix, require_current_schema
from labelloop.service.errors import DatabaseError, HomeUnusable, LabelloopError, SchemaTooNew
from labelloop.service.jobs.heartbeats import WORKERS
from labelloop.service.jobs.inbox import EVENTS, Inbox
from labelloop.service.readiness import DatabaseChecks, NotReady, require_home, require_intact, sqlite_file
from labelloop.service.settings import describe_settings, hide_password, settings_file, unknown_settings

MIB, GIB = 2**20, 2**30
DISK_PROBLEM_BYTES = 500 * MIB
DISK_WARNING_BYTES = 5 * GIB
LOCK_S = 3.0
CONNECT_S = 3.0
INTEGRITY_S = 10.0


def settings(context: DoctorContext) -> Finding:
    """Are there unknown settings? Most often a typing error."""
    home = context.settings.home
    unknown = unknown_settings(home)
    if unknown:
        known = [name for name, *_ in describe_settings()]
        similar = " and ".join(close[0] for name in unknown if (close := get_close_matches(name, known, 1)))
        return warning(
            f"Unknown settings: {', '.join(unknown)}.",
            f"Correct the name{similar and f' (did you mean {similar}?)'}: docs/reference/settings.md lists them all.",
        )
    return ok(f"every LABELLOOP_ setting is known; home is {home}")


def disk(context: DoctorContext) -> Finding:
    """Is there enough free space for labelloop's state?"""
    folder = context.settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = f"Free some space on the disk of {folder}, or set LABELLOOP_HOME to a folder on another disk."
    if free < DISK_PROBLEM_BYTES:
        return problem(f"Only {free / MIB:.0f} MiB are free on the disk of {folder}: writes will soon fail.", fix)
    if free < DISK_WARNING_BYTES:
        return warning(f"Only {free / GIB:.1f} GiB are free on the disk of {folder}.", fix)
    return ok(f"{free / GIB:.0f} GiB free on the disk of {folder}")


def database(context: DoctorContext) -> Finding:
    """Does the database answer, is it writable, and does it have the schema of this release?"""
    url, display_url = context.settings.database_url, hide_password(context.settings.database_url)
    if path := sqlite_file(url):
        if not path.exists():
            return ok(f"{display_url} does not exist yet; the first service that starts creates it")
        if error := _write_error(path):
            return problem(f"The database {display_url} cannot be written: {error}.", database_fix(error))
    engine = create_engine(url)
    try:
        require_current_schema(engine)
    except SchemaTooNew as error:
        return problem(error.message, error.fix)
    except DatabaseError as error:
        return warning(error.message, error.fix)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        return problem(
            f"The database {display_url} cannot be opened: {context.redact(str(cause).strip().splitlines()[0])}.",
            database_fix(error)
            if isinstance(cause, sqlite3.Error)
            else "Start it, or correct LABELLOOP_DATABASE_URL (user, password, host and name).",
        )
    finally:
        engine.dispose()
    return ok(f"{display_url} answers and has the newest schema")


def integrity(context: DoctorContext) -> Finding:
    """Is the SQLite file intact?"""
    file = sqlite_file(context.settings.database_url)
    if file is None or not file.exists():
        return ok("nothing to check" if file is None else "no database yet")
    if require_intact(file, timeout_s=INTEGRITY_S):
        return ok(f"every page of {file} is intact")
    return ok(f"{file} is large: the part checked within {INTEGRITY_S:.0f} s is intact")


def home(context: DoctorContext) -> Finding:
    """Is the home folder writable, and that of the services?"""
    home, database = context.settings.home, sqlite_file(context.settings.database_url)
    unused = database is not None and not database.exists() and not settings_file(home).exists()
    if home.exists() or not unused:  # the test would create the folder
        try:
            require_home(context.settings)
        except HomeUnusable as error:
            return problem(error.message, error.fix)
    if unused:
        return warning(
            f"No service has run with the home folder {home}: it has no database and no settings.",
            "If services run elsewhere, set LABELLOOP_HOME to their home folder, or run the command in the folder in "
            "which they were started. Otherwise start them: `labelloop up`.",
        )
    return ok(f"{home} can be written")


def worker(context: DoctorContext) -> Finding:
    """Is a worker alive, and does it claim events?"""
    return _ready_finding(context, DatabaseChecks.worker, "a worker is alive and claims events")


def events(context: DoctorContext) -> Finding:
    """Are all events handled in time?"""
    limit_s = context.settings.job_age_limit_s
    return _ready_finding(context, DatabaseChecks.events, f"no event is unfinished for longer than {limit_s:.0f} s")


def _ready_finding(context: DoctorContext, check: Callable[[DatabaseChecks], None], message: str) -> Finding:
    """The finding of a check that `/ready` runs as well."""
    if (file := sqlite_file(context.settings.database_url)) and not file.exists():
        return skipped("The database does not exist yet; the first service that starts creates it.")
    engine = create_engine(context.settings.database_url)
    try:
        if not sa.inspect(engine).has_table(WORKERS.name):
            return skipped("The database has an older schema; the next service that starts migrates it.")
        check(DatabaseChecks(context.settings, engine))
    except NotReady as error:
        return problem(error.message, error.fix)
    finally:
        engine.dispose()
    return ok(message)


def inbox(context: DoctorContext) -> Finding:
    """Are there dead letters, or events that wait too long?"""
    url = context.settings.database_url
    if (path := sqlite_file(url)) and not path.exists():
        return ok("no event yet")
    engine = create_engine(url)
    try:
        if not sa.inspect(engine).has_table(EVENTS.name):
            return skipped("The database has no inbox yet; the first service that starts creates it.")
        events = Inbox.from_settings(context.settings, engine)
        counts, letters, lag = events.counts(), events.dead_letters(limit=1), events.lag_s()
    finally:
        engine.dispose()
    if letters:
        dead = counts["dead"]
        letter = letters[0]
        return problem(
            f"{dead} event{'s' if dead != 1 else ''} failed for good; the last one, {letter.event.topic} "
            f"{letter.event.subject}: {context.redact(letter.reason)}",
            "`labelloop inbox dead` lists them with the reason. After the cause is fixed: "
            "`labelloop inbox replay --all`. To delete them: `labelloop inbox discard --all`.",
        )
    if lag > max(60.0, 4 * context.settings.poll_seconds):
        return warning(
            f"{counts['pending']} events wait, the oldest for {lag:.0f} s.",
            "Make sure that `labelloop worker` runs. If it does, it is overloaded: start another one.",
        )
    return ok(f"{counts['pending'] + counts['claimed']} events to do, {counts['done']} done, none failed for good")


def queue(context: DoctorContext) -> Finding:
    """Does the queue that notifies the workers answer?"""
    url, display_url = context.settings.queue_url, hide_password(context.settings.queue_url)
    probe = _QUEUES.get(url.partition(":")[0], _probe_postgres)
    try:
        probe(url)
    except LabelloopError:
        raise
    except Exception as error:  # noqa: BLE001 - every engine has its own errors
        return problem(
            f"The queue {display_url} does not answer: {context.redact(str(error).strip().splitlines()[0])}.",
            "Start it, or correct LABELLOOP_QUEUE_URL. No event is lost: they wait in the database.",
        )
    return ok(f"{display_url} answers")


def store(context: DoctorContext) -> Finding:
    """Can objects be written, read, listed and deleted?"""
    url, home = context.settings.store_url, context.settings.home
    if url.startswith(f"file://{home}/") and not home.exists():  # the test would create the folder
        return skipped("The home folder does not exist yet; the first service that starts creates it.")
    capabilities = context.store()
    if capabilities.writable:
        return ok(f"{url} is readable and writable")
    return problem(
        f"The store {url} fails the write test. {capabilities.detail}",
        "Give the credentials of labelloop the right to read, write, list and delete in this bucket.",
    )


def store_conditions(context: DoctorContext) -> Finding:
    """Does the server support conditional writes, so that of two concurrent writes one fails?"""
    capabilities = context.store()
    if capabilities.create_only and capabilities.compare_and_swap:
        return ok("the server supports create-only and compare-and-swap writes")
    return warning(
        f"{context.settings.store_url}: {capabilities.detail}",
        "Let only labelloop write there, or use a server with conditional writes: AWS S3, Google Cloud Storage, Azure.",
    )


def _write_error(path: Path) -> sqlite3.Error | None:
    """Why the SQLite file cannot be written now; None if it can."""
    try:
        connection = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
    except sqlite3.Error as error:
        return error
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return error
    finally:
        connection.close()
    return None


def _probe_sqlite(url: str) -> None:
    path = Path(urlsplit(url).path)
    if path.exists() and (error := _write_error(path)):
        raise OSError(str(error))


def _probe_redis(url: str) -> None:
    import redis

    redis.Redis.from_url(url, socket_timeout=CONNECT_S, socket_connect_timeout=CONNECT_S).ping()


def _probe_postgres(url: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    engine.dispose()


_QUEUES = {"sqlite": _probe_sqlite, "redis": _probe_redis, "rediss": _probe_redis, "unix": _probe_redis}
