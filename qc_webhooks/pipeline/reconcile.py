"""Poller: finds changes that no webhook reported, and submits them to the inbox under the webhook's keys.

Label Studio sends an event once without retries, and sends none for imported annotations, converted drafts and several
kinds of deletion. Where it cannot reach the service at all (it bans private addresses), the poller finds all changes.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

import sqlalchemy as sa
import structlog

from labelloop.labeling.studio.task import Task
from labelloop.service.db.engine import begin_read
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import EVENTS, ISOLATE_AFTER_KILLS, Inbox
from labelloop.service.jobs.repeated_failures import RepeatedFailures
from labelloop.service.studio import Studio, StudioNotFound
from qc_webhooks.decision.review_reasons import MODEL_DISAGREES
from qc_webhooks.events import (
    TIME_FORMAT,
    QcEvent,
    StoredAnnotation,
    annotation_deleted_event,
    annotation_event,
    model_disagreement_event,
    task_deleted_event,
    timestamp,
)
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ConnectedProject, ProjectStore

# Seconds between comparisons of all tasks, for changes that do not update a task's updated_at.
SWEEP_EVERY_S = 86400.0
# Seconds between counts of annotations; a difference (bulk deletions) triggers a comparison of all tasks.
COUNT_EVERY_S = 3600.0
# Seconds until differences found by a comparison are judged; those that remain cannot be judged.
JUDGED_WITHIN_S = 600.0
# A transaction may become visible after a later one: tasks newer than the cursor minus this are read again.
OVERLAP = timedelta(seconds=5)
_TASKS_PER_REQUEST = 500
_ANNOTATION_COUNTS = ("total_annotations_number", "skipped_annotations_number")
Item = TypeVar("Item")
_EPOCH = "1970-01-01T00:00:00.000000Z"

log = structlog.get_logger(__name__)


class _AnnotationCount(NamedTuple):
    """Result of a count of annotations.

    Attributes:
        again_at: When the next count is due, seconds since 1970.
        differ: Label Studio's number minus ours; None after a comparison of all tasks, whose remaining difference is
            expected.
    """

    again_at: float
    differ: int | None


class Reconciler:
    """Compares Label Studio's tasks with the judged versions.

    Args:
        studio: Label Studio.
        decisions: The judged versions of annotations.
        projects: The connected projects.
        inbox: Receives the events.
    """

    def __init__(self, studio: Studio, decisions: DecisionStore, projects: ProjectStore, inbox: Inbox) -> None:
        self._studio = studio
        self._decisions = decisions
        self._projects = projects
        self._inbox = inbox
        self._counts: dict[int, _AnnotationCount] = {}
        self._failures = RepeatedFailures("poll_failed")

    def run(self) -> None:
        """Poll all connected projects; one that cannot be read does not block the others."""
        for connected in self._projects.all():
            try:
                self._poll_or_forget(connected.project)
            except LabelloopError as error:
                self._failures.failed(connected.project, str(error))
            else:
                self._failures.succeeded(connected.project)

    def _poll_or_forget(self, project: int) -> None:
        """Poll a project, or delete its rows: Label Studio sends no event for a deleted project."""
        try:
            self.poll(project)
        except StudioNotFound:
            if self._studio.has_project(project):
                raise
            self._decisions.delete_project(project)
            log.warning("project_forgotten", project=project, reason="it is deleted in Label Studio")

    def poll(self, project: int) -> int:
        """Compare the tasks changed since the last poll, or all tasks when due. Returns the number of new events."""
        connected = self._projects.get(project) or ConnectedProject(project)
        if connected.swept_at is None or time.time() - connected.swept_at > SWEEP_EVERY_S:
            return self.sweep(project)
        if self._miscounts(project, connected.swept_at):
            return self.sweep(project)
        since = connected.cursor if connected.caught_up else _minus(connected.cursor, OVERLAP)
        changed = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since}
        newest, new = connected.cursor, 0
        filters = {"conjunction": "and", "items": [changed]}
        for stamps in _batched(self._studio.stamps(project, filters=filters), 1000):
            newest = max(newest, *(_capped_at_now(stamp.updated_at) for stamp in stamps))
            versions = self._decisions.annotation_versions(project, [stamp.id for stamp in stamps])
            # A new import changes every task; one without an annotation, now and before, has nothing to compare.
            ids = [
                stamp.id
                for stamp in stamps
                if stamp.total_annotations + stamp.cancelled_annotations or versions.get(stamp.id)
            ]
            new += self._read_and_compare(project, ids)
        self._projects.advance(project, cursor=newest, caught_up=newest == connected.cursor, swept=False)
        return new

    def _miscounts(self, project: int, swept_at: float) -> bool:
        """Whether Label Studio's number of annotations differs from ours, beyond those that cannot be judged."""
        last, now = self._counts.get(project, _AnnotationCount(swept_at + JUDGED_WITHIN_S, 0)), time.time()
        if now < last.again_at:
            return False
        fields = self._studio.project(project)
        total = sum(int(fields.get(name) or 0) for name in _ANNOTATION_COUNTS)
        differ = total - self._decisions.count_annotations(project)
        self._counts[project] = _AnnotationCount(now + COUNT_EVERY_S, differ)
        if last.differ is None or differ in (0, last.differ):
            return False
        log.info("annotations_miscounted", project=project, there=total, more=differ)
        return True

    def sweep(self, project: int) -> int:
        """Compare all tasks that have or had annotations. Returns the number of new events.

        Tasks with an unchanged updated_at are not read: 100,000 tasks take a hundred pages of ids, then the changed
        tasks.
        """
        connected = self._projects.get(project) or ConnectedProject(project)
        # Read first: changes during the sweep are newer than this, and the next poll finds them.
        first = next(self._studio.tasks(project, page_size=1, ordering=["-tasks:updated_at"]), None)
        annotated = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
        new = 0
        remaining = self._decisions.annotated_tasks(project)
        for batch in _batched(self._studio.stamps(project, filters={"conjunction": "and", "items": [annotated]}), 1000):
            ids = [stamp.id for stamp in batch]
            remaining.difference_update(ids)
            stamps, versions = (
                self._decisions.task_stamps(project, ids),
                self._decisions.annotation_versions(project, ids),
            )
            changed = [
                stamp.id
                for stamp in batch
                if (stamps.get(stamp.id), len(versions.get(stamp.id, ())))
                != (stamp.updated_at, stamp.total_annotations + stamp.cancelled_annotations)
            ]
            new += self._read_and_compare(project, changed)
        new += self._compare_emptied(project, sorted(remaining))
        newest = _capped_at_now(first.updated_at) if first else _EPOCH
        self._projects.advance(project, cursor=max(newest, connected.cursor), caught_up=False, swept=True)
        self._counts[project] = _AnnotationCount(time.time() + JUDGED_WITHIN_S, None)
        log.info("project_swept", project=project, new=new)
        return new

    def _compare_emptied(self, project: int, remaining: list[int]) -> int:
        """Compare judged tasks that no longer have annotations: emptied, skipped or deleted."""
        new = 0
        for start in range(0, len(remaining), _TASKS_PER_REQUEST):
            ids = remaining[start : start + _TASKS_PER_REQUEST]
            existing = list(self._studio.tasks(project, only_ids=ids))
            new += self._compare(project, existing)
            deleted = sorted(set(ids) - {task.id for task in existing if task.id is not None})
            new += sum(self._submit(task_deleted_event(project, task, source="poll")) for task in deleted)
        return new

    def _read_and_compare(self, project: int, ids: list[int]) -> int:
        """Compare tasks that are read in full."""
        tasks = self._studio.tasks(project, only_ids=ids) if ids else iter(())
        return sum(self._compare(project, batch) for batch in _batched(tasks))

    def _compare(self, project: int, tasks: list[Task]) -> int:
        versions = self._decisions.annotation_versions(project, [task.id for task in tasks if task.id is not None])
        differences_by_task = {
            task.id: (task.updated_at, list(differences(project, task.id, task, versions.get(task.id, {}))))
            for task in tasks
            if task.id is not None
        }
        self._decisions.save_stamps(
            project,
            {id_: stamp for id_, (stamp, hints) in differences_by_task.items() if not hints and versions.get(id_)},
        )
        events = [
            model_disagreement_event(project, task.id, task.updated_at)
            for task in tasks
            if task.id and _has_model_note(task)
        ]
        new = sum(self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload) for hint in events)
        return new + sum(self._submit(hint) for _, hints in differences_by_task.values() for hint in hints)

    def _submit(self, hint: QcEvent) -> bool:
        if self._inbox.put(hint.topic, hint.subject, hint.key, hint.payload):
            return True
        return self._resubmit(hint)

    def _resubmit(self, hint: QcEvent) -> bool:
        """Submit an event again whose difference remains although the inbox has finished it.

        A dead letter (Label Studio was down for longer than its attempts lasted) gets new attempts, except one that
        killed its worker. A done event is submitted under a new key.
        """
        same_event = (EVENTS.c.topic == hint.topic) & (EVENTS.c.key == hint.key)
        with begin_read(self._inbox.engine) as connection:
            row = connection.execute(sa.select(EVENTS).where(same_event)).one_or_none()
        if row is not None and row.state == "dead":
            return row.kills < ISOLATE_AFTER_KILLS and self._inbox.replay([row.id]) == 1
        if row is not None and row.state == "done":
            return self._inbox.put(hint.topic, hint.subject, f"{hint.key}:after:{row.finished_at}", hint.payload)
        return False


