"""Boxes move with the pixels, and what a label means stays."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ml_backend.detection.preprocess import InputSpec, prepare
from ml_backend.finetune.augment import AugmentOptions, Picture, as_input, augmented, mosaic
from ml_backend.finetune.recipe import Recipe

PLAIN = AugmentOptions(colour=(0, 0, 0))


def picture(width=120, height=80, box=(30, 20, 70, 50)):
    pixels = np.full((height, width, 3), 20, np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 250
    return Picture(pixels, np.array([box], np.float32), np.array([1]))


@pytest.mark.parametrize("placement", ["top-left", "centre", "stretch"])
@pytest.mark.parametrize("seed", range(25))
def test_a_box_stays_around_its_object(placement, seed):
    spec = InputSpec(96, 128, placement=placement, pad=20)
    drawn = augmented(picture(), spec, PLAIN, np.random.default_rng(seed))
    assert drawn.pixels.shape == (96, 128, 3)
    bright = drawn.pixels[..., 0] > 130
    if not len(drawn.boxes):
        assert bright.mean() < 0.05
        return
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(drawn.boxes[0], seen, atol=2)
    assert drawn.classes.tolist() == [1]


def test_without_flips_left_stays_left():
    left = picture(box=(0, 20, 30, 50))
    options = replace(PLAIN, flip=False, scale=(1.0, 1.0))
    for seed in range(20):
        drawn = augmented(left, InputSpec(80, 120), options, np.random.default_rng(seed))
        assert drawn.boxes[0, 0] < 15


def test_the_same_seed_draws_the_same_picture():
    first, second = (augmented(picture(), InputSpec(64, 64), AugmentOptions(), np.random.default_rng(7)) for _ in "ab")
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.boxes, second.boxes)


def test_a_mosaic_has_the_objects_of_four_pictures():
    drawn = mosaic([picture()] * 4, InputSpec(128, 128, pad=20), PLAIN, np.random.default_rng(0))
    assert 1 <= len(drawn.boxes) <= 4
    for x0, y0, x1, y1 in drawn.boxes.astype(int).tolist():
        assert drawn.pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].mean() > 200


def test_a_canvas_is_normalised_as_for_serving():
    spec = InputSpec(32, 48, color="BGR", scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    np.testing.assert_array_equal(as_input(pixels, spec), prepare(pixels, spec).tensor)


def test_the_rate_rises_then_falls_to_its_end():
    recipe = Recipe(rate=1e-3, warm_up=0.1, last_rate=0.05)
    rates = [recipe.rate_at(share) for share in np.linspace(0, 1, 41)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(1e-3, rel=0.05)
    assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    assert rates[-1] == pytest.approx(5e-5)
