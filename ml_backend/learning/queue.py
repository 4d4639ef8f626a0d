"""Owns the next tasks: open tasks get fresh pre-labels of what is served, with scores that put first what teaches most.

Label Studio's own uncertainty sampling serves the lowest score of the project's `model_version` first. Of the tasks
that the last version wondered about most, and some that nobody looked at yet, a pool is predicted anew; acquisition
orders its best, each unlike the others and what is labelled, and that order becomes their scores (`order.py`). Label
Studio's bulk import keeps no `cluster`, so diversity is in the order itself. The other tasks follow in portions, as
long as no newer version comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import structlog

from labelloop.labeling.config import LabelConfig
from labelloop.labeling.task import Task
from labelloop.service.media import MediaError
from labelloop.service.studio import Studio, StudioRefused
from labelloop.service.studio.errors import PredictionsDropped
from ml_backend.acquisition import (
    FLOOR,
    POOL,
    Drawn,
    Look,
    next_photos,
    photo_vector,
    rank,
    spread,
    uncertainty,
    weights,
)
from ml_backend.backbone import Backbone
from ml_backend.connect import same_address
from ml_backend.detections import Detections, Floats
from ml_backend.errors import NotLearnable
from ml_backend.learning.kit import Kit
from ml_backend.learning.looks import Known, photo_key
from ml_backend.learning.order import HEAD, POOL_FROM, place_score, rest_score, with_held_out
from ml_backend.learning.policy import LearningPolicy, read_learning_policy
from ml_backend.learning.publish import tell_version
from ml_backend.learning.teaching import Lesson, addresses, is_held_out
from ml_backend.mapping import find_targets
from ml_backend.predict import Predictor, Watch
from ml_backend.protocol import Prediction, ProjectOptions, read_options, with_thresholds

UNSEEN = 4
"""One in so many of the pool is a task that no learned version looked at yet."""

AT_ONCE = 4
"""Tasks that are predicted before it is looked whether something newer comes: a fit needs the cores."""

PORTION = 25
"""Tasks that are predicted and imported at a time, after the pool."""

BUDGET_S = 3600.0
"""Nobody waits for the answer: a portion may take as long as its photos do."""

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Arranged:
    """What was done: tasks that got a prediction of `version`, and whether it was told to stop before the end."""

    version: str
    made: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class _Seen:
    """What was found on a task just now."""

    prediction: Prediction
    doubt: float | None


def arrange(kit: Kit, project: int, *, stop: Stop) -> Arranged | None:
    """Gives open tasks pre-labels of what is served, those that teach most first.

    Args:
        kit: What learning works with.
        project: The project.
        stop: Asked between portions; True where something newer is coming.

    Returns:
        None where the project does not learn, or wants no pre-labels.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be asked.
        ModelError: What is served cannot be opened.
    """
    policy = read_learning_policy(kit.settings.home, project)
    if not policy.learn or not policy.prelabels:
        return None
    if stop():
        return Arranged("", stopped=True)
    work = _Work(kit, project, policy, kit.studio.label_config(project))
    if not work.fills:
        return None  # it would only get empty predictions; connect, /setup and doctor say why
    done = work.learned(stop) if work.served.learned else work.cold(stop)
    log.info("tasks_arranged", project=project, version=done.version, made=done.made, stopped=done.stopped)
    return done


def open_tasks(studio: Studio, project: int, config: LabelConfig) -> dict[int, Task]:
    """The tasks with a photo that nobody has annotated or skipped, by number."""
    items = [
        {"filter": f"filter:tasks:{count}_annotations", "operator": "equal", "type": "Number", "value": 0}
        for count in ("total", "cancelled")
    ]
    tasks = studio.tasks(project, filters={"conjunction": "and", "items": items})
    return {task.id: task for task in tasks if task.id is not None and addresses(task, config)}


class _Work:
    """One arrangement of one project."""

    def __init__(self, kit: Kit, project: int, policy: LearningPolicy, config: LabelConfig) -> None:
        self._kit, self._project, self._policy, self._config = kit, project, policy, config
        self.served = kit.bases.served(project)
        self._version = self.served.version
        self._backbone = self._learnable()
        self._tasks = open_tasks(kit.studio, project, config)
        self._there = {
            number: prediction.id
            for number, task in self._tasks.items()
            for prediction in task.predictions
            if prediction.model_version == self._version and prediction.id is not None
        }
        taught = kit.lessons.taught(project)
        self._labelled = {task for task, _, _ in taught}
        self._drawn = Drawn.on((photo.labels, _weights(photo)) for _, _, photos in taught for photo in photos)
        self._known = self._vectors_known()
        self._detector = kit.bases.detector(self._version)
        names = self._detector.names.names
        self._targets = find_targets(config, names, gives=self._detector.gives, points=self._detector.points)
        self._options = self._asked()

    @property
    def fills(self) -> bool:
        """Whether some control takes what the model gives."""
        return any(target.labels or target.points for target in self._targets)

    def cold(self, stop: Stop) -> Arranged:
        """Nothing was learned yet: a spread over the photos, whatever the model sees on them.

        Predictions that are there keep what they show; those at the head get the score of their place.
        """
        self._see([number for number in self._tasks if number not in self._known], stop)
        numbers = [number for number in self._tasks if number in self._known]
        order = [numbers[index] for index in self._spread(numbers, len(numbers))]
        order = self._mixed([*order, *(number for number in self._tasks if number not in self._known)])
        order = order[: self._policy.prelabels]
        scores = {number: place_score(place) for place, number in enumerate(order)}
        made = 0
        for portion in _portions(order):
            if stop():
                return Arranged(self._version, made, stopped=True)
            seen = self._predict([number for number in portion if number not in self._there], stop)
            made += self._import({number: (one, scores[number]) for number, one in seen.items()})
            for number in portion:
                if number in self._there and scores[number] < POOL_FROM:
                    self._kit.studio.update_prediction(self._there[number], score=scores[number])
                    made += 1
        return Arranged(self._version, made)

    def learned(self, stop: Stop) -> Arranged:
        """A learned version: the pool in the order of acquisition, then the others by the doubt of the last version."""
        waiting = [number for number in self._tasks if number not in self._there]
        pool = self._pool(waiting)
        made = self._first(pool, stop)
        if made or not stop():
            self._tell()
        if stop():
            return Arranged(self._version, made, stopped=True)
        rest = [number for number in waiting if number not in set(pool)]
        rest = self._by_doubt(rest)[: max(self._policy.prelabels - made, 0)]
        for portion in _portions(rest):
            if stop():
                return Arranged(self._version, made, stopped=True)
            seen = self._predict(portion, stop)
            made += self._import({number: (one, rest_score(one.doubt)) for number, one in seen.items()}, doubts=True)
        return Arranged(self._version, made)

    def _tell(self) -> None:
        """Has Label Studio name the version, where it was not told of it yet: its first tasks have an order now."""
        learner = self._kit.lessons.project(self._project)
        if learner is not None and learner.untold_since is not None:
            tell_version(self._kit, self._project, self._version)

    def _pool(self, numbers: Sequence[int]) -> list[int]:
        """The tasks that may lead the queue: what the last version wondered about, and some that none has looked at."""
        size = min(POOL * HEAD, self._policy.prelabels)
        looked = [number for number in numbers if number in self._known and self._known[number].version]
        fresh = [number for number in numbers if number in self._known and not self._known[number].version]
        blind = [number for number in numbers if number not in self._known]
        unseen = [*(fresh[index] for index in self._spread(fresh, size)), *blind]
        chosen = unseen[: max(size // UNSEEN, size - len(looked))]
        return [*self._by_doubt(looked)[: size - len(chosen)], *chosen]

    def _first(self, pool: Sequence[int], stop: Stop) -> int:
        """Predicts the pool, and imports it in the order of acquisition.

        Where something newer comes while half of it is done, that half is put in order: else an annotator who submits
        faster than a pool is predicted would never be served in the order of any version.
        """
        self._see([number for number in pool if number not in self._known], stop)
        seen = self._predict(pool, stop)
        if 2 * len(seen) < len(pool) and stop():
            return 0
        able = [number for number in seen if number in self._known]
        head: list[int] = []
        if able:
            looks = [Look(self._known[number].vector, seen[number].doubt) for number in able]
            head = [able[index] for index in next_photos(looks, self._vectors(self._labelled), HEAD)]
        others = [number for number in seen if number not in set(head)]
        others = [others[index] for index in rank([seen[number].doubt for number in others])]
        order = self._mixed([*head, *others])
        scored = {number: (seen[number], place_score(place)) for place, number in enumerate(order)}
        return self._import(scored, doubts=True)

    def _mixed(self, order: Sequence[int]) -> list[int]:
        held = partial(is_held_out, self._project, share=self._policy.held_out)
        return with_held_out(
            order, held, share=self._policy.held_out, labelled=len(self._labelled), held=sum(map(held, self._labelled))
        )

    def _by_doubt(self, numbers: Sequence[int]) -> list[int]:
        doubts = [self._known[number].doubt if number in self._known else None for number in numbers]
        return [numbers[index] for index in rank(doubts)]

    def _spread(self, numbers: Sequence[int], count: int) -> list[int]:
        if not numbers:
            return []
        return spread(self._vectors(numbers), self._vectors(self._labelled), count)

    def _vectors(self, numbers: Iterable[int]) -> Floats:
        found = [self._known[number].vector for number in numbers if number in self._known]
        width = len(next(iter(self._known.values())).vector) if self._known else 0
        return np.array(found, np.float32).reshape(-1, width)

    def _learnable(self) -> Backbone | None:
        try:
            return self._kit.bases.backbone(self.served)
        except NotLearnable as error:
            log.info("not_learnable", project=self._project, reason=str(error))
            return None

    def _vectors_known(self) -> dict[int, Known]:
        """Vectors of labelled and open tasks; those whose photo became another are forgotten."""
        if self._backbone is None:
            return {}
        return {
            number: one
            for number, one in self._kit.looks.known(self._project, self._backbone.version).items()
            if number in self._labelled or (number in self._tasks and one.photo == self._key(number))
        }

    def _see(self, numbers: Sequence[int], stop: Stop) -> None:
        """Vectors of photos that were not seen yet."""
        if self._backbone is None:
            return
        for portion in _portions(numbers):
            if stop():
                return
            found = {
                number: vector for number in portion if (vector := self._vector(self._backbone, number)) is not None
            }
            keyed = {number: (self._key(number), vector) for number, vector in found.items()}
            self._kit.looks.keep(self._project, self._backbone.version, keyed)
            self._known |= {number: Known(key, vector) for number, (key, vector) in keyed.items()}

    def _vector(self, backbone: Backbone, number: int) -> Floats | None:
        """What is on the photo of a task; of several photos, their middle. None where none can be had."""
        vectors = []
        for url in addresses(self._tasks[number], self._config):
            try:
                # Not kept: what is looked at once would push out of the cache what each fit needs.
                [sight] = backbone.see([self._kit.album.prepared(backbone, url, task=number)])
                vectors.append(photo_vector(sight))
            except MediaError as error:
                log.warning("photo_not_seen", project=self._project, task=number, reason=str(error))
        if not vectors:
            return None
        middle = np.mean(vectors, axis=0)
        return np.asarray(middle / (np.linalg.norm(middle) + 1e-12), np.float32)

    def _predict(self, numbers: Sequence[int], stop: Stop) -> dict[int, _Seen]:
        """What is served finds on these tasks now; where something newer comes, on the first of them."""
        seen: dict[int, _Seen] = {}
        for start in range(0, len(numbers), AT_ONCE):
            if stop():
                break
            seen |= self._predict_few(numbers[start : start + AT_ONCE])
        return seen

    def _predict_few(self, numbers: Sequence[int]) -> dict[int, _Seen]:
        parts: dict[int, list[tuple[Detections, Floats]]] = {}

        def show(place: int, found: Detections, size: tuple[int, int]) -> None:
            parts.setdefault(place, []).append((found, weights(found.boxes, width=size[0], height=size[1])))

        watch = Watch(FLOOR, show)
        predictor = Predictor(
            self._kit.media, score_threshold=self._kit.settings.score_threshold, budget_s=BUDGET_S, watch=watch
        )
        tasks = [{"id": number, "data": self._tasks[number].data} for number in numbers]
        entries = predictor.predict(tasks, detector=self._detector, targets=self._targets, options=self._options)
        names = self._detector.names.names
        shown = sorted({index for target in self._targets for index in target.labels})
        seen: dict[int, _Seen] = {}
        for place, (number, entry) in enumerate(zip(numbers, entries, strict=True)):
            if place not in parts or not isinstance(entry, Prediction):
                continue  # without a photo nothing is known of the task
            found = Detections.joined([part for part, _ in parts[place]])
            shares = np.concatenate([share for _, share in parts[place]])
            kept = (found.scores >= FLOOR) & np.isin(found.classes, shown)
            seen[number] = _Seen(entry, uncertainty(found[kept], shares[kept], names=names, drawn=self._drawn))
        return seen

    def _import(self, scored: Mapping[int, tuple[_Seen, float]], *, doubts: bool = False) -> int:
        """Imports predictions with these scores; a task that is gone, or was predicted meanwhile, is left out."""
        now = {task.id: task for task in self._kit.studio.tasks(self._project, only_ids=scored)} if scored else {}
        rows = [
            {"task": number, "result": one.prediction.result, "score": score, "model_version": self._version}
            for number, (one, score) in scored.items()
            if number in now and not any(made.model_version == self._version for made in now[number].predictions)
        ]
        try:
            self._kit.studio.import_predictions(self._project, rows)
        except (PredictionsDropped, StudioRefused) as error:  # one of them went away at this very moment
            log.warning("predictions_not_imported", project=self._project, reason=str(error))
            return 0
        if doubts:
            kept = {number: (one.doubt, score) for number, (one, score) in scored.items()}
            self._kit.looks.looked(self._project, self._version, kept)
        return len(rows)

    def _asked(self) -> ProjectOptions:
        """What the project's connection asks for, over what the version brings."""
        rows = self._kit.studio.ml_backends(self._project)
        ours = (row for row in rows if same_address(row["url"], self._kit.settings.ml_url))
        given: Any = next((row.get("extra_params") for row in ours), None)
        return with_thresholds(read_options(given), self._kit.bases.thresholds(self._version))

    def _key(self, number: int) -> str:
        return photo_key(addresses(self._tasks[number], self._config))


def _portions(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + PORTION] for start in range(0, len(numbers), PORTION)]


def _weights(photo: Lesson) -> Floats:
    return weights(np.array(photo.boxes, np.float32).reshape(-1, 4), width=photo.width, height=photo.height)
