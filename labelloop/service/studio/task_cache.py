"""A local copy of a project's tasks, resumable after a crash, that is kept up to date with incremental reads.

`IncrementalSync` updates any `SyncTarget`: `LocalTaskCache`, a file with complete tasks for exports, and the table
of the learning backlog, which stores only the stamp of each task.
"""

import fcntl
import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from labelloop.service.studio import Studio
from labelloop.service.studio.tasks import TaskStamp

EPOCH = "1970-01-01T00:00:00.000000Z"
# A transaction may become visible later than its timestamp: changes within this time before the newest are read again.
_OVERLAP = timedelta(seconds=5)
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


@dataclass(frozen=True, slots=True)
class CachedTask:
    """A cached task.

    Attributes:
        id: The task's id.
        stamp: `stamp_text` of the task, which changes with it.
        live: Number of annotations that were not skipped.
        skipped: Number of skipped annotations.
        body: The task's JSON.
    """

    id: int
    stamp: str
    live: int
    skipped: int
    body: bytes


@dataclass(frozen=True, slots=True)
class CachedObject:
    """A cached object of a target storage, which holds one annotation or one complete task.

    Attributes:
        key: The object's key.
        tag: The object's ETag.
        task: The task's id.
        updated_at: When the task was last changed, as stated in the object.
        task_json: The task's JSON.
        annotation_json: The annotation's JSON; empty for a complete task.
    """

    key: str
    tag: str
    task: int
    updated_at: str
    task_json: bytes
    annotation_json: bytes


