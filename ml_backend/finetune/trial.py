"""Try fine-tuning on a part of few images, and compare it with the refit alone on the others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ml_backend.errors import ModelError
from ml_backend.finetune.pictures import Album
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.scores import refit_score
from ml_backend.finetune.torch_parts import Device
from ml_backend.training.datasets import LocalImage
from ml_backend.training.simulate import hash_order

if TYPE_CHECKING:
    from ml_backend.finetune.convert import TrainableDetector
    from ml_backend.finetune.loop import Progress

# With fewer labelled images there is a trial; more hold out enough to compare by.
TRIAL_BELOW = 60

# Share of the budget that the trial takes. The training on all images goes on from its weights.
SHARE = 0.5

# Share of the images that the trial is evaluated on; more, up to half, until they have `ENOUGH_BOXES`.
EVALUATED, MOST_EVALUATED, ENOUGH_BOXES = 0.25, 0.5, 20

# Boxes that the gain must be worth: AP50 times evaluated boxes, or the squared error of the scores. One or two boxes
# found or missed are chance, and with few boxes fine-tuning is more often worse than the refit. On five images AP50
# misses one gain in six that the squared error shows; where all scores are low, AP50 shows it sooner.
LEAST_BOXES_GAINED = 2.0


class TrainingStopped(Exception):
    """The training was asked to end; its text says why the checkpoint could not be written, if it could not."""


class NoTrial(Exception):
    """A trial is due, but there is nothing to compare with; its text says why."""


@dataclass(frozen=True)
class Trial:
    """AP50 of both ways on images that neither was trained on.

    Attributes:
        refit: Of the refit upon the parent.
        tuned: Of the refit upon the fine-tuned parent, which is what a project is served.
        images: Number of evaluated images.
        boxes: Number of boxes on them; 0 where a trainer of an earlier version did not say.
        gained: By how much the squared error of the scores is less, in boxes (`scores.squared_error`); 0 where a
            trainer of an earlier version did not say.
    """

    refit: float
    tuned: float
    images: int
    boxes: int = 0
    gained: float = 0.0

    @property
    def least(self) -> float:
        """AP50 from which fine-tuning passes."""
        return self.refit + (LEAST_BOXES_GAINED / self.boxes if self.boxes else 0.0)

    @property
    def passed(self) -> bool:
        """Whether fine-tuning is better by more than chance, by AP50 or by the squared error of the scores."""
        return self.tuned >= self.least or self.gained >= LEAST_BOXES_GAINED

    @property
    def reason(self) -> str:
        """The figures in words."""
        on = f"{self.images} images with {self.boxes} boxes" if self.boxes else f"{self.images} images"
        words = f"AP50 {self.tuned:.3f} in a trial on {on} when refitted, {self.refit:.3f} by the refit alone"
        if self.gained >= LEAST_BOXES_GAINED:
            words += f"; the squared error of its scores is less by {self.gained:.1f} boxes"
        return f"{words}; a gain worth {LEAST_BOXES_GAINED:.0f} boxes is needed" if self._within_chance else words

    @property
    def _within_chance(self) -> bool:
        """Whether it is better, but by chance perhaps."""
        return not self.passed and self.tuned > self.refit


@dataclass(frozen=True)
class TrialJob:
    """What to try; see `run.FinetuneJob`.

    Attributes:
        detector: The detector. Its parameters are those of the trial afterwards.
    """

    model: Path
    detector: TrainableDetector
    images: Sequence[LocalImage]
    recipe: Recipe
    layout: str
    device: Device
    folder: Path
    checkpoint: Path | None


def is_due(images: Sequence[LocalImage], recipe: Recipe) -> bool:
    """Whether images are so few that fine-tuning may be worse than the refit. Never with a fixed number of steps."""
    return not recipe.steps and len(images) < TRIAL_BELOW


def hold_out(images: Sequence[LocalImage], *, seed: int) -> tuple[list[LocalImage], list[LocalImage]]:
    """Split images into (trained on, evaluated): a quarter is evaluated, or as many as have enough boxes, at most half.

    With a quarter the trial is close to the training on all images. It is pessimistic still, because fine-tuning gains
    more from further images than a refit.
    """
    ordered = hash_order(images, seed=seed)
    count = max(1, round(EVALUATED * len(ordered)))
    while count < int(MOST_EVALUATED * len(ordered)) and _boxes(ordered[:count]) < ENOUGH_BOXES:
        count += 1
    return ordered[count:], ordered[:count]


def run_trial(
    job: TrialJob,
    *,
    progress: Callable[[Progress], None],
    stopping: Callable[[], bool],
    clock: Callable[[], float],
) -> Trial:
    """Train and refit on a part of the images, and evaluate on the others.

    Raises:
        NoTrial: A part has no box, or the model cannot be refitted.
        TrainingStopped: `stopping` was set; the checkpoint is written.
        NotTrainable: The model cannot be trained.
    """
    rest, evaluated = hold_out(job.images, seed=job.recipe.seed)
    if not _boxes(rest) or not _boxes(evaluated):
        part = "held out" if _boxes(rest) else "trained on"
        raise NoTrial(f"no trial against the refit: the images {part} in it have no box; label more images")
    try:
        refit = refit_score(job.model, rest, evaluated, layout=job.layout, folder=job.folder)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "trial.onnx"
            _train(job, rest, file, progress=progress, stopping=stopping, clock=clock)
            layout = job.detector.detector.layout
            tuned = refit_score(file, rest, evaluated, layout=layout, folder=Path(scratch))
    except ModelError as error:
        raise NoTrial(f"no trial against the refit: {error.message}") from error
    trial = Trial(refit.ap50, tuned.ap50, len(evaluated), _boxes(evaluated), refit.error - tuned.error)
    if job.checkpoint is not None:
        with suppress(OSError):  # the disk is full: a training that is stopped makes the trial again
            job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            trial_file(job.checkpoint).write_text(json.dumps(asdict(trial)), encoding="utf-8")
    return trial


def trial_file(checkpoint: Path) -> Path:
    """Where the figures of a trial that has ended are kept."""
    return checkpoint.with_suffix(".trial.json")


def read_trial(checkpoint: Path | None) -> Trial | None:
    """The figures of a trial that has ended."""
    if checkpoint is None or not trial_file(checkpoint).is_file():
        return None
    try:
        return Trial(**json.loads(trial_file(checkpoint).read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # half a file: the trial is made again
        return None


def trial_recipe(recipe: Recipe, images: Sequence[LocalImage]) -> Recipe:
    """The recipe of the trial on images."""
    return replace(recipe, minutes=recipe.minutes * SHARE).for_boxes(_boxes(images))


def recipe_after_trial(recipe: Recipe, images: Sequence[LocalImage]) -> Recipe:
    """The recipe of the training on all images that goes on from the trial, whose class layers are trained."""
    return replace(recipe, minutes=recipe.minutes * (1 - SHARE), probe=0.0).for_boxes(_boxes(images))


def _train(
    job: TrialJob,
    images: Sequence[LocalImage],
    file: Path,
    *,
    progress: Callable[[Progress], None],
    stopping: Callable[[], bool],
    clock: Callable[[], float],
) -> None:
    """Train on images, and write the model.

    Raises:
        TrainingStopped, NotTrainable: See `run_trial`.
    """
    from ml_backend.finetune.convert import save_model, trained_model
    from ml_backend.finetune.loop import Trainer

    detector, recipe = job.detector, trial_recipe(job.recipe, images)
    album = Album(images, detector.names, detector.detector.spec, side=recipe.augment.scale[1])
    trainer = Trainer(detector, album, None, recipe, device=job.device, checkpoint=job.checkpoint, clock=clock)

    def watched(state: Progress) -> None:
        progress(replace(state, share=SHARE * state.share))
        if stopping():
            trainer.stop()

    training = trainer.train(watched)
    if training.ended == "stopped":
        raise TrainingStopped(training.unsaved)
    model, _ = trained_model(detector, training.state, path=job.model)
    save_model(model, file)


def _boxes(images: Sequence[LocalImage]) -> int:
    return sum(len(image.labels) for image in images)
