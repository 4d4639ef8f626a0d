"""Report a training's progress from a background thread, as its heartbeat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec
import structlog

from ml_backend.finetune.protocol import HEARTBEAT_S, Folds, TrainProgress, thinned

if TYPE_CHECKING:
    from ml_backend.finetune.loop import Progress
    from ml_backend.finetune.run import Finetuned

# Share of the budget between two points of the curve.
POINT_EVERY = 0.02

log = structlog.get_logger(__name__)


class Reporter:
    """Collects the progress of one training, and sends it as a heartbeat. Thread-safe."""

    def __init__(
        self,
        send: Callable[[TrainProgress], bool],
        *,
        minutes: float,
        device: str = "",
        every_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Send nothing yet.

        Args:
            send: Sends the progress; False: the lease was lost. It may raise: the next heartbeat tries again, however
                long that takes. A lease that ended meanwhile is taken up again, unless another has the job by then.
            minutes: Budget of the training.
            device: Where it computes.
            every_s: Seconds between two heartbeats.
            clock: In seconds.
            say: Prints a line: that the progress cannot be sent, and that it can again. None: it is logged.
        """
        self._send, self._minutes, self._every_s, self._clock = send, minutes, every_s, clock
        self._say = say or log.warning  # not a default, which would keep the logging set up at import
        self._progress = TrainProgress(device=device)
        self._unsent_since: float | None = None
        self._lost = threading.Event()

    @property
    def progress(self) -> TrainProgress:
        """The progress so far."""
        return self._progress

    @property
    def lost(self) -> bool:
        """Whether the lease was lost: another may run the job by now."""
        return self._lost.is_set()

    def phase(self, name: str) -> None:
        """Note the phase; the curve is that of the training on all images."""
        self.note(phase=name, **({"curve": ()} if name == "training" else {}))

    def note(self, **fields: object) -> None:
        """Note fields of the progress."""
        self._progress = msgspec.structs.replace(self._progress, **fields)

    def step(self, state: Progress) -> None:
        """Note a step; the curve gets a point for each evaluation, and for each `POINT_EVERY` of the budget."""
        curve, before = self._progress.curve, self._progress
        minutes = round(state.share * self._minutes, 3)
        last = curve[-1][0] if curve else -1.0
        if minutes >= last + POINT_EVERY * self._minutes or state.ap50 != before.ap50:
            curve = thinned((*curve, (minutes, round(state.loss, 4), state.ap50)))
        self.note(
            share=state.share, step=state.step, seen=state.seen, loss=round(state.loss, 4), ap50=state.ap50,
            best=state.best, curve=curve,
        )  # fmt: skip

    def ended(self, tuned: Finetuned) -> None:
        """Note the result."""
        trial = tuned.trial
        self.note(
            images=tuned.trained, ended=tuned.training.ended, best=tuned.training.best,
            crossed=Folds(**asdict(trial)) if trial else None,
            untried=tuned.untried,
        )  # fmt: skip

    def send(self) -> bool:
        """Send the progress now; returns False where the lease was lost."""
        try:
            owned = self._send(self._progress)
        except Exception as error:  # noqa: BLE001 - the other side may be unreachable; it alone knows who has the job
            if self._unsent_since is None:
                self._unsent_since = self._clock()
                self._say(f"The progress cannot be sent, and the training goes on: {str(error)[:200]}")
            return not self.lost
        if self._unsent_since is not None:
            away_s, self._unsent_since = self._clock() - self._unsent_since, None
            outcome = "the training still has its job" if owned else "the job is no longer that of this training"
            self._say(f"The progress is sent again after {away_s:.0f} s: {outcome}.")
        if not owned:
            self._lost.set()
        return owned

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send the progress every `every_s` seconds while the block runs."""
        done = threading.Event()

        def run() -> None:
            while not done.wait(self._every_s) and not self.lost:
                self.send()

        thread = threading.Thread(target=run, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=self._every_s)
