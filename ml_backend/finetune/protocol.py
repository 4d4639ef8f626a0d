"""What a trainer and the ML backend send each other: offers, data and progress of a fine-tuning, as JSON."""

from __future__ import annotations

import msgspec

# Seconds without a heartbeat after which another trainer, or the worker, takes a job over.
LEASE_S = 90.0

# Seconds between two heartbeats.
HEARTBEAT_S = 10.0

# Most seconds that a request for work is kept open.
MAX_WAIT_S = 25.0

# Header with the token of the settings (LABELLOOP_TRAINER_TOKEN), and with that of the lease.
TOKEN_HEADER, LEASE_HEADER = "X-Labelloop-Trainer-Token", "X-Labelloop-Lease"

# Most points of a curve, and most characters of a reason.
MAX_POINTS, MAX_REASON = 200, 2000

# Bytes that a returned model may have beyond its parent: class layers may be wider than before.
ROOM_BYTES = 16 * 2**20


class Folds(msgspec.Struct, frozen=True):
    """The figures of a trial, see `trial.Trial`."""

    refit: float
    tuned: float
    images: int
    boxes: int = 0
    gained: float = 0.0


class TrainProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a fine-tuning is.

    Attributes:
        phase: What it does, in words.
        share: Share of the budget used, in [0, 1].
        step: Optimizer steps done.
        seen: Images seen.
        loss: Mean of the last steps.
        ap50: Last AP50 on held-out images; None without.
        best: Best AP50 on them.
        curve: (minutes, loss, AP50 or None) over time.
        device: Where it computes.
        images: Number of images trained on.
        data_version: Version of the data.
        ended: Why the training ended; empty while it runs.
        crossed: Fine-tuning against the refit on a part of few images.
        untried: Why a trial that is due was impossible.
    """

    phase: str = ""
    share: float = 0.0
    step: int = 0
    seen: int = 0
    loss: float = 0.0
    ap50: float | None = None
    best: float | None = None
    curve: tuple[tuple[float, float, float | None], ...] = ()
    device: str = ""
    images: int = 0
    data_version: str = ""
    ended: str = ""
    crossed: Folds | None = None
    untried: str = ""


class TrainingImage(msgspec.Struct, frozen=True):
    """A labelled image of a job.

    Attributes:
        name: Its name in the job, `TASK-INDEX`.
        width: Width in pixels that the boxes are for; 0 without boxes.
        height: Height in pixels.
        boxes: (x_min, y_min, x_max, y_max) in these pixels.
        labels: Class of each box.
    """

    name: str
    width: int = 0
    height: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()


class TrainingSet(msgspec.Struct, frozen=True):
    """The data of a job: a version of the project's labelled images; held-out tasks are not in it."""

    version: str
    images: tuple[TrainingImage, ...]


class TrainOffer(msgspec.Struct, frozen=True):
    """A job that a trainer has leased.

    Attributes:
        id: Its number.
        project: The project.
        lease: Token of the lease, for `LEASE_HEADER`.
        lease_s: Seconds that the lease lasts after each heartbeat.
        minutes: Budget.
        model: File name of the model to train.
        sha256: Of its content, in hex.
        layout: Forced layout of its outputs; empty: recognised.
        max_bytes: Most bytes of the model handed back.
    """

    id: int
    project: int
    lease: str
    lease_s: float
    minutes: float
    model: str
    sha256: str
    layout: str
    max_bytes: int


class TrainRequest(msgspec.Struct, frozen=True):
    """A request for work.

    Attributes:
        trainer: Name of the trainer.
        device: Where it computes.
        wait_s: Seconds to keep the request open.
    """

    trainer: str
    device: str = ""
    wait_s: float = 0.0


def thinned(
    curve: tuple[tuple[float, float, float | None], ...],
) -> tuple[tuple[float, float, float | None], ...]:
    """A curve with at most `MAX_POINTS` points: beyond it, every other one goes."""
    while len(curve) > MAX_POINTS:
        curve = (*curve[:-1:2], curve[-1])
    return curve
