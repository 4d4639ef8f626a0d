"""`load_photo`: the ONE decode of labelloop, the same for training, serving and exporting.

What comes out is always 8-bit RGB, upright: EXIF orientation applied (Label Studio's editor shows and annotates images
that way), palettes, CMYK, grey and 16-bit converted, transparency laid on white, of an animation the first frame.
Strictness: a truncated or damaged file is an error, never a half-grey picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from labelloop.service.media.errors import MediaMissing, MediaTooLarge, NotAnImage

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


def load_photo(source: Source, *, max_side: int | None = None, name: str = "", max_pixels: int = MAX_PIXELS) -> Photo:
    """Decodes an image file.

    Args:
        source: The file's bytes, its path, or the file open for reading.
        max_side: Where a smaller picture will do: the longest the longer side shall be. JPEGs are then scaled by 1/2,
            1/4 or 1/8 while decoding (a third of the time), and bilinear resampling does the rest.
        name: What to call it in errors.
        max_pixels: Larger images are refused from their header, before any pixel is decoded.

    Raises:
        NotAnImage: Not an image that we read (SVG, PDF, HTML, ...), or damaged or truncated.
        MediaTooLarge: More than `max_pixels`.
    """
    from PIL import Image as Pillow

    with _opened(source, name, max_pixels) as (image, orientation):
        width, height = _upright(image.size, orientation)
        scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
        goal = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if scale < 1.0:
            image.draft("RGB", goal)
        picture = _rgb(image)
        if scale < 1.0:
            picture = picture.resize(goal, Pillow.Resampling.BILINEAR)
        if orientation in _TURNS:
            picture = picture.transpose(Pillow.Transpose[_TURNS[orientation]])
        return Photo(np.asarray(picture), width, height)


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


def _orientation(image: ImageFile) -> int:
    if image.format == "TIFF":  # Pillow turns TIFFs itself, the size too
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
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
