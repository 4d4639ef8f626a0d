"""Panoptic PNG files are read in bounded memory: by blocks of rows, and none that its header says is too large."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import find_objects

from labelloop.service.datasets import panoptic
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.mask_files import read_png


@pytest.mark.parametrize("block_pixels", [1, 7, 64, 10_000])
def test_bounds_do_not_depend_on_the_size_of_the_blocks(monkeypatch, block_pixels):
    ids = np.random.default_rng(0).integers(0, 70_000, (12, 9), np.int32)
    ids[2:11, 3:5] = 600
    monkeypatch.setattr(panoptic, "_BLOCK_PIXELS", block_pixels)
    numbers, dense = np.unique(ids, return_inverse=True)
    expected = dict(zip(numbers.tolist(), find_objects(dense.reshape(ids.shape) + 1), strict=True))
    assert panoptic._bounds_by_id(ids) == expected


@pytest.mark.parametrize("block_pixels", [100, 10_000])
def test_png_with_an_id_for_each_pixel_is_refused(monkeypatch, block_pixels):
    monkeypatch.setattr(panoptic, "_BLOCK_PIXELS", block_pixels)
    monkeypatch.setattr(panoptic, "_MAX_SEGMENTS", 500)
    assert len(panoptic._bounds_by_id(np.arange(500, dtype=np.int32).reshape(20, 25))) == 500
    with pytest.raises(MalformedData, match="more than 500 ids"):
        panoptic._bounds_by_id(np.arange(2000, dtype=np.int32).reshape(40, 50))


def test_png_that_is_too_large_is_not_decoded():
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]
    with pytest.raises(MalformedData, match="20000 x 20000 pixels; at most 100,000,000 are read"):
        read_png(png, (0, 0), max_pixels=100_000_000)
