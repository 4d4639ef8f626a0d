"""Fine-tune the base model of a project on its labelled tasks, and publish it through the gate of every candidate."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from labelloop.service.media import MediaError
from labelloop.service.scratch import scratch_folder
from ml_backend.finetune.checkpoints import checkpoint_file
from ml_backend.finetune.errors import TooLittleToTrain
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.run import LEAST_IMAGES, Finetuned, FinetuneJob, finetune
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.external_models import admit
from ml_backend.learning.evaluator import ENOUGH_BOXES, ENOUGH_PHOTOS
from ml_backend.learning.events import activation_events
from ml_backend.learning.features import boxes_on_image
from ml_backend.learning.store.annotations import NotConnectedToLearning
from ml_backend.policy import read_learning_policy
from ml_backend.serving import activation
from ml_backend.serving.active_versions import read_pointer, remove_from_history
from ml_backend.training.datasets import LocalImage

if TYPE_CHECKING:
    from ml_backend.finetune.loop import Device, Progress

# Value of `metrics["trainer"]` of its versions.
TRAINER = "labelloop train"

# Source of its runs on the learning page.
SOURCE = "train"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ProjectTraining:
    """What came of a project's training.

    Attributes:
        tuned: The training; None where it was stopped.
        version: The version that was added; empty where it was stopped.
        published: Whether it is served now.
        reason: Why it is, or why not.
        notes: Further facts, such as images that could not be loaded.
    """

    tuned: Finetuned
    version: str = ""
    published: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()


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
) -> ProjectTraining:
    """Train on a project's labelled tasks, judge the result on its held-out tasks, and serve it if it passes.

    The version is a new base: a refit upon it is enqueued for the worker. Tasks that are held out for evaluation are
    never trained on; with too few of them nothing can judge the result, and it is not served by itself.

    Args:
        context: Dependencies of learning.
        project: The project.
        recipe: Options of the training.
        device: Where to compute.
        fresh: Whether to ignore the checkpoint of a stopped training.
        progress: Called after every step.
        phase: Called with the name of each phase.
        stopping: Whether to write the checkpoint and end.

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
        tuned = finetune(job, progress=progress, phase=phase, stopping=stopping)
        if tuned.stopped:
            return ProjectTraining(tuned, notes=tuple(notes))
        phase("publishing")
        return _publish(context, project, job, tuned, notes)


def _publish(
    context: LearningContext, project: int, job: FinetuneJob, tuned: Finetuned, notes: Sequence[str]
) -> ProjectTraining:
    """Add the version, judge it like an external model, and activate it if it passes."""
    settings = context.settings
    served = context.base_models.served(project)
    metrics = {"trainer": TRAINER, "tasks": len(job.images), "data_version": job.data_version}
    manifest = context.base_models.registry.add(
        job.out,
        metrics=metrics | {f"ap50_{name}": round(score.ap50, 4) for name, score in tuned.scores.items()},
        parent=served.version,
        project=str(project),
        note=f"fine-tuned on {len(job.images)} images in {tuned.training.seconds / 60:.1f} minutes",
    )
    _remove_old(context, project, keep=manifest.version)
    if tuned.crossed is not None and not tuned.crossed.passed:
        reason = f"{tuned.crossed.reason}: the refit stays. Label more images"
        return ProjectTraining(tuned, manifest.version, False, reason, tuple(notes))
    boxes = sum(len(image.labels) for image in job.test)
    photos = sum(bool(image.labels) for image in job.test)
    if photos < ENOUGH_PHOTOS or boxes < ENOUGH_BOXES:
        reason = (
            f"too few held-out tasks to judge it: {photos} images with {boxes} boxes, and {ENOUGH_PHOTOS} with "
            f"{ENOUGH_BOXES} are needed. To serve it anyway: labelloop models activate {manifest.version} "
            f"--project {project}"
        )
        return ProjectTraining(tuned, manifest.version, False, reason, tuple(notes))
    verdict = admit(context, project, manifest.version, source=SOURCE, seconds=tuned.training.seconds).verdict
    if not verdict.passed:
        return ProjectTraining(tuned, manifest.version, False, verdict.reason, tuple(notes))
    done = activation.activate(manifest.version, settings=settings, project=project, studio=context.studio, tried=True)
    if read_learning_policy(settings.home, project).learn:
        for event in activation_events(project, base=True):
            context.enqueue(event)
    return ProjectTraining(tuned, manifest.version, True, verdict.reason, (*notes, *done.notes))


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
