"""The database: SQLite by default, Postgres by URL, always migrated to the newest schema before it is handed out."""

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
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from labelloop import VERSION
from labelloop.service.errors import DatabaseError, MissingExtra, SchemaTooNew
from labelloop.service.settings import Settings, hide_password

MIGRATIONS = Path(__file__).parent / "migrations"
# Any fixed number does: it is the name of our lock among Postgres' advisory locks ("labelloo" in ASCII).
MIGRATION_LOCK = 0x6C6162656C6C6F6F
BUSY_TIMEOUT_S = 30.0
# How long a writer asks for the lock every millisecond; after that at the pace of SQLite.
SOON_S, PAUSE_S = 0.25, 0.001
# alembic keeps what it works on in module globals: two threads that migrate at once would write into one database.
_ALEMBIC = threading.Lock()

Clock = Callable[[sa.Connection], float]


def open_database(settings: Settings) -> sa.Engine:
    """Open `settings.database_url` and migrate it to the newest schema.

    Any number of processes may call this at once: one migrates, the others wait for it. The engine belongs to the
    process that opened it; open it again after a fork.

    Raises:
        DatabaseError: it cannot be reached, opened or migrated.
        MissingExtra: a Postgres URL without the extra `postgres`.
    """
    shown = hide_password(settings.database_url)
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
            f"The database {shown} cannot be opened: {reason}.",
            fix="Check LABELLOOP_DATABASE_URL and that it is running.",
        ) from error
    return engine


def create_engine(url: str) -> sa.Engine:
    """An engine for `url` with the house's pragmas, not migrated.

    On SQLite `engine.begin()` takes the write lock at once (BEGIN IMMEDIATE), so that a transaction which reads and
    then writes waits for its turn instead of failing half-way; `reading(engine)` does not take it.
    """
    if url.startswith("sqlite"):
        path = sa.engine.make_url(url).database
        if not path or path == ":memory:":
            raise DatabaseError(
                "A database in memory cannot be shared by processes.",
                fix="Set LABELLOOP_DATABASE_URL to sqlite:///path.",
            )
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # opening it says what is wrong
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
        raise MissingExtra("A Postgres database", extra="postgres") from error


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection for reads: on SQLite it neither waits for a writer nor holds one up."""
    with engine.connect().execution_options(sqlite_begin="BEGIN DEFERRED") as connection, connection.begin():
        yield connection


@contextlib.contextmanager
def quick(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A writing transaction that a power cut may undo: on SQLite it does not wait for the disk.

    For what is found out again when it is lost, such as that an event was claimed or done. The database stays whole
    and everything that other processes saw stays true as long as the machine runs.
    """
    with engine.connect().execution_options(sqlite_synchronous="NORMAL") as connection, connection.begin():
        yield connection


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to the newest revision; concurrent callers wait for the first."""
    config, scripts = _scripts()
    wanted = set(scripts.get_heads())
    found = revisions(engine)
    if found == wanted:
        return
    _require_known(engine, found)
    with _ALEMBIC, _migration_lock(engine):
        if revisions(engine) == wanted:
            return
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "heads")


def database_clock(connection: sa.Connection) -> float:
    """Seconds since 1970 by the one clock that all workers share: the server's, or this machine's for SQLite."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)


def insert_new(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], *, conflict: Sequence[str]) -> bool:
    """Insert a row unless one with its `conflict` columns is there; returns whether it was inserted."""
    statement: sa.Insert
    if connection.dialect.name == "sqlite":
        statement = sqlite_insert(table).values(row).on_conflict_do_nothing(index_elements=list(conflict))
    else:
        statement = postgresql_insert(table).values(row).on_conflict_do_nothing(index_elements=list(conflict))
    # RETURNING, because the count of inserted rows is not known to every driver.
    return connection.execute(statement.returning(table.c[conflict[0]])).first() is not None


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    conflict: Sequence[str],
    changed: Sequence[str],
) -> None:
    """Insert rows; of those whose `conflict` columns are there the columns `changed` are replaced, none where empty."""
    if not rows:
        return
    insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement: Any = insert(table)
    if changed:
        new = {name: statement.excluded[name] for name in changed}
        statement = statement.on_conflict_do_update(index_elements=list(conflict), set_=new)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=list(conflict))
    connection.execute(statement, list(rows))


def revisions(engine: sa.Engine) -> set[str]:
    """The revisions of the schema that the database has; empty for an empty one."""
    with reading(engine) as connection:
        return set(MigrationContext.configure(connection).get_current_heads())


def known_revisions() -> frozenset[str]:
    """The revisions of the schema that this release knows."""
    return frozenset(script.revision for script in _scripts()[1].walk_revisions())


def require_known_schema(engine: sa.Engine) -> None:
    """Refuse a database that a newer labelloop migrated; an older or empty one passes.

    Raises:
        SchemaTooNew: It was.
    """
    _require_known(engine, revisions(engine))


def require_newest_schema(engine: sa.Engine) -> None:
    """Refuse a database that has another schema than this release.

    Raises:
        SchemaTooNew: A newer labelloop migrated it.
        DatabaseError: It is older, or empty.
    """
    found, scripts = revisions(engine), _scripts()[1]
    _require_known(engine, found)
    if found != set(scripts.get_heads()):
        raise DatabaseError(
            f"The database {engine.url.render_as_string()} has an older schema ({', '.join(sorted(found)) or 'none'}) "
            "than this release.",
            fix="Run any command that opens it, such as `labelloop inbox counts`: it brings the schema up to date.",
        )


def _require_known(engine: sa.Engine, found: set[str]) -> None:
    if unknown := found - known_revisions():
        what = f"The database {engine.url.render_as_string()}"
        raise SchemaTooNew(what, f"schema {', '.join(sorted(unknown))}", VERSION)


@cache
def _scripts() -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


@contextlib.contextmanager
def _migration_lock(engine: sa.Engine) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        with Path(f"{engine.url.database}.migrate.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed by the kernel when the process ends, however it ends
            yield
        return
    with engine.connect() as connection:  # a lock of the session, which is why it has a connection of its own
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})


def _tune_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`, not by the driver's guesses
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # the switch to WAL ignores the busy timeout
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    begin = options.get("sqlite_begin", "BEGIN IMMEDIATE")
    if begin == "BEGIN IMMEDIATE":
        # FULL, not NORMAL: Label Studio never sends an event twice, so what we acknowledged must survive a power cut.
        connection.exec_driver_sql(f"PRAGMA synchronous={options.get('sqlite_synchronous', 'FULL')}")
        if _begin_soon(connection.connection.driver_connection):
            return
    connection.exec_driver_sql(begin)


def _begin_soon(connection: Any) -> bool:
    """Takes the write lock as soon as it is free; False where that takes longer than waiting for it usually does.

    SQLite's own waiting asks again after 1, 2, 5, 10, 15, 20, 25 ms and more: a lock that was free after six is taken
    after eighteen, and whoever asks later often goes first.
    """
    deadline = time.monotonic() + SOON_S
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    return False
                time.sleep(PAUSE_S)
            else:
                return True
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(1000 * BUSY_TIMEOUT_S)}")
