"""Owns pre-labelling a whole project: every task looked at here, predictions imported in bulk, nothing done twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from labelloop.labeling.studio.task import Task
from labelloop.service.media import MediaError, Photo
from labelloop.service.memory_budget import never
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.studio.errors import PredictionsDropped
from ml_backend.inference.detector import Detector
from ml_backend.predict.control_support import ModelOutputs, NotServed, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Photos, Predictor
from ml_backend.predict.protocol import Prediction, ProjectOptions, Unanswered

CHUNK = 25
"""Tasks that are predicted, then imported with one request: what a killed process has to do again at most."""

BUDGET_S = 3600.0
"""Nobody waits for the answer: one chunk may take as long as its photos do."""

Chunk = list[dict[str, Any]]
"""Tasks as `/predict` would be sent them."""

Progress = Callable[[int, int], None]
"""Told after each chunk: tasks done, tasks in all."""


@dataclass(frozen=True)
class BadPhoto:
    """A photo that could not be used, or a task without one: tried again by the next run."""

    task: int | None
    url: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        version: The version that every prediction carries.
        tasks: Tasks of the project.
        there: Tasks that had a prediction of this version already.
        made: Predictions imported by this run.
        boxes: Regions in them.
        bad: Photos that could not be used.
        gone: Tasks that were deleted while they were looked at.
        stopped: Whether it was told to stop before the end.
    """

    version: str
    tasks: int
    there: int
    made: int
    boxes: int
    bad: tuple[BadPhoto, ...]
    gone: int
    stopped: bool


@dataclass(frozen=True)
class Looked:
    """A chunk of tasks that was looked at: an entry a task, and the photos that could not be used."""

    chunk: Chunk
    entries: tuple[Prediction | Unanswered, ...]
    bad: tuple[BadPhoto, ...]


Look = Callable[[Iterator[Chunk]], Iterator[Looked]]
"""Looks at chunks as it takes them; they may come back in any order."""


class Noting:
    """Photos that notes which of them could not be had, and why."""

    def __init__(self, photos: Photos) -> None:
        self._photos = photos
        self._bad: list[BadPhoto] = []

    def taken(self) -> tuple[BadPhoto, ...]:
        """What was noted since it was asked for last."""
        bad, self._bad = self._bad, []
        return tuple(bad)

    def photo(
        self,
        url: str,
        *,
        task_id: int | None = None,
        max_side: int | None = None,
        abandoned: Callable[[], bool] = never,
    ) -> Photo:
        try:
            return self._photos.photo(url, task_id=task_id, max_side=max_side, abandoned=abandoned)
        except MediaError as error:
            self._bad.append(BadPhoto(task_id, url.partition("?")[0][:200], str(error)))
            raise


