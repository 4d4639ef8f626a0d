"""Merged outlines, masks and ellipses are nearer to the truth than the most typical one, and easy to edit."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.outline_consensus import SIMULATIONS
from labelloop.labeling.consensus.merge import medoid, merge_shapes
from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon

SQUARE = Polygon(((10, 10), (50, 10), (50, 50), (10, 50)))


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("annotators", [2, 3, 5])
@pytest.mark.parametrize("kind", SIMULATIONS)
def test_merged_shape_beats_the_medoid(kind, annotators, careless):
    if careless and annotators == 2:
        pytest.skip("of two, nobody knows the careless one")
    gains = []
    for seed in range(4 if kind == "mask" else 16):
        truth, shapes = SIMULATIONS[kind](np.random.default_rng(seed), annotators, 3.0, careless)
        gains.append(iou(merge_shapes(shapes), truth) - iou(shapes[medoid(shapes)], truth))
    assert np.mean(gains) > 0.005
    assert np.mean(np.array(gains) > -0.01) > 0.7


def test_merged_outline_has_few_vertices():
    counts = []
    for seed in range(10):
        _, shapes = SIMULATIONS["polygon"](np.random.default_rng(seed), 3, 2.0, False)
        counts.append(len(merge_shapes(shapes).points) / np.mean([len(shape.points) for shape in shapes]))
    assert np.mean(counts) < 1.5


def test_equal_outlines_keep_their_vertices():
    assert merge_shapes([SQUARE, SQUARE, SQUARE]) is SQUARE
    far = Polygon(((11, 10), (50, 11), (80, 50), (10, 50)))
    assert iou(merge_shapes([SQUARE, SQUARE, far]), SQUARE) > 0.99


def test_outline_that_crosses_itself_is_merged():
    bow = Polygon(((10, 10), (50, 50), (50, 10), (10, 50)))
    merged = merge_shapes([bow, SQUARE, SQUARE])
    assert iou(merged, SQUARE) > 0.9
    line = Polygon(((10, 10), (50, 50), (30, 30)))  # no area
    assert merge_shapes([line, SQUARE, SQUARE]) == SQUARE


def test_outlines_of_thousands_of_points_are_merged_in_bounded_time():
    draw = np.random.default_rng(0)
    angles = [np.sort(draw.uniform(0, 2 * np.pi, 3000)) for _ in range(3)]
    rings = [np.column_stack((500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle))) for angle in angles]
    shapes = [Polygon(tuple(map(tuple, ring.tolist()))) for ring in rings]
    started = time.process_time()
    merged = merge_shapes(shapes)
    assert time.process_time() - started < 5  # 18 s without a bound
    assert iou(merged, shapes[0]) > 0.99
    assert len(merged.points) < 1000


def test_outlines_that_share_nothing_are_not_mixed():
    away = [Polygon(tuple((x + 100 * number, y) for x, y in SQUARE.points)) for number in range(3)]
    assert merge_shapes(away) in away


def test_two_masks_meet_halfway():
    pixels = np.zeros((60, 60), bool)
    small, large = pixels.copy(), pixels.copy()
    small[20:40, 20:40] = large[16:44, 16:44] = True
    merged = merge_shapes([Mask.from_array(small), Mask.from_array(large)])
    assert merged.bounds == (18, 18, 42, 42)


def test_mask_without_pixels_does_not_count():
    pixels = np.zeros((60, 60), bool)
    pixels[20:40, 20:40] = True
    drawn, empty = Mask.from_array(pixels), Mask.from_array(np.zeros((60, 60), bool))
    assert merge_shapes([drawn, empty, drawn]) == drawn


def test_ellipse_drawn_along_its_other_axis_is_the_same():
    first, second = Ellipse(50, 50, 30, 10, 20), Ellipse(50, 50, 10, 30, 110)
    assert iou(merge_shapes([first, second]), first) == pytest.approx(1, abs=1e-6)
    assert merge_shapes([first, second, first]).rotation == pytest.approx(20)


places = st.integers(0, 1000).map(lambda tenths: tenths / 10)
polygons = st.lists(st.tuples(places, places), min_size=3, max_size=7, unique=True).map(
    lambda points: Polygon(tuple(points))
)


@settings(max_examples=30, deadline=None)
@given(st.lists(polygons, min_size=2, max_size=4))
def test_merged_outline_is_a_ring_inside_all_bounds(shapes):
    merged = merge_shapes(shapes)
    assert len(merged.points) >= 3
    bounds = np.array([shape.bounds for shape in shapes])
    x_min, y_min, x_max, y_max = merged.bounds
    assert x_min >= bounds[:, 0].min() - 1e-6
    assert y_min >= bounds[:, 1].min() - 1e-6
    assert x_max <= bounds[:, 2].max() + 1e-6
    assert y_max <= bounds[:, 3].max() + 1e-6
