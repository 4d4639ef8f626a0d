"""Shapes in pixels: boxes and outlines are judged by shapely, masks by pycocotools, never by our own code."""

import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from shapely import affinity

from exporters.model.clipping import ShapeRejected, clip_convex, clip_to_image, outline_rings
from exporters.model.records import Object, image_id, object_id
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle

SIZES = [(640, 360), (360, 640), (800, 200), (500, 500)]


def true_outline(x, y, w, h, rotation, width, height):
    """The rotated rectangle by shapely, in pixels, clipped: the referee."""
    box = shapely.box(x, y, x + w, y + h)
    return affinity.rotate(box, rotation, origin=(x, y)).intersection(shapely.box(0, 0, width, height))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_rotated_box_is_the_true_box_in_every_format(run, build, width, height):
    # W1 (COCO), W2 (YOLO and VOC)
    rng = np.random.default_rng(7)
    results, truth = [], []
    for number in range(60):
        x, y = rng.uniform(10, 80, 2)
        w, h, turn = rng.uniform(2, 25), rng.uniform(2, 25), rng.uniform(-180, 360)
        outline = true_outline(
            x * width / 100, y * height / 100, w * width / 100, h * height / 100, turn, width, height
        )
        if outline.area < 1:
            continue
        truth.append(outline)
        results.append(
            build.box(x, y, w, h, rotation=turn, id=f"r{number}", original_width=width, original_height=height)
        )
    out = run([build.task(1, build.annotation(*results))])
    annotations = out.instances()["annotations"]
    assert len(annotations) == len(truth)
    bounds = np.array([outline.bounds for outline in truth])
    boxes = np.array([annotation["bbox"] for annotation in annotations])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, bounds, atol=1e-3)
    np.testing.assert_allclose(
        [annotation["area"] for annotation in annotations], [annotation.area for annotation in truth], rtol=1e-4
    )
    np.testing.assert_allclose(out.yolo_boxes("1", width, height)[:, 1:], bounds, atol=1e-3)
    voc = np.array([box[1:] for box in out.voc_boxes("1")])
    np.testing.assert_allclose(voc - [1, 1, 0, 0], bounds, atol=1.0)
    for annotation, outline in zip(annotations, truth, strict=True):
        drawn = shapely.Polygon(np.reshape(annotation["segmentation"][0], (-1, 2)))
        assert drawn.symmetric_difference(outline).area < 1e-3 * outline.area + 0.05


@given(
    x=st.floats(-200, 900), y=st.floats(-200, 500), w=st.floats(1, 400), h=st.floats(1, 400), turn=st.floats(-720, 720)
)
def test_box_of_any_rectangle_is_shapelys(x, y, w, h, turn):
    left, top, right, bottom = affinity.rotate(shapely.box(x, y, x + w, y + h), turn, origin=(x, y)).bounds
    assume(not 0 < max(-left, -top, right - 640, bottom - 360) < 0.011)  # that is taken for arithmetic, and not cut
    truth = true_outline(x, y, w, h, turn, 640, 360)
    try:
        fitted = clip_to_image(Rectangle(x, y, w, h, turn), 640, 360)
    except ShapeRejected:
        assert truth.area < 5
        return
    assert truth.area > 0
    assert fitted.box == pytest.approx(truth.bounds, abs=0.011)
    assert fitted.area == pytest.approx(truth.area, abs=10)


def test_rotated_boxes_are_clipped_as_shapely_intersects_them():
    rng = np.random.default_rng(2)
    drawn = np.column_stack((rng.uniform(-1, 2, (600, 4)) * (640, 360, 640, 360), rng.choice([30, 45, 90, 179.5], 600)))
    drawn[:, 2:4] = np.abs(drawn[:, 2:4])
    line = (0, 0, 1e-12, 1e9, 30)  # on the edge, where GEOS finds too few points
    outlines = np.array([Rectangle(*map(float, box)).polygon() for box in [*drawn, line]])
    truth = shapely.intersection(outlines, shapely.box(0, 0, 640, 360))
    visible = clip_convex(outlines, 640, 360)
    assert (shapely.area(shapely.symmetric_difference(visible, truth)) < 1e-6).all()
    assert (shapely.area(truth) > 1).sum() > 100


