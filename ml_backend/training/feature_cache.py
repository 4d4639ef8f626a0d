"""On-disk cache of candidate features: an image passes through a backbone once."""

import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import structlog

from labelloop.service.media.disk_cache import DiskCache
from ml_backend.detection.detections import Floats
from ml_backend.detection.fit import Fit
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.mapped_file import MappedFile

log = structlog.get_logger(__name__)

_ARRAYS = ("boxes", "objectness", "scores", "embeddings")

_DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile)

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
        self._folder, self.max_bytes = folder, max_bytes
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
        return self._get(key, compute, _load)

    def get_mapped(self, key: str, compute: Callable[[], CandidateFeatures]) -> CandidateFeatures:
        """Like `get` in half precision, on the mapped file: its pages take memory only until `release`."""
        return self._get(key, compute, _map).half_precision()

    def _get(
        self,
        key: str,
        compute: Callable[[], CandidateFeatures],
        load: Callable[[BinaryIO], CandidateFeatures | None],
    ) -> CandidateFeatures:
        computed: CandidateFeatures | None = None

        def write(file: BinaryIO) -> None:
            nonlocal computed
            computed = _rounded(compute())
            _save(computed, file)

        try:
            with self._files.open(key, write) as file:
                stored = load(file)
            if stored is not None:
                return stored
            self._files.remove(key)
        except OSError as error:
            log.warning("sight_not_kept", folder=str(self._folder), reason=error.strerror or str(error))
        return _rounded(compute()) if computed is None else computed

    def get_all(
        self, keys: Sequence[str], compute: Callable[[], Sequence[CandidateFeatures]]
    ) -> list[CandidateFeatures]:
        """Like `get_mapped` for several keys that are computed together, such as the tiles of an image."""
        computed: list[CandidateFeatures] = []

        def nth(index: int) -> CandidateFeatures:
            if not computed:
                computed.extend(compute())
            return computed[index]

        return [self.get_mapped(key, partial(nth, index)) for index, key in enumerate(keys)]

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
        except _DAMAGED:
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
            boxes, objectness, scores, embeddings = (np.asarray(archive[name], np.float32) for name in _ARRAYS)
            of_image, fit = np.asarray(archive["image"], np.float32), _fit(archive["fit"])
    except _DAMAGED:
        return None
    return CandidateFeatures(boxes, objectness, scores, embeddings, fit, of_image if len(of_image) else None)


def _map(file: BinaryIO) -> CandidateFeatures | None:
    """The stored features on the mapped file; None if it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return None
            mapped = MappedFile(file)
            arrays = {
                info.filename.removesuffix(".npy"): _mapped_array(mapped, archive, info) for info in archive.infolist()
            }
        boxes, objectness, scores, embeddings = (arrays[name] for name in _ARRAYS)
        of_image, fit = np.asarray(arrays["image"], np.float32), _fit(arrays["fit"])
    except _DAMAGED:
        return None
    mapped.release()
    return CandidateFeatures(boxes, objectness, scores, embeddings, fit, of_image if len(of_image) else None, mapped)


def _mapped_array(mapped: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """An uncompressed array of an `.npz` file (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).

    Raises:
        ValueError: It is compressed, or no such array.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with archive.open(info) as member:
        np.lib.format.read_magic(member)  # type: ignore[no-untyped-call]
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)  # type: ignore[no-untyped-call]
        header_bytes = member.tell()
    # The local header has 30 bytes, then the name and an extra field, whose lengths it ends with.
    name, extra = struct.unpack("<HH", mapped.array(np.uint8, (4,), info.header_offset + 26).tobytes())
    return mapped.array(dtype, shape, info.header_offset + 30 + name + extra + header_bytes)


def _fit(stored: npt.NDArray[Any]) -> Fit:
    scale_x, scale_y, *pixels = stored.tolist()
    left, top, width, height, *origin = map(int, pixels)
    return Fit(scale_x, scale_y, left, top, width, height, (origin[0], origin[1]) if origin else (0, 0))
