"""Cross-validate fine-tuning against the refit alone, where too few images are held out to compare them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from ml_backend.errors import ModelError
from ml_backend.finetune.pictures import Album
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.scores import refit_score
from ml_backend.training.datasets import LocalImage
from ml_backend.training.simulate import hash_order

if TYPE_CHECKING:
    from ml_backend.finetune.loop import Device, Progress

# Fewer labelled images than this are cross-validated; more hold out enough to compare by.
CROSS_BELOW = 60

# Folds, and the share of the budget that all of them take.
FOLDS, SHARE = 2, 0.5

log = structlog.get_logger(__name__)


class TrainingStopped(Exception):
    """The training was asked to end; folds that are done are kept."""


@dataclass(frozen=True)
class CrossValidation:
    """AP50 of both ways on images that neither was trained on.

    Attributes:
        refit: Mean over the folds of the refit upon the parent.
        tuned: The same of the refit upon the fine-tuned parent, which is what a project is served.
        images: Number of images.
    """

    refit: float
    tuned: float
    images: int

    @property
    def passed(self) -> bool:
        """Whether fine-tuning is at least as good. A model that costs minutes gets no tolerance."""
        return self.tuned >= self.refit

    @property
    def reason(self) -> str:
        """The figures in words."""
        return (
            f"AP50 {self.tuned:.3f} by cross-validation on {self.images} images when refitted, {self.refit:.3f} by the "
            f"refit without fine-tuning"
        )


@dataclass(frozen=True)
class FoldJob:
    """What to cross-validate; see `run.FinetuneJob`."""

    model: Path
    images: Sequence[LocalImage]
    names: tuple[str, ...]
    recipe: Recipe
    layout: str
    device: Device
    folder: Path
    checkpoint: Path | None


def is_due(images: Sequence[LocalImage], recipe: Recipe) -> bool:
    """Whether images are so few that fine-tuning may be worse than the refit. Never with a fixed number of steps."""
    return not recipe.steps and len(images) < CROSS_BELOW


def cross_validate(
    job: FoldJob,
    *,
    progress: Callable[[Progress], None],
    stopping: Callable[[], bool],
    clock: Callable[[], float],
) -> CrossValidation | None:
    """Train and refit on each half of the images, and evaluate on the other.

    Returns:
        The figures; None where the model cannot be refitted, so that there is nothing to compare with.

    Raises:
        TrainingStopped: `stopping` was set.
        NotTrainable: The model cannot be trained.
    """
    ordered = hash_order(job.images, seed=job.recipe.seed)
    done = _read(job)
    try:
        for number in range(len(done), FOLDS):
            held = ordered[number::FOLDS]
            rest = [image for image in ordered if image not in held]
            if not any(image.labels for image in held) or not any(image.labels for image in rest):
                return None
            refit = refit_score(job.model, rest, held, layout=job.layout, folder=job.folder).ap50
            with tempfile.TemporaryDirectory() as scratch:
                tuned, layout = _tuned(
                    job, rest, Path(scratch), progress=progress, stopping=stopping, clock=clock, number=number
                )
                upon = refit_score(tuned, rest, held, layout=layout, folder=Path(scratch)).ap50
            done.append((refit, upon))
            _write(job, done)
    except ModelError as error:
        log.info("not_cross_validated", reason=error.message)
        return None
    refits, tuned_scores = zip(*done, strict=True)
    return CrossValidation(float(np.mean(refits)), float(np.mean(tuned_scores)), len(ordered))


def folds_file(checkpoint: Path) -> Path:
    """Where the figures of folds that are done are kept."""
    return checkpoint.with_suffix(".folds.json")


def _tuned(
    job: FoldJob,
    images: Sequence[LocalImage],
    scratch: Path,
    *,
    progress: Callable[[Progress], None],
    stopping: Callable[[], bool],
    clock: Callable[[], float],
    number: int,
) -> tuple[Path, str]:
    """Train on a fold; (the model's file, its layout)."""
    from ml_backend.finetune.convert import open_trainable, save_model, trained_model
    from ml_backend.finetune.loop import Trainer

    recipe = replace(job.recipe, minutes=job.recipe.minutes * SHARE / FOLDS)
    recipe = recipe.for_boxes(sum(len(image.labels) for image in images))
    detector = open_trainable(job.model, job.names, layout=job.layout, folder=scratch)
    album = Album(images, job.names, detector.detector.spec, side=recipe.augment.scale[1])
    trainer = Trainer(detector, album, None, recipe, device=job.device, clock=clock)

    def watched(state: Progress) -> None:
        progress(replace(state, share=SHARE * (number + state.share) / FOLDS))
        if stopping():
            trainer.stop()

    training = trainer.train(watched)
    if training.ended == "stopped":
        raise TrainingStopped
    model, _ = trained_model(detector, training.state, path=job.model)
    file = scratch / "fold.onnx"
    save_model(model, file)
    return file, detector.detector.layout


def _key(job: FoldJob) -> str:
    return repr((asdict(job.recipe), job.names, len(job.images)))


def _read(job: FoldJob) -> list[tuple[float, float]]:
    if job.checkpoint is None or not folds_file(job.checkpoint).is_file():
        return []
    try:
        content = json.loads(folds_file(job.checkpoint).read_text(encoding="utf-8"))
        return [(float(a), float(b)) for a, b in content["folds"]] if content["key"] == _key(job) else []
    except (ValueError, KeyError, TypeError):  # half a file: it is written again
        return []


def _write(job: FoldJob, done: Sequence[tuple[float, float]]) -> None:
    if job.checkpoint is not None:
        job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        folds_file(job.checkpoint).write_text(json.dumps({"key": _key(job), "folds": done}), encoding="utf-8")
