"""Preprocess images into network inputs, for inference and training."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.detection.fit import Fit

# (height, width, 3) uint8 RGB, as `labelloop.service.media.load_image` returns it.
RgbImage = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class InputSpec:
    """Input format of a network.

    A pixel value v of 0..255 becomes ``(v * scale - mean) / std``.

    Attributes:
        height: Pixels.
        width: Pixels.
        layout: Order of the axes after the batch.
        color: Order of the channels; GRAY is one channel, the luma of ITU-R BT.601, and the first value of `mean` and
            `std`.
        placement: Position of the letterboxed image in the input; ``stretch`` resizes without keeping the aspect ratio;
            ``crop`` takes a centre crop of the image.
        pad: Padding value, 0..255.
        scale: Factor on pixel values.
        mean: Per channel, subtracted after `scale`.
        std: Per channel, divided by.
        dtype: Numpy dtype of the input.
    """

    height: int
    width: int
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    placement: Literal["top-left", "centre", "stretch", "crop"] = "top-left"
    pad: int = 114
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: str = "float32"

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return 1 if self.color == "GRAY" else 3

    @property
    def decode_side(self) -> int:
        """Longer side in pixels at which an image is decoded for this input.

        A centre crop, and an image stretched to a square, need more pixels than the input on the longer side: twice as
        many suffice up to an aspect ratio of 2.
        """
        return max(self.width, self.height) * (2 if self.placement in {"crop", "stretch"} else 1)


@dataclass(frozen=True)
class Prepared:
    """A preprocessed image: `tensor` without the batch axis, and the position of the image in it."""

    tensor: npt.NDArray[Any]
    fit: Fit


def prepare(
    image: RgbImage,
    spec: InputSpec,
    *,
    size: tuple[int, int] | None = None,
    part: tuple[int, int, int, int] | None = None,
    into: npt.NDArray[Any] | None = None,
) -> Prepared:
    """Resize, pad and normalise an image, or a region of it, for a network.

    Args:
        image: (h, w, 3) uint8 RGB; may be a reduced decode of the original.
        spec: Input format of the network.
        size: (width, height) of the original image where `image` is reduced; boxes are mapped to its pixels.
        part: x_min, y_min, x_max, y_max in pixels of `image`: the region to show; needs a full-size decode.
        into: A buffer to write the tensor into where shape and dtype match; this avoids page faults of a new array.
    """
    original_width, original_height = size or (image.shape[1], image.shape[0])
    origin, region = (0, 0), (original_width, original_height)
    if part is not None:
        image = image[part[1] : part[3], part[0] : part[2]]
        origin, region = (part[0], part[1]), (part[2] - part[0], part[3] - part[1])
    canvas, (left, top), (inner_width, inner_height) = _letterbox(image, spec)
    fit = Fit(
        scale_x=inner_width / region[0],
        scale_y=inner_height / region[1],
        left=left,
        top=top,
        width=original_width,
        height=original_height,
        origin=origin,
    )
    return Prepared(tensor=_normalise(canvas, spec, into), fit=fit)


def _letterbox(photo: RgbImage, spec: InputSpec) -> tuple[RgbImage, tuple[int, int], tuple[int, int]]:
    """Return the input's pixels, the image's offset in it (negative for ``crop``), and the image's size in it."""
    height, width = photo.shape[:2]
    scales = spec.width / width, spec.height / height
    if spec.placement == "stretch":
        inner_width, inner_height = spec.width, spec.height
    elif spec.placement == "crop":
        inner_width = max(spec.width, round(width * max(scales)))
        inner_height = max(spec.height, round(height * max(scales)))
    else:
        inner_width = min(spec.width, max(1, round(width * min(scales))))
        inner_height = min(spec.height, max(1, round(height * min(scales))))
    centred = spec.placement in {"centre", "crop"}
    left = (spec.width - inner_width) // 2 if centred else 0
    top = (spec.height - inner_height) // 2 if centred else 0

    resized = photo
    if (inner_width, inner_height) != (width, height):
        resized_image = Image.fromarray(photo).resize(
            (inner_width, inner_height), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
        resized = np.asarray(resized_image)
    if spec.placement == "crop":
        canvas = resized[-top : spec.height - top, -left : spec.width - left]
    else:
        canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
        canvas[top : top + inner_height, left : left + inner_width] = resized
    return canvas, (left, top), (inner_width, inner_height)


def _normalise(canvas: RgbImage, spec: InputSpec, into: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    channels_first = spec.layout == "NCHW"
    pixels: npt.NDArray[Any] = canvas[..., ::-1] if spec.color == "BGR" else canvas
    if spec.color == "GRAY":
        pixels = np.asarray(Image.fromarray(canvas).convert("L"))[..., None]
    unchanged = (spec.scale, spec.mean, spec.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    height, width = canvas.shape[:2]
    shape, dtype = (
        (spec.channels, height, width) if channels_first else (height, width, spec.channels),
        np.dtype(spec.dtype if unchanged else np.float32),
    )
    fits = into is not None and into.shape == shape and into.dtype == dtype and into.flags.c_contiguous
    values = into if into is not None and fits else np.empty(shape, dtype)
    for channel in range(spec.channels):  # in place, per channel: a tenth of the time of whole-array operations
        target = values[channel] if channels_first else values[..., channel]
        if unchanged:
            target[...] = pixels[..., channel]
            continue
        np.multiply(pixels[..., channel], np.float32(spec.scale), out=target)
        target -= np.float32(spec.mean[channel])
        target /= np.float32(spec.std[channel])
    return values.astype(spec.dtype, copy=False)