def test_rotated_box_keeps_four_corners_in_order(run, build):
    # W1: `segmentation` was empty, so the shape was lost
    out = run([build.task(1, build.annotation(build.box(20, 20, 20, 10, rotation=30)))])
    (ring,) = out.instances()["annotations"][0]["segmentation"]
    truth = affinity.rotate(shapely.box(128, 72, 256, 108), 30, origin=(128, 72))
    assert len(ring) == 8
    assert ring[:2] == [128.0, 72.0]
    assert shapely.Polygon(np.reshape(ring, (-1, 2))).symmetric_difference(truth).area < 0.01
    assert out.report.accounts.formats["coco"].converted == {"rotated rectangle -> polygon": 1}
    assert out.report.accounts.formats["yolo-detect"].converted == {"rotated rectangle -> box": 1}


@pytest.mark.parametrize(
    "box",
    [
        (30, 70, 10, -20),  # drawn upwards
        (40, 50, -10, 20),  # drawn leftwards
        (40, 70, -10, -20),
    ],
)
def test_negative_size_is_turned_round_and_counted(run, build, box):
    # W14
    out = run([build.task(1, build.annotation(build.box(*box)))])
    assert out.instances()["annotations"][0]["bbox"] == pytest.approx([192, 180, 64, 72])
    assert out.instances()["annotations"][0]["area"] == pytest.approx(64 * 72)
    assert out.yolo("1")[0] == pytest.approx([0, 0.35, 0.6, 0.1, 0.2])
    assert out.voc_boxes("1") == [("car", 193, 181, 256, 252)]
    assert out.report.accounts.repaired == {"negative size turned round": 1}


def test_box_over_the_edge_is_clipped_and_counted(run, build):
    # W15
    out = run([build.task(1, build.annotation(build.box(-5, -10, 20, 30), build.box(90, 90, 20, 20, id="r2")))])
    first, second = out.instances()["annotations"]
    assert first["bbox"] == pytest.approx([0, 0, 96, 72])
    assert second["bbox"] == pytest.approx([576, 324, 64, 36])
    assert out.voc_boxes("1") == [("car", 1, 1, 96, 72), ("car", 577, 325, 640, 360)]
    assert [element.findtext("truncated") for element in out.voc("1").iter("object")] == ["1", "1"]
    assert out.yolo_boxes("1", 640, 360)[:, 1:].max(axis=0) == pytest.approx([576, 324, 640, 360])
    assert out.report.accounts.repaired == {"clipped to the image": 2}


def test_box_that_ends_at_the_edge_is_not_called_clipped(run, build):
    out = run([build.task(1, build.annotation(build.box(66.66666666666667, 0, 33.333333333333336, 100)))])
    assert out.report.accounts.repaired == {}
    assert out.voc("1").findtext("object/truncated") == "0"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda b: b.box(120, 10, 10, 10), "outside the image"),
        (lambda b: b.box(10, 10, 0, 10), "malformed"),
        (lambda b: b.box(10, 10, 0.0001, 10), "no area"),
        (lambda b: b.polygon([[10, 10], [20, 20]]), "malformed"),  # W13: YOLO readers took it for a box
        (lambda b: b.polygon([[10, 10], [20, 20], [30, 30]]), "no area"),
        (lambda b: b.brush(np.zeros((360, 640), bool)), "no area"),
    ],
)
def test_shape_without_pixels_is_dropped_with_a_reason(run, build, result, reason):
    out = run([build.task(1, build.annotation(result(build), build.box(1, 1, 5, 5, id="good")))])
    assert out.report.accounts.regions.dropped == {reason: 1}
    assert [loss["region"] for loss in out.losses] == ["r1"]
    assert [annotation["region_id"] for annotation in out.instances()["annotations"]] == ["good"]
    assert len(out.yolo("1")) == len(out.voc_boxes("1")) == 1


def test_a_data_set_is_never_mixed(run, build):
    # W12: rows of boxes and rows of polygons in one YOLO file cost the whole image
    pixels = np.zeros((360, 640), bool)
    pixels[100:200, 300:400] = True
    results = [
        build.box(10, 10, 20, 20, id="box"),
        build.polygon([[50, 50], [60, 50], [60, 70]], id="polygon"),
        build.ellipse(50, 50, 10, 5, id="ellipse"),
        build.brush(pixels, id="brush"),
    ]
    out = run([build.task(1, build.annotation(*results))])
    assert out.yolo("1").shape == (4, 5)
    boxes = {annotation["region_id"]: annotation["bbox"] for annotation in out.instances()["annotations"]}
    assert boxes["polygon"] == pytest.approx([320, 180, 64, 72])
    assert boxes["ellipse"] == pytest.approx([256, 162, 128, 36])
    assert boxes["brush"] == pytest.approx([300, 100, 100, 100])
    assert len(out.voc_boxes("1")) == 4  # W19: polygons were absent from VOC
    assert out.report.accounts.formats["yolo-detect"].converted == {
        "ellipse -> box": 1,
        "mask -> box": 1,
        "polygon -> box": 1,
    }
    assert all(annotation["segmentation"] for annotation in out.instances()["annotations"])


