"""`LearningContext`: the stores, clients and caches of learning, created once per process."""

from dataclasses import dataclass
from typing import Self

import sqlalchemy as sa
import structlog

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.base_models import BaseModels
from ml_backend.learning.evaluator import Evaluator
from ml_backend.learning.events import LEARN, LearningEvent
from ml_backend.learning.features import FeatureProvider
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.label_errors import LabelErrorStore
from ml_backend.learning.store.runs import RunStore
from ml_backend.learning.store.tasks import TaskVectorStore
from ml_backend.learning.store.train_jobs import TrainJobStore
from ml_backend.learning.sync import LabelStudioSync
from ml_backend.training.feature_cache import FeatureCache

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LearningContext:
    """The dependencies of learning. Thread-safe."""

    settings: Settings
    studio: Studio
    inbox: Inbox
    jobs: Jobs
    media: Media
    training_data: TrainingDataStore
    image_vectors: TaskVectorStore
    label_errors: LabelErrorStore
    runs: RunStore
    train_jobs: TrainJobStore
    sync: LabelStudioSync
    base_models: BaseModels
    features: FeatureProvider
    evaluator: Evaluator

    @classmethod
    def of(cls, settings: Settings, studio: Studio, engine: sa.Engine) -> Self:
        """Create it for Label Studio and a migrated database; reads nothing and opens no model."""
        media, training_data, base_models = Media(settings, studio), TrainingDataStore(engine), BaseModels(settings)
        cache = FeatureCache(settings.home / "ml_backend" / "sights", max_bytes=settings.learn_cache_bytes)
        features = FeatureProvider(media, cache)
        inbox = Inbox.from_settings(settings, engine)
        return cls(
            settings=settings,
            studio=studio,
            inbox=inbox,
            jobs=Jobs(settings, inbox),
            media=media,
            training_data=training_data,
            image_vectors=TaskVectorStore(engine),
            label_errors=LabelErrorStore(engine),
            runs=RunStore(engine),
            train_jobs=TrainJobStore(engine),
            sync=LabelStudioSync(studio, media, training_data),
            base_models=base_models,
            features=features,
            evaluator=Evaluator(base_models, features, media),
        )

    def is_busy(self, project: int) -> bool:
        """Whether a training run is pending or running, or its version is not announced to Label Studio yet."""
        state = self.training_data.project(project)
        announced = state is None or state.untold_since is None
        return not announced or bool(self.inbox.unfinished_events(LEARN, str(project)))

    def forget_if_deleted(self, project: int) -> bool:
        """Delete the data of a project if Label Studio's list of projects lacks it; its runs are kept.

        Returns:
            Whether the project is deleted; otherwise an answer of 404 was about something else.
        """
        if self.studio.has_project(project):
            return False
        log.warning("project_forgotten", project=project, reason="it is deleted in Label Studio")
        self.training_data.disconnect(project)
        self.image_vectors.drop(project)
        self.label_errors.drop(project)
        self.train_jobs.drop(project)
        return True

    def enqueue(self, event: LearningEvent, *, delay_s: float = 0.0) -> bool:
        """Put an event in the inbox and wake a worker; returns False for a duplicate."""
        return self.jobs.submit(event.topic, str(event.project), event.key, event.payload, delay_s=delay_s)
