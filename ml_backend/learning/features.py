"""Backbone features of a project's images, by URL, cached in memory and on disk."""

import hashlib
import random
import threading
from collections.abc import Sequence

import numpy as np

from labelloop.labeling.geometry.label_placement import LabelsMisplaced, scale_of_labels
from labelloop.service.media import MediaError
from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import Prepared, prepare
from ml_backend.learning.annotations import LabelledImage
from ml_backend.predict.predictor import ImageSource
from ml_backend.training.backbone import CandidateFeatures, FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.tiles import Part

# Bytes of features in memory. Those that are mapped from the cache on disk count as `MAPPED_BYTES`; others, where the
# disk is full, take 3 MB per image with the embedded model.
MEMORY_BYTES = 64 * 2**20

# Bytes of a mapping in memory: Python's objects and the features of the whole image.
MAPPED_BYTES = 16 * 2**10

# Images whose features as a whole stay in memory: about 4 kB each with the embedded model.
MAX_IMAGES = 5000


class FeatureProvider:
    """Features by image URL, cached on disk and mapped from there. Thread-safe."""

    def __init__(self, photos: ImageSource, cache: FeatureCache, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Create an empty memory cache.

        Args:
            photos: Source of the images.
            cache: Cache on disk.
            memory_bytes: Size of the memory cache.
        """
        self._photos = photos
        self._cache = cache
        self._memory_bytes = memory_bytes
        self._memory: dict[str, CandidateFeatures] = {}
        self._of_images: dict[str, tuple[Floats | None, int, int]] = {}
        self._bytes = self._mapped_bytes = 0
        self._lock = threading.Lock()

    def features(self, backbone: FrozenBackbone, url: str, *, task: int | None) -> CandidateFeatures:
        """Return the backbone's features of an image.

        Raises:
            MediaError: The image cannot be loaded or decoded.
            ModelBroken: Inference failed.
        """
        key = f"{backbone.cache_key}-{hashlib.sha256(url.encode()).hexdigest()[:24]}"
        with self._lock:
            if key in self._memory:
                return self._memory[key]
        features = self._cache.get_mapped(
            key, lambda: backbone.extract_features([self.prepared_image(backbone, url, task=task)])[0]
        )
        with self._lock:
            if key not in self._memory:
                # Training reads all images in the same order. With LRU eviction every read would miss the cache, so a
                # random entry is evicted.
                while self._memory and not self._has_room(features):
                    evicted = self._memory.pop(random.choice(list(self._memory)))  # noqa: S311 - no secret
                    self._bytes -= _size(evicted)
                    self._mapped_bytes -= _mapped_size(evicted)
                self._memory[key] = features
                self._bytes += _size(features)
                self._mapped_bytes += _mapped_size(features)
        return features

    def _has_room(self, features: CandidateFeatures) -> bool:
        """Whether they fit next to the others. Mapped files stay on the disk after the cache there deleted them."""
        fits = self._bytes + _size(features) <= self._memory_bytes
        return fits and self._mapped_bytes + _mapped_size(features) <= self._cache.max_bytes

    def image_features(self, backbone: FrozenBackbone, url: str, *, task: int | None) -> tuple[Floats | None, int, int]:
        """Return the backbone's features of a whole image, and its width and height in pixels.

        They are small, so those of thousands of images stay in memory.

        Raises:
            MediaError: The image cannot be loaded or decoded.
            ModelBroken: Inference failed.
        """
        key = f"{backbone.cache_key}-{hashlib.sha256(url.encode()).hexdigest()[:24]}"
        with self._lock:
            if key in self._of_images:
                return self._of_images[key]
        features = self._cache.image_features(
            key, lambda: backbone.extract_features([self.prepared_image(backbone, url, task=task)])[0]
        )
        with self._lock:
            while len(self._of_images) >= MAX_IMAGES:
                self._of_images.pop(next(iter(self._of_images)))
            self._of_images[key] = features
        return features

    def tile_features(
        self, backbone: FrozenBackbone, url: str, parts: Sequence[Part], *, task: int | None
    ) -> list[CandidateFeatures]:
        """Return the backbone's features of parts of an image, given in its pixels; cached on disk.

        Raises:
            MediaError: The image cannot be loaded or decoded.
            ModelBroken: Inference failed.
        """
        key = f"{backbone.cache_key}-{hashlib.sha256(url.encode()).hexdigest()[:24]}"
        return self._cache.get_all(
            [f"{key}-{'-'.join(map(str, part))}" for part in parts],
            lambda: backbone.extract_tiles(self._photos.photo(url, task_id=task, max_side=None).pixels, parts),
        )

    def prepared_image(self, backbone: FrozenBackbone, url: str, *, task: int | None) -> Prepared:
        """Return the image as prepared for the backbone."""
        spec = backbone.spec
        photo = self._photos.photo(url, task_id=task, max_side=spec.decode_side)
        return prepare(photo.pixels, spec, size=(photo.width, photo.height))

    def example(self, backbone: FrozenBackbone, image: LabelledImage, *, task: int) -> Example:
        """Return a labelled image with its features, as an example for training.

        Raises:
            MediaError: The image cannot be loaded or decoded, or its labels are for other pixels.
            ModelBroken: Inference failed.
        """
        features = self.features(backbone, image.url, task=task)
        return Example(
            features, boxes_on_image(image, features.fit.width, features.fit.height), image.labels, image.complete
        )


def boxes_on_image(image: LabelledImage, width: int, height: int) -> Floats:
    """Return the boxes of a labelled image, scaled to an image of width x height pixels; (n, 4) float32.

    Raises:
        MediaError: Its labels are for an image of another aspect ratio.
    """
    boxes: Floats = np.asarray(image.boxes, np.float32).reshape(-1, 4)
    try:
        across, down = scale_of_labels((image.width, image.height), (width, height))
    except LabelsMisplaced as error:
        raise MediaError(image.url, str(error), fix="Label it again: the image was replaced.") from error
    return np.asarray(boxes * np.array([across, down, across, down]), np.float32)


def _mapped_size(features: CandidateFeatures) -> int:
    return features.file.size if features.file is not None else 0


def _size(features: CandidateFeatures) -> int:
    if features.file is not None:
        return MAPPED_BYTES
    of_image = 0 if features.image_features is None else features.image_features.nbytes
    arrays = (features.boxes, features.objectness, features.scores, features.embeddings)
    return sum(array.nbytes for array in arrays) + of_image
