"""Segmenters of smart tools and pre-labels: `SEGMENTERS` lists them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.service.errors import SettingsError
from labelloop.service.settings import Settings
from ml_backend.segmentation.crop_mask import InstanceMask
from ml_backend.segmentation.outline_network import OutlineSegmenter
from ml_backend.segmentation.pixel_head import PixelHead
from ml_backend.segmentation.prompt import Prompt
from ml_backend.segmentation.sam import SamSegmenter


class Segmenter(Protocol):
    """Segments an object from a prompt. One instance serves every thread of a worker."""

    name: str

    def embed(self, image: npt.NDArray[np.uint8]) -> Any:
        """Compute the part that prompts on an image share; it is cached while annotators work on the image.

        Args:
            image: (h, w, 3) uint8 RGB.
        """

    def segment(self, embedding: Any, prompt: Prompt, head: PixelHead | None = None) -> InstanceMask | None:
        """Segment the object; None where the prompt does not touch the image.

        Args:
            embedding: Of the image; never changed.
            prompt: In pixels of the image passed to `embed`.
            head: The project's own last layer; ignored where it belongs to another network.
        """

    def segment_boxes(
        self, embedding: Any, boxes: Sequence[Rectangle], head: PixelHead | None = None
    ) -> list[InstanceMask | None]:
        """Segment the object in each box, in one batch where the network can; as `segment`, but quick.

        Args:
            embedding: Of the image; never changed.
            boxes: In pixels of the image passed to `embed`.
            head: As for `segment`.
        """


def _outline(settings: Settings) -> Segmenter:
    del settings
    return OutlineSegmenter()


def _sam(settings: Settings) -> Segmenter:
    encoder, decoder = settings.smart_encoder, settings.smart_decoder
    if encoder is None or decoder is None:
        raise SettingsError(
            "The segmenter `sam` needs an encoder and a decoder.",
            fix="Set LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER to the two ONNX files of one export.",
        )
    return SamSegmenter(encoder.expanduser(), decoder.expanduser(), threads=settings.inference_threads)


# Name -> factory.
SEGMENTERS: Mapping[str, Callable[[Settings], Segmenter]] = {"outline": _outline, "sam": _sam}
