"""`load_image`: the only image decoder of labelloop, used for training, serving and exporting.

The result is always upright 8-bit RGB: EXIF orientation is applied, as in Label Studio's editor; palette, CMYK, grey
and 16-bit images are converted; transparency is blended with white; of an animation the first frame is used. A
truncated or damaged file is an error.
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
from labelloop.service.memory_budget import MemoryBudget, never_abandoned

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Source = bytes | Path | BinaryIO
MAX_PIXELS = 100_000_000
_TRANSPOSED = frozenset({5, 6, 7, 8})  # EXIF orientations with swapped width and height
_ORIENTATION = 0x0112
_DAMAGED = (OSError, ValueError, SyntaxError, IndexError, EOFError, ZeroDivisionError, KeyError, struct.error)
_CONVERT_FIX = "Convert it to JPEG, PNG or WebP."
# Supported formats: those of browsers, and others of cameras and scanners.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


class _FloatPixels(Exception):
    """The pixels are floating point numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """A decoded image.

    Attributes:
        pixels: uint8 (h, w, 3), RGB, upright; smaller than the original if `max_side` was given.
        width: Width of the upright ORIGINAL in pixels, the coordinate system of annotations.
        height: Height of the upright original in pixels.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def image_size(source: Source, *, name: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Upright (width, height) in pixels from the header, without decoding.

    Raises:
        NotAnImage, MediaTooLarge: See `load_image`.
    """
    with _opened(source, name, max_pixels) as (image, orientation):
        return _upright(image.size, orientation)


def load_image(
    source: Source,
    *,
    max_side: int | None = None,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    budget: MemoryBudget | None = None,
    abandoned: Callable[[], bool] = never_abandoned,
) -> DecodedImage:
    """Decode an image file.

    Args:
        source: The bytes, the path, or the file open for reading.
        max_side: Maximum length of the longer side in pixels. JPEG and JPEG 2000 are scaled by 1/2, 1/4 or 1/8 while
            decoding, which takes a third of the time, then resampled bilinearly.
        name: Name in error messages.
        max_pixels: Larger images are refused before decoding.
        budget: The memory of the decode is leased from it first, then that of the result until it is freed.
        abandoned: Polled while waiting for the budget; True ends the wait.

    Raises:
        NotAnImage: The format or its pixels are not supported (SVG, PDF, HTML, floating point, ...), or the file is
            damaged or truncated.
        MediaTooLarge: More than `max_pixels` pixels, or the decode needs more memory than the whole budget.
        Busy, Abandoned: See `MemoryBudget.lease`.
    """
    with _opened(source, name, max_pixels) as (image, orientation):
        width, height = _upright(image.size, orientation)
        scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
        target = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if scale < 1.0:
            _decode_reduced(image, target)
        with ExitStack() as stack:
            lease = None
            if budget is not None:
                needed_bytes = decoding_bytes(image, stored=width * height, full=scale == 1.0)
                if needed_bytes > budget.limit:
                    raise _exceeds_memory(name or _name(source), image, needed_bytes, budget.limit)
                lease = stack.enter_context(budget.lease(needed_bytes, abandoned=abandoned))
            pixels = _pixels(image, target, orientation)
            if lease is not None:
                lease.retain_for(pixels, pixels.nbytes)
        return DecodedImage(pixels, width, height)


