"""Pre-label a whole project: predict every task in this process and import the predictions in bulk (resumable)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.studio.task import Task
from labelloop.service.media import DecodedImage, MediaError
from labelloop.service.memory_budget import never_abandoned
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.studio.errors import PredictionsDropped
from ml_backend.inference.detector import Detector
from ml_backend.predict.control_support import ModelOutputs, NotServed, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import ImageSource, Predictor
from ml_backend.predict.protocol import FailedPrediction, ProjectOptions, TaskPrediction
from ml_backend.segmentation.box_segmenter import BoxSegmenter

# Tasks predicted and then imported with one request; a killed process repeats at most one chunk.
CHUNK = 25

# Time budget of one chunk in seconds: large, because no request waits for it.
BUDGET_S = 3600.0

# Tasks as Label Studio sends them to `/predict`.
Chunk = list[dict[str, Any]]

# Called after each chunk with (tasks done, tasks in total).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageFailure:
    """An image that could not be used, or a task without one; the next run retries it."""

    task: int | None
    url: str
    reason: str


@dataclass(frozen=True)
class PrelabelReport:
    """The result of pre-labelling a project.

    Attributes:
        version: The model version of the predictions.
        tasks: Tasks of the project.
        already_done: Tasks that already had a prediction of this version.
        imported: Predictions imported by this run.
        boxes: Regions in them.
        failures: Images that could not be used.
        deleted: Tasks that were deleted during the run.
        stopped: Whether it was stopped before the end.
    """

    version: str
    tasks: int
    already_done: int
    imported: int
    boxes: int
    failures: tuple[ImageFailure, ...]
    deleted: int
    stopped: bool


@dataclass(frozen=True)
class ChunkResult:
    """Predictions of a chunk of tasks: one entry per task, and the images that could not be used."""

    tasks: Chunk
    entries: tuple[TaskPrediction | FailedPrediction, ...]
    failures: tuple[ImageFailure, ...]


# Predicts chunks lazily; results may come back in any order.
ChunkPredictor = Callable[[Iterator[Chunk]], Iterator[ChunkResult]]


class FailureRecorder:
    """An image source that records which images could not be loaded, and why."""

    def __init__(self, photos: ImageSource) -> None:
        self._photos = photos
        self._bad: list[ImageFailure] = []

    def drain(self) -> tuple[ImageFailure, ...]:
        """Return and clear the recorded failures."""
        bad, self._bad = self._bad, []
        return tuple(bad)

    def photo(
        self,
        url: str,
        *,
        task_id: int | None = None,
        max_side: int | None = None,
        abandoned: Callable[[], bool] = never_abandoned,
    ) -> DecodedImage:
        try:
            return self._photos.photo(url, task_id=task_id, max_side=max_side, abandoned=abandoned)
        except MediaError as error:
            self._bad.append(ImageFailure(task_id, url.partition("?")[0][:200], str(error)))
            raise


def prelabel(
    studio: Studio,
    project: int,
    *,
    detector: Detector,
    photos: ImageSource,
    score_threshold: float,
    options: ProjectOptions,
    every: bool = False,
    progress: Progress = lambda _done, _total: None,
    stop: Callable[[], bool] = lambda: False,
    predict_chunks: ChunkPredictor | None = None,
    segmenter: BoxSegmenter | None = None,
) -> PrelabelReport:
    """Predict every task of a project that has no prediction of this version yet.

    Resumable: predictions that were imported by an earlier run are found in Label Studio and skipped.

    Args:
        studio: Label Studio.
        project: The project.
        detector: The model; its version is stored with the predictions.
        photos: Source of the images.
        score_threshold: Lowest score of a region.
        options: Options of the project's connection.
        every: Also replace existing predictions of this version.
        progress: Called after each chunk.
        stop: Called before each chunk; True ends the run.
        segmenter: Segments boxes for polygons and masks; None: the one included in labelloop.
        predict_chunks: Predicts the chunks instead of this process; see `ml_backend.bulk.ray_cluster`.

    Raises:
        NotServed: No control of the project fits the model's outputs.
        StudioError: Label Studio cannot be reached.
        ModelBroken: Inference failed.
    """
    config = studio.label_config(project)
    targets = find_targets(
        config,
        detector.names.names,
        provides=detector.provides,
        keypoint_names=detector.keypoint_names,
        controls=options.controls,
        answers=detector.answers,
    )
    if not any(target.is_filled for target in targets):
        raise NotServed(
            project, "pre-labelled", controls_of(config, ModelOutputs.of(detector), options=options.controls)
        )
    recorder = FailureRecorder(photos)
    predictor = Predictor(recorder, score_threshold=score_threshold, budget_s=BUDGET_S, segmenter=segmenter)
    tasks, old = _tasks(studio, project, detector.version)
    wanted = [task for task in tasks if every or task["id"] not in old]
    already_done, imported, boxes, deleted, done = len(tasks) - len(wanted), 0, 0, 0, 0
    failures: list[ImageFailure] = []
    stopped = False

    def chunks() -> Iterator[Chunk]:
        nonlocal stopped
        for chunk in _chunks(wanted):
            if stop():
                stopped = True
                return
            yield chunk

    def predict_here(chunks: Iterator[Chunk]) -> Iterator[ChunkResult]:
        for chunk in chunks:
            entries = predictor.predict(chunk, detector=detector, targets=targets, options=options)
            yield ChunkResult(chunk, tuple(entries), recorder.drain())

    progress(already_done, len(tasks))
    for result in (predict_chunks or predict_here)(chunks()):
        failures += result.failures
        failed = {failure.task for failure in result.failures}
        failures += [
            ImageFailure(task["id"], "", entry.error)
            for task, entry in zip(result.tasks, result.entries, strict=True)
            if isinstance(entry, FailedPrediction) and task["id"] not in failed
        ]
        rows = [
            {"task": task["id"], "result": entry.result, "score": entry.score, "model_version": detector.version}
            for task, entry in zip(result.tasks, result.entries, strict=True)
            # A task without any loaded image is left for the next run.
            if isinstance(entry, TaskPrediction) and (entry.result or task["id"] not in failed)
        ]
        stored = _import(studio, project, rows, version=detector.version, old=old)
        for task_id in {int(row["task"]) for row in stored} & old.keys():
            for prediction in old[task_id]:
                studio.delete_prediction(prediction)
        imported, deleted, done = imported + len(stored), deleted + len(rows) - len(stored), done + len(result.tasks)
        boxes += sum(len({region["id"] for region in row["result"]}) for row in stored)
        progress(already_done + done, len(tasks))
    return PrelabelReport(
        detector.version, len(tasks), already_done, imported, boxes, tuple(failures), deleted, stopped
    )


def prune(studio: Studio, project: int, *, keep: str, ours: frozenset[str]) -> dict[str, int]:
    """Delete the predictions of other versions of this store.

    Args:
        studio: Label Studio.
        project: The project.
        keep: The version to keep.
        ours: Versions on this store; others are not touched.

    Returns:
        Number of deleted predictions by version.
    """
    counts = studio.model_versions(project)
    removed = {version: count for version, count in counts.items() if version in ours and version != keep}
    for version in removed:
        studio.delete_model_version(project, version)
    return removed


def _tasks(studio: Studio, project: int, version: str) -> tuple[list[dict[str, Any]], dict[int, list[int]]]:
    """Return every task as sent to `/predict`, and the ids of its predictions of this version by task."""
    tasks: list[dict[str, Any]] = []
    predictions: dict[int, list[int]] = {}
    for task in studio.tasks(project):
        if task.id is None:
            continue
        tasks.append({"id": task.id, "data": task.data})
        if ids := _of_version(task, version):
            predictions[task.id] = ids
    return tasks, predictions


def _of_version(task: Task, version: str) -> list[int]:
    return [
        prediction.id
        for prediction in task.predictions
        if prediction.model_version == version and prediction.id is not None
    ]


def _chunks(tasks: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(tasks), CHUNK):
        yield list(tasks[start : start + CHUNK])


def _import(
    studio: Studio, project: int, rows: list[dict[str, Any]], *, version: str, old: dict[int, list[int]]
) -> list[dict[str, Any]]:
    """Import predictions; returns the rows that Label Studio stored.

    If a task was deleted meanwhile, Label Studio drops other rows of the request too without naming them; the missing
    ones are then added one by one.
    """
    try:
        studio.import_predictions(project, rows)
    except (PredictionsDropped, StudioRefused):
        existing = {task.id: task for task in studio.tasks(project, only_ids=[int(row["task"]) for row in rows])}
        rows = [row for row in rows if row["task"] in existing]
        for row in rows:
            task = int(row["task"])
            if set(_of_version(existing[task], version)) <= set(old.get(task, ())):
                studio.add_prediction(task, row["result"], row["score"], version)
    return rows
