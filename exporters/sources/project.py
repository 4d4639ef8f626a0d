"""A live project: read once, as a snapshot of Label Studio's own, and from then on only what changed.

Tasks lie in a `Mirror`; before an export it is brought up to date. What changed is asked of Label Studio by the time of
the last change. Some bulk actions leave no such trace or a wrong one, so the numbers of tasks and annotations are held
against Label Studio's own; where they differ every task's mark is.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from exporters.errors import SourceNotFound
from exporters.sources.base import Progress, read
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.stream import iter_raw_tasks
from labelloop.labeling.studio.task import Task
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound, Studio, StudioError, StudioUnauthorized
from labelloop.service.studio.mirror import Mirror, Row, Tracker, batches, text_of
from labelloop.service.studio.tasks import Mark

SNAPSHOT_FROM = 200
"""Tasks from which a first reading is a snapshot; below it a page or two is less work for Label Studio."""
SHOWN = 10
"""Projects that are named where another was asked for."""
_PAGE = 100
_log = structlog.get_logger(__name__)


class Project:
    """A live project; addresses stay as they are stored and no model is asked.

    Args:
        project: Its number.
        config: The label config; None: the project's own.
        settings: How to reach Label Studio, and the home folder.
        studio: A client to use instead of the settings' own.
        fresh: Forget what was read before.
        progress: Told while tasks are read.
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
        self._id = project
        try:
            self._fields = self._studio.project(project)
        except NotFound as error:
            there = [f"{each['id']} ({each.get('title')})" for each in self._studio.projects()]
            shown = ", ".join(there[:SHOWN]) + (", ..." if len(there) > SHOWN else "")
            reason = f"{self._studio.url} has no such project, or does not show it to us; it has {shown or 'none'}"
            raise SourceNotFound(str(project), reason) from error
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
        # Label Studio on SQLite gives a deleted project's number to a new one.
        identity = f"{self._studio.url} {project} {self._fields.get('created_at')}"
        self._mirror = Mirror(settings.home / "mirror", identity)
        self._ready = False
        self._tracker = Tracker[bytes](
            self._studio,
            project,
            self._mirror,
            read=lambda filters: self._studio.raw_tasks(project, filters=filters),
            fetch=lambda marks: self._studio.raw_tasks(project, page_size=_PAGE, only_ids=[one.id for one in marks]),
            mark=lambda raw: msgspec.json.decode(raw, type=Mark),
            store=lambda raw_tasks: self._store(raw_tasks, 0),
        )

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task with its annotations, by id; the first call brings them here."""
        if not self._ready:
            with self._mirror.locked():
                self.refresh()
                self._mirror.hold()
            self._ready = True
        yield from self._mirror.bodies()

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task with its annotations, by id."""
        yield from read(self.raw())

    def close(self) -> None:
        """Close the copy; the client belongs to the caller."""
        self._mirror.close()

    def refresh(self) -> int:
        """Bring the copy up to date; gives how many tasks were read from Label Studio."""
        if self._fresh:
            self._mirror.clear()
            self._fresh = False
        read_tasks = self._changes() if self._mirror.note("cursor") else self._everything()
        self.total = self._mirror.counts()[0]
        self.origin["read"] = read_tasks
        return read_tasks

    def _everything(self) -> int:
        """The first reading; one that was cut off is gone on with."""
        mirror = self._mirror
        self._tracker.start()
        done = self._snapshot() if mirror.note("snapshot") or self._is_large() else 0
        if not done:
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": mirror.last()}
            filters = {"conjunction": "and", "items": [after]}
            done = self._store(self._studio.raw_tasks(self._id, page_size=_PAGE, filters=filters), mirror.counts()[0])
        self._tracker.started()
        return done + self._changes()

    def _is_large(self) -> bool:
        return (self.total or 0) >= SNAPSHOT_FROM and not self._mirror.last()

    def _snapshot(self) -> int:
        """Read all tasks from a snapshot; 0 where there can be none: a proxy's limits, a full disk, no right to it."""
        mirror = self._mirror
        title = mirror.note("snapshot") or f"labelloop {uuid4().hex}"
        mirror.keep(snapshot=title)  # whoever goes on after a kill takes the same one
        file = mirror.path.with_suffix(".json")
        try:
            if not file.is_file():
                number = self._studio.snapshot(self._id, title)
                mirror.keep(number=str(number))
                self._studio.download_snapshot(self._id, number, file)
            with file.open("rb") as stream:
                done = self._store(iter_raw_tasks(stream), 0)
        except StudioUnauthorized:
            raise
        except (StudioError, MalformedTask, msgspec.DecodeError) as error:
            _log.warning("snapshot_failed", project=self._id, reason=str(error))
            mirror.remove(mirror.marks_between(0, None))  # pages go by id, and a snapshot need not
            done = 0
        number = int(mirror.note("number") or 0)
        mirror.keep(snapshot="", number="")
        file.unlink(missing_ok=True)
        if number:
            with suppress(StudioError):
                self._studio.delete_snapshot(self._id, number)
        return done

    def _changes(self) -> int:
        """What changed since the last reading, and what was deleted."""
        done = self._tracker.changes()
        return done if self._tracker.complete() else done + self._tracker.compare()

    def _store(self, raw_tasks: Iterable[bytes], before: int) -> int:
        done = 0
        for done in batches(raw_tasks, _PAGE, lambda batch: self._mirror.put(map(_row, batch))):
            if self._progress:
                self._progress(before + done, self.total)
        return done


def _row(raw: bytes) -> Row:
    mark = msgspec.json.decode(raw, type=Mark)
    return Row(mark.id, text_of(mark), mark.total_annotations, mark.cancelled_annotations, raw)