class LocalTaskCache:
    """A copy on the local disk in one SQLite file. Deleting the file costs one full read.

    Writes are short transactions; committed data survives a kill.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.sqlite3"
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may undo the last commits: they are read again
        self._db.executescript(_SCHEMA)
        self._snapshot: sqlite3.Connection | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time update the copy; the lock ends with its process."""
        with self.path.with_suffix(".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get_state(self, name: str) -> str:
        """A value of the synchronization state; empty if unset."""
        row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_state(self, **values: str) -> None:
        """Set values of the synchronization state; an empty value deletes the entry."""
        with self._writing():
            for name, value in values.items():
                if value:
                    self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
                else:
                    self._db.execute("DELETE FROM notes WHERE name = ?", (name,))

    def put(self, tasks: Iterable[CachedTask]) -> None:
        """Insert or replace tasks."""
        with self._writing():
            values = ((task.id, task.stamp, task.live, task.skipped, task.body) for task in tasks)
            self._db.executemany("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?)", values)

    def remove(self, ids: Iterable[int]) -> None:
        """Delete tasks."""
        with self._writing():
            self._db.executemany("DELETE FROM tasks WHERE id = ?", ((task_id,) for task_id in ids))

    def put_objects(self, objects: Iterable[CachedObject]) -> None:
        """Insert or replace objects."""
        with self._writing():
            values = (
                (item.key, item.tag, item.task, item.updated_at, item.task_json, item.annotation_json)
                for item in objects
            )
            self._db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?)", values)

    def remove_objects(self, keys: Iterable[str]) -> None:
        """Delete objects."""
        with self._writing():
            self._db.executemany("DELETE FROM parts WHERE key = ?", ((key,) for key in keys))

    def clear(self) -> None:
        """Delete everything."""
        with self._writing():
            for table in ("tasks", "parts", "notes"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - constant names

    def last_id(self) -> int:
        """The largest task id; 0 if empty."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM tasks").fetchone()[0])

    def counts(self) -> tuple[int, int, int]:
        """The numbers of tasks, of annotations that were not skipped, and of skipped annotations."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(live), 0), coalesce(sum(skipped), 0) FROM tasks"
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def stamps(self, ids: Collection[int]) -> dict[int, str]:
        """The stamp of each of these tasks that is cached."""
        stamps: dict[int, str] = {}
        for chunk in chunks(ids, _CHUNK):
            placeholders = ", ".join("?" * len(chunk))
            query = f"SELECT id, mark FROM tasks WHERE id IN ({placeholders})"  # noqa: S608 - question marks only
            stamps |= dict(self._db.execute(query, chunk))
        return stamps

    def stamps_between(self, after: int, until: int | None) -> dict[int, str]:
        """The stamps of tasks with `after` < id <= `until`; None: no upper bound."""
        query = "SELECT id, mark FROM tasks WHERE id > ? AND (? IS NULL OR id <= ?)"
        return dict(self._db.execute(query, (after, until, until)))

    def tags(self) -> dict[str, str]:
        """The ETag of each object, by key."""
        return dict(self._db.execute("SELECT key, tag FROM parts"))

    def begin_snapshot(self) -> None:
        """Make `bodies` and `objects` read the current state, whatever other processes write later."""
        if self._snapshot is None:
            self._snapshot = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._snapshot.execute("BEGIN")
            self._snapshot.execute("SELECT count(*) FROM notes").fetchone()  # the transaction starts at its first read

    def bodies(self) -> Iterator[bytes]:
        """The JSON of each task, by id."""
        for (body,) in (self._snapshot or self._db).execute("SELECT body FROM tasks ORDER BY id"):
            yield body

    def objects(self) -> Iterator[CachedObject]:
        """All objects, grouped by task, by task id."""
        query = "SELECT key, tag, task, changed, head, body FROM parts ORDER BY task, length(key), key"
        for row in (self._snapshot or self._db).execute(query):
            yield CachedObject(*row)

    def close(self) -> None:
        """Close the file."""
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


class SyncTarget(Protocol):
    """A copy of a project's tasks that `IncrementalSync` keeps up to date."""

    def get_state(self, name: str) -> str:
        """A value of the synchronization state; empty if unset."""
        ...

    def set_state(self, **values: str) -> None:
        """Set values of the synchronization state; an empty value deletes the entry."""
        ...

    def remove(self, ids: Iterable[int]) -> None:
        """Delete tasks."""
        ...

    def counts(self) -> tuple[int, int, int]:
        """The numbers of tasks, of annotations that were not skipped, and of skipped annotations."""
        ...

    def stamps(self, ids: Collection[int]) -> Mapping[int, str]:
        """The stamp of each of these tasks that the copy has."""
        ...

    def stamps_between(self, after: int, until: int | None) -> Mapping[int, str]:
        """The stamps of tasks with `after` < id <= `until`; None: no upper bound."""
        ...


class IncrementalSync(Generic[Item]):
    """Keep a copy of a project's tasks up to date by reading changed tasks only.

    Changes are read by the time of the last change, one request per page of changes, whatever the size of the project.
    Some bulk actions of Label Studio do not set that time, or set it wrong, but they change the number of tasks or of
    annotations: if `counts_match` returns False, `sync_by_stamps` compares the stamp of every task.
    """

    def __init__(
        self,
        studio: Studio,
        project: int,
        copy: SyncTarget,
        *,
        read: Callable[[dict[str, Any]], Iterable[Item]],
        fetch: Callable[[Sequence[TaskStamp]], Iterable[Item]],
        stamp: Callable[[Item], TaskStamp],
        store: Callable[[Iterable[Item]], int],
    ) -> None:
        """Store the arguments; no request is sent.

        Args:
            studio: Label Studio.
            project: The project's id.
            copy: The copy to update.
            read: Reads the tasks that match Data Manager filters, by id.
            fetch: Reads the tasks with these stamps.
            stamp: The stamp of an item that `read` or `fetch` returned.
            store: Writes items into the copy; returns how many.
        """
        self._studio, self._project, self._copy = studio, project, copy
        self._read, self._fetch, self._stamp, self._store = read, fetch, stamp, store

    def begin_initial_sync(self) -> None:
        """Call before the first full read: remembers the time from which changes must be read afterwards."""
        if not self._copy.get_state("started"):
            newest = next(iter(self._studio.tasks(self._project, page_size=1, ordering=["-tasks:updated_at"])), None)
            self._copy.set_state(started=_cap_at_now(newest.updated_at) if newest else EPOCH)

    def finish_initial_sync(self) -> None:
        """Call after the first full read."""
        self._copy.set_state(cursor=self._copy.get_state("started"), started="")

    def sync_changes(self) -> int:
        """Read the changes since the last call; returns the number of changed tasks."""
        copy = self._copy
        cursor = copy.get_state("cursor")
        since = {
            "filter": "filter:tasks:updated_at",
            "operator": "greater",
            "type": "Datetime",
            "value": cursor if copy.get_state("settled") else _subtract_overlap(cursor),
        }
        timestamps = [cursor]
        done = self._store(self._changed(self._read({"conjunction": "and", "items": [since]}), timestamps))
        newest = max(timestamps)
        # If the overlap contained nothing newer, the next read needs no overlap.
        copy.set_state(cursor=newest, settled="yes" if newest == cursor else "")
        return done

    def counts_match(self) -> bool:
        """Whether the copy has as many tasks and annotations as Label Studio reports."""
        numbers = ("task_number", "total_annotations_number", "skipped_annotations_number")
        fields = self._studio.project(self._project, only=numbers)
        return self._copy.counts() == tuple(fields.get(name) for name in numbers)

    def sync_by_stamps(self) -> int:
        """Compare every task's stamp with the copy, page by page; returns the number of tasks read again."""
        changed: list[TaskStamp] = []
        last_id = 0
        for page in chunks(self._studio.stamps(self._project), _BATCH):
            cached = self._copy.stamps_between(last_id, page[-1].id)
            self._copy.remove(cached.keys() - {stamp.id for stamp in page})
            changed += [stamp for stamp in page if cached.get(stamp.id) != stamp_text(stamp)]
            last_id = page[-1].id
        self._copy.remove(self._copy.stamps_between(last_id, None))
        return self._store(self._fetch(changed)) if changed else 0

    def _changed(self, items: Iterable[Item], timestamps: list[str]) -> Iterator[Item]:
        """The items whose stamp differs from the copy's; appends the timestamps of all items to `timestamps`."""
        for chunk in chunks(items, _CHUNK):
            stamps = [self._stamp(item) for item in chunk]
            cached = self._copy.stamps([stamp.id for stamp in stamps])
            for item, stamp in zip(chunk, stamps, strict=True):
                timestamps.append(_cap_at_now(stamp.updated_at))
                if cached.get(stamp.id) != stamp_text(stamp):
                    yield item


def stamp_text(stamp: TaskStamp) -> str:
    """A task's stamp as one string."""
    return f"{stamp.updated_at} {stamp.total_annotations} {stamp.cancelled_annotations}"


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Split items into lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _cap_at_now(updated_at: str) -> str:
    """The timestamp, at most now: a bulk action of Label Studio stores local time as if it were UTC."""
    return min(updated_at, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _subtract_overlap(cursor: str) -> str:
    try:
        return (datetime.fromisoformat(cursor) - _OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        return EPOCH


def write_in_batches(items: Iterable[bytes], size: int, write: Callable[[list[bytes]], None]) -> Iterator[int]:
    """Write items in batches and yield the number written so far; items before an error are written too."""
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
