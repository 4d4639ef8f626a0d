"""Owns the sights kept on disk: a photo goes through a backbone once, however often it is learned from."""

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
    """A folder of sights, the least recently used of which go when it grows beyond its bound.

    Features and class scores are kept in half precision, a quarter of the size of what the engine gives with what it
    needs to give them; a head fitted on them is none the worse.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Opens the folder.

        Args:
            folder: Is made where it is missing.
            max_bytes: Of all files together.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._bytes = sum(file.stat().st_size for file in folder.glob("*.npz"))

    def get(self, key: str, see: Callable[[], CandidateFeatures]) -> CandidateFeatures:
        """The sight of this key, from disk or else seen now and kept.

        Args:
            key: Names backbone and photo; letters, digits, dots, hyphens and underscores.
            see: Looks at the photo.
        """
        file = self._folder / f"{key}.npz"
        try:
            with np.load(file) as kept:
                arrays = [np.asarray(kept[name], np.float32) for name in _ARRAYS]
                scale_x, scale_y, left, top, width, height = kept["fit"].tolist()
            os.utime(file)
        except (OSError, ValueError, KeyError, EOFError):
            return self._keep(file, see())
        fit = Fit(scale_x, scale_y, int(left), int(top), int(width), int(height))
        return CandidateFeatures(arrays[0], arrays[1], arrays[2], arrays[3], fit)

    def _keep(self, file: Path, sight: CandidateFeatures) -> CandidateFeatures:
        """Keeps a sight; where the disk does not take it, it is seen again the next time."""
        halves = sight.scores.astype(np.float16), sight.embeddings.astype(np.float16)
        fit = sight.fit
        sides = [fit.scale_x, fit.scale_y, fit.left, fit.top, fit.width, fit.height]
        arrays: dict[str, Any] = dict(zip(_ARRAYS, (sight.boxes, sight.objectness, *halves), strict=True))
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".partial", delete=False) as partial:
                try:
                    np.savez(partial, fit=np.array(sides), **arrays)
                    partial.flush()
                    self._bytes += partial.tell()
                    Path(partial.name).replace(file)
                except OSError:
                    Path(partial.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            log.warning("sight_not_kept", folder=str(self._folder), reason=error.strerror or str(error))
        if self._bytes > self._max_bytes:
            self._shrink(spare=file)
        scores, embeddings = (half.astype(np.float32) for half in halves)
        return CandidateFeatures(sight.boxes, sight.objectness, scores, embeddings, sight.fit)

    def _shrink(self, *, spare: Path) -> None:
        """Down to nine tenths, so that not every new sight looks through the folder."""
        files = sorted((one.stat().st_mtime, one.stat().st_size, one) for one in self._folder.glob("*.npz"))
        self._bytes = sum(size for _, size, _ in files)
        for _, size, file in files:
            if self._bytes <= 0.9 * self._max_bytes:
                return
            if file != spare:
                file.unlink(missing_ok=True)
                self._bytes -= size
