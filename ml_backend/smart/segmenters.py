"""Owns SEGMENTERS: what finds an object from a box or clicks. The one table."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from labelloop.service.errors import SettingsError
from labelloop.service.settings import Settings
from ml_backend.smart.crop_mask import InstanceMask
from ml_backend.smart.outline_network import Outline
from ml_backend.smart.prompts import Prompt
from ml_backend.smart.sam import Sam


class Segmenter(Protocol):
    """Finds an object from a prompt. One instance serves every thread of a worker."""

    name: str

    def look(self, image: npt.NDArray[np.uint8]) -> Any:
        """What is computed once a photo, and kept while annotators work on it.

        Args:
            image: (h, w, 3) RGB.
        """

    def segment(self, look: Any, prompt: Prompt) -> InstanceMask | None:
        """The object; None where the prompt says nothing that lies on the photo.

        Args:
            look: Of the photo; never changed.
            prompt: In pixels of the image that `look` was given.
        """


def _outline(settings: Settings) -> Segmenter:
    del settings
    return Outline()


def _sam(settings: Settings) -> Segmenter:
    encoder, decoder = settings.smart_encoder, settings.smart_decoder
    if encoder is None or decoder is None:
        raise SettingsError(
            "The segmenter `sam` needs an encoder and a decoder.",
            fix="Set LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER to the two ONNX files of one export.",
        )
    return Sam(encoder.expanduser(), decoder.expanduser(), threads=settings.inference_threads)


SEGMENTERS: Mapping[str, Callable[[Settings], Segmenter]] = {"outline": _outline, "sam": _sam}
"""Name -> what makes it."""
