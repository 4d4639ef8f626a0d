"""Rank open tasks: pre-label them with the served version, with scores that put the most informative first.

Label Studio's uncertainty sampling serves the lowest score of the project's `model_version` first. A pool of the most
uncertain tasks, plus some that no version has predicted, is predicted again. Acquisition orders the best of them, each
unlike the others and the labelled ones, and their positions become their scores (`task_order`). Label Studio's bulk
import drops `cluster`, so diversity is in the order itself. The other tasks follow in batches until a newer version
comes.

Open tasks and their features are in a local table (`task_sync`, `store.tasks`), so the cost of a ranking depends on the
pool and on the changes, not on the size of the project.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.studio import StudioRefused
from labelloop.service.studio.errors import PredictionsDropped
from labelloop.service.studio.task_cache import chunks
from labelloop.service.system import available_cores
from ml_backend.detection.detections import Detections, Floats
from ml_backend.heads.base import Answer, ImagePrediction
from ml_backend.inference.detector import Detector
from ml_backend.learning.annotations import ANSWER_TYPES, LabelledImage, addresses, is_held_out
from ml_backend.learning.base_models import ServedModel
from ml_backend.learning.context import LearningContext
from ml_backend.learning.image_vectors import ImageEmbedder
from ml_backend.learning.publish import announce_version
from ml_backend.learning.store.tasks import TaskFeatures
from ml_backend.learning.task_order import HEAD, POOL_FROM, place_score, rest_score, with_held_out
from ml_backend.learning.task_sync import TaskSync
from ml_backend.policy import LearningPolicy, read_learning_policy
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.label_mapping import Target, find_targets
from ml_backend.predict.predictor import DetectionObserver, Predictor
from ml_backend.predict.protocol import ProjectOptions, TaskPrediction, with_thresholds
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.studio.extra_params import options_of
from ml_backend.training.acquisition import (
    COLD_START_IMAGES,
    DUPLICATE_WINDOW,
    FLOOR,
    POOL,
    LabelCounts,
    UnlabelledImage,
    answer_uncertainty,
    next_images,
    object_weights,
    rank,
    sample_without_near_duplicates,
    uncertainty,
)
from ml_backend.training.label_acquisition import label_vectors, next_labels
from ml_backend.training.linear_head import head_detector
from ml_backend.training.parallel import parallel_map

# One in this many tasks of the pool is one that no learned version has predicted, also where time ends within the pool.
UNSEEN_SHARE = 4

# Tasks per core that are predicted between two checks for a pending training run, which needs the cores.
BATCH_PER_CORE = 4

# Tasks predicted per batch, after the pool; most are imported per batch too, see `_Ranking._portion`.
BATCH = 25

# After each bulk import, Label Studio 1.23.2 counts the predictions of every task of the project again: 50 microseconds
# per task, with SQLite's write lock held. In projects larger than LARGE, the head of the queue is added one by one,
# which costs 45 ms each, and a bulk import holds at least one in IMPORT_SHARE of the project's tasks.
LARGE, IMPORT_SHARE = 7_000, 200

# Tasks per batch before the first learned version, so that the first tasks are ranked seconds after `connect`.
FIRST_BATCH = 32

# Most selections of a pool while some of its tasks turn out to be done; after a rollback all of them may be.
MAX_POOL_ROUNDS = 16

# Most randomly ranked tasks that near-duplicates are compared with.
MAX_REFERENCES = 1000

# Time budget of one prediction in seconds: large, because no request waits for it.
BUDGET_S = 3600.0

# Seconds for the predictions of the pool before Label Studio names the version; at least half of it is predicted.
POOL_S = 0.8

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]


@dataclass(frozen=True)
class RankingResult:
    """Result of a ranking: number of tasks pre-labelled with `version`, and whether it was interrupted."""

    version: str
    prelabelled: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class _ScoredPrediction:
    """A prediction and its uncertainty; None without detections."""

    prediction: TaskPrediction
    uncertainty: float | None


def rank_open_tasks(context: LearningContext, project: int, *, stop: Stop) -> RankingResult | None:
    """Pre-label the open tasks with the served version, most informative first.

    Args:
        context: Dependencies of learning.
        project: The project.
        stop: Called between batches; True interrupts the ranking.

    Returns:
        None if the project does not learn or wants no pre-labels.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be reached.
        ModelError: The served version cannot be opened.
    """
    policy = read_learning_policy(context.settings.home, project)
    if not policy.learn or not policy.prelabels:
        return None
    served = context.base_models.served(project)
    if served.learned and stop():
        return RankingResult(served.version, stopped=True)
    ranking = _Ranking(context, project, policy, served, context.studio.label_config(project))
    if not ranking.is_served:
        return None  # all predictions would be empty; connect, /setup and doctor report why
    done = ranking.learned(stop) if served.learned else ranking.cold(stop)
    log.info("tasks_arranged", project=project, version=done.version, made=done.prelabelled, stopped=done.stopped)
    return done


class _Ranking:
    """One ranking of one project."""

    def __init__(
        self, context: LearningContext, project: int, policy: LearningPolicy, served: ServedModel, config: LabelConfig
    ) -> None:
        self._context, self._project, self._policy, self._config = context, project, policy, config
        self._served = served
        self._version = served.version
        self._embedder = ImageEmbedder(context, project, config, served)
        self._task_sync = TaskSync(context.studio, context.image_vectors, project)
        self._task_sync.use_backbone(self._embedder.backbone)
        training = context.training_data.training_tasks(project)
        self._labelled = [task for task, _, _ in training]
        self._label_counts = LabelCounts.from_images(
            (photo.labels, _box_weights(photo)) for _, _, photos in training for photo in photos
        )
        self._tasks: dict[int, Task] = {}
        self._prediction_ids: dict[int, int] = {}
        self._tried: set[int] = set()
        self._detector = self._open_detector()
        self._options = self._project_options()
        self._targets = self._find_targets()
        self._segmenter = BoxSegmenter(context.settings)

    def _find_targets(self) -> tuple[Target, ...]:
        """Return what the version fills, and controls whose answers it will learn: their images are ranked too."""
        find = partial(
            find_targets,
            self._config,
            self._detector.names.names,
            provides=self._detector.provides,
            keypoint_names=self._detector.keypoint_names,
            controls=self._options.controls,
        )
        targets: tuple[Target, ...] = find(answers=self._detector.answers)
        filled = {target.control.name for target in targets}
        answer_controls = {control.name for control in self._config.controls.values() if control.type in ANSWER_TYPES}
        return (
            find(answers=self._detector.answers | (answer_controls - filled)) if answer_controls - filled else targets
        )

    @property
    def is_served(self) -> bool:
        """Whether some control is pre-labelled now or can be trained."""
        outputs = ModelOutputs.of(self._detector)
        supported = controls_of(self._config, outputs, options=self._options.controls)
        return any(control.prelabels or control.learns for control in supported)

    def _open_detector(self) -> Detector:
        """The served version: its head on the open backbone if it is in memory, else opened from its file.

        A head just trained costs no second session: 0.3 s less per version, and 90 MB less.
        """
        head = self._context.evaluator.head(self._version)
        if head is None:
            return self._context.base_models.detector(self._version)
        detector = head_detector(self._context.base_models.backbone(self._served), head, version=self._version)
        return replace(detector, heads=self._context.base_models.heads(self._version))

    def cold(self, stop: Stop) -> RankingResult:
        """Before the first learned version: rank a random sample of the tasks without near-duplicates.

        A project of several pages is ranked before it is fully read: its first tasks are a random sample. Each call
        continues after the ranked tasks, with at least one batch.
        """
        self._task_sync.seed()
        self._task_sync.refresh()
        self._reset_deleted_predictions()
        prelabelled, position = 0, self._context.image_vectors.count_prelabelled(self._project, self._version)
        size = FIRST_BATCH
        while position < self._policy.prelabels and (
            portion := self._next_random(min(size, self._policy.prelabels - position), stop)
        ):
            added = self._assign_positions(portion, position, stop)
            prelabelled, position = prelabelled + added, position + len(portion)
            self._task_sync.continue_first_read(stop)
            size = max(FIRST_BATCH, self._portion)
            if stop():
                return RankingResult(self._version, prelabelled, stopped=True)
        return RankingResult(self._version, prelabelled, stopped=not self._task_sync.continue_first_read(stop))

    def learned(self, stop: Stop) -> RankingResult:
        """With a learned version: rank the pool by acquisition, then the rest by the last version's uncertainty."""
        self._task_sync.seed()
        self._task_sync.refresh()
        self._reset_deleted_predictions()
        pool = self._pool()
        ranked, unreached = self._rank_pool(pool, stop)
        large = self._task_sync.size > LARGE
        head = dict(islice(ranked.items(), HEAD)) if large else ranked
        prelabelled = self._import(head, save_uncertainty=True, one_by_one=large)
        if prelabelled or not stop():
            self._announce()
        self._task_sync.continue_first_read(lambda: True)  # at least a page, also where submits stop every ranking
        waiting = {number: scored for number, scored in ranked.items() if number not in head}
        rest = [*unreached, *self._rest(set(pool), max(self._policy.prelabels - len(pool), 0))]
        for batch in _batches(rest):
            if stop():
                break
            predictions, _ = self._predict(self._fetch_open(batch), stop)
            waiting |= {
                number: (prediction, rest_score(prediction.uncertainty)) for number, prediction in predictions.items()
            }
            if len(waiting) >= self._portion:
                prelabelled += self._import(waiting, save_uncertainty=True)
                waiting = {}
        if stop():
            self._save_uncertainties(waiting)
            return RankingResult(self._version, prelabelled, stopped=True)
        prelabelled += self._import(waiting, save_uncertainty=True)
        return RankingResult(self._version, prelabelled, stopped=not self._task_sync.continue_first_read(stop))

    @property
    def _portion(self) -> int:
        """The fewest predictions of a bulk import."""
        return max(BATCH, self._task_sync.size // IMPORT_SHARE) if self._task_sync.size > LARGE else 1

    def _save_uncertainties(self, scored: Mapping[int, tuple[_ScoredPrediction, float]]) -> None:
        """Keep what an interrupted ranking found out about tasks whose predictions are not imported."""
        uncertainties = {number: prediction.uncertainty for number, (prediction, _) in scored.items()}
        self._context.image_vectors.save_uncertainties(self._project, self._version, uncertainties)

    def _reset_deleted_predictions(self) -> None:
        """Clear the recorded pre-labels if Label Studio has fewer of them: some were deleted there."""
        written = self._context.image_vectors.count_prelabelled(self._project, self._version, open_only=False)
        if written and self._context.studio.model_versions(self._project).get(self._version, 0) < written:
            self._context.image_vectors.clear_prelabels(self._project, self._version)

    def _announce(self) -> None:
        """Announce the version to Label Studio if that was deferred: its first tasks are ranked now."""
        state = self._context.training_data.project(self._project)
        if state is not None and state.untold_since is not None:
            announce_version(self._context, self._project, self._version)

    def _next_random(self, count: int, stop: Stop) -> list[int]:
        """Return the next unranked open tasks of the random sample, near-duplicates of ranked tasks last."""
        store, project, version = self._context.image_vectors, self._project, self._version
        room = max(DUPLICATE_WINDOW, count) + len(self._tried)
        if not self._embedder.backbone:
            order = store.without_vectors(project, version, limit=room)
        else:
            if len(self._not_tried(store.random_sample(project, version, limit=room))) < count:
                unseen = store.next_to_embed(project, tries=1, limit=count + len(self._tried))
                for batch in chunks(self._fetch_open(self._not_tried(unseen)[:count]), HEAD):
                    self._embed(batch, lambda: False)
                    if stop():
                        break
            fresh = self._not_tried(store.random_sample(project, version, limit=room))
            able, vectors = store.vectors(project, self._embedder.backbone, fresh)
            order = (
                [able[index] for index in sample_without_near_duplicates(vectors, self._reference_vectors(), count)]
                if able
                else []
            )
        chosen = self._with_held_out(self._not_tried(order)[:count])
        self._tried |= set(chosen)
        return chosen

    def _assign_positions(self, batch: Sequence[int], position: int, stop: Stop) -> int:
        """Assign the next positions to tasks; returns how many predictions were imported or rescored.

        Existing predictions keep their result; at the head they get the score of their position.
        """
        open_tasks = self._fetch_open(batch)
        scores = {number: place_score(position + index) for index, number in enumerate(open_tasks)}
        predictions, _ = self._predict(
            [number for number in open_tasks if number not in self._prediction_ids], stop, least=1
        )
        moved = [number for number in open_tasks if number in self._prediction_ids]
        written = self._import({number: (prediction, scores[number]) for number, prediction in predictions.items()})
        for number in moved:
            if scores[number] < POOL_FROM:
                self._context.studio.update_prediction(self._prediction_ids[number], score=scores[number])
                written += 1
        self._context.image_vectors.mark_prelabelled(
            self._project, self._version, {number: scores[number] for number in moved}
        )
        return written

    def _pool(self) -> list[int]:
        """Return the candidates for the head of the queue: the most uncertain tasks, and some never predicted.

        Tasks that turn out to be done, deleted or pre-labelled are replaced by others.
        """
        chosen: list[int] = []
        for _ in range(MAX_POOL_ROUNDS):
            chosen = self._select_pool()
            remaining = [number for number in self._fetch_open(chosen) if number not in self._prediction_ids]
            if len(remaining) == len(chosen):
                return remaining
            self._context.image_vectors.mark_prelabelled(self._project, self._version, self._scores())
        return [number for number in chosen if number in self._tasks and number not in self._prediction_ids]

    def _select_pool(self) -> list[int]:
        store, project, version = self._context.image_vectors, self._project, self._version
        size = min(POOL * HEAD, self._policy.prelabels)
        uncertain = store.by_uncertainty(project, version, empty=False, fresh=False, limit=size)
        empty = store.by_uncertainty(project, version, empty=True, fresh=False, limit=size)
        predicted = _interleaved(uncertain, empty)[:size]
        fresh = store.random_sample(project, version, limit=max(DUPLICATE_WINDOW, size))
        able, vectors = store.vectors(project, self._embedder.backbone, fresh)
        unseen = (
            [able[index] for index in sample_without_near_duplicates(vectors, self._reference_vectors(), size)]
            if able
            else []
        )
        if len(unseen) < size:
            unseen += store.without_vectors(project, version, limit=size - len(unseen))
        chosen = unseen[: max(size // UNSEEN_SHARE, size - len(predicted))]
        return _with_unseen(predicted[: size - len(chosen)], chosen)

    def _rest(self, pool: AbstractSet[int], count: int) -> list[int]:
        """Return the open tasks behind the pool, by the last version's uncertainty."""
        store, many = self._context.image_vectors, count + len(pool)
        uncertain = store.by_uncertainty(self._project, self._version, empty=False, fresh=True, limit=many)
        empty = store.by_uncertainty(self._project, self._version, empty=True, fresh=True, limit=many)
        rest = _interleaved(
            [number for number in uncertain if number not in pool], [number for number in empty if number not in pool]
        )
        return rest[:count]

    def _rank_pool(
        self, pool: Sequence[int], stop: Stop
    ) -> tuple[dict[int, tuple[_ScoredPrediction, float]], Sequence[int]]:
        """Predict the pool for `POOL_S` at most and put it into the order of acquisition.

        If interrupted after at least half of the pool, that part is ranked. Otherwise an annotator who submits faster
        than a pool is predicted would never get a ranked task.

        Returns:
            (prediction, score) by task in that order, and the tasks of the pool that were not reached.
        """
        features = self._features(pool)
        self._embed([number for number in pool if features[number].vector is None], stop)
        predictions, unreached = self._predict(pool, stop, until=time.monotonic() + POOL_S)
        if 2 * len(predictions) < len(pool) and stop():
            return {}, unreached
        able, vectors = self._context.image_vectors.vectors(self._project, self._embedder.backbone, predictions)
        head: list[int] = []
        if able:
            uncertainties = [predictions[number].uncertainty for number in able]
            head = [able[index] for index in self._next(vectors, uncertainties)]
        others = [number for number in predictions if number not in set(head)]
        others = [others[index] for index in rank([predictions[number].uncertainty for number in others])]
        order = self._with_held_out([*head, *others])
        return {number: (predictions[number], place_score(place)) for place, number in enumerate(order)}, unreached

    def _next(self, vectors: Floats, uncertainties: Sequence[float | None]) -> list[int]:
        """Choose the images of the head of the queue: indices into `vectors`, best first."""
        references = self._reference_vectors()
        if not self._embedder.about_images or len(references) < COLD_START_IMAGES:
            images = [UnlabelledImage(*pair) for pair in zip(vectors, uncertainties, strict=True)]
            return next_images(images, references, HEAD)
        scaled = label_vectors(np.concatenate([vectors, references]))
        doubts = [value or 0.0 for value in uncertainties]
        return next_labels(doubts, scaled[: len(vectors)], scaled[len(vectors) :], HEAD)

    def _with_held_out(self, order: Sequence[int]) -> list[int]:
        held = partial(is_held_out, self._project, share=self._policy.held_out)
        before = [*self._labelled, *self._ranked_at_random()]
        return with_held_out(
            order, held, share=self._policy.held_out, labelled=len(before), held=sum(map(held, before))
        )

    def _ranked_at_random(self) -> list[int]:
        """Return the tasks ranked before the first learned version."""
        if self._served.learned:
            return []
        return self._context.image_vectors.prelabelled(self._project, self._version, limit=MAX_REFERENCES)

    def _reference_vectors(self) -> Floats:
        """Return the vectors that further images should differ from, (n, d) float32."""
        return self._context.image_vectors.vectors(
            self._project, self._embedder.backbone, [*self._labelled, *self._ranked_at_random()]
        )[1]

    def _not_tried(self, numbers: Iterable[int]) -> list[int]:
        return [number for number in numbers if number not in self._tried]

    def _features(self, numbers: Sequence[int]) -> dict[int, TaskFeatures]:
        """Return the stored features of open tasks; features of replaced images are deleted."""
        store = self._context.image_vectors
        features = dict.fromkeys(numbers, TaskFeatures("", None)) | store.features(
            self._project, self._embedder.backbone, numbers
        )
        changed = [
            number
            for number, entry in features.items()
            if entry.photo not in {"", self._embedder.image_key(self._tasks[number])}
        ]
        store.reset_images(self._project, changed)
        return features | dict.fromkeys(changed, TaskFeatures("", None))

    def _fetch_open(self, numbers: Sequence[int]) -> list[int]:
        """Fetch tasks from Label Studio; returns those that are open and have an image, in the same order."""
        store, project = self._context.image_vectors, self._project
        by_id = {task.id: task for task in self._context.studio.tasks(project, only_ids=numbers)} if numbers else {}
        done: dict[int, tuple[int, int]] = {}
        open_tasks: list[int] = []
        for number in numbers:
            task = by_id.get(number)
            if task is None:
                continue
            if task.annotations:
                skipped = sum(annotation.was_cancelled for annotation in task.annotations)
                done[number] = len(task.annotations) - skipped, skipped
            elif addresses(task, self._config):
                open_tasks.append(number)
                self._tasks[number] = task
                prediction = next(
                    (candidate for candidate in task.predictions if candidate.model_version == self._version), None
                )
                if prediction is not None and prediction.id is not None:
                    self._prediction_ids[number] = prediction.id
        store.update_annotation_counts(project, done)
        store.drop(project, [number for number in numbers if number not in by_id])
        return open_tasks

    def _scores(self) -> dict[int, float | None]:
        """Return the score of each existing prediction of this version, by task."""
        return {
            number: next(candidate.score for candidate in self._tasks[number].predictions if candidate.id == prediction)
            for number, prediction in self._prediction_ids.items()
        }

    def _embed(self, numbers: Sequence[int], stop: Stop) -> None:
        """Compute the vectors of tasks, in batches."""
        for batch in _batches(numbers):
            if stop():
                return
            self._embedder.embed([self._tasks[number] for number in batch])

    def _predict(
        self, numbers: Sequence[int], stop: Stop, *, least: int = 0, until: float = math.inf
    ) -> tuple[dict[int, _ScoredPrediction], Sequence[int]]:
        """Predict tasks with the served version; if interrupted, only the first of them.

        Args:
            numbers: Fetched tasks.
            stop: Called between batches; True interrupts.
            least: Tasks that are predicted before the first interruption.
            until: Monotonic time from which no further batch begins, once half of the tasks is predicted.

        Returns:
            Predictions by task, without tasks whose images cannot be loaded; and the tasks that were not reached.
        """
        predictions: dict[int, _ScoredPrediction] = {}
        for index, batch in enumerate(chunks(numbers, BATCH_PER_CORE * available_cores())):
            done = index * BATCH_PER_CORE * available_cores()
            if (2 * done >= len(numbers) and time.monotonic() >= until) or (done >= least and stop()):
                return predictions, numbers[done:]
            # One task at a time: a batch of four takes 100 MB more and is not faster.
            for prediction in parallel_map(self._predict_one, batch):
                predictions |= prediction
        return predictions, ()

    def _predict_one(self, number: int) -> dict[int, _ScoredPrediction]:
        parts: list[tuple[Detections, Floats]] = []
        answers: list[Answer] = []

        def collect(_index: int, image_detections: Detections, size: tuple[int, int]) -> None:
            parts.append((image_detections, object_weights(image_detections.boxes, width=size[0], height=size[1])))

        predictor = Predictor(
            self._context.media, score_threshold=self._context.settings.score_threshold, budget_s=BUDGET_S,
            observer=DetectionObserver(FLOOR, collect, lambda _index, prediction: answers.extend(_answers(prediction))),
            segmenter=self._segmenter,
        )  # fmt: skip
        task = {"id": number, "data": self._tasks[number].data}
        [entry] = predictor.predict([task], detector=self._detector, targets=self._targets, options=self._options)
        if not parts or not isinstance(entry, TaskPrediction):
            return {}  # no image could be loaded
        names = self._detector.names.names
        served_classes = sorted({index for target in self._targets for index in target.labels})
        detections = Detections.concatenate([part for part, _ in parts])
        shares = np.concatenate([share for _, share in parts])
        mask = (detections.scores >= FLOOR) & np.isin(detections.classes, served_classes)
        of_boxes = uncertainty(detections[mask], shares[mask], names=names, labelled=self._label_counts)
        of_answers = answer_uncertainty([answer.uncertainty for answer in answers])
        if of_answers is None or (of_boxes is None and served_classes):
            return {number: _ScoredPrediction(entry, of_boxes)}
        return {number: _ScoredPrediction(entry, (of_boxes or 0.0) + of_answers)}

    def _import(
        self,
        scored: Mapping[int, tuple[_ScoredPrediction, float]],
        *,
        save_uncertainty: bool = False,
        one_by_one: bool = False,
    ) -> int:
        """Import predictions with scores, except for tasks deleted or predicted meanwhile; returns how many.

        Args:
            scored: (prediction, score) by task.
            save_uncertainty: Whether a learned version predicted them.
            one_by_one: Whether each has a request of its own, see `LARGE`.
        """
        open_tasks = self._fetch_open(list(scored))
        new = [number for number in open_tasks if number not in self._prediction_ids]
        stored = self._add_each(new, scored) if one_by_one else self._add_all(new, scored)
        if stored is None:
            return 0
        if save_uncertainty:
            uncertainties = {number: scored[number][0].uncertainty for number in open_tasks if number not in new}
            uncertainties |= {number: scored[number][0].uncertainty for number in stored}
            scores = {number: scored[number][1] for number in uncertainties}
            self._context.image_vectors.save_uncertainties(self._project, self._version, uncertainties, scores)
        else:
            scores = {number: scored[number][1] for number in stored}
            self._context.image_vectors.mark_prelabelled(self._project, self._version, scores)
        return len(stored)

    def _add_all(
        self, numbers: Sequence[int], scored: Mapping[int, tuple[_ScoredPrediction, float]]
    ) -> Sequence[int] | None:
        """Add predictions in one request, if any; None where Label Studio did not take all of them."""
        if not numbers:
            return ()
        rows = [
            {"task": number, "result": scored[number][0].prediction.result, "score": scored[number][1],
             "model_version": self._version}
            for number in numbers
        ]  # fmt: skip
        try:
            self._context.studio.import_predictions(self._project, rows)
        except (PredictionsDropped, StudioRefused) as error:  # a task was deleted during the import
            log.warning("predictions_not_imported", project=self._project, reason=str(error))
            return None
        return numbers

    def _add_each(self, numbers: Sequence[int], scored: Mapping[int, tuple[_ScoredPrediction, float]]) -> Sequence[int]:
        """Add predictions one by one; returns the tasks that took theirs."""
        stored = []
        for number in numbers:
            prediction, score = scored[number]
            try:
                self._context.studio.add_prediction(number, prediction.prediction.result, score, self._version)
            except StudioRefused as error:  # the task was deleted meanwhile
                log.warning("predictions_not_imported", project=self._project, reason=str(error))
                continue
            stored.append(number)
        return stored

    def _project_options(self) -> ProjectOptions:
        """Return the options of the project's connection, with the version's thresholds as defaults."""
        options = options_of(self._context.studio.ml_backends(self._project), self._context.settings.ml_url)
        return with_thresholds(options, self._context.base_models.thresholds(self._version))


def _answers(prediction: ImagePrediction) -> list[Answer]:
    """Every answer of the heads on an image: about it, and about its objects."""
    about_objects = [answer for answers in prediction.region_choices for answer in answers.values()]
    return [*prediction.choices.values(), *about_objects]


def _batches(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]


def _with_unseen(predicted: Sequence[int], unseen: Sequence[int]) -> list[int]:
    """Interleave tasks so that one in `UNSEEN_SHARE` of any part of the pool is unseen, as long as there are both."""
    known, new, order = iter(predicted), iter(unseen), list[int]()
    while batch := [*islice(known, UNSEEN_SHARE - 1), *islice(new, 1)]:
        order += batch
    return order


def _interleaved(uncertain: Sequence[int], empty: Sequence[int]) -> list[int]:
    """Interleave tasks with and without detections as `rank` does: most uncertain first."""
    numbers = [*uncertain, *empty]
    uncertainties = [*(float(len(uncertain) - index) for index in range(len(uncertain))), *[None] * len(empty)]
    return [numbers[index] for index in rank(uncertainties)]


def _box_weights(photo: LabelledImage) -> Floats:
    return object_weights(np.array(photo.boxes, np.float32).reshape(-1, 4), width=photo.width, height=photo.height)
