"""The agent: ask for work, pull the model and the data, train, hand the model back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from labelloop.labeling.geometry.label_placement import LabelsMisplaced, scale_of_labels
from labelloop.service.errors import LabelloopError
from labelloop.service.media import load_image
from labelloop.service.scratch import scratch_folder
from ml_backend.finetune.checkpoints import checkpoint_file
from ml_backend.finetune.errors import GpuMemoryFull, TooLittleToTrain
from ml_backend.finetune.protocol import HEARTBEAT_S, TrainingImage, TrainOffer
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.reporting import Reporter
from ml_backend.finetune.run import LEAST_IMAGES, Finetuned, FinetuneJob, finetune
from ml_backend.trainer.client import MAX_PAUSE_S, BackendRefused, BackendUnreachable, LeaseGone, TrainerClient
from ml_backend.trainer.finished import DROPPED, FinishedModels
from ml_backend.training.datasets import LocalImage

if TYPE_CHECKING:
    from ml_backend.finetune.torch_parts import Device

# Seconds between two attempts while the ML backend cannot be reached, at first; `MAX_PAUSE_S` in the end.
FIRST_PAUSE_S = 1.0

log = structlog.get_logger(__name__)

# Trains a job; (job, reporter, whether to stop) -> the result.
TrainFunction = Callable[[FinetuneJob, Reporter, Callable[[], bool]], Finetuned]


@dataclass(frozen=True)
class AgentOptions:
    """Options of the agent.

    Attributes:
        name: Its name, on the learning page.
        device: Where to compute.
        home: Folder for checkpoints, features and trained models that the ML backend has not taken yet.
        once: Whether to end after one job.
        heartbeat_s: Seconds between two heartbeats.
    """

    name: str
    device: Device
    home: Path
    once: bool = False
    heartbeat_s: float = HEARTBEAT_S


def run_agent(
    client: TrainerClient,
    options: AgentOptions,
    *,
    stopping: Callable[[], bool],
    say: Callable[[str], None],
    train: TrainFunction | None = None,
) -> None:
    """Ask for work until `stopping`; each job is trained and handed back.

    A trained model that the ML backend does not take now is kept, and offered before the next request for work: by this
    process, or by the next one with this home folder.

    Args:
        client: The ML backend.
        options: Options.
        stopping: Whether to end: a running training writes its checkpoint and gives its job back.
        say: Prints a line.
        train: Trains a job; default: `finetune`.

    Raises:
        BackendRefused: The token is wrong, or the ML backend has none.
    """
    finished = FinishedModels(options.home, client)
    finished.tidy(say)
    pause_s, unreachable, trained = FIRST_PAUSE_S, False, False
    while not stopping():
        try:
            finished.hand_back(say)
            if stopping() or (trained and options.once):
                return
            offer, wait_s = client.work(options.name, options.device)
        except BackendUnreachable as error:
            if not unreachable:
                say(f"{error}")
            unreachable = True
            _sleep(pause_s, stopping)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            continue
        if unreachable:
            say("The ML backend answers again.")
        pause_s, unreachable = FIRST_PAUSE_S, False
        if offer is None:
            _sleep(wait_s, stopping)
            continue
        _work_on(client, offer, options, finished, stopping=stopping, say=say, train=train or _finetune)
        trained = True


def _work_on(
    client: TrainerClient,
    offer: TrainOffer,
    options: AgentOptions,
    finished: FinishedModels,
    *,
    stopping: Callable[[], bool],
    say: Callable[[str], None],
    train: TrainFunction,
) -> None:
    """Train one job. The ML backend hears of every outcome, or the lease expires."""
    say(f"Job {offer.id}: project {offer.project}, {offer.minutes:g} minutes.")
    reporter = Reporter(
        lambda progress: client.progress(offer, progress),
        minutes=offer.minutes,
        device=options.device,
        every_s=options.heartbeat_s,
        say=lambda line: say(f"Job {offer.id}: {line}"),
    )

    work, kept = _Work(client, offer, options, reporter, stopping), False
    try:
        with scratch_folder() as folder, reporter.sending():
            job = work.pulled(folder)
            done = train(job, reporter, work.ends) if job is not None else None
            if job is not None and done is not None and not done.stopped:
                reporter.ended(done)
                reporter.phase("handing the model back")
                kept = finished.keep(offer, reporter.progress, job.out, say)
                finished.hand_back(say)
            elif reporter.lost:
                say(f"Job {offer.id}: {DROPPED}")
            else:
                client.release(offer, f"the trainer {options.name} was stopped")
                say(f"Job {offer.id}: given back; another trainer or the worker goes on.")
    except LeaseGone:
        say(f"Job {offer.id}: {DROPPED}")
    except BackendRefused:
        raise
    except BackendUnreachable as error:
        if kept:
            offered = "The model is offered until it is taken, also after a restart."
            say(f"Job {offer.id} is trained. {error.message} {offered}")
        else:
            say(f"Job {offer.id}: dropped. {error}")
    except Exception as error:
        say(f"Job {offer.id} failed: {error}")
        known = isinstance(error, LabelloopError)
        failed = known and not isinstance(error, GpuMemoryFull)  # another machine may have more
        _tell(client, offer, str(error) if known else f"{type(error).__name__}: {error}", failed=failed)
        if not known:
            log.exception("training_failed", job=offer.id)


@dataclass(frozen=True)
class _Work:
    """One job of one trainer."""

    client: TrainerClient
    offer: TrainOffer
    options: AgentOptions
    reporter: Reporter
    stopping: Callable[[], bool]

    def ends(self) -> bool:
        """Whether to end: the trainer was stopped, or the lease was lost."""
        return self.stopping() or self.reporter.lost

    def pulled(self, folder: Path) -> FinetuneJob | None:
        """Pull the model and the data; None if it was stopped meanwhile."""
        client, offer = self.client, self.offer
        self.reporter.phase("pulling the model and the images")
        model = folder / (Path(offer.model).name or "model.onnx")
        client.model(offer, model)
        data = client.data(offer)
        self.reporter.note(data_version=data.version)
        (folder / "images").mkdir()
        images: list[LocalImage] = []
        for index, image in enumerate(data.images):
            if self.ends():
                return None
            file = folder / "images" / f"{index}-{Path(image.name).name}"
            try:
                images.append(_local(image, client.image(offer, image.name), file))
            except (LeaseGone, BackendRefused, BackendUnreachable):
                raise
            except (LabelloopError, LabelsMisplaced) as error:
                log.warning("image_left_out", image=image.name, reason=str(error))
        if not any(image.labels for image in images):
            reason = "none of its images with a box can be loaded"
            raise TooLittleToTrain(source=f"Project {offer.project}", reason=reason, least=LEAST_IMAGES)
        recipe = Recipe(minutes=offer.minutes)
        return FinetuneJob(
            model,
            images,
            folder / "trained.onnx",
            recipe,
            source=f"project {offer.project}",
            data_version=data.version,
            layout=offer.layout,
            device=self.options.device,
            checkpoint=checkpoint_file(self.options.home, model, data.version, recipe),
            compare=False,
            folder=folder / "features",
            names=tuple(sorted({label for image in data.images for label in image.labels})),
        )


def _local(image: TrainingImage, content: bytes, file: Path) -> LocalImage:
    """Write an image, with its boxes in its own pixels.

    Raises:
        MediaError: It cannot be decoded.
        LabelsMisplaced: Its boxes are for other pixels.
    """
    file.write_bytes(content)
    loaded = load_image(content, max_side=64, name=image.name)
    across, down = scale_of_labels((image.width, image.height), (loaded.width, loaded.height))
    boxes = tuple((x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in image.boxes)
    return LocalImage(file, image.name, boxes, image.labels)


def _finetune(job: FinetuneJob, reporter: Reporter, stopping: Callable[[], bool]) -> Finetuned:
    return finetune(job, progress=reporter.step, phase=reporter.phase, stopping=stopping)


def _tell(client: TrainerClient, offer: TrainOffer, reason: str, *, failed: bool) -> None:
    try:
        client.release(offer, reason, failed=failed, lost=not failed)
    except LabelloopError as error:
        log.warning("not_given_back", job=offer.id, reason=str(error))


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not stopping() and (left := deadline - time.monotonic()) > 0:
        threading.Event().wait(min(left, 0.2))
