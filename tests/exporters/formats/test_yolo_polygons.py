"""YOLO segment and OBB: one kind of shape, with the true pixels, judged by Ultralytics, OpenCV and supervision."""

import time
import tracemalloc

import cv2
import numpy as np
import pytest
import shapely
import supervision
from hypothesis import given
from hypothesis import strategies as st
from shapely import affinity

from exporters.formats.yolo_polygons import quadrilateral_areas
from exporters.model.clipping import clip_to_image
from exporters.model.outlines import min_area_box, min_area_boxes, single_ring
from exporters.model.records import Object
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle

W, H = 640, 360
SHAPES = ("yolo-segment", "yolo-obb")


def rows(out, name, stem="1"):
    """[(class, points in pixels)] of an image's label file."""
    lines = (out.folder / f"{name}/labels/train/{stem}.txt").read_text().splitlines()
    return [
        (int(kind), np.array(list(map(float, rest)), float).reshape(-1, 2) * [W, H])
        for kind, *rest in map(str.split, lines)
    ]


def with_hole():
    pixels = np.zeros((H, W), bool)
    pixels[50:150, 100:300] = True
    pixels[80:120, 150:200] = False
    pixels[200:250, 400:450] = True
    return pixels


@pytest.fixture
def every_shape(build):
    """Each thing that can be drawn, also over the edge and across itself."""
    return [
        build.box(10, 10, 20, 20, id="box"),
        build.box(50, 50, 20, 10, rotation=30, id="turned"),
        build.box(90, 80, 30, 30, rotation=20, id="turned over the edge"),
        build.polygon([[50, 50], [60, 50], [60, 70]], "dog", id="polygon"),
        build.polygon([[10, 10], [50, 50], [50, 10], [10, 50]], id="crossing"),
        build.polygon([[-20, 20], [50, 20], [50, 120], [-20, 120]], id="polygon over the edge"),
        build.ellipse(50, 50, 10, 5, 30, id="ellipse"),
        build.ellipse(0, 50, 10, 5, id="ellipse over the edge"),
        build.brush(with_hole(), id="brush"),
    ]


def photo_task(build, photos, results):
    return build.task(1, build.annotation(*results), image=photos("1.jpg", W, H))


@pytest.mark.parametrize("name", [*SHAPES, "yolo-detect"])
def test_ultralytics_has_no_complaint(run, build, photos, every_shape, config, ultralytics, name):
    # W12: rows of several kinds cost the image; W15: so do coordinates outside of it
    tasks = [
        photo_task(build, photos, every_shape),
        build.task(2, build.annotation(), image=photos("2.jpg", W, H)),
    ]
    out = run(tasks, formats=(name,), copy_images=True, fetch=True, label_config=config("car", "dog"))
    assert ultralytics(out.folder / "images/train", out.folder / f"{name}/labels/train", 2) == []
    assert len(rows(out, name)) == 9


def test_ultralytics_would_complain(tmp_path, photos, ultralytics):
    photos("a.jpg", W, H)
    (tmp_path / "a.txt").write_text("0 .5 .5 .1 .1\n0 .1 .1 .2 .2 .3 .1\n")
    assert "mix" in ultralytics(tmp_path / "photos", tmp_path, 1)[0]
    (tmp_path / "a.txt").write_text("3 .5 .5 .1 .1\n")
    assert "exceeds" in ultralytics(tmp_path / "photos", tmp_path, 1)[0]


@pytest.mark.parametrize("name", SHAPES)
def test_supervision_reads_the_shapes(run, build, photos, every_shape, name):
    out = run([photo_task(build, photos, every_shape)], formats=(name,), copy_images=True, fetch=True)
    folder = out.folder / name
    data = supervision.DetectionDataset.from_yolo(
        str(out.folder / "images/train"),
        str(folder / "labels/train"),
        str(folder / "data.yaml"),
        is_obb=name == "yolo-obb",
    )
    ((_, _, detections),) = list(data)
    assert len(detections) == 9
    if name == "yolo-obb":
        assert detections.data["xyxyxyxy"].shape == (9, 4, 2)


