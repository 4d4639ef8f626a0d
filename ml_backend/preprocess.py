"""Owns the one way from a photo to a network's input, used wherever a model sees a photo: serving and learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.detections import Detections, Floats

Photo = npt.NDArray[np.uint8]
"""(height, width, 3) RGB, as `labelloop.service.media.load_photo` gives it."""


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to be shown.

    A pixel value v of 0..255 becomes ``(v * scale - mean) / std``.

    Attributes:
        height: Pixels. width: the same.
        layout: Order of the axes after the batch.
        color: Order of the channels.
        placement: Where the photo, scaled to fit with its proportions kept, lies in the input; ``stretch`` scales
            both sides to the input and keeps no proportions.
        pad: Value (0..255) of what the photo does not cover.
        dtype: The numpy type of the input.
    """

    height: int
    width: int
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR"] = "RGB"
    placement: Literal["top-left", "centre", "stretch"] = "top-left"
    pad: int = 114
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: str = "float32"


@dataclass(frozen=True)
class Fit:
    """Where a photo lies in a network's input, so that boxes find their way back.

    Attributes:
        scale_x: Input pixels a photo pixel, across; scale_y: down.
        left: Input pixels left of the photo; top: above it.
        width: Of the original photo, pixels; height: the same.
    """

    scale_x: float
    scale_y: float
    left: int
    top: int
    width: int
    height: int

    def to_photo(self, found: Detections) -> Detections:
        """Boxes in pixels of the original photo, clipped to it; what lies outside it altogether is dropped."""
        shift = np.array([self.left, self.top, self.left, self.top], np.float32)
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y], np.float32)
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        boxes = np.clip((found.boxes - shift) / scale, 0, limit).astype(np.float32)
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Detections(boxes, found.scores, found.classes)[inside]


@dataclass(frozen=True)
class Prepared:
    """One photo as a network wants it: `tensor` without the batch axis, and where the photo lies in it."""

    tensor: npt.NDArray[Any]
    fit: Fit


def prepare(photo: Photo, spec: InputSpec, *, size: tuple[int, int] | None = None) -> Prepared:
    """A photo scaled, padded and normalised for a network.

    Args:
        photo: (h, w, 3) uint8 RGB; may be a reduced decode of the original.
        spec: What the network wants.
        size: (width, height) of the original photo where `photo` is a reduced one; boxes come back in its pixels.
    """
    height, width = photo.shape[:2]
    original_width, original_height = size or (width, height)
    scale = min(spec.width / width, spec.height / height)
    stretched = spec.placement == "stretch"
    inner_width = spec.width if stretched else min(spec.width, max(1, round(width * scale)))
    inner_height = spec.height if stretched else min(spec.height, max(1, round(height * scale)))
    centred = spec.placement == "centre"
    left = (spec.width - inner_width) // 2 if centred else 0
    top = (spec.height - inner_height) // 2 if centred else 0

    resized = photo
    if (inner_width, inner_height) != (width, height):
        image = Image.fromarray(photo).resize((inner_width, inner_height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        resized = np.asarray(image)
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = resized
    fit = Fit(
        scale_x=inner_width / original_width,
        scale_y=inner_height / original_height,
        left=left,
        top=top,
        width=original_width,
        height=original_height,
    )
    return Prepared(tensor=_normalise(canvas, spec), fit=fit)


def _normalise(canvas: Photo, spec: InputSpec) -> npt.NDArray[Any]:
    pixels: npt.NDArray[Any] = canvas[..., ::-1] if spec.color == "BGR" else canvas
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    if (spec.scale, spec.mean, spec.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        return np.ascontiguousarray(pixels, dtype=spec.dtype)
    per_channel = (3, 1, 1) if spec.layout == "NCHW" else (1, 1, 3)
    mean = np.array(spec.mean, np.float32).reshape(per_channel)
    std = np.array(spec.std, np.float32).reshape(per_channel)
    values: Floats = (pixels.astype(np.float32) * np.float32(spec.scale) - mean) / std
    return np.ascontiguousarray(values, dtype=spec.dtype)
