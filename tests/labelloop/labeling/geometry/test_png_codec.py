import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labelloop.labeling.errors import MalformedValue
from labelloop.labeling.geometry.png_codec import decode_data_url, encode_data_url


def url(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return data_url(file.getvalue())


def data_url(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(width, height, depth, color, lines, *, interlaced=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_masks_come_back_and_pillow_sees_black_on_transparent(width, height, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    encoded = encode_data_url(mask)
    image = Image.open(io.BytesIO(base64.b64decode(encoded.partition(",")[2]))).convert("RGBA")
    pixels = np.asarray(image)
    assert ((pixels[..., 3] != 0) == mask).all()
    assert not pixels[..., :3].any()
    assert (decode_data_url(encoded) == mask).all()


def test_full_mask_is_black_without_transparency():
    assert decode_data_url(encode_data_url(np.ones((3, 4), dtype=bool))).all()
    assert not decode_data_url(url(Image.new("RGB", (4, 3)))).any()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "RGB", "1", "P", "I;16"])
def test_every_kind_that_pillow_writes_is_read(mode):
    rows, columns = np.mgrid[:60, :90]
    mask = np.hypot(rows - 30, columns - 45) < 25
    noise = np.random.default_rng(0).integers(1, 255, mask.shape)
    if mode in {"RGBA", "LA"}:
        channels = np.stack([noise] * (len(mode) - 1) + [mask * noise], axis=-1).astype(np.uint8)
        image = Image.fromarray(channels)
    elif mode == "P":
        image = Image.fromarray((mask * 1).astype(np.uint8), mode=None).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0])
    elif mode == "1":
        image = Image.fromarray(mask)
    elif mode == "I;16":
        image = Image.fromarray((mask * 4000).astype(np.uint16))
    else:
        image = Image.fromarray((mask * noise).astype(np.uint8)).convert(mode)
    assert (decode_data_url(url(image, optimize=True)) == mask).all()


@pytest.mark.parametrize("kind", range(5))
def test_every_line_filter_is_undone(kind):
    rng = np.random.default_rng(kind)
    pixels = rng.integers(0, 256, (12, 17, 4)).astype(np.uint8)
    pixels[..., 3] *= rng.random((12, 17)) < 0.5
    lines = pixels.reshape(12, -1).astype(int)
    stored = []
    for row in range(12):
        above = lines[row - 1] if row else np.zeros(68, dtype=int)
        left = np.concatenate([np.zeros(4, dtype=int), lines[row][:-4]])
        corner = np.concatenate([np.zeros(4, dtype=int), above[:-4]])
        guess = left + above - corner
        far = [abs(guess - left), abs(guess - above), abs(guess - corner)]
        paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner))
        predicted = [np.zeros(68, dtype=int), left, above, (left + above) // 2, paeth][kind]
        stored.append(bytes([kind]) + ((lines[row] - predicted) % 256).astype(np.uint8).tobytes())
    png = png_of(17, 12, 8, 6, b"".join(stored))
    assert (np.asarray(Image.open(io.BytesIO(png))) == pixels).all()  # the referee agrees that this is the image
    assert (decode_data_url(data_url(png)) == (pixels[..., 3] != 0)).all()


@pytest.mark.parametrize(
    ("color", "lines", "expected"),
    [
        pytest.param(2, [0, 0, 0, 0, 0, 1], [False, True], id="RGB"),
        pytest.param(4, [7, 0, 0, 1], [False, True], id="grey and alpha"),
        pytest.param(6, [7, 7, 7, 0, 0, 0, 0, 1], [False, True], id="RGBA"),
    ],
)
def test_low_bytes_of_16_bit_samples_count(color, lines, expected):
    png = png_of(2, 1, 16, color, b"\0" + struct.pack(f">{len(lines)}H", *lines))
    assert decode_data_url(data_url(png)).tolist() == [expected]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        7,
        "",
        "data:image/jpeg;base64,AAAA",
        "data:image/png;base64,????",
        "data:image/png;base64,AAAA",
        "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
        encode_data_url(np.ones((9, 9), dtype=bool))[:-60] + "AAAA",
        data_url(png_of(4, 3, 8, 0, b"\0aaaa\0bbbb")),  # a line is missing
        data_url(png_of(20_000, 20_000, 8, 6, b"\0")),
        data_url(png_of(4, 1, 8, 0, b"\0aaaa").replace(b"IHDR\0\0\0\4", b"IHDR\0\0\0\3")),  # a wrong checksum
        data_url(png_of(1, 1, 8, 3, b"\0\0")),  # without its palette
        data_url(png_of(1, 1, 8, 0, b"\0a", interlaced=1)),
        data_url(b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + png_of(1, 1, 8, 0, b"\0a")[8:]),
    ],
)
def test_broken_urls_are_malformed_values(broken):
    with pytest.raises(MalformedValue) as caught:
        decode_data_url(broken)
    assert caught.value.field == "imageDataURL"
