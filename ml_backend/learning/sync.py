"""Keep the stored training data in sync with Label Studio: tasks named by events, and changes without an event."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.media import Media, MediaError
from labelloop.service.studio import Studio
from ml_backend.learning.annotations import Size, TaskTrainingData, config_hash_of, task_checksum, training_data_of
from ml_backend.learning.store.annotations import TrainingDataStore

# Overlap of two polls: concurrent requests may become visible out of order.
OVERLAP = timedelta(seconds=5)

EPOCH = "1970-01-01T00:00:00.000000Z"
_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
_ANNOTATED = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
_BATCH = 100

log = structlog.get_logger(__name__)


class LabelStudioSync:
    """Syncs the stored training data of projects with Label Studio."""

    def __init__(self, studio: Studio, media: Media, store: TrainingDataStore) -> None:
        """Send no request yet."""
        self._studio = studio
        self._media = media
        self._store = store

    def read(self, project: int, tasks: Iterable[int], *, config: LabelConfig, held_out: float) -> None:
        """Read tasks again; those that are deleted or lost their annotations are marked as gone."""
        wanted = sorted(set(tasks))
        existing = list(self._studio.tasks(project, only_ids=wanted)) if wanted else []
        data_of_tasks = self._training_data(project, existing, config=config, held_out=held_out)
        self._store.save(project, data_of_tasks)
        if gone := set(wanted) - {data.task for data in data_of_tasks}:
            self._store.mark_gone(project, gone)

    def sweep(self, project: int, *, config: LabelConfig, held_out: float) -> None:
        """Compare every annotated task with its stored training data, and read changed ones again."""
        checksums, config_hash = self._store.checksums(project), config_hash_of(config)
        missing = set(checksums)
        tasks = iter(self._studio.tasks(project, filters={"conjunction": "and", "items": [_ANNOTATED]}))
        while batch := list(islice(tasks, _BATCH)):
            missing -= {task.id for task in batch if task.id is not None}
            changed = [
                task
                for task in batch
                if task.id is not None and checksums.get(task.id) != task_checksum(task, config_hash)
            ]
            self._store.save(project, self._training_data(project, changed, config=config, held_out=held_out))
        self.read(project, missing, config=config, held_out=held_out)
        self._store.update_project(project, swept_at=time.time(), config=config_hash)

    def changed(self, project: int, *, config: LabelConfig) -> list[int]:
        """Return annotated tasks whose training data changed since the last call."""
        state = self._store.project(project)
        since = _earlier(state.cursor) if state and state.cursor else EPOCH
        later = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since}
        filters = {"conjunction": "and", "items": [later, _ANNOTATED]}
        newest, config_hash = state.cursor if state else "", config_hash_of(config)
        candidates: list[tuple[int, str]] = []
        for task in self._studio.tasks(project, filters=filters):
            if task.id is None:
                continue
            newest = max(newest, min(_moment(task.updated_at), datetime.now(UTC).strftime(_FORMAT)))
            candidates.append((task.id, task_checksum(task, config_hash)))
        checksums = self._store.checksums(project, [task for task, _ in candidates])
        self._store.update_project(project, cursor=newest)
        return [task for task, checksum in candidates if checksums.get(task) != checksum]

    def _training_data(
        self, project: int, tasks: Sequence[Task], *, config: LabelConfig, held_out: float
    ) -> list[TaskTrainingData]:
        config_hash = config_hash_of(config)
        training_data = (
            training_data_of(task, config, project=project, held_out=held_out, size=self._size, config_hash=config_hash)
            for task in tasks
        )
        return [data for data in training_data if data is not None]

    def _size(self, url: str, task: int | None) -> Size | None:
        try:
            return self._media.size(url, task_id=task)
        except MediaError as error:
            log.warning("photo_size_unknown", task=task, reason=str(error))
            return None


def _earlier(cursor: str) -> str:
    try:
        return (datetime.fromisoformat(cursor) - OVERLAP).astimezone(UTC).strftime(_FORMAT)
    except (ValueError, OverflowError):
        return EPOCH


def _moment(text: str) -> str:
    """Format a time in UTC as Label Studio does; its filters accept no other format."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime(_FORMAT)
