"""Encode and decode the PNG in a bitmask's data URL, with Pillow.

Browsers write 8-bit PNGs; this reads 1 to 16 bits of any colour type without interlacing. Pillow fills missing lines
with background and keeps 8 of 16 bits of a colour; here such data is malformed, and no bit is lost.
"""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import MalformedValue

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngImageFile

_FIELD = "imageDataURL"
_PREFIX = "data:image/png;base64,"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type: grey, RGB, palette, grey + alpha, RGBA
_PALETTE = 3
_MAX_PIXELS = 1 << 28


def decode_data_url(url: object) -> NDArray[np.bool_]:
    """The mask in a bitmask's ``imageDataURL``.

    Label Studio draws black on transparent: every pixel that is not transparent is set. If no pixel is transparent and
    not all are black (masks written by scripts, white on black), every pixel that is not black is set.

    Returns:
        A boolean array of shape ``(height, width)``.

    Raises:
        MalformedValue: It is not a data URL with a readable PNG.
    """
    if not isinstance(url, str) or not url.startswith(_PREFIX):
        raise MalformedValue(_FIELD, "expected a data:image/png;base64 URL")
    try:
        samples, has_alpha = _samples(base64.b64decode(url.removeprefix(_PREFIX), validate=True))
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, struct.error, zlib.error) as error:
        raise MalformedValue(_FIELD, f"not a readable PNG: {error}") from None
    alpha = samples[..., -1] != 0 if has_alpha else None
    if alpha is not None and not alpha.all():
        return np.asarray(alpha)
    colored = np.asarray((samples[..., :-1] if has_alpha else samples).any(axis=-1))
    return colored if alpha is None or colored.any() else np.asarray(alpha)


def encode_data_url(pixels: NDArray[np.bool_]) -> str:
    """A mask as Label Studio stores it: a data URL of a PNG, black on transparent.

    The PNG has one bit per pixel and a palette of two entries: 40 times as fast as one with grey and alpha.

    Args:
        pixels: Boolean, of shape ``(height, width)``.
    """
    height, width = pixels.shape
    lines = np.zeros((height, 1 + (width + 7) // 8), dtype=np.uint8)  # each line begins with its filter, 0: none
    lines[:, 1:] = np.packbits(pixels, axis=1)
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    chunks = (
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, _PALETTE, 0, 0, 0)),
        _chunk(b"PLTE", bytes(6)),
        _chunk(b"tRNS", b"\x00\xff"),
        _chunk(b"IDAT", deflate.compress(lines.tobytes()) + deflate.flush()),
        _chunk(b"IEND", b""),
    )
    return _PREFIX + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _samples(png: bytes) -> tuple[NDArray[Any], bool]:
    """Samples of shape ``(height, width, channels)``, 0 where the PNG's are; whether the last channel is alpha."""
    image = _open(png)
    raw_mode = image.tile[0].args
    if image.mode == "P":
        indices, colors = np.asarray(image), len(image.palette.palette) // 3 if image.palette else 0
        if indices.max() >= colors:
            raise ValueError(f"color {indices.max()} of a palette of {colors}")
        return np.asarray(image.convert("RGBA")), True
    if raw_mode == "LA;16B":  # the four bytes of a pixel as four channels
        return np.asarray(_decode(image, "RGBA").reshape(image.height, image.width, 2, 2).any(axis=-1)), True
    if raw_mode in {"RGB;16B", "RGBA;16B"}:  # the high bytes, and the low bytes
        low_bytes = _decode(_open(png), raw_mode.replace("16B", "16L"))
        return _decode(image, raw_mode) | low_bytes, image.mode == "RGBA"
    return np.asarray(image).reshape(image.height, image.width, -1), image.mode in {"LA", "RGBA"}


def _open(png: bytes) -> "PngImageFile":
    """The image, not decoded yet; its header, checksums and number of lines are valid."""
    # Not Image.open: it applies Pillow's own limit of pixels, a global of the process.
    from PIL.PngImagePlugin import PngImageFile

    image = PngImageFile(io.BytesIO(png))
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    if image.info.get("interlace") or not image.tile:
        raise ValueError("interlaced, or without image data")
    image.verify()
    depth, color = struct.unpack_from(">BB", png, 24)
    size = image.height * (1 + (image.width * depth * _CHANNELS[color] + 7) // 8)
    if len(zlib.decompressobj().decompress(b"".join(_image_data(png)), size)) < size:
        raise ValueError("its image data ends early")
    return PngImageFile(io.BytesIO(png))


def _image_data(png: bytes) -> Iterator[bytes]:
    offset = 8
    while offset < len(png):
        size, kind = struct.unpack_from(">I4s", png, offset)
        if kind == b"IDAT":
            yield png[offset + 8 : offset + 8 + size]
        if kind == b"IEND":
            return
        offset += size + 12


def _decode(image: "PngImageFile", raw_mode: str) -> NDArray[np.uint8]:
    """The pixels, unpacked from their bytes with another of Pillow's raw modes."""
    image.tile = [image.tile[0]._replace(args=raw_mode)]
    return np.asarray(image)
