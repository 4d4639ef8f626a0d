"""Owns the next tasks: open tasks get fresh pre-labels of what is served, with scores that put first what teaches most.

Label Studio's own uncertainty sampling serves the lowest score of the project's `model_version` first. Of the tasks
that the last version wondered about most, and some that nobody looked at yet, a pool is predicted anew; acquisition
orders its best, each unlike the others and what is labelled, and that order becomes their scores (`order.py`). Label
Studio's bulk import keeps no `cluster`, so diversity is in the order itself. The other tasks follow in portions, as
long as no newer version comes.

Which tasks are open, and what is known of them, stands in our own table (`backlog.py`, `looks.py`): what an order
costs, here and in Label Studio, hangs on the pool and on what changed, not on the size of the project.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.cores import cores
from labelloop.service.studio import StudioRefused
from labelloop.service.studio.errors import PredictionsDropped
from labelloop.service.studio.mirror import chunks
from ml_backend.detection.detections import Detections, Floats
from ml_backend.learning.annotations import LabelledImage, addresses, is_held_out
from ml_backend.learning.base_models import Served
from ml_backend.learning.context import LearningContext
from ml_backend.learning.image_vectors import Eye
from ml_backend.learning.publish import tell_version
from ml_backend.learning.store.tasks import Known
from ml_backend.learning.task_order import HEAD, POOL_FROM, place_score, rest_score, with_held_out
from ml_backend.learning.task_sync import Backlog
from ml_backend.policy import LearningPolicy, read_learning_policy
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import DetectionObserver, Predictor
from ml_backend.predict.protocol import Prediction, ProjectOptions, read_options, with_thresholds
from ml_backend.studio.connect import same_address
from ml_backend.training.acquisition import (
    FLOOR,
    POOL,
    TWINS_OF,
    LabelCounts,
    UnlabelledImage,
    next_photos,
    rank,
    sample_without_near_duplicates,
    uncertainty,
    weights,
)
from ml_backend.training.parallel import parallel_map

UNSEEN = 4
"""One in so many of the pool is a task that no learned version looked at yet."""

AT_ONCE = 4
"""Tasks that each core predicts before it is looked whether something newer comes: a fit needs the cores."""

PORTION = 25
"""Tasks that are predicted and imported at a time, after the pool."""

FIRST = 32
"""Tasks that get an order at a time while nothing was learned: so the first have one seconds after `connect`."""

ROUNDS = 16
"""Times that a pool is chosen again because some of it proved to be done: after a rollback all of it may be."""

MOST_TAKEN = 1000
"""Tasks in the order before anything was learned that further ones are held against."""

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


def arrange(kit: LearningContext, project: int, *, stop: Stop) -> Arranged | None:
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
    served = kit.bases.served(project)
    if served.learned and stop():
        return Arranged(served.version, stopped=True)
    work = _Work(kit, project, policy, served, kit.studio.label_config(project))
    if not work.is_served:
        return None  # it would only get empty predictions; connect, /setup and doctor say why
    done = work.learned(stop) if served.learned else work.cold(stop)
    log.info("tasks_arranged", project=project, version=done.version, made=done.made, stopped=done.stopped)
    return done


class _Work:
    """One arrangement of one project."""

    def __init__(
        self, kit: LearningContext, project: int, policy: LearningPolicy, served: Served, config: LabelConfig
    ) -> None:
        self._kit, self._project, self._policy, self._config = kit, project, policy, config
        self._served = served
        self._version = served.version
        self._eye = Eye(kit, project, config, served)
        self._backlog = Backlog(kit.studio, kit.looks, project)
        self._backlog.use(self._eye.backbone)
        taught = kit.lessons.training_tasks(project)
        self._labelled = [task for task, _, _ in taught]
        self._drawn = LabelCounts.on((photo.labels, _weights(photo)) for _, _, photos in taught for photo in photos)
        self._tasks: dict[int, Task] = {}
        self._there: dict[int, int] = {}
        self._tried: set[int] = set()
        self._detector = kit.bases.detector(self._version)
        names = self._detector.names.names
        self._targets = find_targets(config, names, gives=self._detector.gives, points=self._detector.points)
        self._options = self._asked()

    @property
    def is_served(self) -> bool:
        """Whether some control is pre-labelled now, or will be once a version was learned from it."""
        outputs = ModelOutputs.of(self._detector)
        return any(one.prelabels or one.learns for one in controls_of(self._config, outputs))

    def cold(self, stop: Stop) -> Arranged:
        """Nothing was learned yet: a fair sample of the photos, whatever the model sees on them.

        A project of several pages is not read before its first tasks have an order: these are a sample from all over
        it. Each call goes on behind those that have a place already, by `HEAD` tasks at least whatever comes.
        """
        self._backlog.begin()
        self._backlog.refresh()
        self._missed()
        made, place = 0, self._kit.looks.count_prelabelled(self._project, self._version)
        while place < self._policy.prelabels and (
            portion := self._fair(min(FIRST, self._policy.prelabels - place), stop)
        ):
            placed = self._place(portion, place, stop)
            made, place = made + placed, place + len(portion)
            self._backlog.read_on(stop)
            if stop():
                return Arranged(self._version, made, stopped=True)
        return Arranged(self._version, made, stopped=not self._backlog.read_on(stop))

    def learned(self, stop: Stop) -> Arranged:
        """A learned version: the pool in the order of acquisition, then the others by the doubt of the last version."""
        self._backlog.begin()
        self._backlog.read_on(lambda: True)
        self._backlog.refresh()
        self._missed()
        pool = self._pool()
        made = self._first(pool, stop)
        if made or not stop():
            self._tell()
        if stop():
            return Arranged(self._version, made, stopped=True)
        for portion in _portions(self._rest(set(pool), max(self._policy.prelabels - made, 0))):
            if stop():
                return Arranged(self._version, made, stopped=True)
            seen = self._predict(self._read(portion), stop)
            made += self._import({number: (one, rest_score(one.doubt)) for number, one in seen.items()}, doubts=True)
        return Arranged(self._version, made, stopped=not self._backlog.read_on(stop))

    def _missed(self) -> None:
        """Where Label Studio has fewer predictions of the version than were written, somebody deleted some of them."""
        written = self._kit.looks.count_prelabelled(self._project, self._version, open_only=False)
        if written and self._kit.studio.model_versions(self._project).get(self._version, 0) < written:
            self._kit.looks.unwritten(self._project, self._version)

    def _tell(self) -> None:
        """Has Label Studio name the version, where it was not told of it yet: its first tasks have an order now."""
        learner = self._kit.lessons.project(self._project)
        if learner is not None and learner.untold_since is not None:
            tell_version(self._kit, self._project, self._version)

    def _fair(self, count: int, stop: Stop) -> list[int]:
        """Open tasks without a place in the order of a fair sample, twins of what has one last."""
        looks, project, version = self._kit.looks, self._project, self._version
        room = max(TWINS_OF, count) + len(self._tried)
        if not self._eye.backbone:
            order = looks.blind(project, version, limit=room)
        else:
            if len(self._untried(looks.by_chance(project, version, limit=room))) < count:
                unseen = looks.unseen(project, tries=1, limit=count + len(self._tried))
                for some in chunks(self._read(self._untried(unseen)[:count]), HEAD):
                    self._see(some, lambda: False)
                    if stop():
                        break
            fresh = self._untried(looks.by_chance(project, version, limit=room))
            able, vectors = looks.vectors(project, self._eye.backbone, fresh)
            order = (
                [able[index] for index in sample_without_near_duplicates(vectors, self._taken(), count)] if able else []
            )
        chosen = self._mixed(self._untried(order)[:count])
        self._tried |= set(chosen)
        return chosen

    def _place(self, portion: Sequence[int], place: int, stop: Stop) -> int:
        """Gives tasks the next places; returns how many predictions were made or moved.

        Predictions that are there keep what they show; those at the head get the score of their place.
        """
        here = self._read(portion)
        scores = {number: place_score(place + index) for index, number in enumerate(here)}
        seen = self._predict([number for number in here if number not in self._there], stop, least=1)
        moved = [number for number in here if number in self._there]
        made = self._import({number: (one, scores[number]) for number, one in seen.items()})
        for number in moved:
            if scores[number] < POOL_FROM:
                self._kit.studio.update_prediction(self._there[number], score=scores[number])
                made += 1
        self._kit.looks.written(self._project, self._version, {number: scores[number] for number in moved})
        return made

    def _pool(self) -> list[int]:
        """The tasks that may lead the queue: what the last version wondered about, and some that none has looked at.

        Those that prove to be done, gone or pre-labelled already make room for others.
        """
        chosen: list[int] = []
        for _ in range(ROUNDS):
            chosen = self._chosen()
            here = [number for number in self._read(chosen) if number not in self._there]
            if len(here) == len(chosen):
                return here
            self._kit.looks.written(self._project, self._version, self._scores())
        return [number for number in chosen if number in self._tasks and number not in self._there]

    def _chosen(self) -> list[int]:
        looks, project, version = self._kit.looks, self._project, self._version
        size = min(POOL * HEAD, self._policy.prelabels)
        doubted = looks.by_doubt(project, version, empty=False, fresh=False, limit=size)
        empty = looks.by_doubt(project, version, empty=True, fresh=False, limit=size)
        looked = _interleaved(doubted, empty)[:size]
        fresh = looks.by_chance(project, version, limit=max(TWINS_OF, size))
        able, vectors = looks.vectors(project, self._eye.backbone, fresh)
        unseen = [able[index] for index in sample_without_near_duplicates(vectors, self._taken(), size)] if able else []
        if len(unseen) < size:
            unseen += looks.blind(project, version, limit=size - len(unseen))
        chosen = unseen[: max(size // UNSEEN, size - len(looked))]
        return [*looked[: size - len(chosen)], *chosen]

    def _rest(self, pool: AbstractSet[int], count: int) -> list[int]:
        """Open tasks behind the pool, by the doubt of the last version."""
        looks, many = self._kit.looks, count + len(pool)
        doubted = looks.by_doubt(self._project, self._version, empty=False, fresh=True, limit=many)
        empty = looks.by_doubt(self._project, self._version, empty=True, fresh=True, limit=many)
        rest = _interleaved(
            [number for number in doubted if number not in pool], [number for number in empty if number not in pool]
        )
        return rest[:count]

    def _first(self, pool: Sequence[int], stop: Stop) -> int:
        """Predicts the pool, and imports it in the order of acquisition.

        Where something newer comes while half of it is done, that half is put in order: else an annotator who submits
        faster than a pool is predicted would never be served in the order of any version.
        """
        known = self._known(pool)
        self._see([number for number in pool if known[number].vector is None], stop)
        seen = self._predict(pool, stop)
        if 2 * len(seen) < len(pool) and stop():
            return 0
        able, vectors = self._kit.looks.vectors(self._project, self._eye.backbone, seen)
        head: list[int] = []
        if able:
            looks = [UnlabelledImage(vector, seen[number].doubt) for number, vector in zip(able, vectors, strict=True)]
            head = [able[index] for index in next_photos(looks, self._taken(), HEAD)]
        others = [number for number in seen if number not in set(head)]
        others = [others[index] for index in rank([seen[number].doubt for number in others])]
        order = self._mixed([*head, *others])
        scored = {number: (seen[number], place_score(place)) for place, number in enumerate(order)}
        return self._import(scored, doubts=True)

    def _mixed(self, order: Sequence[int]) -> list[int]:
        held = partial(is_held_out, self._project, share=self._policy.held_out)
        before = [*self._labelled, *self._placed()]
        return with_held_out(
            order, held, share=self._policy.held_out, labelled=len(before), held=sum(map(held, before))
        )

    def _placed(self) -> list[int]:
        """Tasks that were given a place before anything was learned."""
        if self._served.learned:
            return []
        return self._kit.looks.prelabelled(self._project, self._version, limit=MOST_TAKEN)

    def _taken(self) -> Floats:
        """Vectors that further photos are to be unlike."""
        return self._kit.looks.vectors(self._project, self._eye.backbone, [*self._labelled, *self._placed()])[1]

    def _untried(self, numbers: Iterable[int]) -> list[int]:
        return [number for number in numbers if number not in self._tried]

    def _known(self, numbers: Sequence[int]) -> dict[int, Known]:
        """What is known of open tasks; what was known of a photo that became another is forgotten."""
        looks = self._kit.looks
        known = dict.fromkeys(numbers, Known("", None)) | looks.known(self._project, self._eye.backbone, numbers)
        changed = [number for number, one in known.items() if one.photo not in {"", self._eye.key(self._tasks[number])}]
        looks.forget(self._project, changed)
        return known | dict.fromkeys(changed, Known("", None))

    def _read(self, numbers: Sequence[int]) -> list[int]:
        """Reads tasks as Label Studio has them now; returns those that are open and have a photo, in the same order."""
        looks, project = self._kit.looks, self._project
        found = {task.id: task for task in self._kit.studio.tasks(project, only_ids=numbers)} if numbers else {}
        done: dict[int, tuple[int, int]] = {}
        here: list[int] = []
        for number in numbers:
            task = found.get(number)
            if task is None:
                continue
            if task.annotations:
                skipped = sum(one.was_cancelled for one in task.annotations)
                done[number] = len(task.annotations) - skipped, skipped
            elif addresses(task, self._config):
                here.append(number)
                self._tasks[number] = task
                made = next((one for one in task.predictions if one.model_version == self._version), None)
                if made is not None and made.id is not None:
                    self._there[number] = made.id
        looks.counted(project, done)
        looks.drop(project, [number for number in numbers if number not in found])
        return here

    def _scores(self) -> dict[int, float | None]:
        """Tasks that have a prediction of this version, whoever asked for it, and its score."""
        return {
            number: next(one.score for one in self._tasks[number].predictions if one.id == prediction)
            for number, prediction in self._there.items()
        }

    def _see(self, numbers: Sequence[int], stop: Stop) -> None:
        """Vectors of photos that were not seen yet."""
        for portion in _portions(numbers):
            if stop():
                return
            self._eye.see([self._tasks[number] for number in portion])

    def _predict(self, numbers: Sequence[int], stop: Stop, *, least: int = 0) -> dict[int, _Seen]:
        """What is served finds on these tasks now; where something newer comes, on the first of them.

        Args:
            numbers: Tasks that were read.
            stop: Whether something newer comes.
            least: So many are looked at in any case.
        """
        seen: dict[int, _Seen] = {}
        for place, some in enumerate(chunks(numbers, AT_ONCE * cores())):
            if place * AT_ONCE * cores() >= least and stop():
                break
            # One by one: a batch of four takes 100 MB more and is no faster.
            for found in parallel_map(self._predict_one, some):
                seen |= found
        return seen

    def _predict_one(self, number: int) -> dict[int, _Seen]:
        parts: list[tuple[Detections, Floats]] = []

        def show(_place: int, found: Detections, size: tuple[int, int]) -> None:
            parts.append((found, weights(found.boxes, width=size[0], height=size[1])))

        predictor = Predictor(
            self._kit.media, score_threshold=self._kit.settings.score_threshold, budget_s=BUDGET_S,
            watch=DetectionObserver(FLOOR, show),
        )  # fmt: skip
        task = {"id": number, "data": self._tasks[number].data}
        [entry] = predictor.predict([task], detector=self._detector, targets=self._targets, options=self._options)
        if not parts or not isinstance(entry, Prediction):
            return {}  # without a photo nothing is known of the task
        names = self._detector.names.names
        shown = sorted({index for target in self._targets for index in target.labels})
        found = Detections.joined([part for part, _ in parts])
        shares = np.concatenate([share for _, share in parts])
        kept = (found.scores >= FLOOR) & np.isin(found.classes, shown)
        return {number: _Seen(entry, uncertainty(found[kept], shares[kept], names=names, drawn=self._drawn))}

    def _import(self, scored: Mapping[int, tuple[_Seen, float]], *, doubts: bool = False) -> int:
        """Imports predictions with these scores; a task that is gone, or was predicted meanwhile, is left out."""
        here = self._read(list(scored))
        rows = [
            {"task": number, "result": scored[number][0].prediction.result, "score": scored[number][1],
             "model_version": self._version}
            for number in here if number not in self._there
        ]  # fmt: skip
        try:
            self._kit.studio.import_predictions(self._project, rows)
        except (PredictionsDropped, StudioRefused) as error:  # one of them went away at this very moment
            log.warning("predictions_not_imported", project=self._project, reason=str(error))
            return 0
        if doubts:
            kept = {number: (scored[number][0].doubt, scored[number][1]) for number in here}
            self._kit.looks.looked(self._project, self._version, kept)
        else:
            made = {number: scored[number][1] for number in here if number not in self._there}
            self._kit.looks.written(self._project, self._version, made)
        return len(rows)

    def _asked(self) -> ProjectOptions:
        """What the project's connection asks for, over what the version brings."""
        rows = self._kit.studio.ml_backends(self._project)
        ours = (row for row in rows if same_address(row["url"], self._kit.settings.ml_url))
        given: Any = next((row.get("extra_params") for row in ours), None)
        return with_thresholds(read_options(given), self._kit.bases.thresholds(self._version))


def _portions(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + PORTION] for start in range(0, len(numbers), PORTION)]


def _interleaved(doubted: Sequence[int], empty: Sequence[int]) -> list[int]:
    """As `rank` has them: those that promise most first, one in so many on which nothing was seen."""
    numbers = [*doubted, *empty]
    doubts = [*(float(len(doubted) - place) for place in range(len(doubted))), *[None] * len(empty)]
    return [numbers[index] for index in rank(doubts)]


def _weights(photo: LabelledImage) -> Floats:
    return weights(np.array(photo.boxes, np.float32).reshape(-1, 4), width=photo.width, height=photo.height)
