"""Owns the sights of a project's photos in service: from the address in a task to what the backbone sees on it."""

import hashlib
import random
import threading
from dataclasses import replace

import numpy as np

from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import Prepared, prepare
from ml_backend.learning.annotations import LabelledImage
from ml_backend.predict.predictor import Photos
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache

MEMORY_BYTES = 512 * 2**20
"""Of sights in memory, about 150 with the embedded model: a fit after each submit does not read them all from disk."""


class FeatureProvider:
    """Sights by address, in memory and on disk. Safe to use from many threads."""

    def __init__(self, photos: Photos, sights: FeatureCache, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Keeps nothing yet.

        Args:
            photos: Where photos come from.
            sights: Keeps sights on disk.
            memory_bytes: Most bytes kept in memory.
        """
        self._photos = photos
        self._sights = sights
        self._room = memory_bytes
        self._kept: dict[str, CandidateFeatures] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def sight(self, backbone: FrozenBackbone, url: str, *, task: int | None) -> CandidateFeatures:
        """What the backbone sees on the photo at an address.

        Raises:
            MediaError: It cannot be had or decoded.
            ModelBroken: The engine failed.
        """
        key = f"{backbone.version}-{hashlib.sha256(url.encode()).hexdigest()[:24]}"
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        sight = _halved(
            self._sights.get(key, lambda: backbone.extract_features([self.prepared(backbone, url, task=task)])[0])
        )
        with self._lock:
            if key not in self._kept:
                # A fit goes through all its photos in turn. If the one used longest ago went, none would ever be there
                # when it is asked for again; so one goes by chance.
                while self._kept and self._bytes + _size(sight) > self._room:
                    self._bytes -= _size(self._kept.pop(random.choice(list(self._kept))))  # noqa: S311 - no secret
                self._kept[key] = sight
                self._bytes += _size(sight)
        return sight

    def prepared(self, backbone: FrozenBackbone, url: str, *, task: int | None) -> Prepared:
        """The photo as the backbone is shown it."""
        spec = backbone.spec
        photo = self._photos.photo(url, task_id=task, max_side=max(spec.width, spec.height))
        return prepare(photo.image, spec, size=(photo.width, photo.height))

    def example(self, backbone: FrozenBackbone, lesson: LabelledImage, *, task: int) -> Example:
        """A lesson beside what is seen on its photo."""
        sight = self.sight(backbone, lesson.url, task=task)
        return Example(sight, drawn_on(lesson, sight.fit.width, sight.fit.height), lesson.labels, lesson.complete)


def drawn_on(lesson: LabelledImage, width: int, height: int) -> Floats:
    """The boxes (n, 4) of a lesson in pixels of its photo, float32.

    Results carry the size of the photo that they were drawn on; where that is not the photo's, boxes are stretched.
    """
    boxes: Floats = np.asarray(lesson.boxes, np.float32).reshape(-1, 4)
    if lesson.width and lesson.height and (lesson.width, lesson.height) != (width, height):
        across, down = width / lesson.width, height / lesson.height
        return np.asarray(boxes * np.array([across, down, across, down]), np.float32)
    return boxes


def _halved(sight: CandidateFeatures) -> CandidateFeatures:
    """In half precision, as on disk: what is computed from it is the same to the bit, in half the memory."""
    return replace(sight, scores=sight.scores.astype(np.float16), embeddings=sight.embeddings.astype(np.float16))


def _size(sight: CandidateFeatures) -> int:
    return sight.boxes.nbytes + sight.objectness.nbytes + sight.scores.nbytes + sight.embeddings.nbytes
