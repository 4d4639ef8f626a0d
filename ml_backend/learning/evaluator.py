"""Evaluate model versions on labelled images, with cached detections and results."""

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import structlog
from cachetools import LRUCache

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.media import MediaError
from ml_backend.detection.detections import Detections, Floats
from ml_backend.inference.detector import Detector
from ml_backend.inference.slicing import detect_as_learned
from ml_backend.layouts import best_class
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.base_models import BaseModels
from ml_backend.learning.features import FeatureProvider, boxes_on_image
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import ImageSource
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.linear_head import LinearHead, head_detector
from ml_backend.training.metrics import GroundTruth, ap50
from ml_backend.training.parallel import parallel_map, single_threaded_blas

# Held-out images with a box that an evaluation on them needs.
ENOUGH_PHOTOS = 5

# Boxes on them that it needs.
ENOUGH_BOXES = 10

# Lowest score of a detection in an evaluation.
FLOOR = 0.01

# Most cached predictions: one per version and image.
MAX_PREDICTIONS = 2000

# Most cached evaluation results: earlier versions are evaluated again at every run.
MAX_RESULTS = 64

# Version name of a head that is run on tiles by the backbone's session.
CANDIDATE_HEAD = "head"

# Most heads in memory, so that their versions need not be opened.
MAX_HEADS = 8

