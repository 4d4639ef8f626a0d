"""The process that fine-tunes one project, or judges a model handed back: low priority, bounded, ends with its parent.

python -m ml_backend.learning.train_child JOB, with the lease as first line of its standard input.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

import structlog

from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.isolated_job import limit_memory, prefer_for_oom_kill
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.store import ObjectNotFound, StoreError, open_store
from labelloop.service.studio import Studio, StudioUnreachable
from labelloop.service.system import available_cores
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.reporting import Reporter
from ml_backend.finetune.torch_parts import use_threads
from ml_backend.learning.context import LearningContext
from ml_backend.learning.finetuning import ProjectTraining, finetune_project, judge_returned
from ml_backend.learning.store.train_jobs import State, TrainJob, TrainJobStore, returned_key

# Seconds from the end of the parent to the end of this process, if it cannot stop in order.
GRACE_S = 12.0

# Most times that a budget may last by the clock, on a busy machine.
MAX_STRETCH = 4

# Lowest priority, so that a refit and pre-labels go first.
NICENESS = 19

log = structlog.get_logger(__name__)


def main(number: int) -> int:
    """Run a job whose lease is stated on the standard input; returns the exit status."""
    stop = threading.Event()
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, lambda *_: stop.set())
    lease = sys.stdin.buffer.readline().decode().strip()
    threading.Thread(target=_stop_with_parent, args=(stop, number, lease), daemon=True).start()
    settings = Settings()
    setup_logging(settings)
    lower_priority()
    prefer_for_oom_kill()
    engine = open_database(settings)
    jobs = TrainJobStore(engine)
    job = jobs.job(number)
    if job is None or job.token != lease:
        return 0  # it was taken over
    lock = _host_lock()
    if lock is None:
        jobs.release(number, lease, reason="another fine-tuning runs on this machine")
        return os.EX_TEMPFAIL
    limit_memory(job.memory_bytes)
    reporter = Reporter(lambda progress: jobs.heartbeat(number, lease, progress), minutes=job.minutes, device="")
    if job.state == "judging":
        reporter.note(**{name: getattr(job.progress, name) for name in job.progress.__struct_fields__})
    with lock, closing(Studio.from_settings(settings)) as studio, reporter.sending():
        _run(LearningContext.of(settings, studio, engine), jobs, job, reporter, stop)
    return 0


def _run(
    context: LearningContext, jobs: TrainJobStore, job: TrainJob, reporter: Reporter, stop: threading.Event
) -> None:
    """Run the job, and record its end: a verdict, a failure, or that it is given back."""
    try:
        done = _judge(context, job) if job.state == "judging" else _train(context, job, reporter, stop)
    except (StudioUnreachable, StoreError) as error:
        jobs.release(job.id, job.token, reason=str(error), lost=True)
    except LabelloopError as error:
        jobs.finish(job.id, job.token, state="failed", reason=str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        limit = f"{job.memory_bytes / 2**30:g} GiB"
        reason = f"It ran out of its {limit} of memory: raise `memory_gb` in the table [train] of learn.toml."
        jobs.finish(job.id, job.token, state="failed", reason=reason)
    else:
        reporter.send()
        if done is None or not done.reason:
            unsaved = f"its checkpoint cannot be written: {done.unsaved}" if done and done.unsaved else ""
            jobs.release(job.id, job.token, reason=f"it was stopped; {unsaved or 'it goes on from its checkpoint'}")
            return
        state: State = "published" if done.published else "refused"
        jobs.finish(job.id, job.token, state=state, reason=done.reason, version=done.version)
        log.info("training_ended", project=job.project, state=state, version=done.version, reason=done.reason)
    finally:
        current = jobs.job(job.id)
        if current is not None and current.state not in {"returned", "judging"}:
            with suppress(StoreError):
                context.base_models.registry.store.delete(returned_key(job.id))


def _train(
    context: LearningContext, job: TrainJob, reporter: Reporter, stop: threading.Event
) -> ProjectTraining | None:
    cores = max(min(job.cores, available_cores()), 1)
    device = use_threads(cores)
    reporter.note(device=device)
    done = finetune_project(
        context,
        job.project,
        recipe=Recipe(minutes=job.minutes),
        clock=time.monotonic if device == "cuda" else _budget_clock(cores),
        progress=reporter.step,
        phase=reporter.phase,
        stopping=lambda: stop.is_set() or reporter.lost,
    )
    if done.tuned is not None:
        reporter.ended(done.tuned)
    return done


def _budget_clock(threads: int) -> Callable[[], float]:
    """Clock of the budget: seconds of computing, because this process yields to every other; see `MAX_STRETCH`."""
    started = time.monotonic()
    return lambda: max(time.process_time() / threads, (time.monotonic() - started) / MAX_STRETCH)


def _judge(context: LearningContext, job: TrainJob) -> ProjectTraining:
    try:
        content = open_store(context.settings.store_url, context.settings).get(returned_key(job.id))
    except ObjectNotFound:
        return ProjectTraining(None, reason="the model that the trainer handed back is gone from the store")
    return judge_returned(context, job.project, content, base=job.base, classes=job.classes, done=job.progress)


def _stop_with_parent(stop: threading.Event, number: int, lease: str) -> None:
    """Wait for the end of the standard input, which the parent keeps open while it lives; give the job back."""
    sys.stdin.buffer.read()
    stop.set()
    threading.Event().wait(GRACE_S)
    with suppress(Exception):  # then its lease expires
        TrainJobStore(open_database(Settings())).release(number, lease, reason="the worker was stopped")
    os._exit(1)


def lower_priority() -> None:
    """Yield to every other process: `nice`, and the same for the session (autogroup of sched(7))."""
    with suppress(OSError):
        os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _host_lock() -> IO[str] | None:
    """Lock that one fine-tuning of this user holds on this machine; None if another does."""
    file = Path(tempfile.gettempdir()) / f"labelloop-train-{os.getuid()}.lock"
    lock = file.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _is_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
