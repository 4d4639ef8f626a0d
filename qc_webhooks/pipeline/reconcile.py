"""The poller: finds what no webhook said, and puts the same keys in the same inbox as a webhook would have.

Label Studio sends an event once and never again, and sends none for imports of annotations, drafts that were converted
and several kinds of deletion. Where it may not reach us at all (its ban of private addresses), this carries the
service alone.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

import sqlalchemy as sa
import structlog

from labelloop.labeling.studio.task import Task
from labelloop.service.db.engine import reading
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import EVENTS, MOST_KILLS, Inbox
from labelloop.service.studio import NotFound, Studio
from qc_webhooks.events import (
    TIME_FORMAT,
    Known,
    QcEvent,
    annotation_hint,
    deletion_hint,
    model_disagreement_event,
    task_deletion_hint,
    timestamp,
)
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import Connected, ProjectStore

# All tasks are compared this often, for changes that leave no trace in a task's updated_at.
SWEEP_EVERY_S = 86400.0
# Annotations are counted this often: a number that is not ours (deletions in bulk) has all tasks compared at once.
COUNT_EVERY_S = 3600.0
# What a comparison found is judged within this time; a difference that remains is one that we cannot judge.
SETTLED_S = 600.0
# A transaction that began earlier may be seen later: what is younger than the newest by this much is read once more.
OVERLAP = timedelta(seconds=5)
_TASKS_A_LOOKUP = 500
_ANNOTATION_COUNTS = ("total_annotations_number", "skipped_annotations_number")
Item = TypeVar("Item")
_EPOCH = "1970-01-01T00:00:00.000000Z"

log = structlog.get_logger(__name__)


class _Count(NamedTuple):
    """A count of annotations: when the next is due, and by how many Label Studio had more than we know.

    `differ` is None after a comparison: what remains of a difference then is nothing new.
    """

    again_at: float
    differ: int | None


class Reconciler:
    """Compares Label Studio's tasks with what we have judged.

    Args:
        studio: Label Studio.
        memory: The versions of annotations that were judged.
        projects: The connected projects.
        inbox: Where hints go.
    """

    def __init__(self, studio: Studio, memory: DecisionStore, projects: ProjectStore, inbox: Inbox) -> None:
        self._studio = studio
        self._memory = memory
        self._projects = projects
        self._inbox = inbox
        self._counts: dict[int, _Count] = {}

    def run(self) -> None:
        """One round over the connected projects; one that cannot be read does not keep the others waiting."""
        for connected in self._projects.all():
            try:
                self.poll(connected.project)
            except NotFound:
                self._forget(connected.project)
            except LabelloopError as error:
                log.warning("poll_failed", project=connected.project, reason=str(error))

    def _forget(self, project: int) -> None:
        """A project that was deleted: Label Studio sends no event for it. Asked twice, and another way, to be sure."""
        try:
            there = {int(each["id"]) for each in self._studio.projects()}
        except LabelloopError as error:
            log.warning("poll_failed", project=project, reason=str(error))
            return
        if project not in there:
            self._memory.forget_project(project)
            log.warning("project_forgotten", project=project, reason="it is gone from Label Studio")

    def poll(self, project: int) -> int:
        """What changed since the last poll, or everything when that is due. Returns how many hints were new."""
        connected = self._projects.get(project) or Connected(project)
        if connected.swept_at is None or time.time() - connected.swept_at > SWEEP_EVERY_S:
            return self.sweep(project)
        if self._miscounts(project, connected.swept_at):
            return self.sweep(project)
        since = connected.cursor if connected.settled else _earlier(connected.cursor, OVERLAP)
        changed = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since}
        tasks = self._studio.tasks(project, filters={"conjunction": "and", "items": [changed]})
        newest, new = connected.cursor, 0
        for batch in _batches(tasks):
            newest = max(newest, *(_capped(task.updated_at) for task in batch))
            new += self._compare(project, batch)
        self._projects.advance(project, cursor=newest, settled=newest == connected.cursor, swept=False)
        return new

    def _miscounts(self, project: int, swept_at: float) -> bool:
        """Whether Label Studio has another number of annotations than we know, beyond those that we cannot judge."""
        last, now = self._counts.get(project, _Count(swept_at + SETTLED_S, 0)), time.time()
        if now < last.again_at:
            return False
        fields = self._studio.project(project)
        there = sum(int(fields.get(name) or 0) for name in _ANNOTATION_COUNTS)
        differ = there - self._memory.count_annotations(project)
        self._counts[project] = _Count(now + COUNT_EVERY_S, differ)
        if last.differ is None or differ in (0, last.differ):
            return False
        log.info("annotations_miscounted", project=project, there=there, more=differ)
        return True

    def sweep(self, project: int) -> int:
        """Compares every task that has annotations or had some. Returns how many hints were new.

        A task whose own time did not change since it was compared last is not read: of 100,000 tasks a hundred pages of
        numbers are, and then what is new.
        """
        connected = self._projects.get(project) or Connected(project)
        # Read first: what changes during the sweep is newer than this and comes with the next poll.
        first = next(self._studio.tasks(project, page_size=1, ordering=["-tasks:updated_at"]), None)
        annotated = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
        new = 0
        unseen = self._memory.annotated(project)
        for batch in _batches(self._studio.stamps(project, filters={"conjunction": "and", "items": [annotated]}), 1000):
            ids = [stamp.id for stamp in batch]
            unseen.difference_update(ids)
            known, held = self._memory.stamps(project, ids), self._memory.known_in(project, ids)
            changed = [
                stamp.id
                for stamp in batch
                if (known.get(stamp.id), len(held.get(stamp.id, ())))
                != (stamp.updated_at, stamp.total_annotations + stamp.cancelled_annotations)
            ]
            for tasks in _batches(self._studio.tasks(project, only_ids=changed)) if changed else ():
                new += self._compare(project, tasks)
        new += self._look_up(project, sorted(unseen))
        newest = _capped(first.updated_at) if first else _EPOCH
        self._projects.advance(project, cursor=max(newest, connected.cursor), settled=False, swept=True)
        self._counts[project] = _Count(time.time() + SETTLED_S, None)
        log.info("project_swept", project=project, new=new)
        return new

    def _look_up(self, project: int, unseen: list[int]) -> int:
        """Tasks that we judged and that no longer have annotations: emptied, skipped or deleted."""
        new = 0
        for start in range(0, len(unseen), _TASKS_A_LOOKUP):
            ids = unseen[start : start + _TASKS_A_LOOKUP]
            left = list(self._studio.tasks(project, only_ids=ids))
            new += self._compare(project, left)
            gone = sorted(set(ids) - {task.id for task in left if task.id is not None})
            new += sum(self._submit(task_deletion_hint(project, task, source="poll")) for task in gone)
        return new

    def _compare(self, project: int, tasks: list[Task]) -> int:
        known = self._memory.known_in(project, [task.id for task in tasks if task.id is not None])
        found = {
            task.id: (task.updated_at, list(differences(project, task.id, task, known.get(task.id, {}))))
            for task in tasks
            if task.id is not None
        }
        self._memory.stamp(
            project, {id_: stamp for id_, (stamp, hints) in found.items() if not hints and known.get(id_)}
        )
        doubted = [
            model_disagreement_event(project, task.id, task.updated_at)
            for task in tasks
            if task.id and _is_doubted(task)
        ]
        told = sum(self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload) for hint in doubted)
        return told + sum(self._submit(hint) for _, hints in found.values() for hint in hints)

    def _submit(self, hint: QcEvent) -> bool:
        if self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload):
            return True
        return self._tell_again(hint)

    def _tell_again(self, hint: QcEvent) -> bool:
        """What was told before, is settled in the inbox, and still shows as a difference.

        An event that was given up (Label Studio was down for longer than its attempts lasted) gets new attempts, now
        that Label Studio answers; one that ended its worker gets none. One that was done is told under its own key.
        """
        which = (EVENTS.c.topic == hint.topic) & (EVENTS.c.key == hint.key)
        with reading(self._inbox.engine) as connection:
            row = connection.execute(sa.select(EVENTS).where(which)).one_or_none()
        if row is not None and row.state == "dead":
            return row.kills < MOST_KILLS and self._inbox.replay([row.id]) == 1
        if row is not None and row.state == "done":
            return self._inbox.put(hint.topic, hint.subject, f"{hint.key}:after:{row.finished_at}", hint.payload)
        return False


def _is_doubted(task: Task) -> bool:
    """Whether the model's second opinion has a part in what is said of the task; no webhook tells when it changes."""
    return "qc_model_note" in task.data or "The model has doubts" in str(task.data.get("qc_note"))


def differences(project: int, id_: int, task: Task, known: Mapping[int, str]) -> Iterator[QcEvent]:
    """What is new, changed or gone in a task against the versions that were judged."""
    current = {item.id: item.updated_at for item in task.annotations if item.id is not None}
    for annotation, updated_at in current.items():
        if annotation not in known or timestamp(known[annotation]) != timestamp(updated_at):
            yield annotation_hint(project, id_, annotation, updated_at, source="poll")
    for annotation, updated_at in known.items():
        if annotation not in current:
            yield deletion_hint(annotation, Known(project, id_, updated_at), source="poll")


def _batches(items: Iterator[Item], size: int = 100) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _earlier(cursor: str, by: timedelta) -> str:
    try:
        return timestamp((datetime.fromisoformat(cursor) - by).isoformat())
    except (ValueError, OverflowError):
        return _EPOCH


def _capped(updated_at: str) -> str:
    """A task's moment, never later than now: a bulk action of Label Studio stamps local time as if it were UTC."""
    return min(timestamp(updated_at), datetime.now(UTC).strftime(TIME_FORMAT))
