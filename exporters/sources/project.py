"""Read a live project: completely once, as an export snapshot, and afterwards only its changes.

Tasks are stored in a `LocalTaskCache`, which is updated before each export. Changes are read by the time of the last
change. Some bulk actions of Label Studio do not set that time correctly, so the numbers of tasks and annotations are
compared with Label Studio's; if they differ, the stamps of all tasks are compared.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from exporters.errors import SourceNotFound
from exporters.sources.base import Progress, read_tasks
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.stream import iter_raw_tasks
from labelloop.labeling.studio.task import Task
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError, StudioNotFound, StudioUnauthorized
from labelloop.service.studio.task_cache import (
    CachedTask,
    IncrementalSync,
    LocalTaskCache,
    stamp_text,
    write_in_batches,
)
from labelloop.service.studio.tasks import TaskStamp

# From this many tasks on the first read uses a snapshot; below, a few pages are less work for Label Studio.
SNAPSHOT_MIN_TASKS = 200
# Maximum number of projects listed in the error for an unknown project.
LISTED_PROJECTS = 10
_PAGE_SIZE = 100
_log = structlog.get_logger(__name__)


class LabelStudioProject:
    """A live project. URLs are as stored, and the ML backend is not called.

    Args:
        project: The project's id.
        config: The label config; None: the project's.
        settings: Access to Label Studio, and the home folder.
        studio: Client to use instead of one from the settings.
        fresh: Read everything again, ignoring the local copy.
        progress: Called while tasks are read.
    """

    def __init__(
        self,
        project: int,
        config: LabelConfig | None,
        settings: Settings,
        studio: Studio | None = None,
        *,
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._studio = studio or Studio.from_settings(settings)
        self._project = project
        try:
            self._fields = self._studio.project(project)
        except StudioNotFound as error:
            projects = [f"{row['id']} ({row.get('title')})" for row in self._studio.projects()]
            listed = ", ".join(projects[:LISTED_PROJECTS]) + (", ..." if len(projects) > LISTED_PROJECTS else "")
            reason = f"{self._studio.url} has no such project, or this user cannot see it; it has {listed or 'none'}"
            raise SourceNotFound(source=str(project), reason=reason) from error
        self.title = str(self._fields.get("title") or f"project-{project}")
        self.origin: dict[str, Any] = {
            "kind": "project",
            "location": settings.label_studio_url,
            "project": project,
            "title": self.title,
        }
        self.config: LabelConfig | None = config or self._studio.label_config(project)
        total = self._fields.get("task_number")
        self.total: int | None = total if isinstance(total, int) else None
        self._progress = progress
        self._fresh = fresh
        # Label Studio on SQLite reuses the id of a deleted project.
        identity = f"{self._studio.url} {project} {self._fields.get('created_at')}"
        self._cache = LocalTaskCache(settings.home / "mirror", identity)
        self._ready = False
        self._sync = IncrementalSync[bytes](
            self._studio,
            project,
            self._cache,
            read=lambda filters: self._studio.raw_tasks(project, filters=filters),
            fetch=lambda stamps: self._studio.raw_tasks(
                project, page_size=_PAGE_SIZE, only_ids=[stamp.id for stamp in stamps]
            ),
            stamp=lambda raw: msgspec.json.decode(raw, type=TaskStamp),
            store=lambda raw_tasks: self._store(raw_tasks, 0),
        )

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task with its annotations, by id; the first call updates the local copy."""
        if not self._ready:
            with self._cache.locked():
                self.refresh()
                self._cache.begin_snapshot()
            self._ready = True
        yield from self._cache.bodies()

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task with its annotations, by id."""
        yield from read_tasks(self.raw())

    def close(self) -> None:
        """Close the local copy; the client stays open."""
        self._cache.close()

    def refresh(self) -> int:
        """Update the local copy; returns the number of tasks read from Label Studio."""
        if self._fresh:
            self._cache.clear()
            self._fresh = False
        tasks_read = self._read_changes() if self._cache.get_state("cursor") else self._read_all()
        self.total = self._cache.counts()[0]
        self.origin["read"] = tasks_read
        return tasks_read

    def _read_all(self) -> int:
        """The first full read; resumes an interrupted one."""
        cache = self._cache
        self._sync.begin_initial_sync()
        done = self._snapshot() if cache.get_state("snapshot") or self._is_large() else 0
        if not done:
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": cache.last_id()}
            filters = {"conjunction": "and", "items": [after]}
            done = self._store(
                self._studio.raw_tasks(self._project, page_size=_PAGE_SIZE, filters=filters), cache.counts()[0]
            )
        self._sync.finish_initial_sync()
        return done + self._read_changes()

    def _is_large(self) -> bool:
        return (self.total or 0) >= SNAPSHOT_MIN_TASKS and not self._cache.last_id()

    def _snapshot(self) -> int:
        """Read all tasks from a snapshot; returns 0 if that fails (limits of a proxy, full disk, no permission)."""
        cache = self._cache
        title = cache.get_state("snapshot") or f"labelloop {uuid4().hex}"
        cache.set_state(snapshot=title)  # a run after a crash reuses this snapshot
        file = cache.path.with_suffix(".json")
        try:
            if not file.is_file():
                snapshot_id = self._studio.snapshot(self._project, title)
                cache.set_state(number=str(snapshot_id))
                self._studio.download_snapshot(self._project, snapshot_id, file)
            with file.open("rb") as stream:
                done = self._store(iter_raw_tasks(stream), 0)
        except StudioUnauthorized:
            raise
        except (StudioError, MalformedTask, msgspec.DecodeError) as error:
            _log.warning("snapshot_failed", project=self._project, reason=str(error))
            cache.remove(cache.stamps_between(0, None))  # pages are read by id, a snapshot may be in another order
            done = 0
        snapshot_id = int(cache.get_state("number") or 0)
        cache.set_state(snapshot="", number="")
        file.unlink(missing_ok=True)
        if snapshot_id:
            with suppress(StudioError):
                self._studio.delete_snapshot(self._project, snapshot_id)
        return done

    def _read_changes(self) -> int:
        """Read changed tasks and remove deleted ones; returns the number of tasks read."""
        done = self._sync.sync_changes()
        return done if self._sync.counts_match() else done + self._sync.sync_by_stamps()

    def _fetch(self, stamps: Iterable[TaskStamp]) -> Iterable[bytes]:
        return self._studio.raw_tasks(self._project, page_size=_PAGE_SIZE, only_ids=[stamp.id for stamp in stamps])

    def _store(self, raw_tasks: Iterable[bytes], before: int) -> int:
        done = 0
        for done in write_in_batches(raw_tasks, _PAGE_SIZE, lambda batch: self._cache.put(map(_row, batch))):
            if self._progress:
                self._progress(before + done, self.total)
        return done


def _row(raw: bytes) -> CachedTask:
    stamp = msgspec.json.decode(raw, type=TaskStamp)
    return CachedTask(stamp.id, stamp_text(stamp), stamp.total_annotations, stamp.cancelled_annotations, raw)
