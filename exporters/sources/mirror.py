"""A copy of a source on this machine's disk: what was read stays read, also after a kill, and only changes are read.

One SQLite file a source in the folder ``mirror`` of the home folder. Deleting it costs one full reading.
"""

import fcntl
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (id INTEGER PRIMARY KEY, mark TEXT NOT NULL, live INTEGER NOT NULL,
                                  skipped INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS parts (key TEXT PRIMARY KEY, tag TEXT NOT NULL, task INTEGER NOT NULL,
                                  changed TEXT NOT NULL, head BLOB NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS parts_by_task ON parts (task, key);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Row(msgspec.Struct, frozen=True):
    """A task of the copy: ``mark`` tells whether it changed, ``live`` and ``skipped`` count its annotations."""

    id: int
    mark: str
    live: int
    skipped: int
    body: bytes


class Part(msgspec.Struct, frozen=True):
    """One object of a storage that holds one annotation: ``head`` is the task's JSON, ``body`` the annotation's.

    An object that holds a whole task has no ``body``. ``changed`` is when the task changed last, as the object says.
    """

    key: str
    tag: str
    task: int
    changed: str
    head: bytes
    body: bytes


class Mirror:
    """The copy. Writes are short transactions: a kill loses none that was made."""

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.sqlite3"
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may undo the last pages: they are read again
        self._db.executescript(_SCHEMA)
        self._snapshot: sqlite3.Connection | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time bring the copy up to date; the lock ends with its process."""
        with self.path.with_suffix(".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def note(self, name: str) -> str:
        """A value kept beside the tasks; empty where there is none."""
        row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def keep(self, **notes: str) -> None:
        """Keep values; an empty one is taken away."""
        with self._writing():
            for name, value in notes.items():
                if value:
                    self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
                else:
                    self._db.execute("DELETE FROM notes WHERE name = ?", (name,))

    def put(self, rows: Iterable[Row]) -> None:
        """Write tasks, in place of what was there of them."""
        with self._writing():
            values = ((row.id, row.mark, row.live, row.skipped, row.body) for row in rows)
            self._db.executemany("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?)", values)

    def remove(self, ids: Iterable[int]) -> None:
        """Take tasks out."""
        with self._writing():
            self._db.executemany("DELETE FROM tasks WHERE id = ?", ((number,) for number in ids))

    def put_parts(self, parts: Iterable[Part]) -> None:
        """Write parts, in place of what was there of them."""
        with self._writing():
            values = ((each.key, each.tag, each.task, each.changed, each.head, each.body) for each in parts)
            self._db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?)", values)

    def remove_parts(self, keys: Iterable[str]) -> None:
        """Take parts out."""
        with self._writing():
            self._db.executemany("DELETE FROM parts WHERE key = ?", ((key,) for key in keys))

    def clear(self) -> None:
        """Forget everything."""
        with self._writing():
            for table in ("tasks", "parts", "notes"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours

    def last(self) -> int:
        """The largest id of a task; 0 without any."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM tasks").fetchone()[0])

    def counts(self) -> tuple[int, int, int]:
        """How many tasks, annotations that were not skipped, and skipped ones there are."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(live), 0), coalesce(sum(skipped), 0) FROM tasks"
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def marks(self) -> dict[int, str]:
        """The mark of each task."""
        return dict(self._db.execute("SELECT id, mark FROM tasks"))

    def tags(self) -> dict[str, str]:
        """The tag of each part."""
        return dict(self._db.execute("SELECT key, tag FROM parts"))

    def hold(self) -> None:
        """From now on `bodies` and `parts` show what is here now, whatever another process brings."""
        if self._snapshot is None:
            self._snapshot = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._snapshot.execute("BEGIN")
            self._snapshot.execute("SELECT count(*) FROM notes").fetchone()  # a transaction begins with its first look

    def bodies(self) -> Iterator[bytes]:
        """The JSON of each task, by id."""
        for (body,) in (self._snapshot or self._db).execute("SELECT body FROM tasks ORDER BY id"):
            yield body

    def parts(self) -> Iterator[Part]:
        """Each part, those of a task together, by the task's id."""
        query = "SELECT key, tag, task, changed, head, body FROM parts ORDER BY task, length(key), key"
        for row in (self._snapshot or self._db).execute(query):
            yield Part(*row)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def batches(items: Iterable[bytes], size: int, write: Callable[[list[bytes]], None]) -> Iterator[int]:
    """Write items some at a time, also those before a fault; gives how many were written so far after each time."""
    batch: list[bytes] = []
    done = 0
    try:
        for item in items:
            batch.append(item)
            if len(batch) >= size:
                write(batch)
                done += len(batch)
                batch = []
                yield done
    finally:
        if batch:
            write(batch)
    if batch:
        yield done + len(batch)
