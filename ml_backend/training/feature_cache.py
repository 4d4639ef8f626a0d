"""On-disk cache of candidate features: an image passes through a backbone once."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import structlog

from labelloop.service.media.disk_cache import DiskCache
from ml_backend.detection.detections import Floats
from ml_backend.detection.fit import Fit
from ml_backend.training.backbone import CandidateFeatures

log = structlog.get_logger(__name__)

_ARRAYS = ("boxes", "objectness", "scores", "embeddings")

# Largest number of half precision.
_MAX_HALF = 65504.0


class FeatureCache:
    """Candidate features in a `DiskCache`.

    Embeddings and class scores are stored in half precision, a quarter of the output's size, without loss for a fitted
    head.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Remove files of earlier releases; the first features create the folder.

        Args:
            folder: The cache's folder. Several processes may share it.
            max_bytes: Limit for all files together.
        """
        self._folder = folder
        self._files = DiskCache(folder, max_bytes)
        for outdated in folder.glob("*.npz*"):  # files of earlier releases, which are not read any more
            outdated.unlink(missing_ok=True)

    def get(self, key: str, compute: Callable[[], CandidateFeatures]) -> CandidateFeatures:
        """Read the features of a key from disk, or compute and store them.

        Where they cannot be stored or read back, they are computed again the next time.

        Args:
            key: Identifies backbone and image.
            compute: Computes the features on a miss.
        """
        computed: CandidateFeatures | None = None

        def write(file: BinaryIO) -> None:
            nonlocal computed
            computed = _rounded(compute())
            _save(computed, file)

        try:
            with self._files.open(key, write) as file:
                stored = _load(file)
            if stored is not None:
                return stored
            self._files.remove(key)
        except OSError as error:
            log.warning("sight_not_kept", folder=str(self._folder), reason=error.strerror or str(error))
        return _rounded(compute()) if computed is None else computed

    def get_all(
        self, keys: Sequence[str], compute: Callable[[], Sequence[CandidateFeatures]]
    ) -> list[CandidateFeatures]:
        """Like `get` for several keys that are computed together, such as the tiles of an image, in half precision."""
        computed: list[CandidateFeatures] = []

        def nth(index: int) -> CandidateFeatures:
            if not computed:
                computed.extend(compute())
            return computed[index]

        return [self.get(key, partial(nth, index)).half_precision() for index, key in enumerate(keys)]

    def image_features(self, key: str, compute: Callable[[], CandidateFeatures]) -> tuple[Floats | None, int, int]:
        """Like `get`, but read the features of the whole image alone.

        Returns:
            (features (g,) float32, None without; width and height of the image in pixels).
        """
        computed: CandidateFeatures | None = None

        def write(file: BinaryIO) -> None:
            nonlocal computed
            computed = _rounded(compute())
            _save(computed, file)

        try:
            with self._files.open(key, write) as file, np.load(file) as archive:
                of_image = np.asarray(archive["image"], np.float32)
                width, height = archive["fit"].tolist()[4:6]
            return (of_image if len(of_image) else None), int(width), int(height)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            self._files.remove(key)
        except OSError as error:
            log.warning("sight_not_kept", folder=str(self._folder), reason=error.strerror or str(error))
        features = _rounded(compute()) if computed is None else computed
        return features.image_features, features.fit.width, features.fit.height


def _rounded(features: CandidateFeatures) -> CandidateFeatures:
    """The features with the values that are read back: rounded to half precision, except boxes and objectness."""
    scores, embeddings = features.scores.astype(np.float16), features.embeddings.astype(np.float16)
    of_image = None if features.image_features is None else _half(features.image_features)
    return replace(
        features, scores=scores.astype(np.float32), embeddings=embeddings.astype(np.float32), image_features=of_image
    )


def _half(values: Floats) -> Floats:
    return np.asarray(np.clip(values, -_MAX_HALF, _MAX_HALF).astype(np.float16), np.float32)


def _save(features: CandidateFeatures, file: BinaryIO) -> None:
    fit = features.fit
    np.savez(
        file,
        fit=np.array([fit.scale_x, fit.scale_y, fit.left, fit.top, fit.width, fit.height, *fit.origin]),
        boxes=features.boxes,
        objectness=features.objectness,
        scores=features.scores.astype(np.float16),
        embeddings=features.embeddings.astype(np.float16),
        image=np.zeros(0, np.float16)
        if features.image_features is None
        else features.image_features.astype(np.float16),
    )


def _load(file: BinaryIO) -> CandidateFeatures | None:
    """The stored features; None if the file is damaged."""
    try:
        with np.load(file) as archive:
            arrays = [np.asarray(archive[name], np.float32) for name in _ARRAYS]
            of_image = np.asarray(archive["image"], np.float32)
            scale_x, scale_y, *pixels = archive["fit"].tolist()
            left, top, width, height, *origin = map(int, pixels)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fit = Fit(scale_x, scale_y, left, top, width, height, (origin[0], origin[1]) if origin else (0, 0))
    return CandidateFeatures(arrays[0], arrays[1], arrays[2], arrays[3], fit, of_image if len(of_image) else None)
