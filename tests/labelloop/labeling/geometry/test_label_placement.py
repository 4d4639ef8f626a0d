"""Labels for other pixels are scaled where that is safe, else refused with the reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.geometry.label_placement import LabelsMisplaced, place_boxes, scale_of_labels

BOXES = np.array([[10, 20, 60, 80]], np.float32)


def test_labels_of_another_size_are_scaled():
    placed = place_boxes(BOXES, (400, 300), (4000, 3000))
    np.testing.assert_allclose(placed.boxes, BOXES * 10)
    assert placed.scaled_from == (400, 300)


@pytest.mark.parametrize("stated", [(0, 0), (400, 300)])
def test_labels_of_the_image_stay(stated):
    placed = place_boxes(BOXES, stated, (400, 300))
    np.testing.assert_allclose(placed.boxes, BOXES)
    assert placed.scaled_from is None


def test_labels_before_exif_rotation_are_refused():
    with pytest.raises(LabelsMisplaced, match="EXIF rotation is not applied"):
        place_boxes(BOXES, (3000, 4000), (4000, 3000))
    with pytest.raises(LabelsMisplaced, match="EXIF rotation is not applied"):
        scale_of_labels((300, 400), (4000, 3000))


def test_another_aspect_ratio_is_refused():
    with pytest.raises(LabelsMisplaced, match="for 640 x 640 pixels, the image has 1280 x 720"):
        place_boxes(BOXES, (640, 640), (1280, 720))


def test_most_boxes_off_the_image_refuse_it():
    off = np.array([[900, 20, 960, 80], [1000, 0, 1200, 90], [10, 10, 50, 50]], np.float32)
    with pytest.raises(LabelsMisplaced, match="2 of its 3 boxes lie off the image"):
        place_boxes(off, (0, 0), (640, 480))


def test_a_single_box_off_the_image_is_left_out():
    boxes = np.array([[900, 20, 960, 80], [10, 10, 50, 50], [630, 10, 700, 50], [600, 10, 660, 50]], np.float32)
    assert place_boxes(boxes, (0, 0), (640, 480)).kept.tolist() == [False, True, False, True]


@given(st.integers(16, 5000), st.integers(16, 5000), st.floats(0.1, 4))
def test_rounded_sizes_of_one_photo_never_misplace(width, height, scale):
    resized = max(16, round(width * scale)), max(16, round(height * scale))
    if min(resized) > 16:
        scale_of_labels((width, height), resized)