def test_rows_are_of_one_kind(run, build, every_shape):
    # W12
    out = run([build.task(1, build.annotation(*every_shape))], formats=SHAPES)
    assert {len(points) for _, points in rows(out, "yolo-obb")} == {4}
    assert all(len(points) >= 3 for _, points in rows(out, "yolo-segment"))
    assert out.report.accounts.formats["yolo-segment"].converted == {
        "ellipse -> polygon": 2,
        "mask -> polygon": 1,
        "parts and holes joined by bridges": 2,
        "rectangle -> polygon": 1,
        "rotated rectangle -> polygon": 2,
    }
    assert out.report.accounts.formats["yolo-obb"].converted == {
        "ellipse -> smallest turned box": 2,
        "mask -> smallest turned box": 1,
        "polygon -> smallest turned box": 3,
    }


def test_segment_keeps_parts_and_holes_of_a_mask(run, build):
    pixels = with_hole()
    out = run([build.task(1, build.annotation(build.brush(pixels)))], formats=("yolo-segment",))
    ((_, ring),) = rows(out, "yolo-segment")
    # corner (x, y) of our pixels is the pixel x of OpenCV, which fills its edges too: a pixel of difference at most
    drawn = cv2.fillPoly(np.zeros((H, W), np.uint8), [np.round(ring).astype(np.int32)], 1).astype(bool)
    grown = cv2.dilate(pixels.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    bridges = drawn & ~grown
    assert pixels[drawn].sum() == pixels.sum()
    assert bridges.sum() < 200  # lines of one pixel, from part to part
    x, y = ring.T
    shoelace = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert shoelace == pytest.approx(pixels.sum(), rel=1e-4)


def test_segment_of_a_rectangle_is_its_corners(run, build):
    out = run([build.task(1, build.annotation(build.box(20, 20, 20, 10, rotation=30)))], formats=("yolo-segment",))
    ((kind, ring),) = rows(out, "yolo-segment")
    truth = affinity.rotate(shapely.box(128, 72, 256, 108), 30, origin=(128, 72))
    assert (kind, len(ring)) == (0, 4)
    assert shapely.Polygon(ring).symmetric_difference(truth).area < 0.01


def test_turned_rectangle_is_its_own_box_in_obb(run, build):
    # W23: no `rotation`, no row
    upright = build.box(10, 10, 20, 20, id="r2")
    del upright["value"]["rotation"]
    out = run([build.task(1, build.annotation(build.box(20, 20, 20, 10, rotation=30), upright))], formats=("yolo-obb",))
    (_, turned), (_, box) = rows(out, "yolo-obb")
    truth = affinity.rotate(shapely.box(128, 72, 256, 108), 30, origin=(128, 72))
    assert turned[0] == pytest.approx([128, 72], abs=1e-3)
    assert shapely.Polygon(turned).symmetric_difference(truth).area < 0.01
    assert box.tolist() == [pytest.approx(point, abs=1e-3) for point in ([64, 36], [192, 36], [192, 108], [64, 108])]


def test_rotated_box_at_the_edge_holds_the_visible_part(run, build):
    drawn = affinity.rotate(shapely.box(576, 288, 768, 396), 20, origin=(576, 288))
    visible = drawn.intersection(shapely.box(0, 0, W, H))
    out = run([build.task(1, build.annotation(build.box(90, 80, 30, 30, rotation=20)))], formats=("yolo-obb",))
    ((_, corners),) = rows(out, "yolo-obb")
    assert shapely.Polygon(corners).buffer(0.01).covers(visible)


def test_box_that_trainers_would_refuse_is_upright(run, build):
    # Ultralytics drops the image where a turned box reaches further than the image is wide
    across = build.polygon([[0, 0], [4, 0], [100, 96], [100, 100], [96, 100], [0, 4]])
    out = run([build.task(1, build.annotation(across))], formats=("yolo-obb",))
    ((_, corners),) = rows(out, "yolo-obb")
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([0, 0], [W, H])
    assert out.report.accounts.formats["yolo-obb"].converted["turned box larger than the image -> upright box"] == 1


def an_object(shape, width=W, height=H):
    fitted = clip_to_image(shape, width, height)
    return Object(1, 1, "car", shape, fitted.box, fitted.area, outline=fitted.outline)


@given(points=st.lists(st.tuples(st.integers(0, W), st.integers(0, H)), min_size=3, max_size=12, unique=True))
def test_smallest_turned_box_is_opencvs(points):
    hull = shapely.convex_hull(shapely.MultiPoint(points))
    if hull.geom_type != "Polygon" or hull.area < 50:
        return
    shape = Polygon(tuple((float(x), float(y)) for x, y in hull.exterior.coords[:-1]))
    corners = np.array(min_area_box(an_object(shape)))
    (_, (width, height), _) = cv2.minAreaRect(np.array(shape.points, np.float32))
    box = shapely.Polygon(corners)
    assert box.area <= width * height * 1.001 + 0.5
    assert box.buffer(0.01).covers(hull)


def test_boxes_of_many_fine_outlines_take_little_memory():
    angles = np.linspace(0, 2 * np.pi, 150, endpoint=False)
    circle = shapely.Polygon(np.column_stack((100 + 40 * np.cos(angles), 50 + 20 * np.sin(angles))))
    tracemalloc.start()
    try:
        boxes = min_area_boxes(np.array([affinity.translate(circle, shift) for shift in range(200)]))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert np.ptp(boxes[:, :, 0] - np.arange(200)[:, None], axis=0).max() < 1e-9


def test_smallest_turned_box_of_an_ellipse_has_its_axes():
    box = shapely.Polygon(min_area_box(an_object(Ellipse(300, 200, 60, 20, 35))))
    assert box.area == pytest.approx(4 * 60 * 20)
    assert (box.centroid.x, box.centroid.y) == pytest.approx((300, 200))


@pytest.mark.parametrize(
    "shape",
    [
        Mask.from_array(with_hole()),
        Rectangle(600, 300, 100, 100, 15),
        Polygon(((10, 10), (100, 100), (100, 10), (10, 100))),
        Polygon(((-50, 10), (100, 10), (100, 60), (-50, 30), (100, 100), (-50, 100))),
    ],
    ids=["parts and a hole", "over the edge", "crossing", "cut into two"],
)
def test_one_ring_has_the_area_of_the_shape(shape):
    obj = an_object(shape)
    ring, _, _ = single_ring(obj, W, H)
    x, y = np.array(ring).T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pytest.approx(obj.area, rel=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_a_row_that_is_read_again_has_the_same_area(seed):
    """Bridges run along each other and along the outline's own edges, which must not fill what they lead to."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform((-W / 4, -H / 4), (W * 1.25, H * 1.25), (rng.integers(4, 14), 2))
    obj = an_object(Polygon(tuple(map(tuple, drawn))))
    ring, *_ = single_ring(obj, W, H)
    rounded = np.round(np.array(ring) / (W, H), 8) * (W, H)
    again = an_object(Polygon(tuple(map(tuple, rounded))))
    assert again.area == pytest.approx(obj.area, rel=1e-5, abs=0.01)


def test_long_parts_are_joined_without_all_point_pairs():
    pixels = np.zeros((2000, 300), np.bool_)
    pixels[:, :100] = pixels[:, 200:] = True
    pixels[::2, 50:100] = pixels[::2, 200:250] = False  # two combs whose teeth face each other
    obj = an_object(Mask.from_array(pixels), *pixels.shape[::-1])
    tracemalloc.start()
    ring, parts, _ = single_ring(obj, *pixels.shape[::-1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parts == 2
    assert len(ring) > 5_000
    assert peak < 50e6
    x, y = np.array(ring).T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pixels.sum()


def test_thousands_of_specks_are_one_ring_of_their_area_in_seconds():
    rng = np.random.default_rng(0)
    pixels = rng.random((H, W)) < 0.02
    pixels[100:200, 100:300] = True
    pixels[100:200, 100:300] &= rng.random((100, 200)) > 0.02  # holes
    obj = an_object(Mask.from_array(pixels))
    began = time.process_time()
    ring, parts, holes = single_ring(obj, W, H)
    assert time.process_time() - began < 30  # a minute when each part looked for the nearest point of all others
    assert parts > 3000
    assert holes > 300
    x, y = np.array(ring).T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pixels.sum()
    filled = np.zeros((H, W), np.uint8)
    cv2.fillPoly(filled, [np.array(ring, np.int32)], 1)
    assert (filled.astype(bool) | ~pixels).all()  # it also draws the lines


def test_areas_of_quadrilaterals_are_those_of_shapely_to_the_bit():
    rng = np.random.default_rng(0)
    corners = rng.uniform(-100, 4000, (20_000, 4, 2))
    corners[:100] = np.round(corners[:100])
    corners[100:110, 1:] = corners[100:110, :1]  # a point
    assert (quadrilateral_areas(corners) == shapely.area(shapely.polygons(corners))).all()
    assert quadrilateral_areas(np.empty((0, 4, 2))).shape == (0,)
