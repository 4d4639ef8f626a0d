"""What a project's own mask head gets from the segmentation network, and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ml_backend.segmentation.crop import BoxCrop

Floats = npt.NDArray[np.float32]


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