Value = TypeVar("Value")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Ground truth and detections on a set of images.

    Attributes:
        truths: Ground truth of each image.
        detections: Detections on each image.
        names: Label of each detected class; empty if the project does not use the class.
    """

    truths: Sequence[GroundTruth]
    detections: Sequence[Detections]
    names: Sequence[str]

    def by_class(self) -> dict[str, float]:
        """Return the AP50 of every class in the ground truth."""
        return dict(self._by_class)

    @cached_property
    def _by_class(self) -> dict[str, float]:
        return ap50(self.truths, self.detections, names=list(self.names))

    @property
    def photos(self) -> int:
        """Number of images with a box."""
        return sum(bool(truth.labels) for truth in self.truths)

    @property
    def boxes(self) -> int:
        """Number of boxes."""
        return sum(len(truth.labels) for truth in self.truths)

    @property
    def enough(self) -> bool:
        """Whether there are enough images and boxes to decide."""
        return self.photos >= ENOUGH_PHOTOS and self.boxes >= ENOUGH_BOXES


@dataclass(frozen=True)
class _Prediction:
    detections: Detections
    width: int
    height: int


# (task, image URL) -> detections on the image.
_DetectFunction = Callable[[int, str], _Prediction]


class Evaluator:
    """Evaluates versions. Thread-safe."""

    def __init__(self, bases: BaseModels, album: FeatureProvider, photos: ImageSource) -> None:
        """Open nothing yet."""
        self._bases = bases
        self._features = album
        self._photos = photos
        self._lock = threading.Lock()  # held for reads too: they reorder an LRUCache
        self._predictions: LRUCache[tuple[str, str], _Prediction] = LRUCache(MAX_PREDICTIONS)
        self._results: LRUCache[tuple[str, str], EvaluationResult] = LRUCache(MAX_RESULTS)
        self._heads: LRUCache[str, LinearHead] = LRUCache(MAX_HEADS)

    def add_head(self, version: str, head: LinearHead) -> None:
        """Keep the head of a learned version in memory, and drop cached results of the same name."""
        with self._lock:
            self._heads[version] = head
            _pop_version(self._predictions, version)
            _pop_version(self._results, version)

    def head(self, version: str) -> LinearHead | None:
        """The head of a version; None if it is not in memory."""
        with self._lock:
            return self._heads.get(version)

    def rename(self, version: str, to: str) -> None:
        """Rename a candidate to its version, with its cached results."""
        with self._lock:
            self._heads[to] = self._heads.pop(version)
            self._predictions.update(
                {(to, key): answer for key, answer in _pop_version(self._predictions, version).items()}
            )
            self._results.update({(to, key): result for key, result in _pop_version(self._results, version).items()})

    def share(self, version: str, *, to: str) -> None:
        """Use the head and the results of a version for another one with the same boxes."""
        with self._lock:
            if version in self._heads:
                self._heads[to] = self._heads[version]

    def evaluate(
        self,
        version: str,
        images: Sequence[tuple[int, LabelledImage]],
        *,
        config: LabelConfig,
        backbone: FrozenBackbone | None = None,
        base: str = "",
    ) -> EvaluationResult:
        """Return a version's detections on labelled images. Images that cannot be loaded are left out.

        Args:
            version: A version on the store, or the base.
            images: Pairs of task and labelled image.
            config: Maps the classes of the version to labels.
            backbone: Computes features for the base and for heads trained on it; None: every version is opened.
            base: The base's version.
        """
        content = tuple(
            (task, image.url, image.width, image.height, image.boxes, image.labels) for task, image in images
        )
        cache_key = version, f"{hash(content)} {config!r}"
        with self._lock:
            if cache_key in self._results:
                return self._results[cache_key]
        head = self.head(version) if backbone is not None else None
        if backbone is not None and (head is not None or version == base):
            names, detect = (head or backbone).names, self._backbone_detector(head, backbone)
        else:
            detector = self._bases.detector(version)
            names, detect = detector.names.names, self._model_detector(detector)

        def predict(pair: tuple[int, LabelledImage]) -> tuple[_Prediction, Floats] | None:
            task, image = pair
            key = version, hashlib.sha256(image.url.encode()).hexdigest()[:24]
            with self._lock:
                prediction = self._predictions.get(key)
            try:
                prediction = prediction or detect(task, image.url)
                boxes = boxes_on_image(image, prediction.width, prediction.height)
            except MediaError as error:
                log.warning("photo_not_judged_by", task=task, reason=str(error))
                return None
            self._keep(key, prediction)
            return prediction, boxes

        truths, detections = [], []
        with single_threaded_blas():
            predictions = parallel_map(predict, images)
        for (_, image), predicted in zip(images, predictions, strict=True):
            if predicted is not None:
                prediction, boxes = predicted
                truths.append(GroundTruth(boxes, image.labels))
                detections.append(prediction.detections)
        result = EvaluationResult(truths, detections, labels_of(config, names))
        if len(truths) == len(images):  # an image that could not be loaded may load the next time
            with self._lock:
                self._results[cache_key] = result
        return result

    def _model_detector(self, detector: Detector) -> _DetectFunction:
        """Return a function that runs an opened model on an image."""

        def detect(task: int, url: str) -> _Prediction:
            side = None if detector.tiles > 1 else detector.spec.decode_side
            photo = self._photos.photo(url, task_id=task, max_side=side)
            size = photo.width, photo.height
            return _Prediction(detect_as_learned(detector, photo.pixels, floor=FLOOR, size=size), *size)

        return detect

    def _backbone_detector(self, head: LinearHead | None, backbone: FrozenBackbone) -> _DetectFunction:
        """Return a function that applies a head, or the base itself, to cached backbone features."""
        if head is not None and head.tiles > 1:
            return self._model_detector(head_detector(backbone, head, version=CANDIDATE_HEAD))

        def detect(task: int, url: str) -> _Prediction:
            features = self._features.features(backbone, url, task=task)
            detections = (
                base_detections(backbone, features, floor=FLOOR)
                if head is None
                else _approximate_detections(head, features)
            )
            return _Prediction(detections, features.fit.width, features.fit.height)

        return detect

    def _keep(self, key: tuple[str, str], answer: _Prediction) -> None:
        with self._lock:
            self._predictions[key] = answer


def _pop_version(cache: LRUCache[tuple[str, str], Value], version: str) -> dict[str, Value]:
    """Remove and return the entries of a version, by the rest of their key."""
    return {key[1]: cache.pop(key) for key in [key for key in cache if key[0] == version]}


def _approximate_detections(head: LinearHead, features: CandidateFeatures) -> Detections:
    """Return the detections of a head, in reduced precision: sufficient for AP50, in half the time."""
    return head.detect(features, floor=FLOOR, exact=False)


def base_detections(backbone: FrozenBackbone, features: CandidateFeatures, *, floor: float) -> Detections:
    """Return the base model's detections from its features."""
    scores = features.scores * features.objectness[:, None]
    detections = best_class(features.boxes, scores, backbone.detector.candidate_floor(floor))
    features.release()
    return backbone.detector.postprocess(detections, features.fit, floor=floor).to_image(features.fit)


def labels_of(config: LabelConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the project's label of each class; empty for unused classes."""
    label_by_index: dict[int, str] = {}
    for target in find_targets(config, names):
        for index, label in target.labels.items():
            label_by_index.setdefault(index, label)
    return tuple(label_by_index.get(index, "") for index in range(len(names)))


def known_classes(config: LabelConfig, names: Sequence[str], drawn: Collection[str]) -> list[tuple[str, int]]:
    """Return the base's classes that a project uses: (name in the learned model, index in the base).

    A class is named by its label. If several classes map to one label, a labelled one is initialised from the first of
    them; a label without annotations keeps all of them under their own names.

    Args:
        config: The project's label config.
        names: The base's class names.
        drawn: Labels with annotations.
    """
    labels = labels_of(config, names)
    classes: list[tuple[str, int]] = []
    for index, label in enumerate(labels):
        if not label or (label in drawn and label in labels[:index]):
            continue
        classes.append((label if label in drawn or labels.count(label) == 1 else names[index], index))
    return classes
