"""The work behind the inbox: learning, the order of open tasks, the poller. Nobody below imports this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError
from labelloop.service.inbox import Event
from labelloop.service.jobs import Handler, Periodic, Reject
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound, Studio
from ml_backend.errors import ModelError
from ml_backend.learning.events import LEARN, QUEUE, queue_hint
from ml_backend.learning.kit import Kit
from ml_backend.learning.learner import Learner
from ml_backend.learning.policy import LearningPolicyError
from ml_backend.learning.queue import arrange
from ml_backend.learning.watchman import Watchman
from ml_backend.memory import trim_memory

AGAIN_S = 1.0
"""Pause before an arrangement that gave way to a fit goes on, should the fit change nothing."""

log = structlog.get_logger(__name__)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """The handlers of learning's topics, for ``Jobs``.

    Args:
        settings: Where the store, the database and the learning policies are.
        studio: Label Studio.
        engine: The migrated database.
    """
    kit = Kit.of(settings, studio, engine)
    learner = Learner(kit)

    def learn(subject: str, events: Sequence[Event]) -> None:
        try:
            learner.learn(int(subject), events)
        except (LabelingError, LearningPolicyError) as error:
            raise Reject(str(error)) from error  # reading the same again would fail again
        finally:
            trim_memory()

    def queue(subject: str, events: Sequence[Event]) -> None:
        project, newest = int(subject), max(event.id for event in events)

        def stop() -> bool:
            """A fit needs the cores, and makes all this outdated: it asks for a new arrangement when it is done."""
            if kit.inbox.open_events(LEARN, subject):
                return True
            return any(event.id > newest for event in kit.inbox.open_events(QUEUE, subject))

        try:
            done = arrange(kit, project, stop=stop)
        except NotFound:
            log.info("project_gone", project=project)
        except (LabelingError, LearningPolicyError, ModelError) as error:
            raise Reject(str(error)) from error
        else:
            if done is not None and done.stopped and len(kit.inbox.open_events(QUEUE, subject)) == len(events):
                kit.tell(queue_hint(project, source="interrupted"), delay_s=AGAIN_S)
        finally:
            trim_memory()

    return {LEARN: learn, QUEUE: queue}


def periodics(settings: Settings, studio: Studio, engine: Engine) -> list[Periodic]:
    """What runs now and then: the poller, every ``poll_seconds``."""
    return [Periodic("learn.poll", settings.poll_seconds, Watchman(Kit.of(settings, studio, engine)).run)]