def _has_model_note(task: Task) -> bool:
    """Whether the task's note mentions the model's disagreement, whose changes no webhook reports."""
    note = str(task.data.get("qc_note"))
    return "qc_model_note" in task.data or any(sentence in note for sentence in MODEL_DISAGREES)


def differences(project: int, id_: int, task: Task, versions: Mapping[int, str]) -> Iterator[QcEvent]:
    """Events of annotations that are new, changed or deleted compared with the judged versions."""
    current = {item.id: item.updated_at for item in task.annotations if item.id is not None}
    for annotation, updated_at in current.items():
        if annotation not in versions or timestamp(versions[annotation]) != timestamp(updated_at):
            yield annotation_event(project, id_, annotation, updated_at, source="poll")
    for annotation, updated_at in versions.items():
        if annotation not in current:
            yield annotation_deleted_event(annotation, StoredAnnotation(project, id_, updated_at), source="poll")


def _batched(items: Iterator[Item], size: int = 100) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _minus(cursor: str, by: timedelta) -> str:
    try:
        return timestamp((datetime.fromisoformat(cursor) - by).isoformat())
    except (ValueError, OverflowError):
        return _EPOCH


def _capped_at_now(updated_at: str) -> str:
    """A task's updated_at, capped at now: bulk actions of Label Studio store local time as UTC."""
    return min(timestamp(updated_at), datetime.now(UTC).strftime(TIME_FORMAT))
