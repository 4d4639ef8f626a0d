"""What a service must have to do its work, as the checks of `/ready`, of `doctor` and of a start."""

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

from labelloop.service.db.engine import create_engine, require_known_schema, require_newest_schema
from labelloop.service.errors import DatabaseError, HomeUnusable, LabelloopError
from labelloop.service.jobs.heartbeats import Workers
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings, hide_password

CACHED_S = 5.0
"""An answer of a check is given again for so long: whoever asks `/ready` often costs little."""

INTEGRITY_EVERY_S = 600.0
INTEGRITY_WITHIN_S = 2.0
"""Longest check of SQLite's pages for `/ready`; what is not read by then counts as whole."""

_OPCODES = 10_000  # of SQLite's machine, between two looks at the clock

Check = Callable[[], None]


class NotReady(LabelloopError):
    """Something that a service needs is missing or broken."""

    code = "not_ready"
    status = 503


class DatabaseChecks:
    """The checks of a database that this process holds open.

    Args:
        settings: The limits, and where the database is.
        engine: The database.
        inbox: Its events.
    """

    def __init__(self, settings: Settings, engine: sa.Engine, inbox: Inbox | None = None) -> None:
        self._settings, self._engine = settings, engine
        self._inbox = inbox or Inbox.from_settings(settings, engine)
        self._workers = Workers(engine)
        self._file = sqlite_file(settings.database_url)
        self._opened = _identity(self._file) if self._file else None

    def reachable(self) -> None:
        """The database answers, is the file that was opened, and has the schema of this release."""
        if self._file is not None:
            found = _identity(self._file)
            if found is None:
                raise DatabaseError(
                    f"The database file {self._file} is gone.",
                    fix="Put it back (`labelloop restore FILE --force` takes it from a backup) and restart.",
                )
            if self._opened is None:
                self._opened = found
            if found != self._opened:
                raise DatabaseError(
                    f"The database file {self._file} was replaced while this service ran.", fix="Restart the service."
                )
        with _named(self._settings):
            require_newest_schema(self._engine)

    def whole(self) -> None:
        """SQLite's pages are in order, as far as they could be read in time."""
        if self._file is not None and self._file.exists():
            require_whole(self._file, within_s=INTEGRITY_WITHIN_S)

    def worker(self) -> None:
        """A worker is alive and takes jobs."""
        newest = self._workers.newest()
        if newest is None or not newest.alive:
            when = "" if newest is None else f"; the last was {newest.age_s:.0f} s ago"
            raise NotReady(
                f"No worker sends heartbeats{when}: events are stored, and nobody handles them.",
                fix="Start one: `labelloop worker`.",
            )
        if not newest.working:
            raise NotReady(f"The worker handles no events: it is {newest.state}.", fix="Start what it waits for.")

    def events(self) -> None:
        """No event is unfinished for longer than the settings allow."""
        age_s, most_s = self._inbox.oldest_age_s(), self._settings.job_age_limit_s
        if age_s > most_s:
            raise NotReady(
                f"The oldest unfinished event was stored {age_s:.0f} s ago; the limit is {most_s:.0f} s "
                "(LABELLOOP_JOB_AGE_LIMIT_S).",
                fix="Look at the worker's log; where it has too much to do, start another one: `labelloop worker`.",
            )


def service_checks(settings: Settings, engine: sa.Engine) -> Mapping[str, Check]:
    """Every check of a service that stores events, each answered from memory for some seconds."""
    database = DatabaseChecks(settings, engine)
    return {
        "database": cached(database.reachable),
        "integrity": cached(database.whole, INTEGRITY_EVERY_S, failed_s=CACHED_S),
        "home": cached(lambda: require_home(settings)),
        "worker": cached(database.worker),
        "events": cached(database.events),
    }


def cached(check: Check, ok_s: float = CACHED_S, *, failed_s: float | None = None) -> Check:
    """The check, run at most once in `ok_s` seconds (`failed_s` after a failure), by one thread at a time."""
    lock, until, outcome = threading.Lock(), 0.0, None

    def asked() -> None:
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

    return asked


def require_home(settings: Settings) -> None:
    """Make the home folder, write a file into it, and see that its disk has room.

    Raises:
        HomeUnusable: The folder cannot be written, or the disk is (nearly) full; the message names it.
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
        raise HomeUnusable(home, error.strerror or str(error)) from error
    if free < settings.min_free_bytes:
        raise HomeUnusable(
            home,
            f"its disk has {free / 2**20:.0f} MiB free, and {settings.min_free_bytes / 2**20:.0f} MiB are the least "
            "(LABELLOOP_MIN_FREE_BYTES)",
        )


def require_known_database(settings: Settings) -> None:
    """Refuse a database that a newer labelloop migrated, without migrating it; one that is not there yet passes.

    Raises:
        SchemaTooNew: A newer labelloop migrated it.
        DatabaseError: It does not answer.
    """
    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        return
    engine = create_engine(settings.database_url)
    try:
        with _named(settings):
            require_known_schema(engine)
    finally:
        engine.dispose()


@contextlib.contextmanager
def _named(settings: Settings) -> Iterator[None]:
    """Name the database in what its driver raises."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise DatabaseError(
            f"The database {hide_password(settings.database_url)} does not answer: {reason}.",
            fix="Check that it is running, and LABELLOOP_DATABASE_URL.",
        ) from error


def require_whole(file: Path, *, within_s: float) -> bool:
    """Have SQLite check the pages of a database.

    Returns:
        Whether all were checked within the time.

    Raises:
        DatabaseError: They are damaged.
    """
    deadline = time.monotonic() + within_s
    try:
        read_only = f"file:{quote(str(file))}?mode=ro"
        with contextlib.closing(sqlite3.connect(read_only, uri=True, timeout=1.0)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES)
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return False
        found = str(error)
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise DatabaseError(
            f"The database file {file} is damaged: {' '.join(str(found).split())[:200]}.",
            fix="Stop every service and restore a backup: `labelloop restore FILE --force`.",
        )
    return True


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; None for another engine."""
    return Path(sa.engine.make_url(url).database or "") if url.startswith("sqlite") else None


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
