import math

import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle, Vector, Vertex

coordinate = st.floats(-500, 2500)
length = st.floats(0.5, 2000)
angle = st.floats(-720, 720)


@given(coordinate, coordinate, length, length, angle)
def test_rectangles_rotate_like_shapely_about_the_top_left_corner(x, y, width, height, rotation):
    rectangle = Rectangle(x, y, width, height, rotation)
    # In shapely's y-up world a positive angle is counter-clockwise; with y down the same numbers turn clockwise.
    turned = shapely.affinity.rotate(shapely.box(x, y, x + width, y + height), rotation, origin=(x, y))
    # The farthest that one outline is from the other; the area between two outlines that all but meet is no number
    # to trust.
    assert rectangle.polygon().hausdorff_distance(turned) <= 1e-9 * (width + height + abs(x) + abs(y))
    assert rectangle.bounds == pytest.approx(turned.bounds, abs=1e-6)
    assert rectangle.area == pytest.approx(rectangle.polygon().area)


@given(coordinate, coordinate, length, length, angle)
def test_ellipses_turn_about_their_centre_as_shapely_turns_them(x, y, rx, ry, rotation):
    ellipse = Ellipse(x, y, rx, ry, rotation)
    circle = shapely.Point(0, 0).buffer(1, quad_segs=256)
    turned = shapely.affinity.translate(shapely.affinity.rotate(shapely.affinity.scale(circle, rx, ry), rotation), x, y)
    reach = 1e-3 * max(rx, ry)
    assert ellipse.bounds == pytest.approx(turned.bounds, abs=reach)
    assert ellipse.area == pytest.approx(math.pi * rx * ry)
    assert ellipse.polygon().area == pytest.approx(ellipse.area, rel=1e-3)
    assert ellipse.polygon().difference(turned.buffer(reach)).area == pytest.approx(0, abs=1e-6)


@given(coordinate, coordinate, length, length, angle)
def test_every_mask_covers_about_the_area_inside_the_image(x, y, width, height, rotation):
    rectangle = Rectangle(x, y, width, height, rotation)
    pixels = rectangle.mask(400, 300)
    assert pixels.shape == (300, 400)
    inside = rectangle.polygon().intersection(shapely.box(0, 0, 400, 300))
    assert abs(int(pixels.sum()) - inside.area) <= inside.length + 4


def test_upright_whole_pixel_rectangles_cover_exactly_their_pixels():
    expected = np.zeros((100, 200), dtype=bool)
    expected[10:40, 20:60] = True
    assert (Rectangle(20, 10, 40, 30).mask(200, 100) == expected).all()


def test_polygon_masks_are_those_of_pycocotools():
    points = ((10.0, 5.0), (90.5, 20.0), (70.0, 80.25), (15.0, 60.0))
    flat = [[edge for point in points for edge in point]]
    expected = coco.decode(coco.frPyObjects(flat, 100, 120)[0]).astype(bool)
    assert (Polygon(points).mask(120, 100) == expected).all()


def test_a_ring_that_crosses_itself_still_has_an_area():
    bow_tie = Polygon(((0.0, 0.0), (10.0, 10.0), (10.0, 0.0), (0.0, 10.0)))
    assert bow_tie.area == pytest.approx(50)
    assert bow_tie.polygon().is_valid
    assert bow_tie.mask(20, 20).sum() == pytest.approx(50, abs=12)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_masks_keep_every_pixel_with_parts_and_holes(width, height, seed):
    pixels = np.random.default_rng(seed).random((height, width)) < 0.6
    mask = Mask.from_array(pixels)
    assert (mask.array() == pixels).all()
    assert mask.area == pixels.sum()
    outline = mask.polygon()
    assert outline.area == pytest.approx(mask.area)
    assert outline.is_empty or outline.bounds == mask.bounds
    assert (mask.mask(width + 3, height + 2)[:height, :width] == pixels).all()
    assert mask.mask(1, 1)[0, 0] == pixels[0, 0]


def test_a_mask_with_a_hole_is_drawn_with_the_hole():
    pixels = np.ones((9, 9), dtype=bool)
    pixels[3:6, 3:6] = False
    outline = Mask.from_array(pixels).polygon()
    assert len(outline.interiors) == 1
    assert outline.area == 72


def test_points_enclose_nothing():
    point = KeyPoint(3.5, 4.5, 10)
    assert point.area == 0
    assert point.bounds == (3.5, 4.5, 3.5, 4.5)
    assert point.polygon().is_empty
    assert np.argwhere(point.mask(10, 10)).tolist() == [[4, 3]]
    assert not KeyPoint(-1, 4).mask(10, 10).any()


def test_open_vectors_enclose_nothing_and_closed_ones_do():
    corners = (Vertex(0, 0, id="a"), Vertex(10, 0, id="b", previous="a"), Vertex(10, 10, id="c", previous="b"))
    assert Vector(corners).area == 0
    assert Vector(corners).line().length == pytest.approx(20)
    closed = Vector(corners, closed=True)
    assert closed.area == pytest.approx(50)
    assert closed.line().length == pytest.approx(20 + math.sqrt(200))


def test_vectors_follow_their_branches():
    fork = Vector((Vertex(0, 0, id="a"), Vertex(10, 0, id="b", previous="a"), Vertex(0, 10, id="c", previous="a")))
    assert fork.line().length == pytest.approx(20)
    assert fork.bounds == (0, 0, 10, 10)


def test_bezier_segments_bend_towards_their_handles():
    quarter = 0.5522847498
    arc = Vector((Vertex(1, 0, bezier=True, after=(1, quarter)), Vertex(0, 1, bezier=True, before=(quarter, 1))))
    middle = arc.line().geoms[0].interpolate(0.5, normalized=True)
    assert math.hypot(middle.x, middle.y) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", range(30))
def test_a_ring_encloses_what_pycocotools_fills_however_it_crosses_itself(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 300, (rng.integers(4, 12), 2))
    if seed % 2:  # there and back along the same line, as a bridge to a hole is
        points = np.vstack((points, points[len(points) // 2 :: -1]))
    filled = coco.area(coco.merge(coco.frPyObjects([points.ravel().tolist()], 300, 300)))
    outline = Polygon(tuple(map(tuple, points))).polygon()
    assert outline.is_valid
    assert outline.area == pytest.approx(float(filled), abs=0.7 * outline.length + 5)


def test_a_bridge_to_a_hole_keeps_the_hole():
    outer, hole = [(0, 0), (100, 0), (100, 100), (0, 100)], [(40, 40), (40, 60), (60, 60), (60, 40)]
    shape = Polygon((*outer, outer[0], *hole, hole[0], outer[0]))
    assert shape.area == pytest.approx(100 * 100 - 20 * 20)
    along_its_own_edge = Polygon((*outer, outer[0], (50, 0), (50, 30), (60, 30), (60, 0)))
    assert along_its_own_edge.area == pytest.approx(100 * 100 - 10 * 30)
