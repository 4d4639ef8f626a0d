"""Poll connected projects for missed changes, unranked tasks and outdated pre-labels."""

import time

import sqlalchemy as sa
import structlog

from labelloop.labeling.errors import LabelingError
from labelloop.service.db.engine import begin_read
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import EVENTS, ISOLATE_AFTER_KILLS
from labelloop.service.jobs.repeated_failures import RepeatedFailures
from labelloop.service.studio import StudioNotFound
from ml_backend.learning.annotations import config_hash_of
from ml_backend.learning.context import LearningContext
from ml_backend.learning.events import LEARN, queue_event, sweep_event, tasks_event
from ml_backend.learning.publish import ANNOUNCE_AFTER_S
from ml_backend.learning.store.annotations import ProjectState
from ml_backend.learning.task_sync import TaskSync
from ml_backend.policy import read_learning_policy
from ml_backend.serving import activation
from ml_backend.studio.connect import is_same_url

# Seconds between two comparisons of all annotated tasks with the stored training data.
SWEEP_S = 600.0

# Seconds after which pre-labels of a replaced version are deleted: Label Studio rejects a submit that refers to a
# deleted prediction, and an annotator may still have the task open.
OUTDATED_S = 3600.0

# Seconds per round for the first read of a project's tasks.
READ_S = 5.0

# Maximum seconds between two polls of a project, also while training runs are pending: those read the tasks
# that webhooks named, and not what no webhook named.
MAX_WAIT_S = 300.0

log = structlog.get_logger(__name__)


class LearningPoller:
    """Polls every connected project."""

    def __init__(self, context: LearningContext) -> None:
        """Send no request yet."""
        self._context = context
        self._failures = RepeatedFailures("learning_poll_failed")
        self._polled_at: dict[int, float] = {}
        self._replayed: set[int] = set()

    def run(self) -> None:
        """Run one round; a project that cannot be read does not block the others."""
        for state in self._context.training_data.projects():
            try:
                self._poll_or_forget(state)
            except (LabelloopError, LabelingError) as error:
                self._failures.failed(state.project, str(error))
            else:
                self._failures.succeeded(state.project)

    def _poll_or_forget(self, state: ProjectState) -> None:
        try:
            self.poll(state)
        except StudioNotFound:
            if not self._context.forget_if_deleted(state.project):
                raise

    def poll(self, state: ProjectState) -> None:
        """Enqueue events for changes since the last poll; all tasks are compared every `SWEEP_S` seconds.

        Some deletions fire no webhook and change no timestamp; the numbers of tasks and annotations reveal them.
        """
        project, context = state.project, self._context
        if not read_learning_policy(context.settings.home, project).learn:
            return
        now = time.monotonic()
        is_late = now - self._polled_at.setdefault(project, now) > MAX_WAIT_S
        if context.inbox.unfinished_events(LEARN, str(project)) and not is_late:
            return  # the pending run reads what webhooks named
        self._polled_at[project] = now
        config = context.studio.label_config(project)
        if state.swept_at is None or state.config != config_hash_of(config):
            context.enqueue(sweep_event(project, source="poll" if state.swept_at is None else "label config"))
            return
        if changed := context.sync.changed(project, config=config):
            context.enqueue(tasks_event(project, changed, key=f"poll:{project}:{time.time_ns()}", source="poll"))
        self._replay_exhausted(project)
        sweep_due = time.time() - state.swept_at > SWEEP_S
        if state.untold_since is not None and time.time() - state.untold_since > ANNOUNCE_AFTER_S:
            self.announce_served_version(project)
        compared = self._sync_tasks(project, yields=not is_late)
        if compared is not None and (compared or sweep_due) and (lost := self._deleted(project)):
            context.enqueue(tasks_event(project, lost, key=f"lost:{project}:{time.time_ns()}", source="poll"))
        if sweep_due:
            context.training_data.update_project(project, swept_at=time.time())
            self.announce_served_version(project)

    def _sync_tasks(self, project: int, *, yields: bool) -> bool | None:
        """Update the table of the project's tasks; returns whether all were compared, None before the first read ends.

        If there are new open tasks, a ranking is enqueued.

        Args:
            project: The project.
            yields: Whether a pending training run goes first.
        """
        context, backlog = self._context, TaskSync(self._context.studio, self._context.image_vectors, project)
        until = time.monotonic() + READ_S
        if not backlog.continue_first_read(lambda: time.monotonic() > until or (yields and context.is_busy(project))):
            return None
        before = context.image_vectors.count_open(project)
        backlog.refresh()
        compared = not (yields and context.is_busy(project)) and backlog.compare_if_due()
        if context.image_vectors.count_open(project) > before:
            context.enqueue(queue_event(project, source="poll"))
        return compared

    def _replay_exhausted(self, project: int) -> None:
        """Give events that ran out of attempts new ones, once in this process: Label Studio was down, and answers now.

        What they name is older than the cursor of the poll, so that nothing else reads it again.
        """
        inbox = self._context.inbox
        dead = (EVENTS.c.topic == LEARN) & (EVENTS.c.subject == str(project)) & (EVENTS.c.state == "dead")
        exhausted = (EVENTS.c.attempts >= inbox.backoff.attempts) & (EVENTS.c.kills < ISOLATE_AFTER_KILLS)
        with begin_read(inbox.engine) as connection:
            found = set(connection.scalars(sa.select(EVENTS.c.id).where(dead, exhausted)))
        if new := sorted(found - self._replayed):
            self._replayed.update(new)
            log.info("learning_events_replayed", project=project, events=inbox.replay(new))

    def _deleted(self, project: int) -> list[int]:
        """Return tasks with training data that no longer have an annotation or no longer exist."""
        checksums = self._context.training_data.checksums(project)
        return sorted(checksums.keys() - self._context.image_vectors.annotated(project, checksums))

    def announce_served_version(self, project: int) -> None:
        """Set the served version in Label Studio and delete outdated pre-labels."""
        context = self._context
        version = activation.served_version(context.settings, context.base_models.registry.store, project)
        rows = [row for row in context.studio.ml_backends(project) if is_same_url(row["url"], context.settings.ml_url)]
        context.training_data.update_project(project, untold_since=None)
        if rows and rows[0]["title"] != version:
            activation.follow([(project, version)], context.settings, context.studio)
            context.enqueue(queue_event(project, source="poll"))
        self.prune(project, version)

    def prune(self, project: int, version: str) -> int:
        """Delete pre-labels of versions replaced more than `OUTDATED_S` seconds ago; returns how many."""
        context, removed = self._context, 0
        replaced_at = context.runs.replaced_at(project)
        for old, count in context.studio.model_versions(project).items():
            if old != version and old in replaced_at and time.time() - replaced_at[old] > OUTDATED_S:
                context.studio.delete_model_version(project, old)
                removed += count
        if removed and context.studio.project(project, only=["model_version"]).get("model_version") != version:
            # Label Studio clears it when the predictions of any version are deleted.
            context.studio.update_project(project, model_version=version)
        if removed:
            log.info("old_prelabels_removed", project=project, predictions=removed)
        return removed
