"""Readiness checks of a service, used by `/ready`, `labelloop doctor` and service startup."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from labelloop.service.db.engine import (
    create_engine,
    database_fix,
    is_damaged,
    open_database,
    require_current_schema,
    require_supported_schema,
)
from labelloop.service.errors import DatabaseError, HomeUnusable, LabelloopError
from labelloop.service.jobs.heartbeats import WorkerHeartbeats
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings, hide_password

# Seconds for which the result of a check is reused, so that frequent calls of `/ready` cost little.
CACHE_TTL_S = 5.0
INTEGRITY_INTERVAL_S = 600.0
# Time limit of SQLite's quick_check for `/ready`; pages not read by then count as intact.
INTEGRITY_TIMEOUT_S = 2.0
# SQLite virtual machine instructions between two checks of the time limit.
_OPCODES = 10_000

Check = Callable[[], None]


class NotReady(LabelloopError):
    """Something that the service needs is missing or broken."""

    code = "not_ready"
    status = 503


class DatabaseChecks:
    """Checks of a database that this process has open.

    Args:
        settings: The limits and the database URL.
        engine: The database.
        inbox: Its event inbox.
    """

    def __init__(self, settings: Settings, engine: sa.Engine, inbox: Inbox | None = None) -> None:
        self._settings, self._engine = settings, engine
        self.inbox = inbox or Inbox.from_settings(settings, engine)
        self.workers = WorkerHeartbeats(engine)
        self._file = sqlite_file(settings.database_url)
        self._opened = _inode(self._file) if self._file else None

    def reachable(self) -> None:
        """Check that the database answers, is still the file that was opened, and has this release's schema.

        Raises:
            DatabaseError: It does not.
        """
        if self._file is not None:
            inode = _inode(self._file)
            if inode is None:
                raise DatabaseError(
                    f"The database file {self._file} is gone.",
                    fix="Put it back, or restore a backup (`labelloop restore FILE --force`), and restart.",
                )
            if self._opened is None:
                self._opened = inode
            if inode != self._opened:
                raise DatabaseError(
                    f"The database file {self._file} was replaced while this service ran.", fix="Restart the service."
                )
        with _database_errors(self._settings):
            require_current_schema(self._engine)

    def integrity(self) -> None:
        """Check SQLite's pages, as many as can be read within `INTEGRITY_TIMEOUT_S`.

        Raises:
            DatabaseError: They are damaged.
        """
        if self._file is not None and self._file.exists():
            require_intact(self._file, timeout_s=INTEGRITY_TIMEOUT_S)

    def worker(self) -> None:
        """Check that a worker is alive and takes jobs.

        Raises:
            NotReady: None does.
        """
        newest = self.workers.latest()
        if newest is None or not newest.alive:
            when = "" if newest is None else f"; the last was {newest.age_s:.0f} s ago"
            raise NotReady(
                f"No worker sends heartbeats{when}: events are stored but not processed.",
                fix="Start a worker: `labelloop worker`, or `labelloop up` for all services.",
            )
        if not newest.working:
            raise NotReady(f"The worker processes no events: it is {newest.state}.", fix="Start what it waits for.")

    def events(self) -> None:
        """Check that no event is unfinished for longer than `job_age_limit_s`.

        Raises:
            NotReady: One is.
        """
        age_s, limit_s = self.inbox.oldest_age_s(), self._settings.job_age_limit_s
        if age_s > limit_s:
            raise NotReady(
                f"The oldest unfinished event was stored {age_s:.0f} s ago; the limit is {limit_s:.0f} s "
                "(LABELLOOP_JOB_AGE_LIMIT_S).",
                fix="Check the worker's log. If it is overloaded, start another worker: `labelloop worker`.",
            )


def service_checks(settings: Settings, engine: sa.Engine) -> Mapping[str, Check]:
    """All checks of a service that stores events, by name; results are cached for a few seconds."""
    database = DatabaseChecks(settings, engine)
    return {
        "database": cached(database.reachable),
        "integrity": cached(database.integrity, INTEGRITY_INTERVAL_S, failed_s=CACHE_TTL_S),
        "home": cached(lambda: require_home(settings)),
        "worker": cached(database.worker),
        "events": cached(database.events),
    }


def cached(check: Check, ok_s: float = CACHE_TTL_S, *, failed_s: float | None = None) -> Check:
    """Wrap a check to run at most once in `ok_s` seconds (`failed_s` after a failure), in one thread at a time."""
    lock, until, outcome = threading.Lock(), 0.0, None

    def cached_check() -> None:
        nonlocal until, outcome
        with lock:
            if time.monotonic() >= until:
                try:
                    check()
                except Exception as error:  # noqa: BLE001 - it is raised to every caller
                    outcome = error
                else:
                    outcome = None
                until = time.monotonic() + (ok_s if outcome is None or failed_s is None else failed_s)
            if outcome is not None:
                raise outcome

    return cached_check


def require_home(settings: Settings) -> None:
    """Create the home folder, write a file into it, and check its free disk space.

    Raises:
        HomeUnusable: The folder is not writable, or the disk is (nearly) full; the message names it.
    """
    home = settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=home) as probe:
            probe.write(b"labelloop")
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise HomeUnusable(home=home, reason=error.strerror or str(error)) from error
    if free < settings.min_free_bytes:
        required = f"{settings.min_free_bytes / 2**20:.0f} MiB (LABELLOOP_MIN_FREE_BYTES)"
        raise HomeUnusable(
            home=home, reason=f"its disk has {free / 2**20:.0f} MiB free, less than the required {required}"
        )


def require_known_database(settings: Settings) -> None:
    """Refuse a database with a newer schema, without migrating it; a missing SQLite file passes.

    Raises:
        SchemaTooNew: A newer labelloop release migrated it.
        DatabaseError: It does not answer.
    """
    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        return
    engine = create_engine(settings.database_url)
    try:
        with _database_errors(settings):
            require_supported_schema(engine)
    finally:
        engine.dispose()


def open_existing_database(settings: Settings) -> sa.Engine:
    """Open the services' database as `open_database` does, for commands that are of no use without one.

    Raises:
        DatabaseError: There is no such SQLite file, which a wrong home folder is the usual cause of; or as
            `open_database`.
    """
    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        raise DatabaseError(
            f"There is no database {file}: no service has run with this home folder.",
            fix="Set LABELLOOP_HOME to the home folder of the services, or run the command in the folder in which they "
            "were started.",
        )
    return open_database(settings)


@contextlib.contextmanager
def _database_errors(settings: Settings) -> Iterator[None]:
    """Turn driver errors into `DatabaseError` with the database URL."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise DatabaseError(
            f"The database {hide_password(settings.database_url)} does not answer: {reason}.",
            fix=database_fix(error),
        ) from error


