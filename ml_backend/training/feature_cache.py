"""On-disk LRU cache of candidate features: an image passes through a backbone once."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from ml_backend.detection.preprocess import Fit
from ml_backend.training.backbone import CandidateFeatures

log = structlog.get_logger(__name__)

_ARRAYS = ("boxes", "objectness", "scores", "embeddings")


class FeatureCache:
    """A folder of candidate features; the least recently used files are removed above a size limit.

    Embeddings and class scores are stored in half precision, a quarter of the output's size, without loss for a fitted
    head.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Open the folder.

        Args:
            folder: Created where missing.
            max_bytes: Limit for all files together.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = sum(file.stat().st_size for file in folder.glob("*.npz"))

    def get(self, key: str, compute: Callable[[], CandidateFeatures]) -> CandidateFeatures:
        """Read the features of a key from disk, or compute and store them.

        Args:
            key: Identifies backbone and image; letters, digits, dots, hyphens and underscores.
            compute: Computes the features on a miss.
        """
        file = self._folder / f"{key}.npz"
        try:
            with np.load(file) as archive:
                arrays = [np.asarray(archive[name], np.float32) for name in _ARRAYS]
                scale_x, scale_y, left, top, width, height = archive["fit"].tolist()
            os.utime(file)
        except (OSError, ValueError, KeyError, EOFError):
            return self._store(file, compute())
        fit = Fit(scale_x, scale_y, int(left), int(top), int(width), int(height))
        return CandidateFeatures(arrays[0], arrays[1], arrays[2], arrays[3], fit)

    def _store(self, file: Path, features: CandidateFeatures) -> CandidateFeatures:
        """Store features; where writing fails, they are computed again the next time."""
        halves = features.scores.astype(np.float16), features.embeddings.astype(np.float16)
        fit = features.fit
        transform = [fit.scale_x, fit.scale_y, fit.left, fit.top, fit.width, fit.height]
        arrays: dict[str, Any] = dict(zip(_ARRAYS, (features.boxes, features.objectness, *halves), strict=True))
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".partial", delete=False) as partial:
                try:
                    np.savez(partial, fit=np.array(transform), **arrays)
                    partial.flush()
                    self._bytes += partial.tell()
                    Path(partial.name).replace(file)
                except OSError:
                    Path(partial.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            log.warning("sight_not_kept", folder=str(self._folder), reason=error.strerror or str(error))
        if self._bytes > self._max_bytes:
            self._shrink(keep=file)
        scores, embeddings = (half.astype(np.float32) for half in halves)
        return CandidateFeatures(features.boxes, features.objectness, scores, embeddings, features.fit)

    def _shrink(self, *, keep: Path) -> None:
        """Remove the oldest files down to 90 % of the limit, so that not every write scans the folder."""
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*.npz"))
        self._bytes = sum(size for _, size, _ in files)
        for _, size, file in files:
            if self._bytes <= 0.9 * self._max_bytes:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                self._bytes -= size
