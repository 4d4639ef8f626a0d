"""The fingerprint of an image: a grey thumbnail of 48 x 48 pixels, and the 64-bit perceptual hash computed from it.

The hash has the signs of the 64 lowest frequencies of the thumbnail's discrete cosine transform, without the mean. It
does not change with brightness and contrast, and little with size, JPEG quality and a light crop. The hash of the
mirrored image follows from it: the sign of every odd horizontal frequency is flipped.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.service.media import load_image
from labelloop.service.media.image import MAX_PIXELS

# Side of a thumbnail in pixels.
SIDE = 48
# Standard deviation of grey values, 0 to 255, below which a thumbnail shows nothing: its hash would be noise.
BLANK = 2.0
# Longest side in pixels that an image is decoded to; JPEGs are reduced while decoding.
DECODED_SIDE = 128
# Images transformed at once; bounds memory.
_BATCH = 4096


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The fingerprint of an image.

    Attributes:
        thumbnail: (48, 48) uint8, grey.
        width: Of the upright image in pixels.
        height: Of the upright image in pixels.
    """

    thumbnail: NDArray[np.uint8]
    width: int
    height: int


def fingerprint(source: bytes | Path | Any, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Fingerprint:
    """Compute the fingerprint of an image file. Raises `MediaError` as `load_image` does."""
    image = load_image(source, max_side=DECODED_SIDE, name=name, max_pixels=max_pixels)
    return Fingerprint(thumbnail_of(image.pixels), image.width, image.height)


def thumbnail_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the grey thumbnail (48, 48) uint8 of RGB pixels (h, w, 3); the aspect ratio is not kept."""
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    enlarged = min(grey.shape) < SIDE
    return np.asarray(
        cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR if enlarged else cv2.INTER_AREA), np.uint8
    )


def hashes_of(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash thumbnails.

    Args:
        thumbnails: (n, 48, 48) uint8.

    Returns:
        The hashes (n,) uint64, and whether a thumbnail shows nothing (n,) bool, so that its hash is of no use.
    """
    hashes = np.empty(len(thumbnails), np.uint64)
    blank = np.empty(len(thumbnails), np.bool_)
    rows, columns = _frequencies()
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    basis = _basis()
    for start in range(0, len(thumbnails), _BATCH):
        batch = np.asarray(thumbnails[start : start + _BATCH], np.float32)
        coefficients = basis @ batch @ basis.T
        signs = coefficients[:, rows, columns] > 0
        hashes[start : start + _BATCH] = (signs * weights).sum(axis=1, dtype=np.uint64)
        blank[start : start + _BATCH] = batch.std(axis=(1, 2)) < BLANK
    return hashes, blank


def mirrored(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the hashes of the images mirrored left to right."""
    odd = _frequencies()[1] % 2 == 1
    mask = np.bitwise_or.reduce(np.where(odd, np.uint64(1) << np.arange(64, dtype=np.uint64), np.uint64(0)))
    return np.asarray(hashes ^ mask, np.uint64)


@cache
def _frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(vertical, horizontal) frequencies of the 64 bits: the lowest by their sum, without the mean."""
    order = sorted((row + column, row, column) for row in range(12) for column in range(12))[1:65]
    return np.array([row for _, row, _ in order]), np.array([column for _, _, column in order])


@cache
def _basis() -> NDArray[np.float32]:
    """The cosine transform (DCT-II) of `SIDE` values: (12 frequencies, `SIDE`) float32."""
    import cv2

    return np.asarray(cv2.dct(np.eye(SIDE, dtype=np.float32), flags=cv2.DCT_ROWS).T[:12], np.float32)
