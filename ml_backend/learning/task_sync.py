"""Mirror a project's tasks in the table `learn_looks`: one full read, then incremental updates.

Requests to Label Studio: the first read takes one per thousand tasks and is resumable; a refresh takes one per thousand
changed tasks, at least one. All tasks are compared only if the numbers of tasks or annotations differ, and every
`COMPARE_INTERVAL_S` seconds.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any

import structlog

from labelloop.service.studio import Studio
from labelloop.service.studio.task_cache import IncrementalSync
from labelloop.service.studio.tasks import TaskStamp
from ml_backend.learning.store.tasks import TaskVectorStore

# Tasks per request of the first read.
PAGE = 1000

# Random open tasks added before the first read of a project with more than one page.
SAMPLE_SIZE = 32

# Seconds between two comparisons of all tasks while the numbers match.
COMPARE_INTERVAL_S = 3600.0

# Seconds between two comparisons while the numbers differ, which annotators at work can cause.
MISMATCH_INTERVAL_S = 60.0

# Label Studio filter for tasks without annotations and skips.
OPEN: Mapping[str, Any] = {
    "conjunction": "and",
    "items": [
        {"filter": f"filter:tasks:{count}_annotations", "operator": "equal", "type": "Number", "value": 0}
        for count in ("total", "cancelled")
    ],
}

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]


class TaskSync:
    """Mirrors the tasks of one project in `learn_looks`."""

    def __init__(self, studio: Studio, store: TaskVectorStore, project: int) -> None:
        """Send no request yet."""
        self._studio, self._store, self._project = studio, store, project
        self._mirror = store.mirror(project)
        self._tracker = IncrementalSync[TaskStamp](
            studio,
            project,
            self._mirror,
            read=lambda filters: studio.stamps(project, filters=filters),
            fetch=lambda marks: marks,
            stamp=lambda mark: mark,
            store=self._mirror.put,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the first read is complete."""
        return bool(self._mirror.get_state("cursor"))

    @cached_property
    def size(self) -> int:
        """Number of tasks in the mirror when it was first asked."""
        return self._mirror.counts()[0]

    def use_backbone(self, backbone: str) -> None:
        """Delete vectors of other backbones."""
        if self._mirror.get_state("backbone") != backbone:
            self._store.clear_other_backbones(self._project, backbone)
            self._mirror.set_state(backbone=backbone)

    def refresh(self) -> int:
        """Read changes since the last call; returns the number of changed tasks (0 before the first read ends)."""
        return self._tracker.sync_changes() if self.is_complete else 0

    def continue_first_read(self, stop: Stop) -> bool:
        """Continue the first read by at least one page; returns whether it is complete."""
        for _ in self._pages():
            if stop():
                break
        return self.is_complete

    def seed(self) -> None:
        """Before the first read: read a project of one page, or add a random sample of open tasks of a larger one."""
        if self.is_complete or self._mirror.last():
            return
        if self._studio.count_tasks(self._project) <= PAGE:
            self.continue_first_read(lambda: False)
        else:
            tasks = self._studio.sample(self._project, SAMPLE_SIZE, filters=dict(OPEN))
            self._store.add(self._project, [task.id for task in tasks])

    def compare_if_due(self) -> bool:
        """Compare all tasks if the numbers differ or the last comparison is old.

        Returns:
            Whether the tasks were compared.
        """
        since = time.time() - float(self._mirror.get_state("compared") or 0)
        if since < (COMPARE_INTERVAL_S if self._counts_match() else MISMATCH_INTERVAL_S):
            return False
        read = self._tracker.sync_by_stamps()
        self._mirror.set_state(compared=str(time.time()))
        log.info("tasks_compared", project=self._project, changed=read)
        return True

    def _counts_match(self) -> bool:
        """Whether the numbers match, reading new changes once in case of a submit between two requests."""
        return self._tracker.counts_match() or (self._tracker.sync_changes() > 0 and self._tracker.counts_match())

    def _pages(self) -> Iterator[None]:
        """Read the first read page by page, one page per step."""
        if self.is_complete:
            return
        self._tracker.begin_initial_sync()
        while True:
            last = self._mirror.last()
            after = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last}
            filters = {"conjunction": "and", "items": [after]}
            page = list(islice(self._studio.stamps(self._project, filters=filters, page_size=PAGE), PAGE))
            self._mirror.put(page)
            if len(page) < PAGE:
                break
            yield
        self._tracker.finish_initial_sync()
        self._mirror.set_state(compared=str(time.time() - MISMATCH_INTERVAL_S))
