"""Owns examining versions on labelled photos: what each finds there, looked at once and remembered."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.media import MediaError
from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import Detector
from ml_backend.layouts import best_class
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.base_models import BaseModels
from ml_backend.learning.evaluation.acceptance import FLOOR, EvaluationResult
from ml_backend.learning.features import FeatureProvider, drawn_on
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Photos
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.linear_head import Head
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.parallel import parallel_map, single_threaded_blas

KEPT = 2000
"""Answers that stay in memory: of a version on a photo."""

EXAMS = 64
"""Exams that stay in memory with their marks: the versions before the served one are asked again at every run."""

HEADS = 8
"""Heads that stay in memory, so that their versions answer without being opened."""

Kept = TypeVar("Kept")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Answer:
    found: Detections
    width: int
    height: int


_Looker = Callable[[int, str], _Answer]
"""(task, address of its photo) -> what was found there."""


class Evaluator:
    """Examines versions. Safe to use from many threads."""

    def __init__(self, bases: BaseModels, album: FeatureProvider, photos: Photos) -> None:
        """Opens nothing yet."""
        self._bases = bases
        self._album = album
        self._photos = photos
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        self._exams: OrderedDict[tuple[str, str], EvaluationResult] = OrderedDict()
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, version: str, head: Head) -> None:
        """A version that was learned here: its head answers for it, and what another of that name said is forgotten."""
        with self._lock:
            self._heads[version] = head
            _take(self._answers, version)
            _take(self._exams, version)
            while len(self._heads) > HEADS:
                self._heads.popitem(last=False)

    def remembers(self, version: str) -> bool:
        """Whether a version's head is in memory."""
        return version in self._heads

    def rename(self, version: str, to: str) -> None:
        """A candidate became a version: what it said stays said."""
        with self._lock:
            self._heads[to] = self._heads.pop(version)
            self._answers.update({(to, key): answer for key, answer in _take(self._answers, version).items()})
            self._exams.update({(to, key): exam for key, exam in _take(self._exams, version).items()})

    def evaluate(
        self,
        version: str,
        lessons: Sequence[tuple[int, LabelledImage]],
        *,
        config: LabelConfig,
        backbone: FrozenBackbone | None = None,
        base: str = "",
    ) -> EvaluationResult:
        """What a version finds on labelled photos. A photo that cannot be had is left out.

        Args:
            version: Of the store, or the base.
            lessons: (task, photo with what was drawn on it).
            config: Says which label a class of the version means.
            backbone: Sees photos for the base and for what was learned on it; None: every version is opened.
            base: The base's version.
        """
        asked = version, f"{hash(tuple(lessons))} {config!r}"
        with self._lock:
            if asked in self._exams:
                self._exams.move_to_end(asked)
                return self._exams[asked]
        head = self._heads.get(version) if backbone is not None else None
        if backbone is not None and (head is not None or version == base):
            names, look = (head or backbone).names, self._seen(head, backbone)
        else:
            detector = self._bases.detector(version)
            names, look = detector.names.names, self._opened(detector)

        def answer(one: tuple[int, LabelledImage]) -> _Answer | None:
            task, lesson = one
            key = version, hashlib.sha256(lesson.url.encode()).hexdigest()[:24]
            try:
                given = self._answers.get(key) or look(task, lesson.url)
            except MediaError as error:
                log.warning("photo_not_judged_by", task=task, reason=str(error))
                return None
            self._keep(key, given)
            return given

        truths, found = [], []
        with single_threaded_blas():
            answers = parallel_map(answer, lessons)
        for (_, lesson), given in zip(lessons, answers, strict=True):
            if given is not None:
                truths.append(GroundTruth(drawn_on(lesson, given.width, given.height), lesson.labels))
                found.append(given.found)
        exam = EvaluationResult(truths, found, labels_of(config, names))
        if len(truths) == len(lessons):  # a photo that could not be had may be there the next time
            with self._lock:
                self._exams[asked] = exam
                while len(self._exams) > EXAMS:
                    self._exams.popitem(last=False)
        return exam

    def _opened(self, detector: Detector) -> _Looker:
        """How an opened model looks at a photo."""

        def look(task: int, url: str) -> _Answer:
            spec = detector.spec
            side = max(spec.width, spec.height) * (2 if spec.placement == "crop" else 1)
            photo = self._photos.photo(url, task_id=task, max_side=side)
            [found] = detector.detect([prepare(photo.image, spec, size=(photo.width, photo.height))], floor=FLOOR)
            return _Answer(found, photo.width, photo.height)

        return look

    def _seen(self, head: Head | None, backbone: FrozenBackbone) -> _Looker:
        """How a head, or the base itself, looks at a photo that its backbone sees."""

        def look(task: int, url: str) -> _Answer:
            sight = self._album.sight(backbone, url, task=task)
            found = base_finds(backbone, sight, floor=FLOOR) if head is None else _nearly(head, sight)
            return _Answer(found, sight.fit.width, sight.fit.height)

        return look

    def _keep(self, key: tuple[str, str], answer: _Answer) -> None:
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)


def _take(kept: OrderedDict[tuple[str, str], Kept], version: str) -> dict[str, Kept]:
    """Removes what is kept of a version, and gives it back by the rest of its key."""
    return {key[1]: kept.pop(key) for key in [key for key in kept if key[0] == version]}


def _nearly(head: Head, sight: CandidateFeatures) -> Detections:
    """What a head finds, to so many digits as a figure needs, in half the time."""
    return head.detect(sight, floor=FLOOR, exact=False)


def base_finds(backbone: FrozenBackbone, sight: CandidateFeatures, *, floor: float) -> Detections:
    """What the base itself finds on a photo that its backbone saw."""
    scores = sight.scores * sight.objectness[:, None]
    found = best_class(sight.boxes, scores, backbone.detector.reach(floor))
    return sight.fit.to_photo(backbone.detector.settled(found, sight.fit, floor=floor))


def labels_of(config: LabelConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The label that each class means in a project; empty where it means none."""
    found: dict[int, str] = {}
    for target in find_targets(config, names):
        for index, label in target.labels.items():
            found.setdefault(index, label)
    return tuple(found.get(index, "") for index in range(len(names)))


def known_classes(config: LabelConfig, names: Sequence[str], drawn: Collection[str]) -> list[tuple[str, int]]:
    """Classes of a base that a project uses: (name in the learned model, index in the base).

    A class goes by its label, and a drawn label is learned from there on. Where several classes mean one label, a drawn
    one begins with the first of them; one that nobody drew yet is answered by all of them, under their own names.

    Args:
        config: The project's label config.
        names: The base's classes.
        drawn: Labels that were drawn.
    """
    labels = labels_of(config, names)
    found: list[tuple[str, int]] = []
    for index, label in enumerate(labels):
        if not label or (label in drawn and label in labels[:index]):
            continue
        found.append((label if label in drawn or labels.count(label) == 1 else names[index], index))
    return found
