"""The crop around an object: where its points are, and what is drawn of the image."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.heads.crop_features import CHANNELS, CONTEXT, CropFrame, crop_backbone

COORDINATE = st.floats(-500, 1500, allow_nan=False)


@given(COORDINATE, COORDINATE, st.floats(2, 900), st.floats(-360, 360), COORDINATE, COORDINATE)
def test_points_of_a_crop_map_back_to_the_image(cx, cy, side, rotation, x, y):
    frame = CropFrame(cx, cy, side, rotation)
    assert np.allclose(frame.to_image(frame.to_crop((x, y))), (x, y), atol=1e-6)
    half = frame.scaled(0.5)
    assert np.allclose(half.to_crop((x / 2, y / 2)), frame.to_crop((x, y)), atol=1e-6)


@given(st.floats(0, 500), st.floats(0, 500), st.floats(1, 400), st.floats(1, 400))
def test_the_frame_is_a_square_around_the_box(x, y, width, height):
    frame = CropFrame.around((x, y, x + width, y + height))
    assert np.isclose(frame.side, max(width, height, 2) * CONTEXT)
    assert np.allclose(frame.to_crop((x + width / 2, y + height / 2)), 0.5)


def test_the_rendered_crop_shows_the_point_where_it_is_mapped():
    pixels = np.full((200, 300, 3), 30, np.uint8)
    pixels[95:106, 195:206] = 250  # its centre is (200.5, 100.5)
    for rotation in (0, 30, 90, 200):
        for side in (60.0, 400.0):
            frame = CropFrame(210, 90, side, rotation)
            crop = frame.render(pixels, 64)
            x, y = frame.to_crop((200.5, 100.5)) * 64
            rows, columns = np.nonzero(crop[..., 0] > 150)
            assert abs(columns.mean() + 0.5 - x) < 1, (rotation, side)
            assert abs(rows.mean() + 0.5 - y) < 1, (rotation, side)


def test_a_crop_outside_the_image_is_grey():
    crop = CropFrame(-500, -500, 50).render(np.zeros((20, 20, 3), np.uint8), 32)
    assert (crop == 114).all()


def test_the_maps_have_one_row_per_cell():
    backbone = crop_backbone(96)
    crops = [np.full((96, 96, 3), value, np.uint8) for value in (0, 100, 200)]
    features = backbone.features(crops)
    assert features.shape == (3, 24 * 24, CHANNELS)
    assert features.dtype == np.float16
    assert np.isfinite(features).all()
    assert np.abs(features[1:2] - backbone.features(crops[1:2])).max() < 0.1
    assert backbone.features([]).shape == (0, 24 * 24, CHANNELS)
