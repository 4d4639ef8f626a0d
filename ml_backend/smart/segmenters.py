"""Owns SEGMENTERS: what finds an object from a box or clicks. The one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ml_backend.smart.cutout import Cutout
from ml_backend.smart.grabcut import GrabCut
from ml_backend.smart.prompts import Prompt


class Segmenter(Protocol):
    """Finds an object from a prompt. One instance serves every thread of a worker."""

    name: str

    def look(self, image: npt.NDArray[np.uint8]) -> Any:
        """What is computed once a photo, and kept while annotators work on it.

        Args:
            image: (h, w, 3) RGB.
        """

    def segment(self, look: Any, prompt: Prompt) -> Cutout | None:
        """The object; None where the prompt says nothing that lies on the photo.

        Args:
            look: Of the photo; never changed.
            prompt: In pixels of the image that `look` was given.
        """


SEGMENTERS: Mapping[str, Callable[[], Segmenter]] = {"grabcut": GrabCut}
"""Name -> what makes it."""
