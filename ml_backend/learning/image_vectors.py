"""Owns looking at open photos as a whole: a vector each, kept in our table, also in the background."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import structlog

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.errors import LabelloopError
from labelloop.service.media import MediaError
from labelloop.service.studio import NotFound
from ml_backend.detection.detections import Floats
from ml_backend.errors import NotLearnable
from ml_backend.learning.annotations import addresses
from ml_backend.learning.base_models import Served
from ml_backend.learning.context import LearningContext
from ml_backend.learning.events import LEARN
from ml_backend.learning.label_errors import in_background
from ml_backend.learning.store.tasks import photo_key
from ml_backend.malloc import trim_memory
from ml_backend.policy import read_learning_policy
from ml_backend.training.acquisition import photo_vector
from ml_backend.training.backbone import FrozenBackbone

SLICE = 10
"""Photos that are looked at in the background between two writes."""

LOOK_S = 10.0
"""The background looks at photos for so long at a time; a worker that is stopped waits no longer."""

GIVE_WAY_S = 0.5
"""A slice waits for a fit, looking so often whether it is done; not for ever."""

log = structlog.get_logger(__name__)


class Eye:
    """Looks at photos of one project."""

    def __init__(self, kit: LearningContext, project: int, config: LabelConfig, served: Served) -> None:
        """Opens the base of what is served; where it cannot be learned on, nothing is ever seen."""
        self._kit, self._project, self._config = kit, project, config
        self._backbone: FrozenBackbone | None = None
        try:
            self._backbone = kit.bases.backbone(served)
        except NotLearnable as error:
            log.info("not_learnable", project=project, reason=str(error))

    @property
    def backbone(self) -> str:
        """What vectors are of; empty: of nothing."""
        return self._backbone.version if self._backbone is not None else ""

    def key(self, task: Task) -> str:
        """A checksum of the addresses of a task's photos."""
        return photo_key(addresses(task, self._config))

    def see(self, tasks: Sequence[Task]) -> int:
        """Keeps the vectors of these tasks; returns how many. Where a photo cannot be had the others go first now."""
        if self._backbone is None:
            return 0
        found = {task.id: self._vector(self._backbone, task) for task in tasks if task.id is not None}
        keyed = {
            task.id: (self.key(task), vector)
            for task in tasks
            if task.id is not None and (vector := found[task.id]) is not None
        }
        self._kit.looks.keep(self._project, self._backbone.version, keyed)
        self._kit.looks.not_seen(self._project, found.keys() - keyed.keys())
        return len(keyed)

    def _vector(self, backbone: FrozenBackbone, task: Task) -> Floats | None:
        """What is on the photo of a task; of several photos, their middle. None where none can be had."""
        vectors = []
        for url in addresses(task, self._config):
            try:
                # Not kept: what is looked at once would push out of the cache what each fit needs.
                [sight] = backbone.extract_features([self._kit.album.prepared(backbone, url, task=task.id)])
                vectors.append(photo_vector(sight))
            except MediaError as error:
                log.warning("photo_not_seen", project=self._project, task=task.id, reason=str(error))
        if not vectors:
            return None
        middle = np.mean(vectors, axis=0)
        return np.asarray(middle / (np.linalg.norm(middle) + 1e-12), np.float32)


class Lookout:
    """Looks at the photos of every project in the background, a slice at a time, until all were seen.

    What was seen is kept, so that nothing begins again: not with a submit, nor with another worker.
    """

    def __init__(self, kit: LearningContext) -> None:
        """Opens nothing yet."""
        self._kit = kit

    def run(self) -> None:
        """One round of `LOOK_S` seconds; a project that cannot be read does not keep the others waiting."""
        until = time.monotonic() + LOOK_S
        for project in [learner.project for learner in self._kit.lessons.projects()]:
            try:
                policy = read_learning_policy(self._kit.settings.home, project)
                if policy.learn and policy.prelabels and self._kit.looks.unseen(project, limit=1):
                    in_background(partial(self.look, project, until))
            except NotFound:
                log.info("project_gone", project=project)
            except NotLearnable:
                continue  # whoever puts the open tasks in order says so
            except (LabelloopError, LabelingError) as error:
                log.warning("photos_not_seen", project=project, reason=str(error))
            else:
                trim_memory()

    def look(self, project: int, until: float) -> int:
        """Looks at open photos of a project that nobody looked at.

        Args:
            project: The project.
            until: When to stop, `time.monotonic`; a slice is looked at in any case.

        Returns:
            How many were seen.

        Raises:
            NotLearnable: The base of what is served shows no features.
        """
        served = self._kit.bases.served(project)
        self._kit.bases.backbone(served)
        config = self._kit.studio.label_config(project)
        eye = Eye(self._kit, project, config, served)
        done = 0
        while numbers := self._kit.looks.unseen(project, limit=SLICE):
            while time.monotonic() < until and self._busy(project):
                time.sleep(GIVE_WAY_S)
            there = list(self._kit.studio.tasks(project, only_ids=numbers))
            done += eye.see([task for task in there if addresses(task, config)])
            self._kit.looks.not_seen(project, [task.id for task in there if task.id and not addresses(task, config)])
            self._kit.looks.drop(project, set(numbers) - {task.id for task in there})
            if time.monotonic() > until:
                break
        return done

    def _busy(self, project: int) -> bool:
        """Whether a fit is due or under way, or Label Studio does not name yet what it made."""
        learner = self._kit.lessons.project(project)
        told = learner is None or learner.untold_since is None
        return not told or bool(self._kit.inbox.open_events(LEARN, str(project)))
