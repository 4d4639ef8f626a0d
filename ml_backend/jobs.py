"""Job handlers and periodic jobs of learning: training, ranking of open tasks, label errors, polling."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError
from labelloop.service.jobs.inbox import Event
from labelloop.service.jobs.jobs import Handler, PeriodicJob, Reject
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioNotFound
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

# Delay in seconds before an interrupted ranking resumes, in case the training run changes nothing.
RESUME_AFTER_S = 1.0

# Seconds between two rounds of embedding images in the background.
EMBED_INTERVAL_S = 5.0

log = structlog.get_logger(__name__)


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """Return the handler of each learning topic, for ``Jobs``.

    Args:
        settings: Locate the store, the database and the learning policies.
        studio: Label Studio client.
        engine: The migrated database.
    """
    one_heap()
    kit = _kit_of(settings, studio, engine)
    learner = Learner(kit)

    def learn(subject: str, events: Sequence[Event]) -> None:
        try:
            learner.learn(int(subject), events)
        except (LabelingError, LearningPolicyError) as error:
            raise Reject(str(error)) from error  # a retry would fail the same way
        finally:
            trim_memory()

    def queue(subject: str, events: Sequence[Event]) -> None:
        project, newest = int(subject), max(event.id for event in events)

        def stop() -> bool:
            """Whether a training run or a newer request is pending; both make this ranking outdated."""
            if kit.inbox.unfinished_events(LEARN, subject):
                return True
            return any(event.id > newest for event in kit.inbox.unfinished_events(QUEUE, subject))

        try:
            done = arrange(kit, project, stop=stop)
        except StudioNotFound:
            log.info("project_gone", project=project)
        except (LabelingError, LearningPolicyError, ModelError) as error:
            raise Reject(str(error)) from error
        else:
            if done is not None and done.stopped and len(kit.inbox.unfinished_events(QUEUE, subject)) == len(events):
                kit.enqueue(queue_hint(project, source="interrupted"), delay_s=RESUME_AFTER_S)
        finally:
            trim_memory()

    def opinion(subject: str, events: Sequence[Event]) -> None:
        project, since = int(subject), min(float(event.payload["since"]) for event in events)

        def busy(within_s: float = 0.0) -> bool:
            """Whether training is pending or ended less than `within_s` ago; False once `LATEST_S` have passed."""
            if time.time() - since > LATEST_S:
                return False
            return time.time() - kit.runs.newest(project) < within_s or bool(
                kit.inbox.unfinished_events(LEARN, subject)
            )

        try:
            done = Opined(stopped=True) if busy(CALM_S) else in_background(partial(opine, kit, project, stop=busy))
        except StudioNotFound:
            log.info("project_gone", project=project)
        except (LabelingError, LearningPolicyError) as error:
            raise Reject(str(error)) from error
        else:
            if done is not None and done.stopped:
                kit.enqueue(opinion_hint(project, since=since), delay_s=CALM_S)
        finally:
            trim_memory()

    return {LEARN: learn, QUEUE: queue, OPINION: opinion}


def periodic_jobs(settings: Settings, studio: Studio, engine: Engine) -> list[PeriodicJob]:
    """Return the periodic jobs: the poller every ``poll_seconds``, and background embedding of open images."""
    kit = _kit_of(settings, studio, engine)
    return [
        PeriodicJob("learn.poll", settings.poll_seconds, LearningPoller(kit).run),
        PeriodicJob("learn.looks", EMBED_INTERVAL_S, Lookout(kit).run),
    ]


def _kit_of(settings: Settings, studio: Studio, engine: Engine) -> LearningContext:
    """Return the context shared by handlers and periodic jobs; its models take about 100 MB."""
    kit = _KITS.get(engine)
    if kit is None:
        kit = _KITS[engine] = LearningContext.of(settings, studio, engine)
    return kit


_KITS: WeakValueDictionary[Engine, LearningContext] = WeakValueDictionary()
