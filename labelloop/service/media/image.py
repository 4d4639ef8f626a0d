"""`load_photo`: the ONE decode of labelloop, the same for training, serving and exporting.

What comes out is always 8-bit RGB, upright: EXIF orientation applied (Label Studio's editor shows and annotates images
that way), palettes, CMYK, grey and 16-bit converted, transparency laid on white, of an animation the first frame.
Strictness: a truncated or damaged file is an error, never a half-grey picture.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from labelloop.service.media.errors import MediaMissing, MediaTooLarge, NotAnImage
from labelloop.service.memory_budget import MemoryBudget, never

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Source = bytes | Path | BinaryIO
MAX_PIXELS = 100_000_000
_SWAPPED = frozenset({5, 6, 7, 8})  # EXIF orientations that lie on their side
_ORIENTATION = 0x0112
_DAMAGED = (OSError, ValueError, SyntaxError, IndexError, EOFError, ZeroDivisionError, KeyError, struct.error)
_WEB = "Convert it to JPEG, PNG or WebP."
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is read: what browsers show, so what people can annotate, and what cameras and scanners give besides."""


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A decoded image.

    Attributes:
        image: uint8 (h, w, 3), RGB, upright. Smaller than the original where `max_side` asked for it.
        width: Of the upright ORIGINAL, pixels: what annotations are measured in.
        height: Of the upright original, pixels.
    """

    image: npt.NDArray[np.uint8]
    width: int
    height: int


def photo_size(source: Source, *, name: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Upright (width, height) from the header alone; no pixel is decoded.

    Raises:
        NotAnImage, MediaTooLarge: as `load_photo`.
    """
    with _opened(source, name, max_pixels) as (image, orientation):
        return _upright(image.size, orientation)


def load_photo(
    source: Source,
    *,
    max_side: int | None = None,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    budget: MemoryBudget | None = None,
    abandoned: Callable[[], bool] = never,
) -> Photo:
    """Decodes an image file.

    Args:
        source: The file's bytes, its path, or the file open for reading.
        max_side: Where a smaller picture will do: the longest the longer side shall be. JPEG and JPEG 2000 are then
            scaled by 1/2, 1/4 or 1/8 while decoding (a third of the time), and bilinear resampling does the rest.
        name: What to call it in errors.
        max_pixels: Larger images are refused from their header, before any pixel is decoded.
        budget: What decoding weighs is taken from it first, and what the picture weighs until the picture is freed.
        abandoned: Asked while waiting for the budget; True ends the wait.

    Raises:
        NotAnImage: Not an image that we read (SVG, PDF, HTML, ...), or damaged or truncated.
        MediaTooLarge: More than `max_pixels`, or its decoding weighs more than the whole budget.
        Busy, Abandoned: As `MemoryBudget.lease`.
    """
    with _opened(source, name, max_pixels) as (image, orientation):
        width, height = _upright(image.size, orientation)
        scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
        goal = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if scale < 1.0:
            _decode_reduced(image, goal)
        with ExitStack() as opened:
            lease = None
            if budget is not None:
                weight = decoding_bytes(image, stored=width * height, full=scale == 1.0)
                if weight > budget.limit:
                    raise _too_heavy(name or _name(source), image, weight, budget.limit)
                lease = opened.enter_context(budget.lease(weight, abandoned=abandoned))
            pixels = _pixels(image, goal, orientation)
            if lease is not None:
                lease.keep_for(pixels, pixels.nbytes)
        return Photo(pixels, width, height)


