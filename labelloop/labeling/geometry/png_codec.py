"""Encode and decode the PNG in a bitmask's data URL (PNG specification, third edition, W3C 2025).

Browsers write 8-bit PNGs without interlacing; this reads 1 to 16 bits of any colour type without interlacing. It keeps
`labelloop.labeling` free of an imaging library.
"""

import base64
import binascii
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import MalformedValue

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FIELD = "imageDataURL"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type: grey, RGB, palette, grey + alpha, RGBA
_MAX_PIXELS = 1 << 28


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour]


def decode_data_url(url: object) -> NDArray[np.bool_]:
    """The mask in a bitmask's ``imageDataURL``.

    Label Studio draws black on transparent: every pixel that is not transparent is set. If no pixel is transparent and
    not all are black (masks written by scripts, white on black), every pixel that is not black is set.

    Returns:
        A boolean array of shape ``(height, width)``.

    Raises:
        MalformedValue: It is not a data URL with a readable PNG.
    """
    if not isinstance(url, str) or not url.startswith("data:image/png;base64,"):
        raise MalformedValue(_FIELD, "expected a data:image/png;base64 URL")
    try:
        return _mask(base64.b64decode(url.partition(",")[2], validate=True))
    except (binascii.Error, zlib.error, struct.error, ValueError, KeyError, IndexError) as error:
        if isinstance(error, MalformedValue):
            raise
        raise MalformedValue(_FIELD, f"not a readable PNG: {error}") from None


def encode_data_url(pixels: NDArray[np.bool_]) -> str:
    """A mask as Label Studio stores it: a data URL of a PNG, black on transparent.

    Args:
        pixels: Boolean, of shape ``(height, width)``.
    """
    height, width = pixels.shape
    lines = np.zeros((height, 1 + width * 2), dtype=np.uint8)
    lines[:, 2::2] = pixels * np.uint8(255)
    header = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    png = _SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _mask(png: bytes) -> NDArray[np.bool_]:
    if not png.startswith(_SIGNATURE):
        raise MalformedValue(_FIELD, "not a PNG")
    chunks: dict[bytes, bytes] = {}
    offset = len(_SIGNATURE)
    while offset + 8 <= len(png) and b"IEND" not in chunks:
        (size,) = struct.unpack_from(">I", png, offset)
        kind = png[offset + 4 : offset + 8]
        chunks[kind] = chunks.get(kind, b"") + png[offset + 8 : offset + 8 + size]
        offset += size + 12
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    header = _Header(width, height, depth, colour)
    if interlaced or header.colour not in _CHANNELS or depth not in {1, 2, 4, 8, 16}:
        raise MalformedValue(_FIELD, "an interlaced or unknown kind of PNG")
    if not 0 < width * height <= _MAX_PIXELS:
        raise MalformedValue(_FIELD, f"a PNG of {width} x {height} pixels")
    return _opaque(_samples(chunks[b"IDAT"], header), header, chunks)


def _samples(packed: bytes, header: _Header) -> NDArray[np.uint16]:
    """Decompress and unfilter the samples, of shape ``(height, width, channels)``."""
    bits = header.channels * header.depth
    stride = (header.width * bits + 7) // 8
    size = header.height * (stride + 1)
    raw = zlib.decompressobj().decompress(packed, size)
    lines = np.frombuffer(raw, dtype=np.uint8, count=size).reshape(header.height, stride + 1)
    data = _unfilter(lines[:, 0], lines[:, 1:], max(1, bits // 8))
    if header.depth == 16:
        samples = data.view(">u2").astype(np.uint16)
    elif header.depth == 8:
        samples = data.astype(np.uint16)
    else:
        per_byte = 8 // header.depth
        shifts = np.arange(per_byte - 1, -1, -1, dtype=np.uint8) * np.uint8(header.depth)
        samples = (data[:, :, None] >> shifts & ((1 << header.depth) - 1)).reshape(header.height, -1).astype(np.uint16)
    return samples[:, : header.width * header.channels].reshape(header.height, header.width, header.channels)


def _opaque(samples: NDArray[np.uint16], header: _Header, chunks: dict[bytes, bytes]) -> NDArray[np.bool_]:
    colours = samples[..., : header.channels - (header.colour in {4, 6})]
    alpha = samples[..., -1] if header.colour in {4, 6} else None
    if header.colour == 3:
        palette = np.frombuffer(chunks[b"PLTE"], dtype=np.uint8).reshape(-1, 3)
        opacity = np.full(len(palette), 255, dtype=np.uint8)
        transparency = np.frombuffer(chunks.get(b"tRNS", b""), dtype=np.uint8)[: len(palette)]
        opacity[: transparency.size] = transparency
        colours, alpha = palette[samples[..., 0]].astype(np.uint16), opacity[samples[..., 0]].astype(np.uint16)
    lit = np.asarray((colours != 0).any(axis=-1))
    if alpha is not None and ((alpha == 0).any() or not lit.any()):
        return np.asarray(alpha != 0)
    return lit


def _unfilter(filters: NDArray[np.uint8], lines: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Undo the line filters (section 9): each line is stored as the difference to a prediction from its neighbours."""
    if (filters > 4).any():
        raise MalformedValue(_FIELD, "a PNG with an unknown line filter")
    if not filters.any():
        return np.ascontiguousarray(lines)
    height, stride = lines.shape
    pixels = -(-stride // step)
    padded = np.zeros((height, pixels * step), dtype=np.uint8)
    padded[:, :stride] = lines
    source = padded.reshape(height, pixels, step)
    out = np.zeros((height + 1, pixels + 1, step), dtype=np.int16)  # with a zero line above and a zero pixel before
    for row, kind in enumerate(filters.tolist()):
        line, above, current = source[row], out[row], out[row + 1]
        if kind == 0:
            current[1:] = line
        elif kind == 1:
            current[1:] = np.cumsum(line, axis=0, dtype=np.uint8)
        elif kind == 2:
            current[1:] = (line + above[1:]) & 255
        elif not line.any() and not above.any():
            current[1:] = 0
        else:
            _sequential(kind, line, above, current)
    return np.ascontiguousarray(out[1:, 1:].astype(np.uint8).reshape(height, -1)[:, :stride])


def _sequential(kind: int, line: NDArray[np.uint8], above: NDArray[np.int16], current: NDArray[np.int16]) -> None:
    """Average (3) and Paeth (4) filters: each pixel depends on the previous one. Plain lists are fastest here."""
    for channel in range(line.shape[1]):
        left = up_left = 0
        decoded = []
        for delta, up in zip(line[:, channel].tolist(), above[1:, channel].tolist(), strict=True):
            if kind == 3:
                left = delta + (left + up >> 1) & 255
            else:
                guess = left + up - up_left
                to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - up_left)
                best = left if to_left <= to_up and to_left <= to_corner else up if to_up <= to_corner else up_left
                left = delta + best & 255
            up_left = up
            decoded.append(left)
        current[1:, channel] = decoded
