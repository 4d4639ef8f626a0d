"""What a project's own mask head gets from the segmentation network, and what it returns."""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from ml_backend.segmentation.crop import BoxCrop

Floats = npt.NDArray[np.float32]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class CropBatch:
    """Crops of one image, and what the network gives for them.

    Attributes:
        views: Where the n crops are.
        crops: (n, side, side, 3) uint8 RGB, what the network sees.
        logits: (n, s, s) float32 that a pixel belongs to the object.
        features: (n, c, s, s) float32: what the network's last layer reads.
    """

    views: Sequence[BoxCrop]
    crops: npt.NDArray[np.uint8]
    logits: Floats
    features: Floats


class PixelHead(Protocol):
    """Replaces the network's last layer; `ml_backend.heads.masks.MasksHead`."""

    @property
    def network(self) -> str:
        """Checksum of the network that it was fitted on: it is applied to no other."""

    def logits(self, batch: CropBatch) -> Floats:
        """Return the project's logits (n, s, s) float32 in place of the network's."""


_reported: weakref.WeakSet[PixelHead] = weakref.WeakSet()
_reported_lock = threading.Lock()


def report_unused(head: PixelHead, reason: str) -> None:
    """Log one warning per head that the segmenter ignores it."""
    with _reported_lock:
        if head in _reported:
            return
        _reported.add(head)
    log.warning("mask_head_not_used", reason=reason, network=head.network)
