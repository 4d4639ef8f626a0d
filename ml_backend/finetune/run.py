"""Fine-tune a model on labelled images: open, train, write back, and compare with its parent and with the refit."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_backend.catalogue.entries import CATALOGUE
from ml_backend.errors import ModelError
from ml_backend.finetune.augment import MIN_SIDE
from ml_backend.finetune.errors import ObjectsTooSmall, TooLittleToTrain
from ml_backend.finetune.pictures import Album, decodable, images_digest, split
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.scores import Score, evaluate, refit_score
from ml_backend.finetune.torch_parts import Device, choose_device, require_torch
from ml_backend.finetune.trial import (
    SHARE,
    NoTrial,
    TrainingStopped,
    Trial,
    TrialJob,
    read_trial,
    recipe_after_trial,
    run_trial,
    trial_file,
)
from ml_backend.finetune.trial import is_due as trial_is_due
from ml_backend.training.datasets import LocalImage

if TYPE_CHECKING:
    from ml_backend.detection.preprocess import InputSpec
    from ml_backend.finetune.convert import TrainableDetector
    from ml_backend.finetune.loop import Progress, TrainingResult

# Metadata key of a fine-tuned model, JSON.
TRAINED_KEY = "labelloop.train"

# Fewest labelled images with a box.
LEAST_IMAGES = 4

# Median object side in pixels of the network's input below which little is learned: the stride of the finest level.
SMALL_PX = 8.0

# Most test images whose AP50 the curve shows, where none are held out to decide.
MAX_SHOWN = 16


@dataclass(frozen=True)
class FinetuneJob:
    """What to train.

    Attributes:
        model: The ONNX detector.
        images: Labelled images.
        out: The file to write.
        recipe: Options.
        source: Where the images come from, for the metadata.
        data_version: Their version, for the metadata.
        layout: Forced layout of the model; empty: recognised.
        test: Images that nothing is trained on, for the final table; empty: the held-out images of `images`.
        device: Where to compute.
        checkpoint: File for the training's state; None: none.
        compare: Whether the refit of the last layer is evaluated too.
        folder: Where features of the refit are cached.
        names: Its classes, in their order; empty: those of the images, sorted.
    """

    model: Path
    images: Sequence[LocalImage]
    out: Path
    recipe: Recipe
    source: str = ""
    data_version: str = ""
    layout: str = ""
    test: Sequence[LocalImage] = ()
    device: Device = "auto"
    checkpoint: Path | None = None
    compare: bool = True
    folder: Path = Path()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finetuned:
    """What a training gave.

    Attributes:
        training: The training itself.
        scores: Model (parent; refit; fine-tuned; fine-tuned, refitted) -> its score on the evaluated images; empty
            without such images.
        evaluated: Number of evaluated images.
        evaluated_boxes: Number of boxes on them.
        trained: Number of images trained on.
        names: Class names.
        bad: Images that could not be decoded.
        difference: Largest difference between torch and ONNX Runtime after training.
        notes: Further facts for the user.
        trial: Fine-tuning against the refit on a part of few images; None with more, or where it is impossible.
        untried: Why a trial that is due was impossible.
    """

    training: TrainingResult
    scores: dict[str, Score]
    evaluated: int
    evaluated_boxes: int
    trained: int
    names: tuple[str, ...]
    bad: tuple[str, ...]
    difference: float
    notes: tuple[str, ...]
    trial: Trial | None = None
    untried: str = ""

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before its end; no model was written."""
        return self.training.ended == "stopped"


