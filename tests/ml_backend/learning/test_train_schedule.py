"""When fine-tuning is due, who does it, and what the page says; and jobs with leases. No torch here."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.finetune.protocol import MAX_POINTS, MAX_REASON, TrainProgress, thinned
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.train_jobs import MAX_ATTEMPTS, MAX_JOBS, KnownTrainer, TrainJobStore, returned_key
from ml_backend.learning.train_schedule import TRAINERS_FIRST_S, WORKER, may_run, state_in_words, why_not_due
from ml_backend.learning.train_scheduler import COMMAND, TrainScheduler
from ml_backend.policy import FinetunePolicy

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC).timestamp()
HERE = KnownTrainer(f"{WORKER}here", "worker", NOON)
GPU = KnownTrainer("gpu-box", "cuda", NOON)


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self, _connection=None):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(tmp_path):
    return open_database(Settings(home=tmp_path))


@pytest.fixture
def jobs(engine, clock):
    return TrainJobStore(engine, clock=clock)


def create(jobs, project=7, *, place="anywhere", labelled=30):
    return jobs.create(project, labelled=labelled, place=place, minutes=10, cores=1, memory_bytes=2**32)


@pytest.mark.parametrize(
    ("policy", "known", "labelled", "said"),
    [
        (FinetunePolicy(), [HERE], 30, ""),
        (FinetunePolicy(), [HERE], 29, "Fine-tuning starts with 30 labelled tasks; 29 so far."),
        (FinetunePolicy(on="off"), [HERE], 90, "Fine-tuning is off"),
        (FinetunePolicy(), [], 90, "pip install 'labelloop[train]'"),
        (FinetunePolicy(), [GPU], 90, ""),
        (FinetunePolicy(where="worker"), [GPU], 90, "torch is not installed"),
        (FinetunePolicy(where="trainer"), [HERE], 90, "no trainer asks for work"),
        (FinetunePolicy(hours="22:00-06:00", time_zone="UTC"), [HERE], 90, "starts at 22:00 UTC, in 10 h 0 min"),
        (FinetunePolicy(hours="22:00-06:00", time_zone="Asia/Tokyo"), [HERE], 90, "in 1 h 0 min"),
        (FinetunePolicy(hours="11:30-12:30", time_zone="UTC"), [HERE], 90, ""),
    ],
    ids=["due", "few", "off", "no torch", "trainer", "worker only", "trainer only", "night", "zone", "inside"],
)
def test_what_is_not_due_says_why(policy, known, labelled, said):
    why = why_not_due(policy, labelled=labelled, last=None, known=known, now=NOON)
    assert (said in why) if said else why == ""


def test_hours_of_the_machine_name_their_zone(monkeypatch):
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        why = why_not_due(FinetunePolicy(hours="22:00-06:00"), labelled=90, last=None, known=[HERE], now=NOON)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "starts at 22:00 EST, in 15 h 0 min" in why


def test_a_trainer_that_is_silent_is_nobody():
    silent = [KnownTrainer("gpu-box", "cuda", NOON - 3600)]
    assert "torch is not installed" in why_not_due(FinetunePolicy(), labelled=90, last=None, known=silent, now=NOON)


def test_labels_count_from_the_last_one(jobs):
    job = create(jobs, labelled=100)
    facts = {"last": job, "known": [HERE], "now": NOON}
    assert "30 labelled tasks since the last one; 10 so far" in why_not_due(FinetunePolicy(), labelled=110, **facts)
    assert why_not_due(FinetunePolicy(), labelled=130, **facts) == ""
    assert "0 so far" in why_not_due(FinetunePolicy(), labelled=60, **facts)  # annotations were deleted


@pytest.mark.parametrize(
    ("minute", "within"), [(21 * 60 + 59, False), (22 * 60, True), (0, True), (359, True), (360, False)]
)
def test_hours_over_midnight(minute, within):
    now = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(minutes=minute)
    assert (FinetunePolicy(hours="22:00-06:00", time_zone="UTC").opens_in(now) == timedelta()) is within


def test_the_worker_leaves_a_job_to_a_trainer_that_asks(jobs, clock):
    clock.now = NOON
    job, policy = create(jobs), FinetunePolicy()
    facts = {"trainer": False, "known": [HERE, GPU]}
    assert may_run(policy, job, trainer=True, known=[], now=NOON)
    assert not may_run(policy, job, now=NOON, **facts)
    assert may_run(policy, job, now=NOON + TRAINERS_FIRST_S + 1, **facts)
    assert may_run(policy, job, trainer=False, known=[HERE], now=NOON)
    assert not may_run(FinetunePolicy(where="trainer"), job, trainer=False, known=[HERE], now=NOON + 999)
    assert not may_run(FinetunePolicy(where="worker"), job, trainer=True, known=[], now=NOON)


def test_a_waiting_job_follows_the_policy_as_it_is_now(jobs):
    old, here = create(jobs, place="trainer"), FinetunePolicy(where="worker")
    assert may_run(here, old, trainer=False, known=[HERE], now=NOON)
    off = FinetunePolicy(on="off")
    assert not may_run(off, old, trainer=False, known=[HERE], now=NOON)
    assert "Fine-tuning is off" in state_in_words(off, old, labelled=30, known=[HERE], now=NOON)


def test_one_open_job_a_project_and_few_in_all(jobs):
    for _ in range(MAX_JOBS + 3):
        job = create(jobs)
        assert create(jobs) is None
        claimed = jobs.claim(job.id, "a")
        assert jobs.finish(job.id, claimed.token, state="failed", reason="no")
    assert len(jobs.last(7, 99)) == MAX_JOBS
    assert create(jobs, 8) is not None


def test_a_dead_trainers_job_is_taken_over_and_fails_in_the_end(jobs, clock):
    job = create(jobs)
    tokens = []
    for attempt in range(MAX_ATTEMPTS):
        claimed = jobs.claim(job.id, f"trainer {attempt}")
        assert jobs.claim(job.id, "another") is None
        tokens.append(claimed.token)
        clock.now += 60
        assert jobs.heartbeat(job.id, claimed.token, TrainProgress(phase="training", step=attempt))
        clock.now += 60
        assert jobs.expire() == []
        clock.now += 60
        assert [lost.id for lost in jobs.expire()] == [job.id]
        assert all(not jobs.heartbeat(job.id, token) for token in tokens[:-1])
    assert not jobs.heartbeat(job.id, tokens[-1])
    assert len(set(tokens)) == MAX_ATTEMPTS
    ended = jobs.job(job.id)
    assert (ended.state, ended.attempts) == ("failed", MAX_ATTEMPTS)
    assert "trainer 2 sent no more heartbeats" in ended.reason


def test_a_lease_renewed_meanwhile_is_not_taken_away(jobs, clock, monkeypatch):
    """The heartbeat comes between the look for expired leases and the update that takes them."""
    claimed = jobs.claim(create(jobs).id, "gpu-box")
    clock.now += 91
    release = jobs.release

    def slow(number, token, **how):
        assert jobs.heartbeat(number, token)
        return release(number, token, **how)

    monkeypatch.setattr(jobs, "release", slow)
    assert jobs.expire() == []
    assert jobs.heartbeat(claimed.id, claimed.token)


def test_a_long_reason_leaves_the_attempts_readable(jobs):
    job = create(jobs)
    for _ in range(MAX_ATTEMPTS):
        jobs.release(job.id, jobs.claim(job.id, "a").token, reason="x" * 10_000, lost=True)
    ended = jobs.job(job.id)
    assert ended.state == "failed"
    assert ended.finished_at
    assert ended.reason.endswith(f"({MAX_ATTEMPTS} attempts)")
    assert len(ended.reason) <= MAX_REASON


def test_a_job_given_back_in_order_is_no_attempt(jobs):
    job = create(jobs)
    for _ in range(2 * MAX_ATTEMPTS):
        claimed = jobs.claim(job.id, "a")
        assert jobs.release(job.id, claimed.token, reason="stopped")
    assert jobs.job(job.id).state == "waiting"
    assert not jobs.finish(job.id, claimed.token, state="failed", reason="too late")
    assert not jobs.finish(job.id, "", state="failed", reason="no lease")


def test_a_returned_model_is_judged_under_its_own_lease(jobs):
    job = create(jobs)
    claimed = jobs.claim(job.id, "gpu-box")
    assert jobs.handed(job.id, claimed.token, base="base-1", classes=["a", "b"])
    assert jobs.returned(job.id, claimed.token)
    judging = jobs.claim(job.id, "worker here")
    assert (judging.state, judging.base, judging.classes) == ("judging", "base-1", ("a", "b"))
    assert jobs.release(job.id, judging.token, reason="stopped")
    assert jobs.job(job.id).state == "returned"


def test_trainers_are_known_by_their_last_call(jobs, clock):
    jobs.heard("a", "cpu")
    clock.now += 30
    jobs.heard("b", "cuda")
    jobs.heard("a", "cuda")
    assert {(one.name, one.device) for one in jobs.trainers(within_s=10)} == {("a", "cuda"), ("b", "cuda")}
    clock.now += 9e6
    jobs.heard("c", "cpu")
    assert [one.name for one in jobs.trainers(within_s=1e9)] == ["c"]


def test_the_state_is_said_in_words(jobs):
    policy, facts = FinetunePolicy(), {"labelled": 30, "known": [HERE], "now": NOON}
    assert state_in_words(policy, None, **facts) == "Fine-tuning starts now."
    job = create(jobs)
    assert "it is next" in state_in_words(policy, job, **facts)
    claimed = jobs.claim(job.id, "gpu-box")
    jobs.heartbeat(job.id, claimed.token, TrainProgress(phase="training"))
    assert state_in_words(policy, jobs.job(job.id), **facts) == "Fine-tuning runs on gpu-box: training."
    jobs.release(job.id, claimed.token, reason="gpu-box sent no more heartbeats", lost=True)
    assert "interrupted: gpu-box sent no more heartbeats" in state_in_words(policy, jobs.job(job.id), **facts)


def test_a_curve_stays_small():
    curve = thinned(tuple((float(index), 1.0, None) for index in range(5 * MAX_POINTS)))
    assert len(curve) <= MAX_POINTS
    assert (curve[0][0], curve[-1][0]) == (0.0, 5 * MAX_POINTS - 1.0)


SLEEPER = (sys.executable, "-c", "import sys; sys.stdin.read()")


@pytest.fixture
def scheduler(tmp_path, engine, monkeypatch):
    """scheduler(command): a scheduler of a project with 30 labelled tasks."""
    data = TrainingDataStore(engine)
    data.connect(7)
    monkeypatch.setattr(TrainingDataStore, "counts", lambda *_: {"teaches": 27, "held_out": 3})
    made = []

    def make(command=SLEEPER, missing=""):
        made.append(TrainScheduler(Settings(home=tmp_path), engine, command=command, missing=lambda: missing))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def wait_for(check):
    for _ in range(200):
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen within 4 s")


def test_the_worker_starts_one_child_and_ends_it(scheduler, engine):
    jobs, first = TrainJobStore(engine), scheduler()
    first.run()
    [job] = jobs.last(7)
    assert (job.state, job.holder) == ("running", first.holder)
    process = first._child[0]
    first.run()
    scheduler().run()  # another worker of this machine
    assert first._child[0] is process
    assert len(jobs.last(7)) == 1
    first.stop()
    assert process.poll() is not None
    assert (jobs.job(job.id).state, jobs.job(job.id).reason) == ("waiting", "the worker was stopped")


def test_the_lease_is_in_no_process_list(scheduler, engine):
    worker = scheduler((sys.executable, "-c", "import sys; print(sys.stdin.readline(), file=open(sys.argv[2], 'w'))"))
    worker._command = (*worker._command, "-", str(worker._settings.home / "lease"))
    worker.run()
    process, job = worker._child
    process.wait()
    assert not any(job.token in part for part in process.args)
    assert (worker._settings.home / "lease").read_text().strip() == job.token


@pytest.mark.slow
def test_the_childs_process_runs_its_job(engine, tmp_path):
    jobs = TrainJobStore(engine)
    claimed = jobs.claim(create(jobs, 99).id, "worker here")
    environment = os.environ | {"LABELLOOP_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [*COMMAND, str(claimed.id)]
    for lease in ("another", claimed.token):
        assert jobs.job(claimed.id).state == "running"
        subprocess.run(command, input=f"{lease}\n".encode(), env=environment, check=True, timeout=60)
    assert jobs.job(claimed.id).state == "failed"  # without torch, or because no such project learns


def test_a_model_whose_evaluation_kills_the_worker_is_deleted(scheduler, engine):
    worker, jobs = scheduler((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")), TrainJobStore(engine)
    job = create(jobs)
    assert jobs.returned(job.id, jobs.claim(job.id, "gpu-box").token)
    store = open_store(worker._settings.store_url, worker._settings)
    store.put(returned_key(job.id), b"a model")
    for _ in range(MAX_ATTEMPTS):
        assert store.exists(returned_key(job.id))
        worker.run()
        worker._child[0].wait()
    worker.run()
    assert jobs.job(job.id).state == "failed"
    assert not store.exists(returned_key(job.id))


def test_a_child_that_dies_is_started_again_until_it_fails(scheduler, engine):
    jobs, worker = TrainJobStore(engine), scheduler((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    for _ in range(MAX_ATTEMPTS):
        worker.run()
        if worker._child is not None:
            worker._child[0].wait()
    worker.run()
    [job] = jobs.last(7)
    assert job.state == "failed"
    assert "was ended by signal 9" in job.reason
    assert "memory_gb" in job.reason
    worker.run()
    assert len(jobs.last(7)) == 1  # the next one comes with new labels


def test_a_job_of_a_project_that_stopped_learning_waits(scheduler, engine):
    worker = scheduler()
    job = create(TrainJobStore(engine))
    policy = worker._settings.home / "ml_backend" / "learn.toml"
    policy.parent.mkdir()
    policy.write_text("learn = false\n")
    worker.run()
    assert TrainJobStore(engine).job(job.id).state == "waiting"


def test_without_torch_the_worker_trains_nothing(scheduler, engine):
    worker = scheduler(missing="torch is not installed")
    worker.run()
    assert TrainJobStore(engine).last(7) == []
    TrainJobStore(engine).heard("gpu-box", "cuda")
    worker.run()
    [job] = TrainJobStore(engine).last(7)
    assert job.state == "waiting"


def test_the_child_dies_with_its_worker(tmp_path):
    """The worker is killed, not stopped: the child's standard input closes, and it ends."""
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen({SLEEPER!r}, stdin=subprocess.PIPE, start_new_session=True)
        print(child.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        child = int(worker.stdout.readline())
        worker.send_signal(signal.SIGKILL)

    def gone():
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{child}/stat")
        return stat.is_file() and stat.read_text().split()[2] == "Z"

    assert wait_for(gone)
