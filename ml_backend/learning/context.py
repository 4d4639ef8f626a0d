"""Owns `Kit`: what learning works with, made once a process and passed on."""

from dataclasses import dataclass
from typing import Self

import sqlalchemy as sa

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.base_models import BaseModels
from ml_backend.learning.evaluation.evaluator import Evaluator
from ml_backend.learning.events import LearningEvent
from ml_backend.learning.features import FeatureProvider
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.label_errors import OpinionStore
from ml_backend.learning.store.runs import Runs
from ml_backend.learning.store.tasks import PhotoVectorStore
from ml_backend.learning.sync import Reader
from ml_backend.training.feature_cache import FeatureCache


@dataclass(frozen=True)
class LearningContext:
    """Everything that learning needs; safe to use from many threads."""

    settings: Settings
    studio: Studio
    inbox: Inbox
    jobs: Jobs
    media: Media
    lessons: TrainingDataStore
    looks: PhotoVectorStore
    opinions: OpinionStore
    runs: Runs
    reader: Reader
    bases: BaseModels
    album: FeatureProvider
    examiner: Evaluator

    @classmethod
    def of(cls, settings: Settings, studio: Studio, engine: sa.Engine) -> Self:
        """On Label Studio and a migrated database; nothing is read and no model is opened."""
        media, lessons, bases = Media(settings, studio), TrainingDataStore(engine), BaseModels(settings)
        sights = FeatureCache(settings.home / "ml_backend" / "sights", max_bytes=settings.learn_cache_bytes)
        album = FeatureProvider(media, sights)
        inbox = Inbox.from_settings(settings, engine)
        return cls(
            settings=settings,
            studio=studio,
            inbox=inbox,
            jobs=Jobs(settings, inbox),
            media=media,
            lessons=lessons,
            looks=PhotoVectorStore(engine),
            opinions=OpinionStore(engine),
            runs=Runs(engine),
            reader=Reader(studio, media, lessons),
            bases=bases,
            album=album,
            examiner=Evaluator(bases, album, media),
        )

    def forget(self, project: int) -> None:
        """A project that is no longer in Label Studio; what its runs were stays."""
        self.lessons.disconnect(project)
        self.looks.drop(project)
        self.opinions.drop(project)

    def enqueue(self, hint: LearningEvent, *, delay_s: float = 0.0) -> bool:
        """Puts a hint in the inbox and wakes a worker for it; False where it was there."""
        return self.jobs.submit(hint.topic, str(hint.project), hint.key, hint.payload, delay_s=delay_s)