def finetune(
    job: FinetuneJob,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    phase: Callable[[str], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Finetuned:
    """Train a model and write it.

    Args:
        job: What to train.
        progress: Called after every step.
        phase: Called with the name of each phase.
        stopping: Whether to write the checkpoint and end; no model is written then.
        clock: Of the budget, in seconds.

    Raises:
        TorchMissing: The extra is not installed.
        GpuMissing, GpuMemoryFull: See there.
        NotTrainable: The model cannot be trained.
        TooLittleToTrain: There are too few labelled images.
        ObjectsTooSmall: No object is large enough at the network's input.
        ModelError: The model cannot be loaded.
    """
    require_torch()
    job = replace(job, device=choose_device(job.device))
    from ml_backend.finetune.convert import open_trainable
    from ml_backend.finetune.loop import Trainer, TrainingResult

    names = job.names or tuple(sorted({label for image in job.images for label in image.labels}))
    with tempfile.TemporaryDirectory() as scratch:
        phase("opening the model")
        detector = open_trainable(job.model, names, layout=job.layout, folder=Path(scratch))
        phase("decoding images")
        good, test, bad, small = _decoded(job, names, detector.detector.spec)
        trained, held_out = split(good, seed=job.recipe.seed, only_to_decide=bool(test))
        base = Finetuned(
            TrainingResult({}, 0, 0, 0.0, "stopped", (), None), {}, 0, 0, len(trained), names, tuple(bad),
            detector.difference, (),
        )  # fmt: skip
        recipe, trial, untried = job.recipe, None, ""
        if trial_is_due(trained, recipe):
            try:
                trial = _trial(job, detector, trained, progress=progress, phase=phase, stopping=stopping, clock=clock)
            except TrainingStopped as stopped:
                return replace(base, training=replace(base.training, unsaved=str(stopped)))
            except NoTrial as error:
                untried = str(error)
        offset = SHARE if trial else 0.0
        recipe = (
            recipe_after_trial(recipe, trained)
            if trial
            else recipe.for_boxes(sum(len(image.labels) for image in trained))
        )
        album = Album(trained, names, detector.detector.spec, side=recipe.augment.scale[1])
        shown = held_out or test[:MAX_SHOWN]
        judge = Album(shown, names, detector.detector.spec, side=1.0) if _any_labelled(shown) else None
        trainer = Trainer(
            detector, album, judge, recipe, device=job.device, checkpoint=job.checkpoint, clock=clock,
            decides=bool(held_out),
        )  # fmt: skip
        notes = [small] if small else []
        notes += [f"resumed after {trainer.resumed} steps"] if trainer.resumed else []

        def watched(state: Progress) -> None:
            progress(replace(state, share=offset + (1 - offset) * state.share))
            if stopping():
                trainer.stop()

        phase("training")
        training = trainer.train(watched)
        if training.ended == "stopped":
            return replace(base, training=training, notes=tuple(notes))
        evaluated = test or held_out
        facts = _facts(job, recipe, training, trained=len(trained), names=names)
        scores, difference = _written(
            job, detector, training, facts=facts, images=(trained, evaluated), trial=trial, phase=phase, notes=notes
        )
    if job.checkpoint is not None:
        job.checkpoint.unlink(missing_ok=True)
        trial_file(job.checkpoint).unlink(missing_ok=True)
    if untried:
        notes.append(untried)
    if trial:
        notes.append(f"{trial.reason}{'' if trial.passed else ': the refit stays the better choice'}")
    boxes = sum(len(image.labels) for image in evaluated)
    return replace(
        base, training=training, scores=scores, evaluated=len(evaluated), evaluated_boxes=boxes,
        difference=difference, notes=tuple(notes), trial=trial, untried=untried,
    )  # fmt: skip


def _trial(
    job: FinetuneJob,
    detector: TrainableDetector,
    images: Sequence[LocalImage],
    *,
    progress: Callable[[Progress], None],
    phase: Callable[[str], None],
    stopping: Callable[[], bool],
    clock: Callable[[], float],
) -> Trial:
    """Make the trial, unless a checkpoint of the training after it says that it was made; see `trial.run_trial`."""
    from ml_backend.finetune.loop import read_checkpoint

    done = read_trial(job.checkpoint)
    upon = recipe_after_trial(job.recipe, images)
    if done is not None and read_checkpoint(job.checkpoint, upon, detector.names, images_digest(images)):
        return done
    phase("trying it on a part of the images")
    trial_job = TrialJob(job.model, detector, images, job.recipe, job.layout, job.device, job.folder, job.checkpoint)
    return run_trial(trial_job, progress=progress, stopping=stopping, clock=clock)


def _decoded(
    job: FinetuneJob, names: Sequence[str], spec: InputSpec
) -> tuple[list[LocalImage], list[LocalImage], list[str], str]:
    """(images to train on, images to test on, messages for those that cannot be decoded, a note on small objects).

    Raises:
        TooLittleToTrain: Too few of them have a box.
        ObjectsTooSmall: No object is large enough.
    """
    good, bad, sides = decodable(Album(job.images, names, spec, side=1.0, keep=False), job.images)
    test, more, _ = decodable(Album(job.test, names, spec, side=1.0, keep=False), job.test)
    labelled, source = sum(bool(image.labels) for image in good), job.source or "The data set"
    if labelled < LEAST_IMAGES:
        reason = f"it has {labelled} images with a box that can be decoded"
        raise TooLittleToTrain(source=source, reason=reason, least=LEAST_IMAGES)
    median = float(np.median(np.sqrt(sides.prod(axis=1))))
    size = f"its median object has {median:.1f} px at the input of {spec.width} x {spec.height} px"
    if (sides.min(axis=1) * job.recipe.augment.scale[1] < MIN_SIDE).all():
        raise ObjectsTooSmall(source=source, reason=f"{size}, and every one is narrower than {MIN_SIDE:.0f} px there")
    note = f"{size}: little can be learned. {ObjectsTooSmall.fix}" if median < SMALL_PX else ""
    return good, test, bad + more, f"{note[:1].upper()}{note[1:]}"


def _written(
    job: FinetuneJob,
    detector: TrainableDetector,
    training: TrainingResult,
    *,
    facts: dict[str, Any],
    images: tuple[Sequence[LocalImage], Sequence[LocalImage]],
    trial: Trial | None,
    phase: Callable[[str], None],
    notes: list[str],
) -> tuple[dict[str, Score], float]:
    """Write the model, and compare it on images (trained on, evaluated): (scores, difference to ONNX Runtime)."""
    from ml_backend.finetune.convert import save_model, trained_model

    phase("writing the model")
    model, difference = trained_model(detector, training.state, path=job.model)
    save_model(model, job.out, **facts)
    phase("comparing with the parent and the refit")
    scores = _compare(job, *images, detector.detector.layout, notes)
    if trial:
        facts[TRAINED_KEY]["trial"] = asdict(trial)
    facts[TRAINED_KEY]["figures"] = {name: round(score.ap50, 4) for name, score in scores.items()}
    facts[TRAINED_KEY]["figures_on"] = {"images": len(images[1]), "test": bool(job.test)}
    save_model(model, job.out, **facts)
    return scores, difference


def _any_labelled(images: Sequence[LocalImage]) -> bool:
    return any(image.labels for image in images)


def _compare(
    job: FinetuneJob, trained: Sequence[LocalImage], evaluated: Sequence[LocalImage], layout: str, notes: list[str]
) -> dict[str, Score]:
    """Score the parent, the refit, the result and the refit upon it, which is what a project is served."""
    if not _any_labelled(evaluated):
        return {}
    scores = {"parent": evaluate(job.model, evaluated, layout=job.layout)}
    models = [("refit", job.model, job.layout), ("fine-tuned, refitted", job.out, layout)] if job.compare else []
    refits: dict[str, Score] = {}
    try:
        for name, path, form in models:
            refits[name] = refit_score(path, trained, evaluated, layout=form, folder=job.folder)
    except ModelError as error:
        notes.append(f"no refit to compare with: {error.message}")
    tuned = {"fine-tuned": evaluate(job.out, evaluated, layout=layout)}
    return scores | {name: score for name, score in refits.items() if name == "refit"} | tuned | refits


def _facts(
    job: FinetuneJob, recipe: Recipe, training: TrainingResult, *, trained: int, names: Sequence[str]
) -> dict[str, Any]:
    """Metadata of the written model: where it comes from, and how to train it again."""
    content = job.model.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    licence = licence_of(job.model)
    return {
        TRAINED_KEY: {
            "parent": job.model.name,
            "parent_sha256": digest,
            "parent_licence": licence,
            "data": job.source,
            "data_version": job.data_version,
            "images": trained,
            "classes": list(names),
            "recipe": asdict(recipe) | {"steps": training.steps},
            "steps": training.steps,
            "seen": training.seen,
            "ended": training.ended,
            "held_out_ap50": training.best,
        },
        "license": licence,
    }


def licence_of(path: Path) -> str:
    """The licence that a model states in its metadata, or that the catalogue knows; never a guess."""
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    if stated := metadata.get("license") or metadata.get("licence"):
        return str(stated)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for entry in CATALOGUE.values():
        if any(release.sha256 == digest for release in entry.files):
            return entry.licence
    return f"that of its parent {path.name}, which states none"
