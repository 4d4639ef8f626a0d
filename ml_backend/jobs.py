"""Job handlers and periodic jobs of learning: training, ranking of open tasks, label errors, polling."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from weakref import WeakValueDictionary

from sqlalchemy import Engine

from labelloop.labeling.errors import LabelingError
from labelloop.service.jobs.inbox import Event
from labelloop.service.jobs.jobs import Handler, PeriodicJob, Reject
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioNotFound
from ml_backend.errors import ModelError
from ml_backend.learning.context import LearningContext
from ml_backend.learning.events import LABEL_ERRORS, LEARN, QUEUE, label_error_event, queue_event
from ml_backend.learning.image_vectors import BackgroundEmbedder
from ml_backend.learning.label_errors import MAX_DELAY_S, QUIET_S, LabelErrorUpdate, review_labels, run_at_low_priority
from ml_backend.learning.poller import LearningPoller
from ml_backend.learning.task_queue import rank_open_tasks
from ml_backend.learning.train_scheduler import TrainScheduler
from ml_backend.learning.training_run import Learner
from ml_backend.malloc import trim_memory, use_single_arena
from ml_backend.policy import LearningPolicyError

# Delay in seconds before an interrupted ranking resumes, in case the training run changes nothing.
RESUME_AFTER_S = 1.0

# Seconds between two checks for a fine-tuning that is due or has ended.
TRAIN_INTERVAL_S = 5.0

# Seconds between two rounds of embedding images in the background.
EMBED_INTERVAL_S = 5.0


def handlers(settings: Settings, studio: Studio, engine: Engine) -> Mapping[str, Handler]:
    """Return the handler of each learning topic, for ``Jobs``.

    Args:
        settings: Locate the store, the database and the learning policies.
        studio: Label Studio client.
        engine: The migrated database.
    """
    use_single_arena()
    context = _context_of(settings, studio, engine)
    learner = Learner(context)

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
            if context.inbox.unfinished_events(LEARN, subject):
                return True
            return any(event.id > newest for event in context.inbox.unfinished_events(QUEUE, subject))

        try:
            done = rank_open_tasks(context, project, stop=stop)
        except StudioNotFound:
            if not context.forget_if_deleted(project):
                raise
        except (LabelingError, LearningPolicyError, ModelError) as error:
            raise Reject(str(error)) from error
        else:
            if (
                done is not None
                and done.stopped
                and len(context.inbox.unfinished_events(QUEUE, subject)) == len(events)
            ):
                context.enqueue(queue_event(project, source="interrupted"), delay_s=RESUME_AFTER_S)
        finally:
            trim_memory()

    def opinion(subject: str, events: Sequence[Event]) -> None:
        project, since = int(subject), min(float(event.payload["since"]) for event in events)

        def busy(within_s: float = 0.0) -> bool:
            """Whether training is pending or ended less than `within_s` ago; False once `MAX_DELAY_S` have passed."""
            if time.time() - since > MAX_DELAY_S:
                return False
            return time.time() - context.runs.last_finished_at(project) < within_s or bool(
                context.inbox.unfinished_events(LEARN, subject)
            )

        try:
            done = (
                LabelErrorUpdate(stopped=True)
                if busy(QUIET_S)
                else run_at_low_priority(partial(review_labels, context, project, stop=busy))
            )
        except StudioNotFound:
            if not context.forget_if_deleted(project):
                raise
        except (LabelingError, LearningPolicyError) as error:
            raise Reject(str(error)) from error
        else:
            if done is not None and done.stopped:
                context.enqueue(label_error_event(project, since=since), delay_s=QUIET_S)
        finally:
            trim_memory()

    return {LEARN: learn, QUEUE: queue, LABEL_ERRORS: opinion}


def periodic_jobs(settings: Settings, studio: Studio, engine: Engine) -> list[PeriodicJob]:
    """Return the periodic jobs: the poller every ``poll_seconds``, fine-tunings, embedding of open images."""
    context = _context_of(settings, studio, engine)
    return [
        PeriodicJob("learn.poll", settings.poll_seconds, LearningPoller(context).run),
        PeriodicJob("learn.train", TRAIN_INTERVAL_S, TrainScheduler(settings, engine).run),
        PeriodicJob("learn.looks", EMBED_INTERVAL_S, BackgroundEmbedder(context).run),
    ]


def _context_of(settings: Settings, studio: Studio, engine: Engine) -> LearningContext:
    """Return the context shared by handlers and periodic jobs; its models take about 100 MB."""
    context = _CONTEXTS.get(engine)
    if context is None:
        context = _CONTEXTS[engine] = LearningContext.of(settings, studio, engine)
    return context


_CONTEXTS: WeakValueDictionary[Engine, LearningContext] = WeakValueDictionary()
