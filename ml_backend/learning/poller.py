"""Owns looking after projects now and then: what no webhook told, tasks without a place, pre-labels of old versions."""

import time

import structlog

from labelloop.labeling.errors import LabelingError
from labelloop.service.errors import LabelloopError
from labelloop.service.studio import NotFound
from ml_backend.learning.annotations import config_of
from ml_backend.learning.context import LearningContext
from ml_backend.learning.events import LEARN, queue_hint, sweep_hint, tasks_hint
from ml_backend.learning.publish import LATEST_TOLD_S
from ml_backend.learning.store.annotations import ProjectState
from ml_backend.learning.task_sync import Backlog
from ml_backend.policy import read_learning_policy
from ml_backend.serving import activation
from ml_backend.studio.connect import same_address

SWEEP_S = 600.0
"""Between two comparisons of every annotated task with its lesson."""

OUTDATED_S = 3600.0
"""Pre-labels of a version go so long after another took its place: Label Studio refuses a submit that names a
prediction which is gone, and nobody has a task open for longer."""

READ_S = 5.0
"""The first reading of a project's tasks goes on for so long in one round."""

log = structlog.get_logger(__name__)


class LearningPoller:
    """Looks after every connected project."""

    def __init__(self, kit: LearningContext) -> None:
        """Asks nothing yet."""
        self._kit = kit

    def run(self) -> None:
        """One round; a project that cannot be read does not keep the others waiting."""
        for learner in self._kit.lessons.projects():
            try:
                self.poll(learner)
            except NotFound:
                log.info("project_gone", project=learner.project)
                self._kit.forget(learner.project)
            except (LabelloopError, LabelingError) as error:
                log.warning("learning_poll_failed", project=learner.project, reason=str(error))

    def poll(self, learner: ProjectState) -> None:
        """What changed since the last poll becomes an event; everything is compared now and then.

        Some deletions fire no webhook, and leave nothing that changed: then the numbers of tasks or annotations tell.
        """
        project, kit = learner.project, self._kit
        if not read_learning_policy(kit.settings.home, project).learn:
            return
        if kit.inbox.open_events(LEARN, str(project)):
            return  # what it would find is about to be read
        config = kit.studio.label_config(project)
        if learner.swept_at is None or learner.config != config_of(config):
            kit.enqueue(sweep_hint(project, source="poll" if learner.swept_at is None else "label config"))
            return
        if changed := kit.reader.changed(project, config=config):
            kit.enqueue(tasks_hint(project, changed, key=f"poll:{project}:{time.time_ns()}", source="poll"))
        due = time.time() - learner.swept_at > SWEEP_S
        if learner.untold_since is not None and time.time() - learner.untold_since > LATEST_TOLD_S:
            self.mend(project)
        compared = self._look_after(project)
        if compared is not None and (compared or due) and (lost := self._lost(project)):
            kit.enqueue(tasks_hint(project, lost, key=f"lost:{project}:{time.time_ns()}", source="poll"))
        if due:
            kit.lessons.update_project(project, swept_at=time.time())
            self.mend(project)

    def _look_after(self, project: int) -> bool | None:
        """Keeps the table of the project's tasks; returns whether every task was compared, None before all are read.

        Open tasks that no webhook told of get a place: somebody may ask for one before the next fit.
        """
        kit, backlog = self._kit, Backlog(self._kit.studio, self._kit.looks, project)
        until = time.monotonic() + READ_S
        if not backlog.read_on(lambda: time.monotonic() > until):
            return None
        before = kit.looks.count_open(project)
        backlog.refresh()
        compared = backlog.check()
        if kit.looks.count_open(project) > before:
            kit.enqueue(queue_hint(project, source="poll"))
        return compared

    def _lost(self, project: int) -> list[int]:
        """Tasks of which we have a lesson and that have no annotation, or are not there, any more."""
        known = self._kit.lessons.seen(project)
        return sorted(known.keys() - self._kit.looks.annotated(project, known))

    def mend(self, project: int) -> None:
        """Label Studio names what is served, and no longer keeps pre-labels that were outdated long ago."""
        kit = self._kit
        version = activation.served_version(kit.settings, kit.bases.registry.store, project)
        rows = [row for row in kit.studio.ml_backends(project) if same_address(row["url"], kit.settings.ml_url)]
        kit.lessons.update_project(project, untold_since=None)
        if rows and rows[0]["title"] != version:
            activation.follow([(project, version)], kit.settings, kit.studio)
            kit.enqueue(queue_hint(project, source="poll"))
        self.prune(project, version)

    def prune(self, project: int, version: str) -> int:
        """Removes pre-labels of versions that were replaced long ago; returns how many."""
        kit, removed = self._kit, 0
        replaced = kit.runs.replaced(project)
        for old, count in kit.studio.model_versions(project).items():
            if old != version and old in replaced and time.time() - replaced[old] > OUTDATED_S:
                kit.studio.delete_model_version(project, old)
                removed += count
        if removed and kit.studio.project(project).get("model_version") != version:
            # Label Studio clears it whenever a version's predictions go, whichever version that is.
            kit.studio.update_project(project, model_version=version)
        if removed:
            log.info("old_prelabels_removed", project=project, predictions=removed)
        return removed