def _decode_reduced(image: ImageFile, target: tuple[int, int]) -> None:
    """Let the decoder reduce the size, not below `target`, if the format supports it."""
    if image.format == "JPEG2000":
        ratio = min(image.width // target[0], image.height // target[1])
        levels = range(min(max(ratio, 1).bit_length() - 1, _wavelet_levels(image)), 0, -1)
        # Pillow rounds the reduced size, the decoder rounds it up; if they differ, Pillow reports a damaged file.
        exact = (
            level
            for level in levels
            if all(-(-side >> level) == side + (1 << level >> 1) >> level for side in image.size)
        )
        image.reduce = next(exact, 0)  # type: ignore[assignment, method-assign]
    else:
        image.draft("RGB", target)


def _wavelet_levels(image: ImageFile) -> int:
    """Number of decomposition levels of a JPEG 2000 file: SPcod of COD (ISO 15444-1, A.6.1); 0 if not found."""
    file = image.fp
    if file is None:
        return 0
    position = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(position)
    segment = head.find(b"\xff\x52", head.find(b"\xff\x4f\xff\x51"))
    return head[segment + 9] if 0 <= segment < len(head) - 9 else 0


# Bytes per pixel in Pillow by mode; 4 in every other mode.
_BYTES_A_PIXEL = {"1": 1.0, "L": 1.0, "P": 1.0, "I;16": 2.0, "I;16B": 2.0, "I;16L": 2.0, "I;16N": 2.0}

# Additional bytes per decoded pixel of a decoder (measured on 6,000 x 6,000 px, Pillow 13).
_DECODER_BYTES = {"WEBP": 13.0, "AVIF": 8.0, "JPEG2000": 16.0, "TIFF": 1.0, "JPEG": 0.5}

# Bands during the conversion to RGB, and the reduced image.
_CONVERSION_BYTES = 24 * 2**20


def decoding_bytes(image: ImageFile, *, stored: int, full: bool) -> int:
    """Estimate the peak memory of decoding an opened image from its header.

    Args:
        image: The image after `draft`, with the size that the decoder returns.
        stored: Number of pixels in the file.
        full: Whether the result has the full size, 3 bytes per pixel.

    Returns:
        Bytes.
    """
    pixels = image.width * image.height / 4.0 ** getattr(image, "_reduce", 0)
    decoder = _DECODER_BYTES.get(image.format or "", 0.0) * pixels
    if image.info.get("progressive"):  # libjpeg keeps all coefficients of the file, 2 bytes each, at any scale
        samples = [across * down for _, across, down, _ in getattr(image, "layer", ())] or [1, 1, 1]
        decoder = 2.0 * stored * sum(samples) / max(samples)
    # The decoder has finished when the result is allocated.
    result = 3.0 * pixels if full else 0.0
    return round(_BYTES_A_PIXEL.get(image.mode, 4.0) * pixels + max(decoder, result)) + _CONVERSION_BYTES


def _exceeds_memory(name: str, image: ImageFile, needed_bytes: int, limit: int) -> MediaTooLarge:
    return MediaTooLarge(
        name,
        f"decoding {image.width} x {image.height} pixels of {image.format} ({image.mode}) needs "
        f"{needed_bytes >> 20:,} MiB, more than the {limit >> 20:,} MiB of LABELLOOP_MEDIA_MEMORY_BYTES",
        fix="Scale the image down, save it as JPEG, or raise that setting.",
    )


def _pixels(image: Image, target: tuple[int, int], orientation: int) -> npt.NDArray[np.uint8]:
    """The upright pixels (h, w, 3), converted to RGB in bands to save memory."""
    from PIL import Image as Pillow

    image.load()
    if image.size == target:
        pixels = np.empty((*_upright(target, orientation)[::-1], 3), np.uint8)
        rows = _in_file_order(pixels, orientation)
        for top, bottom in _bands(image.size):
            rows[top:bottom] = np.asarray(_rgb(image.crop((0, top, image.width, bottom))))
        return pixels
    if image.mode == "RGB" or image.width * image.height <= _BAND_PIXELS:
        small = _rgb(image).resize(target, Pillow.Resampling.BILINEAR)
    else:
        small = _resized_in_bands(image, target)
    if orientation in _TRANSPOSITIONS:
        small = small.transpose(Pillow.Transpose[_TRANSPOSITIONS[orientation]])
    return np.asarray(small)


# Pixels per band of the conversion to RGB, which uses up to 20 bytes per pixel.
_BAND_PIXELS = 1_000_000


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(first row, last row exclusive) of each band of an image of size (width, height)."""
    step = max(1, _BAND_PIXELS // size[0])
    return ((top, min(top + step, size[1])) for top in range(0, size[1], step))


def _resized_in_bands(image: Image, target: tuple[int, int]) -> Image:
    """Like `_rgb(image).resize(target, BILINEAR)` up to rounding, without converting the whole image to RGB."""
    from PIL import Image as Pillow

    small = Pillow.new("RGB", target)
    scale = image.height / target[1]
    margin = ceil(scale) + 1  # the filter support is `scale` rows
    step = max(1, _BAND_PIXELS // round(image.width * scale))
    for first in range(0, target[1], step):
        last = min(first + step, target[1])
        top, bottom = max(0, floor(first * scale) - margin), min(image.height, ceil(last * scale) + margin)
        band = _rgb(image.crop((0, top, image.width, bottom)))
        box = (0.0, first * scale - top, float(image.width), min(last * scale - top, float(bottom - top)))
        small.paste(band.resize((target[0], last - first), Pillow.Resampling.BILINEAR, box=box), (0, first))
    return small


def _in_file_order(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """A view of the upright pixels with the rows and columns in the order of the file."""
    if orientation in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    down, across = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}.get(orientation, (1, 1))
    return pixels[::down, ::across]


# EXIF orientation -> the transposition that makes the image upright (EXIF 2.32, 4.6.4 A, tag 274).
_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@contextmanager
def _opened(source: Source, name: str, max_pixels: int) -> Iterator[tuple[ImageFile, int]]:
    from PIL import Image, UnidentifiedImageError

    name = name or _name(source)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit must not be lower than the setting
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _check_pixels(image.size, name, max_pixels)
            yield image, _orientation(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many(name, max_pixels) from None
    except UnidentifiedImageError:
        raise NotAnImage(name, f"not an image of a supported format, but {_kind(source)}", fix=_CONVERT_FIX) from None
    except FileNotFoundError:
        raise MediaMissing(name, "no such file") from None
    except _FloatPixels:
        reason = "its pixels are floating point numbers, and which of them is white is not defined"
        raise NotAnImage(name, reason, fix="Convert it to 8 bits per channel, such as PNG.") from None
    except _DAMAGED as error:
        raise NotAnImage(name, f"the file is damaged or truncated ({error})", fix="Upload the file again.") from None


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
    """The eXIf chunk of a PNG, which may follow the pixel data; empty if there is none."""
    file = image.fp
    if file is None:
        return b""
    position = file.tell()
    try:
        file.seek(8)  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(length) if length <= _MAX_EXIF_BYTES else b""
            file.seek(length + 4, 1)
    finally:
        file.seek(position)
    return b""


_MAX_EXIF_BYTES = 1 << 20


def _orientation(image: ImageFile) -> int:
    from PIL.Image import Image as Pillow

    if image.format == "TIFF":  # Pillow rotates TIFFs itself, including the size
        return 1
    try:
        if image.format == "PNG" and "exif" not in image.info and (exif := _png_exif(image)):
            image.info["exif"] = b"Exif\0\0" + exif
        return int(Pillow.getexif(image).get(_ORIENTATION, 1))  # the getexif of Pillow's PNG plugin decodes all pixels
    except (*_DAMAGED, TypeError):  # the pixels may be valid although the EXIF block is not
        return 1


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _TRANSPOSED else size


def _rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel: the high byte, as browsers show it
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        return Pillow.fromarray(grey.astype(np.uint8), "L").convert("RGB")
    if image.mode == "F":
        raise _FloatPixels
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _kind(source: Source) -> str:
    """The apparent type of the file, for the error message."""
    if isinstance(source, bytes):
        head = source[:512]
    elif isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(512)
    else:
        source.seek(0)
        head = source.read(512)
    if head[4:8] == b"ftyp":
        return next((kind for kind, brands in _ISO_BRANDS.items() if head[8:12] in brands), "a video or a sound")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text:
        return "an empty file"
    if b"<svg" in text:
        return "an SVG drawing"
    return next((kind for mark, kind in _KINDS.items() if text.startswith(mark)), "something else")


# Brands of files in the ISO base media format (ISO 14496-12) that are images.
_ISO_BRANDS = {
    "a HEIC photo": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"},
    "a damaged AVIF image": {b"avif", b"avis"},
    "a raw photo of a camera": {b"crx "},
}
# First bytes of other files, in lower case.
_KINDS = {
    b"%pdf": "a PDF",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"{": "JSON",
    b"version https://git-lfs": "a pointer of Git LFS",
    b"\xff\n": "a JPEG XL image",
    b"\0\0\0\x0cjxl ": "a JPEG XL image",
    b"8bps": "a Photoshop document",
    b"pk\x03\x04": "a ZIP archive",
}