def require_intact(file: Path, *, timeout_s: float) -> bool:
    """Run SQLite's quick_check on a database.

    Returns:
        Whether all pages were checked within `timeout_s` seconds.

    Raises:
        DatabaseError: They are damaged, or the file cannot be read.
    """
    deadline = time.monotonic() + timeout_s
    try:
        read_only = f"file:{quote(str(file))}?mode=ro"
        with contextlib.closing(sqlite3.connect(read_only, uri=True, timeout=1.0)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES)
            result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return False
        if not is_damaged(error):  # such as a folder without write permission, where SQLite cannot open its log
            raise DatabaseError(
                f"The database file {file} cannot be read: {error}.", fix=database_fix(error)
            ) from error
        result = str(error)
    except sqlite3.DatabaseError as error:
        result = str(error)
    if result != "ok":
        raise DatabaseError(
            f"The database file {file} is damaged: {' '.join(str(result).split())[:200]}.",
            fix="Stop every service and restore a backup: `labelloop restore FILE --force`.",
        )
    return True


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database URL; None for other engines."""
    return Path(sa.engine.make_url(url).database or "") if url.startswith("sqlite") else None


def _inode(file: Path) -> tuple[int, int] | None:
    """Device and inode number of a file; None if it is missing."""
    try:
        file_stat = file.stat()
    except OSError:
        return None
    return file_stat.st_dev, file_stat.st_ino
