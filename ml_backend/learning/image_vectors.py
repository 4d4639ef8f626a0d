"""Compute and store an embedding vector for the images of open tasks, also in the background."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import structlog

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.repeated_failures import RepeatedFailures
from labelloop.service.media import MediaError
from ml_backend.detection.detections import Floats
from ml_backend.errors import NotLearnable
from ml_backend.heads.answers import questions
from ml_backend.learning.annotations import addresses
from ml_backend.learning.base_models import ServedModel
from ml_backend.learning.context import LearningContext
from ml_backend.learning.label_errors import run_at_low_priority
from ml_backend.learning.store.tasks import image_key_of
from ml_backend.malloc import trim_memory
from ml_backend.policy import read_learning_policy
from ml_backend.predict.controls import ANSWERS, CHOICES, kind_of
from ml_backend.training.acquisition import image_vector
from ml_backend.training.backbone import FrozenBackbone

# Tasks embedded in the background between two writes.
BATCH = 10

# Seconds of one background round: the longest that stopping a worker waits for it.
ROUND_S = 10.0

# Seconds between two checks whether a training run still has priority; bounded by the round.
BUSY_POLL_S = 0.5

log = structlog.get_logger(__name__)


def is_about_images(config: LabelConfig) -> bool:
    """Whether a project asks about whole images only, and has nothing that is drawn."""
    drawn = (kind_of(control.tag).draws not in {"", ANSWERS, CHOICES} for control in config.controls.values())
    return bool(questions(config, per_region=False)) and not any(drawn)


class ImageEmbedder:
    """Embeds the images of one project.

    Where only whole images are labelled, a vector has the features that answers are learned from; else it is the mean
    of the objects' features.
    """

    def __init__(self, context: LearningContext, project: int, config: LabelConfig, served: ServedModel) -> None:
        """Open the base of the served version; if it cannot be trained, nothing is embedded."""
        self._context, self._project, self._config = context, project, config
        self.about_images = is_about_images(config)
        self._backbone: FrozenBackbone | None = None
        try:
            self._backbone = context.base_models.backbone(served)
        except NotLearnable as error:
            log.info("not_learnable", project=project, reason=str(error))

    @property
    def backbone(self) -> str:
        """Version of the backbone of the vectors, and what they are of; empty without one."""
        if self._backbone is None:
            return ""
        return f"{self._backbone.version} images" if self.about_images else self._backbone.version

    def image_key(self, task: Task) -> str:
        """Return a checksum of the URLs of a task's images."""
        return image_key_of(addresses(task, self._config))

    def embed(self, tasks: Sequence[Task]) -> int:
        """Store the vectors of these tasks; returns how many. Tasks whose images cannot be loaded are retried last."""
        if self._backbone is None:
            return 0
        vectors = {task.id: self._vector(self._backbone, task) for task in tasks if task.id is not None}
        keyed = {
            task.id: (self.image_key(task), vector)
            for task in tasks
            if task.id is not None and (vector := vectors[task.id]) is not None
        }
        self._context.image_vectors.save_vectors(self._project, self.backbone, keyed)
        self._context.image_vectors.mark_failed(self._project, vectors.keys() - keyed.keys())
        return len(keyed)

    def _vector(self, backbone: FrozenBackbone, task: Task) -> Floats | None:
        """Return the vector of a task's image, or the normalised mean of several; None if none can be loaded."""
        vectors = []
        for url in addresses(task, self._config):
            try:
                # Not cached: images that are read once would evict the features that every training run needs.
                [features] = backbone.extract_features(
                    [self._context.features.prepared_image(backbone, url, task=task.id)]
                )
                of_image = features.image_features if self.about_images else None
                vectors.append(image_vector(features) if of_image is None else of_image)
            except MediaError as error:
                log.warning("photo_not_seen", project=self._project, task=task.id, reason=str(error))
        if not vectors:
            return None
        middle = np.mean(vectors, axis=0)
        return np.asarray(middle / (np.linalg.norm(middle) + 1e-12), np.float32)


class BackgroundEmbedder:
    """Embeds the images of every project in the background, in batches, until all have a vector.

    Vectors are stored, so other workers and later runs continue from there.
    """

    def __init__(self, context: LearningContext) -> None:
        """Open nothing yet."""
        self._context = context
        self._failures = RepeatedFailures("photos_not_seen")

    def run(self) -> None:
        """Run one round of `ROUND_S` seconds; a project that cannot be read does not block the others."""
        until = time.monotonic() + ROUND_S
        for project in [state.project for state in self._context.training_data.projects()]:
            try:
                policy = read_learning_policy(self._context.settings.home, project)
                if policy.learn and policy.prelabels and self._context.image_vectors.next_to_embed(project, limit=1):
                    run_at_low_priority(partial(self.embed_open_tasks, project, until))
            except NotLearnable:
                continue  # reported when the open tasks are ranked
            except (LabelloopError, LabelingError) as error:
                self._failures.failed(project, str(error))
            else:
                self._failures.succeeded(project)
                trim_memory()

    def embed_open_tasks(self, project: int, until: float) -> int:
        """Embed open tasks of a project that have no vector.

        Args:
            project: The project.
            until: When to stop, as `time.monotonic`; at least one batch is embedded.

        Returns:
            The number of embedded tasks.

        Raises:
            NotLearnable: The base of the served version has no features.
        """
        served = self._context.base_models.served(project)
        self._context.base_models.backbone(served)
        config = self._context.studio.label_config(project)
        embedder = ImageEmbedder(self._context, project, config, served)
        done = 0
        while numbers := self._context.image_vectors.next_to_embed(project, limit=BATCH):
            while time.monotonic() < until and self._context.is_busy(project):
                time.sleep(BUSY_POLL_S)
            tasks = list(self._context.studio.tasks(project, only_ids=numbers))
            done += embedder.embed([task for task in tasks if addresses(task, config)])
            self._context.image_vectors.mark_failed(
                project, [task.id for task in tasks if task.id and not addresses(task, config)]
            )
            self._context.image_vectors.drop(project, set(numbers) - {task.id for task in tasks})
            if time.monotonic() > until:
                break
        return done
