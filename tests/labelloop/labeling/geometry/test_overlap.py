import itertools
import math

import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st

from labelloop.labeling.geometry.overlap import box_iou, iou, iou_matrix, iou_pairs, match
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle, Vector, Vertex

whole = st.integers(0, 40).map(float)
size = st.integers(1, 40).map(float)
angle = st.floats(-180, 180)
point = st.tuples(whole, whole)
upright = st.builds(Rectangle, whole, whole, size, size)
rotated = st.builds(Rectangle, whole, whole, size, size, angle)
ellipse = st.builds(Ellipse, whole, whole, size, size, angle)
polygon = st.builds(Polygon, st.lists(point, min_size=3, max_size=7).map(tuple))
keypoint = st.builds(KeyPoint, whole, whole, st.integers(0, 9).map(float))
vertex = st.builds(Vertex, whole, whole)
vector = st.builds(Vector, st.lists(vertex, min_size=1, max_size=5).map(tuple), st.booleans())
mask = st.integers(0, 2**32 - 1).map(lambda seed: Mask.from_array(np.random.default_rng(seed).random((12, 16)) < 0.4))
anything = st.one_of(upright, rotated, ellipse, polygon, keypoint, vector, mask)


def moved(shape, dx, dy):
    if isinstance(shape, Rectangle):
        return Rectangle(shape.x + dx, shape.y + dy, shape.width, shape.height, shape.rotation)
    if isinstance(shape, Ellipse):
        return Ellipse(shape.cx + dx, shape.cy + dy, shape.rx, shape.ry, shape.rotation)
    if isinstance(shape, Polygon):
        return Polygon(tuple((x + dx, y + dy) for x, y in shape.points))
    if isinstance(shape, KeyPoint):
        return KeyPoint(shape.x + dx, shape.y + dy, shape.width)
    if isinstance(shape, Vector):
        return Vector(tuple(Vertex(v.x + dx, v.y + dy) for v in shape.vertices), shape.closed)
    pixels = shape.array()
    canvas = np.zeros((60, 70), dtype=bool)
    canvas[dy : dy + pixels.shape[0], dx : dx + pixels.shape[1]] = pixels
    return Mask.from_array(canvas)


@given(anything)
def test_a_shape_overlaps_itself_by_one(shape):
    assert iou(shape, shape) == 1.0


@given(anything, anything)
def test_overlap_is_symmetric_and_between_0_and_1(a, b):
    forward, backward = iou(a, b), iou(b, a)
    assert 0.0 <= forward <= 1.0
    assert forward == pytest.approx(backward, abs=1e-9)


@given(anything, anything, st.integers(0, 40), st.integers(0, 40))
def test_overlap_stays_where_both_are_moved(a, b, dx, dy):
    assert iou(moved(a, dx, dy), moved(b, dx, dy)) == pytest.approx(iou(a, b), abs=1e-6)


@given(st.lists(anything, max_size=5), st.lists(anything, max_size=5))
def test_a_matrix_holds_what_each_pair_has(a, b):
    matrix = iou_matrix(a, b)
    assert matrix.shape == (len(a), len(b))
    for (row, left), (column, right) in itertools.product(enumerate(a), enumerate(b)):
        assert matrix[row, column] == pytest.approx(iou(left, right), abs=1e-9)


@given(st.lists(upright, max_size=4), st.lists(upright, max_size=4))
def test_a_few_upright_boxes_overlap_as_many_do(a, b):
    a = [*a, *b[:1]]
    assert np.array_equal(iou_matrix(a, b), iou_pairs(a, b).to_matrix(len(a), len(b)))


@given(rotated, rotated)
def test_rotated_boxes_overlap_by_their_true_shape(a, b):
    expected = a.polygon().intersection(b.polygon()).area / a.polygon().union(b.polygon()).area
    assert iou(a, b) == pytest.approx(expected, abs=1e-9)


@given(upright, upright)
def test_upright_boxes_overlap_alike_by_numpy_and_by_shapely(a, b):
    assume(a != b)
    tilted = Rectangle(b.x, b.y, b.width, b.height, 360.0)
    assert iou(a, b) == pytest.approx(iou(a, tilted), abs=1e-9)


@given(mask, mask)
def test_masks_overlap_by_their_pixels(a, b):
    both, either = (a.array() & b.array()).sum(), (a.array() | b.array()).sum()
    assert iou(a, b) == pytest.approx(both / either)


def test_a_mask_and_a_polygon_of_the_same_pixels_agree():
    box = Rectangle(3, 4, 20, 10)
    corners = Polygon(box.corners)
    pixels = Mask.from_array(box.mask(40, 30))
    for left, right in itertools.combinations([box, corners, pixels], 2):
        assert iou(left, right) == pytest.approx(1.0)