def test_mask_keeps_its_hole_and_stays_one_annotation(run, build):
    # W18: the hole was lost and one instance of two parts became two annotations
    pixels = np.zeros((360, 640), bool)
    pixels[50:150, 100:300] = True
    pixels[80:120, 150:200] = False
    pixels[200:250, 400:450] = True
    out = run([build.task(1, build.annotation(build.brush(pixels)))])
    (annotation,) = out.instances()["annotations"]
    np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), pixels)
    assert annotation["area"] == pixels.sum() == coco_mask.area(annotation["segmentation"])
    assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert annotation["iscrowd"] == 0


def test_ellipse_is_its_true_box_and_outline(run, build):
    # W24: the image itself was missing, and a background for YOLO
    out = run([build.task(1, build.annotation(build.ellipse(50, 50, 20, 10, rotation=40)))])
    (annotation,) = out.instances()["annotations"]
    circle = shapely.Point(0, 0).buffer(1, quad_segs=256)
    truth = affinity.translate(affinity.rotate(affinity.scale(circle, 128, 36), 40, origin=(0, 0)), 320, 180)
    left, top, width, height = annotation["bbox"]
    assert (left, top, left + width, top + height) == pytest.approx(truth.bounds, abs=0.05)
    drawn = shapely.Polygon(np.reshape(annotation["segmentation"][0], (-1, 2)))
    assert drawn.symmetric_difference(truth).area < 0.002 * truth.area
    assert len(out.yolo("1")) == 1


def test_polygon_over_the_edge_is_the_part_that_is_seen(run, build):
    points = [[-20, 20], [50, 20], [50, 120], [-20, 120]]
    out = run([build.task(1, build.annotation(build.polygon(points)))])
    (annotation,) = out.instances()["annotations"]
    assert annotation["bbox"] == pytest.approx([0, 72, 320, 288])
    assert annotation["area"] == pytest.approx(320 * 288)
    assert shapely.Polygon(np.reshape(annotation["segmentation"][0], (-1, 2))).area == pytest.approx(320 * 288)


def test_outline_that_crosses_itself_is_split_and_counted(run, build):
    out = run([build.task(1, build.annotation(build.polygon([[10, 10], [50, 50], [50, 10], [10, 50]])))])
    (annotation,) = out.instances()["annotations"]
    assert len(annotation["segmentation"]) == 2
    assert annotation["area"] == pytest.approx(256 * 144 / 2)
    assert out.report.accounts.repaired == {"outline that crosses itself": 1}


def test_shape_with_a_hole_has_no_rings():
    ring = Polygon(((0, 0), (100, 0), (100, 100), (0, 100), (0, 0), (20, 20), (80, 20), (80, 80), (20, 80), (20, 20)))
    fitted = clip_to_image(ring, 200, 200)
    assert fitted.area < 100 * 100
    obj = Object(1, 1, "car", ring, fitted.box, fitted.area, outline=fitted.outline)
    outline = outline_rings(obj, 200, 200)
    assert outline is None or sum(shapely.Polygon(ring).area for ring in outline) == pytest.approx(fitted.area)


def test_mask_of_another_image_is_refused():
    with pytest.raises(ShapeRejected, match="another size"):
        clip_to_image(Mask.from_array(np.ones((10, 10), bool)), 20, 10)


def test_key_point_has_no_box_and_ellipse_is_clipped():
    assert clip_to_image(KeyPoint(5, 5), 10, 10).box is None
    assert clip_to_image(Ellipse(0, 50, 20, 10), 100, 100).box == pytest.approx((0, 40, 20, 60), abs=0.01)


def test_numbers_of_images_and_objects_never_meet():
    numbers = {image_id(task, slot) for task in range(1, 50) for slot in range(30)}
    assert len(numbers) == 49 * 30
    assert image_id(42) == 42
    assert object_id(1, 99_999) < object_id(2, 1)
    with pytest.raises(OverflowError):
        object_id(1, 100_000)
