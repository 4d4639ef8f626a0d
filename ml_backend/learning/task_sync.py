"""Owns that the table of a project's tasks is as Label Studio has them: read once, then by what changed.

What it asks of Label Studio: a first reading takes a request for each thousand tasks, and goes on where it was
interrupted; after it a refresh takes one for each thousand changed tasks, at least one. Every task is only looked at
again where the number of tasks or annotations says that something changed without a trace, and now and then.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import structlog

from labelloop.service.studio import Studio
from labelloop.service.studio.mirror import Tracker
from labelloop.service.studio.tasks import Mark
from ml_backend.learning.store.tasks import PhotoVectorStore

PAGE = 1000
"""Tasks of one request of the first reading."""

SAMPLE = 32
"""Tasks from all over a project of more than a page, that are known before it is read."""

SURE_S = 3600.0
"""Between two comparisons of every task, where nothing gives a reason for one."""

AGAIN_S = 60.0
"""Between two comparisons where the numbers differ all the same: annotators work while they are asked for."""

OPEN: Mapping[str, Any] = {
    "conjunction": "and",
    "items": [
        {"filter": f"filter:tasks:{count}_annotations", "operator": "equal", "type": "Number", "value": 0}
        for count in ("total", "cancelled")
    ],
}
"""Label Studio's filter for tasks that nobody has annotated or skipped."""

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]


class Backlog:
    """Keeps the tasks of one project in `learn_looks`."""

    def __init__(self, studio: Studio, looks: PhotoVectorStore, project: int) -> None:
        """Asks nothing yet."""
        self._studio, self._looks, self._project = studio, looks, project
        self._copy = looks.copy(project)
        self._tracker = Tracker[Mark](
            studio,
            project,
            self._copy,
            read=lambda filters: studio.stamps(project, filters=filters),
            fetch=lambda marks: marks,
            mark=lambda mark: mark,
            store=self._copy.put,
        )

    @property
    def read(self) -> bool:
        """Whether the first reading is done."""
        return bool(self._copy.note("cursor"))

    def use(self, backbone: str) -> None:
        """What is known of photos by another backbone is forgotten."""
        if self._copy.note("backbone") != backbone:
            self._looks.rebase(self._project, backbone)
            self._copy.keep(backbone=backbone)

    def refresh(self) -> int:
        """What changed since the last time; before the first reading nothing. Returns how many tasks did."""
        return self._tracker.changes() if self.read else 0

    def read_on(self, stop: Stop) -> bool:
        """Goes on with the first reading, at least by a page; returns whether all is read."""
        for _ in self._pages():
            if stop():
                break
        return self.read

    def begin(self) -> None:
        """Before the first reading: a page of a project that has no more, else some open tasks from all over it."""
        if self.read or self._copy.last():
            return
        if self._studio.count_tasks(self._project) <= PAGE:
            self.read_on(lambda: False)
        else:
            found = self._studio.sample(self._project, SAMPLE, filters=dict(OPEN))
            self._looks.add(self._project, [one.id for one in found])

    def check(self) -> bool:
        """Compares every task where the numbers of tasks and annotations differ, or it was not done for long.

        Returns:
            Whether it did.
        """
        since = time.time() - float(self._copy.note("compared") or 0)
        if since < (SURE_S if self._settled() else AGAIN_S):
            return False
        read = self._tracker.compare()
        self._copy.keep(compared=str(time.time()))
        log.info("tasks_compared", project=self._project, changed=read)
        return True

    def _settled(self) -> bool:
        """Whether the numbers are right; where they are not, perhaps somebody submitted between two requests."""
        return self._tracker.complete() or (self._tracker.changes() > 0 and self._tracker.complete())

    def _pages(self) -> Iterator[None]:
        """Reads a page of the first reading at each step."""
        if self.read:
            return
        self._tracker.start()
        while True:
            last = self._copy.last()
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last}
            filters = {"conjunction": "and", "items": [after]}
            page = list(islice(self._studio.stamps(self._project, filters=filters, page_size=PAGE), PAGE))
            self._copy.put(page)
            if len(page) < PAGE:
                break
            yield
        self._tracker.started()
        self._copy.keep(compared=str(time.time() - AGAIN_S))
