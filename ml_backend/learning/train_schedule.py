"""When a project is fine-tuned, and who does it: decisions without I/O, each with its reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ml_backend.learning.store.train_jobs import OPEN, KnownTrainer, TrainJob
from ml_backend.policy import FinetunePolicy

# Prefix of the names of workers among those who can train.
WORKER = "worker "

# Seconds without a call after which a trainer counts as gone.
PRESENT_S = 90.0

# Seconds for which the worker leaves a job to a trainer that asks for work.
TRAINERS_FIRST_S = 120.0

# Time after which a training counts as hanging: this many budgets, and seconds to read, evaluate and publish.
LIMIT, LIMIT_S = 5, 3600.0

# Seconds after the start of a training for which its model is waited for, while the ML backend or the trainer is away.
MODEL_LIMIT_S = 3 * 86400.0

OFF = "Fine-tuning is off (`on` in the table [train] of learn.toml)."

INSTALL = "pip install 'labelloop[train]'"


def time_limit_s(minutes: float, *, trained: bool = False) -> float:
    """Return the seconds after which a training with this budget counts as hanging, or its model as lost."""
    return LIMIT * 60 * minutes + (MODEL_LIMIT_S if trained else LIMIT_S)


def able(policy: FinetunePolicy, known: Sequence[KnownTrainer], *, now: float) -> list[KnownTrainer]:
    """Return those who are there and may fine-tune under a policy."""
    return [
        trainer
        for trainer in known
        if now - trainer.seen_at <= PRESENT_S
        and policy.where in {"anywhere", "worker" if trainer.name.startswith(WORKER) else "trainer"}
    ]


def why_not_due(
    policy: FinetunePolicy,
    *,
    labelled: int,
    last: TrainJob | None,
    known: Sequence[KnownTrainer],
    now: float,
) -> str:
    """Return why no fine-tuning is due; empty if one is.

    Args:
        policy: The table `[train]`.
        labelled: Labelled tasks of the project.
        last: Its last job.
        known: The trainers, and the workers that can train.
        now: Seconds since 1970.
    """
    if policy.on == "off":
        return OFF
    if not able(policy, known, now=now):
        return cannot_train(policy)
    new = max(labelled - (last.labelled if last is not None else 0), 0)
    if new < policy.labels:
        since = "" if last is None else " since the last one"
        return f"Fine-tuning starts with {policy.labels} labelled tasks{since}; {new} so far."
    return opening(policy, now=now)


def cannot_train(policy: FinetunePolicy) -> str:
    """Return that no machine can fine-tune, with the fix."""
    trainer = "run `labelloop trainer --url URL` on a machine that has it (docs/how-to/train.md)"
    if policy.where == "trainer":
        return f"No fine-tuning: no trainer asks for work (`where` in learn.toml). To have one, {trainer}."
    fix = f"Install it there ({INSTALL})"
    return f"No fine-tuning: torch is not installed where the worker runs. {fix}, or {trainer}."


def opening(policy: FinetunePolicy, *, now: float) -> str:
    """Return when fine-tuning may start; empty if it may now."""
    wait = policy.opens_in(datetime.fromtimestamp(now, UTC))
    if not wait:
        return ""
    zone = policy.time_zone or datetime.fromtimestamp(now, UTC).astimezone().tzname()  # UTC in most containers
    return f"Fine-tuning starts at {policy.hours.split('-')[0].strip()} {zone}, in {_duration(wait)} (`hours`)."


def may_run(policy: FinetunePolicy, job: TrainJob, *, trainer: bool, known: Sequence[KnownTrainer], now: float) -> bool:
    """Whether a trainer (else the worker) may take a waiting job now. The worker leaves it to trainers first."""
    if job.state != "waiting" or policy.on == "off" or opening(policy, now=now):
        return False
    where = policy.where  # the present setting: the job may be older
    if trainer:
        return where in {"anywhere", "trainer"}
    if where == "anywhere" and now - job.created_at < TRAINERS_FIRST_S:
        return not any(not one.name.startswith(WORKER) and now - one.seen_at <= PRESENT_S for one in known)
    return where in {"anywhere", "worker"}


def state_in_words(
    policy: FinetunePolicy, job: TrainJob | None, *, labelled: int, known: Sequence[KnownTrainer], now: float
) -> str:
    """Return what a project's fine-tuning does now, and what to do where it cannot go on."""
    if job is None or job.state not in OPEN:
        return why_not_due(policy, labelled=labelled, last=job, known=known, now=now) or "Fine-tuning starts now."
    if job.state == "running":
        return f"Fine-tuning runs on {job.holder}: {job.progress.phase or 'starting'}."
    if job.state == "judging":
        return "The fine-tuned model is being evaluated."
    if job.state == "returned":
        return f"{job.holder} handed the fine-tuned model back; the worker evaluates it next."
    before = f" It was interrupted: {job.reason}." if job.reason else ""
    if policy.on == "off":
        return f"{OFF}{before}"
    if not able(policy, known, now=now):
        return f"{cannot_train(policy)}{before}"
    return f"{opening(policy, now=now) or 'Fine-tuning waits: it is next.'}{before}"


def _duration(wait: timedelta) -> str:
    minutes = max(round(wait.total_seconds() / 60), 1)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
