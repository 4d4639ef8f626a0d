"""The work behind the inbox: learning, the order of open tasks, the poller. Nobody below imports this module."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError
from labelloop.service.jobs.inbox import Event
from labelloop.service.jobs.jobs import Handler, Periodic, Reject
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound, Studio
from ml_backend.errors import ModelError
from ml_backend.learning.context import LearningContext
from ml_backend.learning.events import LEARN, OPINION, QUEUE, opinion_hint, queue_hint
from ml_backend.learning.image_vectors import Lookout
from ml_backend.learning.label_errors import CALM_S, LATEST_S, Opined, in_background, opine
from ml_backend.learning.poller import LearningPoller
from ml_backend.learning.task_queue import arrange
from ml_backend.learning.training_run import Learner
from ml_backend.malloc import one_heap, trim_memory
from ml_backend.policy import LearningPolicyError

AGAIN_S = 1.0
"""Pause before an arrangement that gave way to a fit goes on, should the fit change nothing."""

LOOK_EVERY_S = 5.0
"""Between two rounds of looking at photos in the background."""

log = structlog.get_logger(__name__)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """The handlers of learning's topics, for ``Jobs``.

    Args:
        settings: Where the store, the database and the learning policies are.
        studio: Label Studio.
        engine: The migrated database.
    """
    one_heap()
    kit = _kit_of(settings, studio, engine)
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
                kit.enqueue(queue_hint(project, source="interrupted"), delay_s=AGAIN_S)
        finally:
            trim_memory()

    def opinion(subject: str, events: Sequence[Event]) -> None:
        project, since = int(subject), min(float(event.payload["since"]) for event in events)

        def busy(within_s: float = 0.0) -> bool:
            """Whether an annotator needs the cores, or has needed them a moment ago; but it is not put off for ever."""
            if time.time() - since > LATEST_S:
                return False
            return time.time() - kit.runs.newest(project) < within_s or bool(kit.inbox.open_events(LEARN, subject))

        try:
            done = Opined(stopped=True) if busy(CALM_S) else in_background(partial(opine, kit, project, stop=busy))
        except NotFound:
            log.info("project_gone", project=project)
        except (LabelingError, LearningPolicyError) as error:
            raise Reject(str(error)) from error
        else:
            if done is not None and done.stopped:
                kit.enqueue(opinion_hint(project, since=since), delay_s=CALM_S)
        finally:
            trim_memory()

    return {LEARN: learn, QUEUE: queue, OPINION: opinion}


def periodics(settings: Settings, studio: Studio, engine: Engine) -> list[Periodic]:
    """What runs now and then: the poller, every ``poll_seconds``, and looking at photos that nobody looked at yet."""
    kit = _kit_of(settings, studio, engine)
    return [
        Periodic("learn.poll", settings.poll_seconds, LearningPoller(kit).run),
        Periodic("learn.looks", LOOK_EVERY_S, Lookout(kit).run),
    ]


def _kit_of(settings: Settings, studio: Studio, engine: Engine) -> LearningContext:
    """One kit for both: what it opens takes a hundred megabytes."""
    kit = _KITS.get(engine)
    if kit is None:
        kit = _KITS[engine] = LearningContext.of(settings, studio, engine)
    return kit


_KITS: WeakValueDictionary[Engine, LearningContext] = WeakValueDictionary()