def prelabel(
    studio: Studio,
    project: int,
    *,
    detector: Detector,
    photos: Photos,
    score_threshold: float,
    options: ProjectOptions,
    every: bool = False,
    progress: Progress = lambda _done, _total: None,
    stop: Callable[[], bool] = lambda: False,
    look: Look | None = None,
) -> Report:
    """Predicts every task of a project that has no prediction of this version yet.

    It may be ended at any time and begun again: what was imported is found in Label Studio and skipped.

    Args:
        studio: Label Studio.
        project: The project.
        detector: The model; its version names the predictions.
        photos: Where photos come from.
        score_threshold: Lowest score of a region that is shown.
        options: What the project asks for.
        every: Also tasks that have a prediction of this version: it is made anew, and the old one removed.
        progress: Told after each chunk.
        stop: Asked before each chunk; True ends after what was imported.
        look: Looks at the tasks in place of this process: see `ml_backend.bulk.ray_cluster`.

    Raises:
        NotServed: No control of the project takes what the model gives.
        StudioError: Label Studio cannot be asked.
        ModelBroken: The engine failed.
    """
    config = studio.label_config(project)
    targets = find_targets(config, detector.names.names, gives=detector.gives, points=detector.points)
    if not any(target.labels or target.points for target in targets):
        raise NotServed(project, "pre-labelled", controls_of(config, ModelOutputs.of(detector)))
    noting = Noting(photos)
    predictor = Predictor(noting, score_threshold=score_threshold, budget_s=BUDGET_S)
    tasks, old = _tasks(studio, project, detector.version)
    wanted = [task for task in tasks if every or task["id"] not in old]
    there, made, boxes, gone, done = len(tasks) - len(wanted), 0, 0, 0, 0
    bad: list[BadPhoto] = []
    stopped = False

    def chunks() -> Iterator[Chunk]:
        nonlocal stopped
        for chunk in _chunks(wanted):
            if stop():
                stopped = True
                return
            yield chunk

    def look_here(coming: Iterator[Chunk]) -> Iterator[Looked]:
        for chunk in coming:
            entries = predictor.predict(chunk, detector=detector, targets=targets, options=options)
            yield Looked(chunk, tuple(entries), noting.taken())

    progress(there, len(tasks))
    for looked in (look or look_here)(chunks()):
        bad += looked.bad
        failed = {one.task for one in looked.bad}
        bad += [
            BadPhoto(task["id"], "", entry.error)
            for task, entry in zip(looked.chunk, looked.entries, strict=True)
            if isinstance(entry, Unanswered) and task["id"] not in failed
        ]
        rows = [
            {"task": task["id"], "result": entry.result, "score": entry.score, "model_version": detector.version}
            for task, entry in zip(looked.chunk, looked.entries, strict=True)
            # Without a single photo nothing is known of the task: the next run tries it again.
            if isinstance(entry, Prediction) and (entry.result or task["id"] not in failed)
        ]
        kept = _import(studio, project, rows, version=detector.version, old=old)
        for task_id in {int(row["task"]) for row in kept} & old.keys():
            for prediction in old[task_id]:
                studio.delete_prediction(prediction)
        made, gone, done = made + len(kept), gone + len(rows) - len(kept), done + len(looked.chunk)
        boxes += sum(len({one["id"] for one in row["result"]}) for row in kept)
        progress(there + done, len(tasks))
    return Report(detector.version, len(tasks), there, made, boxes, tuple(bad), gone, stopped)


def prune(studio: Studio, project: int, *, keep: str, ours: frozenset[str]) -> dict[str, int]:
    """Removes the predictions of our other versions.

    Args:
        studio: Label Studio.
        project: The project.
        keep: The version that stays.
        ours: Versions that this store knows; no other is touched.

    Returns:
        How many predictions of each version were removed.
    """
    counts = studio.model_versions(project)
    removed = {version: count for version, count in counts.items() if version in ours and version != keep}
    for version in removed:
        studio.delete_model_version(project, version)
    return removed


def _tasks(studio: Studio, project: int, version: str) -> tuple[list[dict[str, Any]], dict[int, list[int]]]:
    """Every task as `/predict` would be sent it, and the predictions of this version by task."""
    tasks: list[dict[str, Any]] = []
    there: dict[int, list[int]] = {}
    for task in studio.tasks(project):
        if task.id is None:
            continue
        tasks.append({"id": task.id, "data": task.data})
        if found := _of_version(task, version):
            there[task.id] = found
    return tasks, there


def _of_version(task: Task, version: str) -> list[int]:
    return [one.id for one in task.predictions if one.model_version == version and one.id is not None]


def _chunks(tasks: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(tasks), CHUNK):
        yield list(tasks[start : start + CHUNK])


def _import(
    studio: Studio, project: int, rows: list[dict[str, Any]], *, version: str, old: dict[int, list[int]]
) -> list[dict[str, Any]]:
    """Imports, and gives those that Label Studio kept.

    A task that was deleted meanwhile takes others with it, and Label Studio does not say which: they are looked for,
    and added one by one.
    """
    try:
        studio.import_predictions(project, rows)
    except (PredictionsDropped, StudioRefused):
        now = {task.id: task for task in studio.tasks(project, only_ids=[int(row["task"]) for row in rows])}
        rows = [row for row in rows if row["task"] in now]
        for row in rows:
            task = int(row["task"])
            if set(_of_version(now[task], version)) <= set(old.get(task, ())):
                studio.add_prediction(task, row["result"], row["score"], version)
    return rows
