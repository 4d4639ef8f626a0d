"""Create fine-tunings when they are due, and run one at a time as a child process of the worker."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from sqlalchemy import Engine

from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.store import StoreError, open_store
from labelloop.service.system import available_cores
from ml_backend.finetune.torch_parts import torch_missing
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.train_jobs import OPEN, KnownTrainer, TrainJob, TrainJobStore, returned_key
from ml_backend.learning.train_schedule import PRESENT_S, WORKER, able, may_run, time_limit_s, why_not_due
from ml_backend.policy import LearningPolicyError, read_learning_policy

# Command of the child; the job's number is appended. Its lease is the first line of its standard input: other users of
# the machine see a command.
COMMAND = (sys.executable, "-m", "ml_backend.learning.train_child")

# Seconds for the child to write its checkpoint when the worker stops; then it is killed. With `job_stop_s` (20 s) less
# than the `stop_grace_period` of the compose file (30 s).
STOP_S = 8.0

# Seconds until the next attempt where another fine-tuning runs on this machine.
BUSY_S = 60.0

log = structlog.get_logger(__name__)


class TrainScheduler:
    """One round of `run` looks after all fine-tunings; call it every few seconds, from one thread at a time."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        command: Sequence[str] = COMMAND,
        missing: Callable[[], str] = torch_missing,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            settings: Locate the policies.
            engine: The migrated database.
            command: Command of the child process.
            missing: Why fine-tuning cannot run here; empty where it can.
            clock: Seconds since 1970; default: that of the database.
        """
        self._settings, self._command, self._missing = settings, tuple(command), missing
        self._jobs, self._data = TrainJobStore(engine), TrainingDataStore(engine)
        self._clock = clock or self._jobs.now
        self.holder = f"{WORKER}{socket.gethostname()}"
        self._lock = threading.Lock()
        self._child: tuple[subprocess.Popen[bytes], TrainJob] | None = None
        self._stopped = False
        self._rest_until = self._started_at = self._heard_at = 0.0
        self._refused: dict[int, str] = {}
        atexit.register(self.stop)

    def run(self) -> None:
        """Take over lost jobs, create those that are due, and start the next one if none runs here."""
        can_train, now = not self._missing(), self._clock()
        if can_train and now >= self._heard_at + PRESENT_S / 3:
            self._jobs.heard(self.holder, "worker")
            self._heard_at = now
        self._end_child()
        self._keep_child()  # first: this machine may have slept for longer than a lease
        for job in self._jobs.expire():
            log.warning("training_lost", project=job.project, job=job.id, holder=job.holder)
            self._tidy(job)
        known = self._jobs.trainers()
        for state in self._data.projects():
            try:
                self._create(state.project, known)
            except LearningPolicyError as error:
                if self._refused.get(state.project) != str(error):  # once, not every few seconds
                    log.warning("training_not_scheduled", project=state.project, reason=str(error))
                self._refused[state.project] = str(error)
        if self._child is None and self._clock() >= self._rest_until:
            self._start(can_train=can_train)

    def stop(self) -> None:
        """End the child: it writes its checkpoint first. No other is started."""
        with self._lock:
            self._stopped = True
        if self._child is None:
            return
        process, job = self._child
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_child(reason="the worker was stopped")
        log.info("training_stopped", project=job.project, job=job.id)

    def _create(self, project: int, known: Sequence[KnownTrainer]) -> None:
        policy = read_learning_policy(self._settings.home, project)
        if not policy.learn or policy.train.on == "off" or not able(policy.train, known, now=self._clock()):
            return
        counts = self._data.counts(project)
        labelled = counts.get("teaches", 0) + counts.get("held_out", 0)
        last = next(iter(self._jobs.last(project, 1)), None)
        if why_not_due(policy.train, labelled=labelled, last=last, known=known, now=self._clock()):
            return
        train = policy.train
        job = self._jobs.create(
            project, labelled=labelled, place=train.where, minutes=train.minutes, cores=train.cores,
            memory_bytes=int(train.memory_gb * 2**30),
        )  # fmt: skip
        if job is not None:
            log.info("training_due", project=project, job=job.id, labelled=labelled)

    def _start(self, *, can_train: bool) -> None:
        """Claim the next job that this worker may run, and start its process; handed-back models come first."""
        here = [job for job in self._jobs.open("running", "judging") if job.holder == self.holder]
        if here:  # of another worker on this machine, or of one that was killed: its lease expires
            return
        for job in [*self._jobs.open("returned"), *(self._jobs.open("waiting") if can_train else ())]:
            if job.state == "waiting" and not self._may_run(job):
                continue
            claimed = self._jobs.claim(job.id, self.holder)
            if claimed is not None:
                self._spawn(claimed)
                return

    def _may_run(self, job: TrainJob) -> bool:
        try:
            policy = read_learning_policy(self._settings.home, job.project)
        except LabelloopError:
            return False
        return policy.learn and may_run(
            policy.train, job, trainer=False, known=self._jobs.trainers(), now=self._clock()
        )

    def _spawn(self, job: TrainJob) -> None:
        cores = str(max(min(job.cores, available_cores()), 1))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), cores)
        environment = {**os.environ, **threads, "LABELLOOP_HOME": str(self._settings.home)}
        with self._lock:
            if self._stopped:
                self._jobs.release(job.id, job.token, reason="the worker was stopped")
                return
            process = subprocess.Popen(
                [*self._command, str(job.id)], stdin=subprocess.PIPE, bufsize=0, env=environment, start_new_session=True
            )
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it ended at once
                process.stdin.write(f"{job.token}\n".encode())  # and stays open: the child ends when this process does
            self._child, self._started_at = (process, job), self._clock()
        log.info("training_started", project=job.project, job=job.id, state=job.state, pid=process.pid)

    def _keep_child(self) -> None:
        """Renew the child's lease: on a busy machine it may not come to that itself. One that hangs is killed."""
        if self._child is None:
            return
        process, job = self._child
        if self._clock() - self._started_at > time_limit_s(job.minutes):
            log.warning("training_hangs", project=job.project, job=job.id)
            process.kill()
        elif not self._jobs.heartbeat(job.id, job.token):
            process.send_signal(signal.SIGTERM)  # the job was deleted, or given to another

    def _end_child(self, *, reason: str = "") -> None:
        """Note the end of the child; a job that it did not end or give back itself is lost."""
        if self._child is None or (code := self._child[0].poll()) is None:
            return
        process, job = self._child
        if process.stdin is not None:
            process.stdin.close()
        self._child = None
        if code == os.EX_TEMPFAIL:
            self._rest_until = self._clock() + BUSY_S
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
        hint = " (out of memory? `memory_gb` in learn.toml)" if code == -signal.SIGKILL else ""
        if self._jobs.release(job.id, job.token, reason=reason or f"its process {how}{hint}", lost=not reason):
            log.warning("training_interrupted", project=job.project, job=job.id, reason=f"{how}{hint}")
            self._tidy(job)

    def _tidy(self, job: TrainJob) -> None:
        """Delete the model that was handed back for a job that failed while it was judged."""
        after = self._jobs.job(job.id)
        if job.state != "judging" or (after is not None and after.state in OPEN):
            return
        with suppress(StoreError):
            open_store(self._settings.store_url, self._settings).delete(returned_key(job.id))
