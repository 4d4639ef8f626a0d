"""Owns `Kit`: what learning works with, made once a process and passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import sqlalchemy as sa

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.base_models import Bases
from ml_backend.learning.evaluation.evaluator import Examiner
from ml_backend.learning.events import Hint
from ml_backend.learning.features import Album
from ml_backend.learning.store.annotations import Lessons
from ml_backend.learning.store.label_errors import OpinionStore
from ml_backend.learning.store.runs import Runs
from ml_backend.learning.store.tasks import LookStore
from ml_backend.learning.sync import Reader
from ml_backend.training.feature_cache import Sights


@dataclass(frozen=True)
class Kit:
    """Everything that learning needs; safe to use from many threads."""

    settings: Settings
    studio: Studio
    inbox: Inbox
    jobs: Jobs
    media: Media
    lessons: Lessons
    looks: LookStore
    opinions: OpinionStore
    runs: Runs
    reader: Reader
    bases: Bases
    album: Album
    examiner: Examiner

    @classmethod
    def of(cls, settings: Settings, studio: Studio, engine: sa.Engine) -> Self:
        """On Label Studio and a migrated database; nothing is read and no model is opened."""
        media, lessons, bases = Media(settings, studio), Lessons(engine), Bases(settings)
        sights = Sights(settings.home / "ml_backend" / "sights", max_bytes=settings.learn_cache_bytes)
        album = Album(media, sights)
        inbox = Inbox.from_settings(settings, engine)
        return cls(
            settings=settings,
            studio=studio,
            inbox=inbox,
            jobs=Jobs(settings, inbox),
            media=media,
            lessons=lessons,
            looks=LookStore(engine),
            opinions=OpinionStore(engine),
            runs=Runs(engine),
            reader=Reader(studio, media, lessons),
            bases=bases,
            album=album,
            examiner=Examiner(bases, album, media),
        )

    def forget(self, project: int) -> None:
        """A project that is no longer in Label Studio; what its runs were stays."""
        self.lessons.disconnect(project)
        self.looks.drop(project)
        self.opinions.drop(project)

    def tell(self, hint: Hint, *, delay_s: float = 0.0) -> bool:
        """Puts a hint in the inbox and wakes a worker for it; False where it was there."""
        return self.jobs.submit(hint.topic, str(hint.project), hint.key, hint.payload, delay_s=delay_s)
