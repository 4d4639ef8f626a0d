"""Open the database (SQLite by default, Postgres by URL), migrated to the current schema."""

import contextlib
import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from labelloop import VERSION
from labelloop.service.errors import DatabaseError, MissingExtra, SchemaTooNew
from labelloop.service.settings import Settings, hide_password

MIGRATIONS = Path(__file__).parent / "migrations"
# Key of our Postgres advisory lock; an arbitrary constant ("labelloo" in ASCII).
MIGRATION_LOCK = 0x6C6162656C6C6F6F
BUSY_TIMEOUT_S = 30.0
# A writer polls for the lock every millisecond for this long, then leaves the waiting to SQLite.
LOCK_SPIN_S, LOCK_SPIN_PAUSE_S = 0.25, 0.001
# alembic keeps its context in module globals: two threads must not migrate at the same time.
_ALEMBIC_LOCK = threading.Lock()

# What to do by SQLite's error code.
_DISK_FIXES = {
    sqlite3.SQLITE_FULL: "Free space on its disk.",
    sqlite3.SQLITE_IOERR: "Check its disk: the kernel's log (`dmesg`) names the error.",
}

Clock = Callable[[sa.Connection], float]


def open_database(settings: Settings) -> sa.Engine:
    """Open `settings.database_url` and migrate it to the current schema.

    Safe to call from several processes at once: one migrates, the others wait. Do not use an engine across a fork;
    open the database again in the child.

    Raises:
        DatabaseError: It cannot be reached, opened or migrated.
        MissingExtra: A Postgres URL without the extra `postgres`.
    """
    engine = create_engine(settings.database_url)
    try:
        migrate(engine)
    except SchemaTooNew:
        engine.dispose()
        raise
    except (sa.exc.SQLAlchemyError, OSError) as error:
        engine.dispose()
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise DatabaseError(
            f"The database {hide_password(settings.database_url)} cannot be opened: {reason}.",
            fix=database_fix(error),
        ) from error
    return engine


def is_damaged(error: BaseException | None) -> bool:
    """Whether SQLite found damaged pages, or a file that is no database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def database_fix(error: Exception) -> str:
    """What to do about a database that cannot be opened, by the driver's error."""
    cause = getattr(error, "orig", None) or error
    if is_damaged(cause):
        return "Stop every service and restore a backup: `labelloop restore FILE --force`."
    if isinstance(cause, sqlite3.Error):
        if (fix := _DISK_FIXES.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)) is not None:
            return fix
        return (
            "If it is locked, stop the program that holds it (`fuser -v` on the file names it); if it is read-only, "
            "give the folder to the user that runs labelloop."
        )
    return "Check that it is running, and LABELLOOP_DATABASE_URL."


