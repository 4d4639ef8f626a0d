"""Fine-tune the base model of a project on its labelled tasks, and publish it through the gate of every candidate."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from labelloop.service.media import MediaError
from labelloop.service.scratch import scratch_folder
from labelloop.service.studio import StudioError
from ml_backend.finetune.checkpoints import checkpoint_file
from ml_backend.finetune.classes import set_metadata
from ml_backend.finetune.errors import TooLittleToTrain
from ml_backend.finetune.protocol import TrainProgress
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.returned import with_returned_weights
from ml_backend.finetune.run import LEAST_IMAGES, TRAINED_KEY, Finetuned, FinetuneJob, finetune, licence_of
from ml_backend.finetune.scores import Score
from ml_backend.finetune.trial import Trial
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.acceptance import AcceptanceVerdict
from ml_backend.learning.evaluation.external_models import admit, record_admission
from ml_backend.learning.evaluator import ENOUGH_BOXES, ENOUGH_PHOTOS
from ml_backend.learning.events import activation_events
from ml_backend.learning.features import boxes_on_image
from ml_backend.learning.store.annotations import NotConnectedToLearning
from ml_backend.learning.store.runs import FINETUNED
from ml_backend.learning.training_run import Learner
from ml_backend.policy import read_learning_policy
from ml_backend.serving import activation
from ml_backend.serving.active_versions import read_pointer, remove_from_history
from ml_backend.training.datasets import LocalImage

if TYPE_CHECKING:
    from ml_backend.finetune.loop import Progress
    from ml_backend.finetune.torch_parts import Device

# Value of `metrics["trainer"]` of its versions.
TRAINER = "labelloop train"

SOURCE = FINETUNED

# Attempts to refit upon a new base while the worker publishes refits upon the one before.
MAX_REFITS = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ProjectTraining:
    """What came of a project's training.

    Attributes:
        tuned: The training; None where it was done elsewhere.
        version: The version that was added; empty where it was stopped.
        published: Whether it is served now.
        reason: Why it is, or why not.
        notes: Further facts, such as images that could not be loaded.
    """

    tuned: Finetuned | None
    version: str = ""
    published: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def unsaved(self) -> str:
        """Why the checkpoint of a training that was stopped could not be written; empty where it was."""
        return self.tuned.training.unsaved if self.tuned else ""


def finetune_project(
    context: LearningContext,
    project: int,
    *,
    recipe: Recipe,
    device: Device = "auto",
    fresh: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    phase: Callable[[str], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> ProjectTraining:
    """Train on a project's labelled tasks, judge the result on its held-out tasks, and serve it if it passes.

    The version is a new base: the refit upon it is fitted at once, and both are served in one step. Tasks that are
    held out for evaluation are never trained on; with too few of them nothing can judge the result, and it is not
    served by itself.

    Args:
        context: Dependencies of learning.
        project: The project.
        recipe: Options of the training.
        device: Where to compute.
        fresh: Whether to ignore the checkpoint of a stopped training.
        progress: Called after every step.
        phase: Called with the name of each phase.
        stopping: Whether to write the checkpoint and end.
        clock: Of the budget, in seconds.

    Raises:
        NotConnectedToLearning: The project does not learn.
        TooLittleToTrain: Too few tasks are labelled.
        NotTrainable: The project's model cannot be fine-tuned.
        StudioError, StoreError: Label Studio or the store cannot be reached.
    """
    if context.training_data.project(project) is None:
        raise NotConnectedToLearning(project=project)
    settings = context.settings
    policy = read_learning_policy(settings.home, project)
    phase("reading the project")
    context.sync.sweep(project, config=context.studio.label_config(project), held_out=policy.held_out)
    served = context.base_models.served(project)
    notes: list[str] = []
    with scratch_folder() as scratch:
        taught, held_out = (
            _local_images(context, project, state, scratch / state, notes) for state in ("teaches", "held_out")
        )
        if not any(image.labels for image in taught):
            raise TooLittleToTrain(source=f"Project {project}", reason="no labelled task has a box", least=LEAST_IMAGES)
        digest = hashlib.sha256(repr([(image.name, image.boxes, image.labels) for image in taught]).encode())
        version = digest.hexdigest()[:12]
        job = FinetuneJob(
            served.path,
            taught,
            scratch / f"trained-{len(taught)}.onnx",
            recipe,
            source=f"project {project}",
            data_version=version,
            layout=served.layout,
            test=held_out,
            device=device,
            checkpoint=checkpoint_file(settings.home, served.path, version, recipe, fresh=fresh),
            folder=settings.home / "learn",
        )
        tuned = finetune(job, progress=progress, phase=phase, stopping=stopping, clock=clock)
        if tuned.stopped:
            return ProjectTraining(tuned, notes=tuple(notes))
        phase("publishing")
        candidate = _Candidate(
            job.out, len(taught), version, tuned.training.seconds, scores=tuned.scores, trial=tuned.trial,
            untried=tuned.untried,
        )  # fmt: skip
        added, published, reason, more = _publish(context, project, candidate)
        return ProjectTraining(tuned, added, published, reason, (*notes, *more))


def judge_returned(
    context: LearningContext, project: int, content: bytes, *, base: str, classes: Sequence[str], done: TrainProgress
) -> ProjectTraining:
    """Check the model that a trainer handed back, and publish it through the gate like one that was trained here.

    Args:
        context: Dependencies of learning.
        project: The project.
        content: The file.
        base: The version that the trainer was handed.
        classes: The classes of its data, in their order.
        done: Its last progress.

    Raises:
        ReturnedModelRefused: It is not the model that was handed out with other weights.
        StudioError, StoreError: Label Studio or the store cannot be reached.
    """
    served = context.base_models.served(project)
    if served.base != base:
        reason = f"it was trained on {base or 'another model'}, and the project's base is {served.base} by now"
        return ProjectTraining(None, "", False, reason)
    model = with_returned_weights(served.path, content, classes, layout=served.layout)
    minutes = done.curve[-1][0] if done.curve else 0.0
    trial = Trial(**msgspec.structs.asdict(done.crossed)) if done.crossed else None
    facts = {
        "parent": served.path.name, "parent_sha256": hashlib.sha256(served.path.read_bytes()).hexdigest(),
        "data": f"project {project}", "data_version": done.data_version, "images": done.images,
        "classes": list(classes), "steps": done.step, "seen": done.seen, "ended": done.ended,
        "held_out_ap50": done.best, "device": done.device,
    }  # fmt: skip
    with scratch_folder() as scratch:
        file = scratch / f"trained-{done.images}.onnx"
        set_metadata(model, **{TRAINED_KEY: facts, "license": licence_of(served.path)})
        file.write_bytes(model.SerializeToString())
        candidate = _Candidate(file, done.images, done.data_version, 60 * minutes, trial=trial, untried=done.untried)
        version, published, reason, notes = _publish(context, project, candidate)
        return ProjectTraining(None, version, published, reason, notes)


@dataclass(frozen=True)
class _Candidate:
    """A trained model, to be judged.

    Attributes:
        file: The ONNX file.
        images: Number of images that it was trained on.
        data_version: Version of the data.
        seconds: Duration of the training.
        scores: AP50 by model on the held-out images, where they were compared.
        trial: Fine-tuning against the refit on a part of few images.
        untried: Why a trial that is due was impossible.
    """

    file: Path
    images: int
    data_version: str
    seconds: float
    scores: Mapping[str, Score] = field(default_factory=dict)
    trial: Trial | None = None
    untried: str = ""


def _publish(context: LearningContext, project: int, candidate: _Candidate) -> tuple[str, bool, str, tuple[str, ...]]:
    """Add the version, judge it like an external model, and activate it if it passes.

    Returns:
        The version, whether it is served now, the reason, and notes.
    """
    served = context.base_models.served(project)
    metrics = {"trainer": TRAINER, "tasks": candidate.images, "data_version": candidate.data_version}
    manifest = context.base_models.registry.add(
        candidate.file,
        metrics=metrics | {f"ap50_{name}": round(score.ap50, 4) for name, score in candidate.scores.items()},
        parent=served.version,
        project=str(project),
        note=f"fine-tuned on {candidate.images} images in {candidate.seconds / 60:.1f} minutes",
    )
    version = manifest.version
    _remove_old(context, project, keep=version)
    trial = candidate.trial
    if trial is not None and not trial.passed:
        reason = f"{trial.reason}: the refit stays; label more images"
        verdict = AcceptanceVerdict(False, "cross-validation", reason, trial.tuned, trial.refit)
        return _refused(context, project, version, verdict, candidate, parent=served.version)
    held = [photo for _, _, photos in context.training_data.training_tasks(project, "held_out") for photo in photos]
    boxes, photos = sum(len(photo.labels) for photo in held), sum(bool(photo.labels) for photo in held)
    if trial is None and (photos < ENOUGH_PHOTOS or boxes < ENOUGH_BOXES):
        reason = (
            f"too few held-out tasks to judge it: {photos} images with {boxes} boxes, and {ENOUGH_PHOTOS} with "
            f"{ENOUGH_BOXES} are needed{'; ' * bool(candidate.untried)}{candidate.untried}. To serve it anyway: "
            f"labelloop models activate {version} --project {project}"
        )
        verdict = AcceptanceVerdict(False, "nothing", reason, photos=photos, boxes=boxes)
        return _refused(context, project, version, verdict, candidate, parent=served.version)
    verdict = admit(
        context, project, version, source=SOURCE, seconds=candidate.seconds,
        trial=(trial.tuned, trial.refit) if trial else None, remark=trial.reason if trial else candidate.untried,
    ).verdict  # fmt: skip
    reason = verdict.reason
    if not verdict.passed:
        return version, False, reason, ()
    learns = read_learning_policy(context.settings.home, project).learn
    refitted, notes = _refit(context, project, version) if learns else ("", ())
    if refitted:
        return version, True, reason, notes
    base = context.base_models.served(project).base
    if base != served.base:
        reason = (
            f"it passed, but {base} was activated meanwhile. To serve it instead: labelloop models activate {version} "
            f"--project {project}"
        )
        return version, False, reason, ()
    done = activation.activate(version, settings=context.settings, project=project, studio=context.studio, tried=True)
    if learns:
        for event in activation_events(project, base=True):
            context.enqueue(event)
    return version, True, reason, (*done.notes, *notes)


def _refit(context: LearningContext, project: int, version: str) -> tuple[str, tuple[str, ...]]:
    """Serve the refit upon a version that passed: its own last layer is worse, so it is never served in between.

    A refit upon the same base that the worker publishes meanwhile is replaced in the next attempt.

    Returns:
        The served refit, empty if there is none; notes.
    """
    reason = ""
    base = context.base_models.served(project).base
    for _ in range(MAX_REFITS):
        before = context.base_models.served(project)
        if before.base != base:
            break
        try:
            run = Learner(context).refit_upon(project, version)
        except StudioError as error:  # the worker refits upon it when Label Studio answers again
            reason = str(error)
            break
        if run is not None and run.verdict == "published":
            return run.version, (f"served as {run.version}, refitted upon it",)
        reason = run.reason if run is not None else ""
        if context.base_models.served(project).version == before.version:
            break
    return "", (f"served without a refit: {reason}",) if reason else ()


def _refused(
    context: LearningContext,
    project: int,
    version: str,
    verdict: AcceptanceVerdict,
    candidate: _Candidate,
    *,
    parent: str,
) -> tuple[str, bool, str, tuple[str, ...]]:
    """Record a verdict without another evaluation."""
    record_admission(
        context, project, version, verdict, source=SOURCE, started=time.time(), seconds=candidate.seconds, parent=parent
    )
    return version, False, verdict.reason, ()


def _remove_old(context: LearningContext, project: int, *, keep: str) -> None:
    """Delete the oldest fine-tuned versions of a project beyond the policy's `keep`; none that is served or a base."""
    registry, versions = context.base_models.registry, context.base_models.registry.versions()
    bases = {str(manifest.metrics.get("base_pointer", "")) for manifest in versions}
    in_use = {keep, *bases, *read_pointer(registry.store)[0].used()}
    tuned = [
        manifest.version
        for manifest in versions
        if manifest.metrics.get("trainer") == TRAINER and manifest.project == str(project)
    ]
    most = read_learning_policy(context.settings.home, project).keep
    gone = [version for version in tuned[: max(len(tuned) - most, 0)] if version not in in_use]
    if gone:
        remove_from_history(registry.store, frozenset(gone), str(project))
    for version in gone:
        registry.remove(version)
        log.info("old_version_removed", project=project, version=version)


def _local_images(
    context: LearningContext, project: int, state: str, folder: Path, notes: list[str]
) -> list[LocalImage]:
    """The labelled images of tasks as files: links to local files and to the cache, which may evict its own."""
    folder.mkdir(parents=True)
    images: list[LocalImage] = []
    for task, _, photos in context.training_data.training_tasks(project, state):
        for index, photo in enumerate(photos):
            try:
                source = context.media.path(photo.url, task_id=task)
                width, height = context.media.size(photo.url, task_id=task)
            except MediaError as error:
                notes.append(f"left out: task {task}, {error}")
                continue
            file = folder / f"{task}-{index}{source.suffix}"
            try:
                file.hardlink_to(source)
            except OSError:  # another file system
                shutil.copyfile(source, file)
            images.append(_local_image(photo, file, width, height))
    return images


def _local_image(photo: LabelledImage, file: Path, width: int, height: int) -> LocalImage:
    boxes = tuple((box[0], box[1], box[2], box[3]) for box in boxes_on_image(photo, width, height).tolist())
    return LocalImage(file, file.name, boxes, photo.labels)
