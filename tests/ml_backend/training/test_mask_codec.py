import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle, Vector, Vertex
from ml_backend.training.mask_codec import (
    MAX_SIDE,
    MAX_TEXT,
    crop_bounds,
    decode_mask,
    encode_geometry,
    encode_mask,
)

MASKS = arrays.arrays(
    np.bool_, st.tuples(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE)), elements=st.booleans(), fill=st.booleans()
)


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_small_masks_keep_every_pixel(mask):
    text = encode_mask(mask)
    if not mask.any():
        assert text == ""
    elif len(text) <= MAX_TEXT:
        assert np.array_equal(decode_mask(text), mask)
        rows, columns, counts = text.split(" ")
        judged = coco.decode({"size": [int(rows), int(columns)], "counts": counts.encode()})  # the referee
        assert np.array_equal(judged != 0, mask)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(20, 900), st.integers(20, 900)),
    turn=st.floats(0, 180),
    ratio=st.floats(0.3, 1),
)
def test_large_shapes_survive_the_reduction(size, turn, ratio):
    width, height = size
    radius = 0.45 * min(size)
    ellipse = Ellipse(width / 2, height / 2, radius, radius * ratio, turn)
    box = ellipse.bounds
    left, top, right, bottom = crop_bounds(box, width, height)
    truth = ellipse.mask(width, height)
    for geometry in (ellipse, Mask.from_array(truth), Polygon(tuple(map(tuple, ellipse.polygon().exterior.coords)))):
        text = encode_geometry(geometry, box, width, height)
        assert 0 < len(text) <= MAX_TEXT
        found = np.zeros_like(truth)
        found[top:bottom, left:right] = decode_mask(text, bottom - top, right - left)
        assert iou(found, truth) > (0.95 if min(size) * ratio > 60 else 0.8)


def test_shapes_without_pixels_have_no_mask():
    box = (2.0, 2.0, 8.0, 8.0)
    for geometry in (
        Rectangle(2, 2, 6, 6),
        KeyPoint(3, 3),
        Vector((Vertex(2, 2), Vertex(8, 8))),
        Mask.from_array(np.zeros((10, 10), bool)),
    ):
        assert encode_geometry(geometry, box, 10, 10) == ""
    assert encode_geometry(Polygon(((20, 20), (30, 20), (25, 30))), (20, 20, 30, 30), 10, 10) == ""


def test_thin_shapes_keep_pixels():
    line = np.zeros((4000, 4000), bool)
    line[2000, :] = True
    assert decode_mask(encode_mask(line), 4000, 4000).any()


def test_frayed_masks_stay_short():
    frayed = np.random.default_rng(0).random((3000, 2000)) < 0.5
    assert len(encode_mask(frayed)) <= MAX_TEXT
    checkers = np.indices((128, 128)).sum(0) % 2 == 0
    assert len(encode_mask(checkers)) <= MAX_TEXT


def test_size_of_an_image_does_not_matter():
    outline = Polygon(((10, 10), (199_990, 20), (199_000, 99_990), (50, 99_000)))
    text = encode_geometry(outline, outline.bounds, 200_000, 100_000)
    assert decode_mask(text).mean() > 0.95


@pytest.mark.parametrize("text", ["1 2", "200000 200000 abc", "0 5 05", "x y z"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        decode_mask(text)
