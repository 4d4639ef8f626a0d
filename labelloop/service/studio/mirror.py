"""Owns copies of a project: what was read stays read, also after a kill, and from then on only changes are read.

`Tracker` keeps any `Copy` up to date: `Mirror`, a file with whole tasks, which exports are made from, and the table of
learning, which knows of each task only whether it is annotated.
"""

import fcntl
import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from labelloop.service.studio import Studio
from labelloop.service.studio.tasks import Mark

EPOCH = "1970-01-01T00:00:00.000000Z"
_OVERLAP = timedelta(seconds=5)
"""A transaction that began earlier may be seen later: what is younger than the newest by this much is read again."""

_BATCH = 1000
_CHUNK = 500

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
    """A copy on this machine's disk, one SQLite file; deleting it costs one full reading.

    Writes are short transactions: a kill loses none that was made.
    """

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

    def marks(self, ids: Collection[int]) -> dict[int, str]:
        """The mark of each of these tasks that is here."""
        found: dict[int, str] = {}
        for some in chunks(ids, _CHUNK):
            places = ", ".join("?" * len(some))
            query = f"SELECT id, mark FROM tasks WHERE id IN ({places})"  # noqa: S608 - question marks alone
            found |= dict(self._db.execute(query, some))
        return found

    def marks_between(self, after: int, until: int | None) -> dict[int, str]:
        """The mark of each task whose id is above `after` and at most `until`; None: without an upper bound."""
        query = "SELECT id, mark FROM tasks WHERE id > ? AND (? IS NULL OR id <= ?)"
        return dict(self._db.execute(query, (after, until, until)))

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


Item = TypeVar("Item")
Filters = Mapping[str, Any]


class Copy(Protocol):
    """What a `Tracker` keeps up to date."""

    def note(self, name: str) -> str:
        """A value kept beside the tasks; empty where there is none."""
        ...

    def keep(self, **notes: str) -> None:
        """Keep values; an empty one is taken away."""
        ...

    def remove(self, ids: Iterable[int]) -> None:
        """Take tasks out."""
        ...

    def counts(self) -> tuple[int, int, int]:
        """How many tasks, annotations that were not skipped, and skipped ones there are."""
        ...

    def marks(self, ids: Collection[int]) -> Mapping[int, str]:
        """The mark of each of these tasks that is here."""
        ...

    def marks_between(self, after: int, until: int | None) -> Mapping[int, str]:
        """The mark of each task whose id is above `after` and at most `until`; None: without an upper bound."""
        ...


class Tracker(Generic[Item]):
    """Keeps a copy of a project's tasks up to date by what changed.

    What changed is asked of Label Studio by the time of the last change: one request a page of changes, whatever the
    size of the project. Some bulk actions leave no such trace, or a wrong one. They change the number of tasks or of
    annotations: where `complete` says that these differ, `compare` asks for the mark of every task.
    """

    def __init__(
        self,
        studio: Studio,
        project: int,
        copy: Copy,
        *,
        read: Callable[[dict[str, Any]], Iterable[Item]],
        fetch: Callable[[Sequence[Mark]], Iterable[Item]],
        mark: Callable[[Item], Mark],
        store: Callable[[Iterable[Item]], int],
    ) -> None:
        """Asks nothing yet.

        Args:
            studio: Label Studio.
            project: The project's number.
            copy: What is kept up to date.
            read: Tasks that pass filters, by id.
            fetch: These tasks.
            mark: Of what `read` and `fetch` give.
            store: Writes tasks into the copy; returns how many.
        """
        self._studio, self._project, self._copy = studio, project, copy
        self._read, self._fetch, self._mark, self._store = read, fetch, mark, store

    def start(self) -> None:
        """Before a first reading: what changes from here on is newer than this, and comes as a change."""
        if not self._copy.note("started"):
            first = next(iter(self._studio.tasks(self._project, page_size=1, ordering=["-tasks:updated_at"])), None)
            self._copy.keep(started=_capped(first.updated_at) if first else EPOCH)

    def started(self) -> None:
        """After a first reading."""
        self._copy.keep(cursor=self._copy.note("started"), started="")

    def changes(self) -> int:
        """Brings what changed since the last call; returns how many tasks did."""
        copy = self._copy
        cursor = copy.note("cursor")
        since = {
            "filter": "filter:tasks:updated_at",
            "operator": "greater",
            "type": "Datetime",
            "value": cursor if copy.note("settled") else _earlier(cursor),
        }
        newest = [cursor]
        done = self._store(self._new(self._read({"conjunction": "and", "items": [since]}), newest))
        # A look that found nothing newer than the one before needs no overlap the next time.
        copy.keep(cursor=max(newest), settled="yes" if max(newest) == cursor else "")
        return done

    def complete(self) -> bool:
        """Whether the copy has as many tasks and annotations as Label Studio says there are."""
        fields = self._studio.project(self._project)
        numbers = ("task_number", "total_annotations_number", "skipped_annotations_number")
        return self._copy.counts() == tuple(fields.get(name) for name in numbers)

    def compare(self) -> int:
        """Holds every task's mark against the copy's, a page at a time; returns how many tasks were read anew."""
        changed: list[Mark] = []
        last = 0
        for page in chunks(self._studio.task_marks(self._project), _BATCH):
            known = self._copy.marks_between(last, page[-1].id)
            self._copy.remove(known.keys() - {mark.id for mark in page})
            changed += [mark for mark in page if known.get(mark.id) != text_of(mark)]
            last = page[-1].id
        self._copy.remove(self._copy.marks_between(last, None))
        return self._store(self._fetch(changed)) if changed else 0

    def _new(self, items: Iterable[Item], newest: list[str]) -> Iterator[Item]:
        """Of what may have changed what did."""
        for some in chunks(items, _CHUNK):
            marks = [self._mark(item) for item in some]
            known = self._copy.marks([mark.id for mark in marks])
            for item, mark in zip(some, marks, strict=True):
                newest.append(_capped(mark.updated_at))
                if known.get(mark.id) != text_of(mark):
                    yield item


def text_of(mark: Mark) -> str:
    """A task's mark in one string."""
    return f"{mark.updated_at} {mark.total_annotations} {mark.cancelled_annotations}"


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items some at a time."""
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


def _capped(updated_at: str) -> str:
    """A task's moment, never later than now: a bulk action of Label Studio stamps local time as if it were UTC."""
    return min(updated_at, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _earlier(cursor: str) -> str:
    try:
        return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        return EPOCH


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