def _decode_reduced(image: ImageFile, goal: tuple[int, int]) -> None:
    """Have the decoder give fewer pixels, never fewer than `goal`, where the format can."""
    if image.format == "JPEG2000":
        times = min(image.width // goal[0], image.height // goal[1])
        levels = range(min(max(times, 1).bit_length() - 1, _wavelet_levels(image)), 0, -1)
        # Pillow rounds the reduced size, the decoder rounds it up; where they differ Pillow calls the file damaged.
        fits = (
            each for each in levels if all(-(-side >> each) == side + (1 << each >> 1) >> each for side in image.size)
        )
        image.reduce = next(fits, 0)  # type: ignore[assignment, method-assign]
    else:
        image.draft("RGB", goal)


def _wavelet_levels(image: ImageFile) -> int:
    """How often a JPEG 2000 file can be halved: SPcod of COD (ISO 15444-1, A.6.1); 0 where it is not found."""
    file = image.fp
    if file is None:
        return 0
    place = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(place)
    segment = head.find(b"\xff\x52", head.find(b"\xff\x4f\xff\x51"))
    return head[segment + 9] if 0 <= segment < len(head) - 9 else 0


_BYTES_A_PIXEL = {"1": 1.0, "L": 1.0, "P": 1.0, "I;16": 2.0, "I;16B": 2.0, "I;16L": 2.0, "I;16N": 2.0}
"""What Pillow stores a pixel in, by mode; 4 in every other mode."""

_DECODER_BYTES = {"WEBP": 13.0, "AVIF": 8.0, "JPEG2000": 16.0, "TIFF": 1.0, "JPEG": 0.5}
"""What a decoder holds beside Pillow's image, bytes a decoded pixel (measured on 6,000 x 6,000 px, Pillow 13)."""

_CONVERSION_BYTES = 24 * 2**20
"""Rows on their way to RGB, and the reduced picture."""


def decoding_bytes(image: ImageFile, *, stored: int, full: bool) -> int:
    """Bytes that decoding an opened image takes at its peak, as far as its header tells.

    Args:
        image: As the decoder is going to give it: after `draft`.
        stored: Pixels in the file.
        full: Every pixel is kept, 3 bytes each.
    """
    pixels = image.width * image.height / 4.0 ** getattr(image, "_reduce", 0)
    decoder = _DECODER_BYTES.get(image.format or "", 0.0) * pixels
    if image.info.get("progressive"):  # libjpeg holds all coefficients of the file, 2 bytes each, whatever the scale
        samples = [across * down for _, across, down, _ in getattr(image, "layer", ())] or [1, 1, 1]
        decoder = 2.0 * stored * sum(samples) / max(samples)
    # The decoder has ended when the picture that is kept is made.
    kept = 3.0 * pixels if full else 0.0
    return round(_BYTES_A_PIXEL.get(image.mode, 4.0) * pixels + max(decoder, kept)) + _CONVERSION_BYTES


def _too_heavy(name: str, image: ImageFile, weight: int, limit: int) -> MediaTooLarge:
    return MediaTooLarge(
        name,
        f"decoding {image.width} x {image.height} pixels of {image.format} ({image.mode}) takes {weight >> 20:,} MiB, "
        f"more than the {limit >> 20:,} MiB of LABELLOOP_MEDIA_MEMORY_BYTES",
        fix="Scale the image down, save it as JPEG, or raise that setting.",
    )


def _pixels(image: Image, goal: tuple[int, int], orientation: int) -> npt.NDArray[np.uint8]:
    """The picture (h, w, 3), upright. What needs a conversion to RGB is converted some rows at a time."""
    from PIL import Image as Pillow

    image.load()
    if image.size == goal:
        picture = np.empty((*_upright(goal, orientation)[::-1], 3), np.uint8)
        rows = _turned_back(picture, orientation)
        for top, bottom in _bands(image.size):
            rows[top:bottom] = np.asarray(_rgb(image.crop((0, top, image.width, bottom))))
        return picture
    if image.mode == "RGB" or image.width * image.height <= _BAND_PIXELS:
        small = _rgb(image).resize(goal, Pillow.Resampling.BILINEAR)
    else:
        small = _resized_in_bands(image, goal)
    if orientation in _TURNS:
        small = small.transpose(Pillow.Transpose[_TURNS[orientation]])
    return np.asarray(small)


_BAND_PIXELS = 1_000_000
"""Pixels that are converted to RGB at a time: up to 20 bytes each are in use for it."""


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of the bands of an image (width, height)."""
    step = max(1, _BAND_PIXELS // size[0])
    return ((top, min(top + step, size[1])) for top in range(0, size[1], step))


def _resized_in_bands(image: Image, goal: tuple[int, int]) -> Image:
    """As `_rgb(image).resize(goal, BILINEAR)`, within rounding, without the whole image in RGB."""
    from PIL import Image as Pillow

    small = Pillow.new("RGB", goal)
    scale = image.height / goal[1]
    margin = ceil(scale) + 1  # the filter reaches `scale` rows beyond
    step = max(1, _BAND_PIXELS // round(image.width * scale))
    for first in range(0, goal[1], step):
        last = min(first + step, goal[1])
        top, bottom = max(0, floor(first * scale) - margin), min(image.height, ceil(last * scale) + margin)
        band = _rgb(image.crop((0, top, image.width, bottom)))
        box = (0.0, first * scale - top, float(image.width), min(last * scale - top, float(bottom - top)))
        small.paste(band.resize((goal[0], last - first), Pillow.Resampling.BILINEAR, box=box), (0, first))
    return small


def _turned_back(picture: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """A view of the upright picture in which rows and columns run as in the file."""
    if orientation in _SWAPPED:
        picture = picture.swapaxes(0, 1)
    down, across = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}.get(orientation, (1, 1))
    return picture[::down, ::across]


_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF orientation -> the transposition that sets the image upright (EXIF 2.32, 4.6.4 A, tag 274)."""


@contextmanager
def _opened(source: Source, name: str, max_pixels: int) -> Iterator[tuple[ImageFile, int]]:
    from PIL import Image, UnidentifiedImageError

    name = name or _name(source)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit would forbid what the setting allows
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _check_pixels(image.size, name, max_pixels)
            yield image, _orientation(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many(name, max_pixels) from None
    except UnidentifiedImageError:
        raise NotAnImage(name, f"not an image that labelloop reads, but {_kind(source)}", fix=_WEB) from None
    except FileNotFoundError:
        raise MediaMissing(name, "no such file") from None
    except _DAMAGED as error:
        raise NotAnImage(name, f"the file is damaged or cut short ({error})", fix="Upload the file again.") from None


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    return str(source if isinstance(source, Path) else getattr(source, "name", "without a name"))


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _too_many(name, max_pixels, f"{size[0]} x {size[1]} is ")


def _too_many(name: str, max_pixels: int, size: str = "") -> MediaTooLarge:
    return MediaTooLarge(
        name,
        f"{size}more than {max_pixels:,} pixels",
        fix="Scale the image down, or raise LABELLOOP_MEDIA_MAX_PIXELS.",
    )


def _png_exif(image: ImageFile) -> bytes:
    """The eXIf chunk of a PNG, which may stand behind the pixels; empty where there is none."""
    file = image.fp
    if file is None:
        return b""
    place = file.tell()
    try:
        file.seek(8)  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(length) if length <= _MOST_EXIF else b""
            file.seek(length + 4, 1)
    finally:
        file.seek(place)
    return b""


_MOST_EXIF = 1 << 20


def _orientation(image: ImageFile) -> int:
    from PIL.Image import Image as Pillow

    if image.format == "TIFF":  # Pillow turns TIFFs itself, the size too
        return 1
    try:
        if image.format == "PNG" and "exif" not in image.info and (exif := _png_exif(image)):
            image.info["exif"] = b"Exif\0\0" + exif
        return int(Pillow.getexif(image).get(_ORIENTATION, 1))  # that of Pillow's PNG decodes all pixels
    except (*_DAMAGED, TypeError):  # the pixels may be sound though the EXIF block is not
        return 1


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _SWAPPED else size


def _rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel: the high byte, as browsers show it
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        return Pillow.fromarray(grey.astype(np.uint8), "L").convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels have no fixed white")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _kind(source: Source) -> str:
    """What the bytes look like, for a person who wonders why."""
    if isinstance(source, bytes):
        head = source[:512]
    elif isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(512)
    else:
        source.seek(0)
        head = source.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text:
        return "an empty file"
    if b"<svg" in text:
        return "an SVG drawing"
    kinds = {b"%pdf": "a PDF", b"<!doctype html": "a web page", b"<html": "a web page", b"<?xml": "XML", b"{": "JSON"}
    return next((kind for mark, kind in kinds.items() if text.startswith(mark)), "something else")
