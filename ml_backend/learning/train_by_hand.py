"""A fine-tuning started by `labelloop train PROJECT`: a job like any other, so that the learning page shows it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ml_backend.finetune.errors import TrainingRuns
from ml_backend.finetune.reporting import Reporter
from ml_backend.learning.context import LearningContext
from ml_backend.learning.finetuning import ProjectTraining
from ml_backend.learning.store.annotations import NotConnectedToLearning
from ml_backend.learning.store.train_jobs import STATES, State


def train_by_hand(
    context: LearningContext, project: int, train: Callable[[Reporter], ProjectTraining], *, minutes: float
) -> ProjectTraining:
    """Run a training as the project's job; its end is recorded, whatever it is.

    Args:
        context: Dependencies of learning.
        project: The project.
        train: Trains and reports.
        minutes: Its budget.

    Raises:
        NotConnectedToLearning: The project does not learn.
        TrainingRuns: Another training of the project runs.
    """
    if context.training_data.project(project) is None:
        raise NotConnectedToLearning(project=project)
    jobs, counts = context.train_jobs, context.training_data.counts(project)
    job = jobs.begin(
        project, f"labelloop train on {socket.gethostname()}", minutes=minutes, cores=1, memory_bytes=0,
        labelled=counts.get("teaches", 0) + counts.get("held_out", 0),
    )  # fmt: skip
    if job is None:
        last = jobs.last(project, 1)[0]
        raise TrainingRuns(project=project, what=f"{STATES[last.state]}, {last.holder}")
    reporter = Reporter(lambda progress: jobs.heartbeat(job.id, job.token, progress), minutes=minutes)
    try:
        with reporter.sending():
            done = train(reporter)
            if done.tuned is not None:
                reporter.ended(done.tuned)
            reporter.send()
    except BaseException as error:
        reason = str(error) or type(error).__name__
        jobs.finish(job.id, job.token, state="failed", reason=reason)
        raise
    ended: State = "published" if done.published else "refused" if done.version else "failed"
    unsaved = f"its checkpoint cannot be written: {done.unsaved}" if done.unsaved else ""
    reason = done.reason or f"stopped; {unsaved or 'the same command goes on from its checkpoint'}"
    jobs.finish(job.id, job.token, state=ended, reason=reason, version=done.version)
    return done