def test_masks_of_different_image_sizes_are_compared_by_position():
    small, large = np.zeros((10, 10), dtype=bool), np.zeros((50, 50), dtype=bool)
    small[2:6, 2:6] = large[2:6, 2:6] = True
    assert iou(Mask.from_array(small), Mask.from_array(large)) == pytest.approx(1.0)


def test_known_overlaps():
    box = Rectangle(0, 0, 10, 10)
    assert iou(box, Rectangle(5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert iou(box, Rectangle(10, 0, 10, 10)) == 0
    assert iou(box, Ellipse(5, 5, 5, 5)) == pytest.approx(math.pi / 4, rel=1e-3)
    assert iou(box, Polygon(((0, 0), (10, 0), (0, 10)))) == pytest.approx(0.5)
    # Squares turned 45 degrees about a shared corner share tan(22.5 degrees) of their area.
    shared = math.tan(math.pi / 8)
    assert iou(Rectangle(0, 0, 10, 10, 45), Rectangle(0, 0, 10, 10, 90)) == pytest.approx(shared / (2 - shared))


def test_key_points_are_the_discs_they_are_drawn_as():
    assert iou(KeyPoint(0, 0, 10), KeyPoint(4, 0, 10)) > iou(KeyPoint(0, 0, 10), KeyPoint(8, 0, 10)) > 0
    assert iou(KeyPoint(0, 0, 10), KeyPoint(11, 0, 10)) == 0
    assert iou(KeyPoint(1, 1), KeyPoint(1, 1)) == 1
    assert iou(KeyPoint(1, 1), KeyPoint(1, 2)) == 0


def test_open_vectors_are_bands_and_closed_ones_areas():
    line = Vector((Vertex(0, 0), Vertex(400, 0)))
    assert 0.5 < iou(line, Vector((Vertex(0, 1), Vertex(400, 1)))) < 1
    assert iou(line, Vector((Vertex(0, 50), Vertex(400, 50)))) == 0
    square = Vector((Vertex(0, 0), Vertex(10, 0), Vertex(10, 10), Vertex(0, 10)), closed=True)
    assert iou(square, Rectangle(0, 0, 10, 10)) == pytest.approx(1.0)


def test_boxes_without_area_overlap_nothing():
    assert box_iou(np.array([[1, 1, 1, 1]]), np.array([[0, 0, 5, 5], [1, 1, 1, 1]])).tolist() == [[0, 0]]
    assert box_iou(np.empty((0, 4)), np.array([[0, 0, 5, 5]])).shape == (0, 1)


def total(matrix, pairs):
    return sum(matrix[row][column] for row, column in pairs)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.6]))
def test_matches_are_one_to_one_above_the_threshold_and_optimal(n, m, seed, threshold):
    matrix = np.round(np.random.default_rng(seed).random((n, m)), 2)
    pairs = match(matrix, threshold=threshold)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(matrix[pair] >= threshold for pair in pairs)
    wide = matrix if n <= m else matrix.T
    best = max(
        (
            sum(wide[row, column] for row, column in enumerate(columns) if wide[row, column] >= threshold)
            for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        ),
        default=0.0,
    )
    assert total(matrix, pairs) == pytest.approx(best)


def test_matching_sees_further_than_the_largest_pair():
    assert match(np.array([[0.9, 0.8], [0.8, 0.0]]), threshold=0.5) == ((0, 1), (1, 0))
    assert match(np.array([[0.9, 0.8], [0.8, 0.0]]), threshold=0.85) == ((0, 0),)
    assert match(np.zeros((2, 2)), threshold=0.0) == ()


corners = st.tuples(st.integers(0, 10**6), st.integers(3, 40))


def ring(seed, count, far):
    """A star-shaped outline of integer corners, so that outlines share corners and edges more often than by chance."""
    rng = np.random.default_rng(seed)
    turns = np.sort(rng.choice(72, count, replace=False)) * math.pi / 36
    radii = rng.integers(3, 12, count) * 2
    points = np.round(np.column_stack((20 + radii * np.cos(turns), 20 + radii * np.sin(turns)))) + far
    points += rng.integers(0, 9, 2) * 2
    return Polygon(tuple((float(x), float(y)) for x, y in points))


@given(
    st.lists(corners, min_size=1, max_size=5),
    st.lists(st.one_of(corners, mask, ellipse, rotated), min_size=1, max_size=5),
    st.sampled_from([0, -50, 30_000]),
)  # fmt: skip
def test_iou_of_outlines_equals_shapely(first, second, far):
    left_shapes = [ring(*shape, far) for shape in first]
    right_shapes = [ring(*shape, far) if isinstance(shape, tuple) else shape for shape in second]
    ious = iou_matrix(left_shapes, right_shapes)
    for row, a in enumerate(left_shapes):
        for column, b in enumerate(right_shapes):
            left, right = a.polygon(), b.polygon()
            union = shapely.union(left, right).area
            assume(union > 0)
            assert ious[row, column] == pytest.approx(shapely.intersection(left, right).area / union, abs=1e-7)