def create_engine(url: str) -> sa.Engine:
    """Create an engine for `url` with our pragmas, without migrating.

    On SQLite `engine.begin()` takes the write lock at once (BEGIN IMMEDIATE): a transaction that reads and then writes
    waits instead of failing with SQLITE_BUSY. `begin_read(engine)` does not take the lock.
    """
    if url.startswith("sqlite"):
        path = sa.engine.make_url(url).database
        if not path or path == ":memory:":
            raise DatabaseError(
                "An in-memory database cannot be shared between processes.",
                fix="Set LABELLOOP_DATABASE_URL to sqlite:///path.",
            )
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # opening the database reports the error
            Path(path).touch(mode=0o600)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
        sa.event.listen(engine, "connect", _tune_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return sa.create_engine(
            url, pool_pre_ping=True, pool_size=5, max_overflow=10, connect_args={"connect_timeout": 10}
        )
    except ModuleNotFoundError as error:
        raise MissingExtra(what="A Postgres database", extra="postgres") from error


@contextlib.contextmanager
def begin_read(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A read transaction; on SQLite it neither waits for a writer nor blocks one."""
    with engine.connect().execution_options(sqlite_begin="BEGIN DEFERRED") as connection, connection.begin():
        yield connection


@contextlib.contextmanager
def begin_relaxed(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A write transaction with relaxed durability: on SQLite the commit does not wait for fsync.

    A power cut may undo it; a crash of the process does not, and the database stays consistent. Use it for state that
    is recovered when lost, such as claims and finished events.
    """
    with engine.connect().execution_options(sqlite_synchronous="NORMAL") as connection, connection.begin():
        yield connection


def migrate(engine: sa.Engine) -> None:
    """Upgrade the schema to the current revision; concurrent callers wait for the first."""
    current = revisions(engine)
    if current == _head():
        return
    _require_supported(engine, current)
    from alembic import command  # imported here: it takes 10 MB of each process
    from alembic.config import Config

    with _ALEMBIC_LOCK, _migration_lock(engine):
        if revisions(engine) == _head():
            return
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "heads")


def database_clock(connection: sa.Connection) -> float:
    """Unix timestamp by the clock that all workers share: the Postgres server's, or this machine's for SQLite."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)


def insert_if_absent(
    connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], *, conflict: Sequence[str]
) -> bool:
    """Insert a row unless one with the same `conflict` columns exists; returns whether it was inserted."""
    statement: sa.Insert
    if connection.dialect.name == "sqlite":
        statement = sqlite_insert(table).values(row).on_conflict_do_nothing(index_elements=list(conflict))
    else:
        statement = postgresql_insert(table).values(row).on_conflict_do_nothing(index_elements=list(conflict))
    # RETURNING, because not every driver reports the row count.
    return connection.execute(statement.returning(table.c[conflict[0]])).first() is not None


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    conflict: Sequence[str],
    update: Sequence[str],
) -> None:
    """Insert rows; on conflict update the columns `update`, or keep the existing row if `update` is empty."""
    if not rows:
        return
    insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement: Any = insert(table)
    if update:
        new = {name: statement.excluded[name] for name in update}
        statement = statement.on_conflict_do_update(index_elements=list(conflict), set_=new)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=list(conflict))
    connection.execute(statement, list(rows))


def revisions(engine: sa.Engine) -> set[str]:
    """The schema revisions of the database; empty for an empty database."""
    with begin_read(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return set()
        return set(connection.scalars(sa.text("SELECT version_num FROM alembic_version")))


@cache
def supported_revisions() -> frozenset[str]:
    """All schema revisions that this release knows: the names of their files."""
    return frozenset(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _head() -> set[str]:
    """The newest revision; each has the one before as its parent."""
    return {max(supported_revisions())}


def require_supported_schema(engine: sa.Engine) -> None:
    """Refuse a database with a newer schema; an older or empty one passes.

    Raises:
        SchemaTooNew: A newer labelloop release migrated it.
    """
    _require_supported(engine, revisions(engine))


def require_current_schema(engine: sa.Engine) -> None:
    """Refuse a database whose schema is not this release's.

    Raises:
        SchemaTooNew: A newer labelloop release migrated it.
        DatabaseError: Its schema is older, or it is empty.
    """
    current = revisions(engine)
    _require_supported(engine, current)
    if current != _head():
        schema = ", ".join(sorted(current)) or "none"
        raise DatabaseError(
            f"The database {engine.url.render_as_string()} has an older schema ({schema}) than this release.",
            fix="Run a command that opens the database, such as `labelloop inbox counts`: it upgrades the schema.",
        )


def _require_supported(engine: sa.Engine, current: set[str]) -> None:
    if unknown := current - supported_revisions():
        what = f"The database {engine.url.render_as_string()}"
        raise SchemaTooNew(what=what, newer=f"schema {', '.join(sorted(unknown))}", version=VERSION)


@contextlib.contextmanager
def _migration_lock(engine: sa.Engine) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        with Path(f"{engine.url.database}.migrate.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel when the process ends
            yield
        return
    with engine.connect() as connection:  # a session-level lock, hence a separate connection
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})


def _tune_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # switching to WAL ignores the busy timeout
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    begin = options.get("sqlite_begin", "BEGIN IMMEDIATE")
    if begin == "BEGIN IMMEDIATE":
        # FULL, not NORMAL: Label Studio never resends an event, so an acknowledged one must survive a power cut.
        connection.exec_driver_sql(f"PRAGMA synchronous={options.get('sqlite_synchronous', 'FULL')}")
        if _spin_for_write_lock(connection.connection.driver_connection):
            return
    connection.exec_driver_sql(begin)


def _spin_for_write_lock(connection: Any) -> bool:
    """Poll for the write lock every `LOCK_SPIN_PAUSE_S`; returns False after `LOCK_SPIN_S` without it.

    SQLite's busy handler sleeps 1, 2, 5, 10, 15, 20, 25 ms and more between attempts: a lock that is free after 6 ms
    is taken after 18 ms, and later writers often overtake.
    """
    deadline = time.monotonic() + LOCK_SPIN_S
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    return False
                time.sleep(LOCK_SPIN_PAUSE_S)
            else:
                return True
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(1000 * BUSY_TIMEOUT_S)}")
