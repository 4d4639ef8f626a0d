"""Owns reading Label Studio: the tasks that events name, what no event named, and what that means for the lessons."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.media import Media, MediaError
from labelloop.service.studio import Studio
from ml_backend.learning.annotations import Size, TaskTrainingData, config_of, task_checksum, training_data_of
from ml_backend.learning.store.annotations import TrainingDataStore

OVERLAP = timedelta(seconds=5)
"""A poll begins so long before the newest change that was seen: requests at the same moment end in any order."""

EPOCH = "1970-01-01T00:00:00.000000Z"
_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
_ANNOTATED = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
_BATCH = 100

log = structlog.get_logger(__name__)


class Reader:
    """Keeps the lessons of projects as Label Studio has them."""

    def __init__(self, studio: Studio, media: Media, lessons: TrainingDataStore) -> None:
        """Asks nothing yet."""
        self._studio = studio
        self._media = media
        self._lessons = lessons

    def read(self, project: int, tasks: Iterable[int], *, config: LabelConfig, held_out: float) -> None:
        """Reads these tasks again; those that are gone, or lost their annotations, teach nothing any more."""
        wanted = sorted(set(tasks))
        there = list(self._studio.tasks(project, only_ids=wanted)) if wanted else []
        taught = self._teach(project, there, config=config, held_out=held_out)
        self._lessons.keep(project, taught)
        if gone := set(wanted) - {one.task for one in taught}:
            self._lessons.drop(project, gone)

    def sweep(self, project: int, *, config: LabelConfig, held_out: float) -> None:
        """Compares every annotated task with its lesson."""
        known, sign = self._lessons.seen(project), config_of(config)
        unseen = set(known)
        tasks = iter(self._studio.tasks(project, filters={"conjunction": "and", "items": [_ANNOTATED]}))
        while batch := list(islice(tasks, _BATCH)):
            unseen -= {task.id for task in batch if task.id is not None}
            changed = [
                task for task in batch if task.id is not None and known.get(task.id) != task_checksum(task, sign)
            ]
            self._lessons.keep(project, self._teach(project, changed, config=config, held_out=held_out))
        self.read(project, unseen, config=config, held_out=held_out)
        self._lessons.update_project(project, swept_at=time.time(), config=sign)

    def changed(self, project: int, *, config: LabelConfig) -> list[int]:
        """Annotated tasks that changed since the last call and are no longer as they were read."""
        learner = self._lessons.project(project)
        since = _earlier(learner.cursor) if learner and learner.cursor else EPOCH
        later = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since}
        filters = {"conjunction": "and", "items": [later, _ANNOTATED]}
        newest, sign = learner.cursor if learner else "", config_of(config)
        found: list[tuple[int, str]] = []
        for task in self._studio.tasks(project, filters=filters):
            if task.id is None:
                continue
            newest = max(newest, min(_moment(task.updated_at), datetime.now(UTC).strftime(_FORMAT)))
            found.append((task.id, task_checksum(task, sign)))
        known = self._lessons.seen(project, [task for task, _ in found])
        self._lessons.update_project(project, cursor=newest)
        return [task for task, seen in found if known.get(task) != seen]

    def _teach(
        self, project: int, tasks: Sequence[Task], *, config: LabelConfig, held_out: float
    ) -> list[TaskTrainingData]:
        sign = config_of(config)
        found = (
            training_data_of(task, config, project=project, held_out=held_out, size=self._size, sign=sign)
            for task in tasks
        )
        return [one for one in found if one is not None]

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
    """Label Studio's own spelling, in UTC: the only one that its filters understand."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime(_FORMAT)
