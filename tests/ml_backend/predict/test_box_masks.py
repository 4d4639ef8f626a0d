"""A detector's boxes become polygons, masks, ellipses and rotated rectangles, within limits that are said."""

import cv2
import numpy as np
import pytest
import shapely
import structlog

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import read_task
from labelloop.service.errors import BadRequest
from ml_backend.inference.detector import load_detector
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import FailedPrediction, ProjectOptions, check_controls, read_options
from ml_backend.segmentation import box_segmenter

W, H = 384, 256
OBJECTS = {"cat": Ellipse(100, 80, 50, 30, 25), "dog": Ellipse(280, 160, 40, 60)}
LABELS = '<Label value="cat"/><Label value="dog"/>'


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0)
    image = np.array([60, 110, 70]) + noise.normal(0, 6, (H, W, 3))
    for shape in OBJECTS.values():
        image[shape.mask(W, H)] = np.array([200, 60, 50])
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def detector(labelloop_model):
    """Exact boxes of both objects in an input of 96 x 64: a quarter of the photo."""
    boxes = [tuple(side / 4 for side in shape.bounds) for shape in OBJECTS.values()]
    made = labelloop_model(boxes=boxes, objectness=(0.9, 0.8), scores=((0.95, 0.0), (0.0, 0.9)), names=("cat", "dog"))
    return load_detector(made)


@pytest.fixture
def predict(detector, album, photo):
    """predict(controls, options, tasks) -> entries; the only task shows the photo."""

    def run(controls, options=None, *, image="$image", data=None, photos=None, **more):
        config = LabelConfig.parse(f'<View><Image name="image" value="{image}"/>{controls}</View>')
        options = options or ProjectOptions()
        targets = find_targets(config, detector.names.names, provides=detector.provides, controls=options.controls)
        predictor = Predictor(album(photos or {"x": photo}), score_threshold=0.3, **more)
        tasks = [{"id": 1, "data": data or {"image": "x"}}]
        return predictor.predict(tasks, detector=detector, targets=targets, options=options), config

    return run


@pytest.fixture
def regions_of(predict):
    def run(controls, options=None, **more):
        [entry], config = predict(controls, options, **more)
        logged = {"id": 1, "data": {}, "predictions": [{"id": 2, "result": entry.result, "model_version": "v"}]}
        [prediction] = read_task(logged).predictions
        reading = read_annotation(prediction, config=config)
        assert not reading.errors
        return {region.labels[0]: region.geometry for region in reading.regions}

    return run


def control(tag, more=""):
    return f'<{tag} name="c" toName="image" {more}>{LABELS}</{tag}>'


PARTNERS = '<Labels name="l" toName="image">' + LABELS + '</Labels><{} name="c" toName="image"/>'
DRAWN = {
    "polygons": (control("PolygonLabels"), Polygon),
    "brushes": (control("BrushLabels"), Mask),
    "bitmasks": (control("BitmaskLabels"), Mask),
    "ellipses": (control("EllipseLabels"), Ellipse),
    "labels with a polygon": (PARTNERS.format("Polygon"), Polygon),
    "labels with a brush": (PARTNERS.format("Brush"), Mask),
}


@pytest.mark.parametrize("case", DRAWN)
def test_boxes_become_what_the_project_draws(case, regions_of):
    controls, kind = DRAWN[case]
    regions = regions_of(controls)
    for name, truth in OBJECTS.items():
        assert isinstance(regions[name], kind)
        assert iou(regions[name], truth) > 0.85
        if kind is Polygon:
            assert 6 <= len(regions[name].points) <= 30


def test_rotated_rectangles_are_drawn_where_asked_for(regions_of):
    options = read_options({"controls": {"c": "rotated"}})
    box = regions_of(control("RectangleLabels"), options)["cat"]
    assert box.rotation == pytest.approx(25, abs=6)
    truth = shapely.Polygon(OBJECTS["cat"].polygon()).minimum_rotated_rectangle
    overlap = truth.intersection(box.polygon()).area / truth.union(box.polygon()).area
    assert overlap > 0.8
    assert regions_of(control("RectangleLabels"))["cat"].rotation == 0


def test_boxes_are_enough_where_asked_for(regions_of):
    options = read_options({"controls": {"c": "box"}})
    polygon = regions_of(control("PolygonLabels"), options)["cat"]
    assert polygon.bounds == pytest.approx(OBJECTS["cat"].bounds, abs=0.1)
    assert len(polygon.points) == 4


def test_a_control_can_be_switched_off(regions_of):
    both = control("RectangleLabels") + control("PolygonLabels").replace('"c"', '"d"')
    assert {type(shape) for shape in regions_of(both).values()} == {Rectangle}
    options = read_options({"controls": {"c": False}})
    assert {type(shape) for shape in regions_of(both, options).values()} == {Polygon}


def test_each_object_is_drawn_once(regions_of):
    both = control("BrushLabels") + control("PolygonLabels").replace('"c"', '"d"')
    assert {type(shape) for shape in regions_of(both).values()} == {Mask}


WRONG = {
    "an unknown control": {"brusch": False},
    "a way that the control cannot be served": {"c": "rotated"},
    "another value": {"c": "yes"},
    "a list": ["c"],
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_controls_in_the_options_are_an_error(case):
    config = LabelConfig.parse(f'<View><Image name="image" value="$image"/>{control("BrushLabels")}</View>')
    with pytest.raises(BadRequest, match="controls"):
        check_controls(config, read_options({"controls": WRONG[case]}))


def test_objects_above_the_limit_keep_their_boxes(regions_of, monkeypatch):
    monkeypatch.setattr(box_segmenter, "MAX_OBJECTS", 1)
    with structlog.testing.capture_logs() as logs:
        polygons = regions_of(control("PolygonLabels"))
    assert (len(polygons["dog"].points), len(polygons["cat"].points) > 4) == (4, True)
    [line] = [line for line in logs if line["event"] == "box_masks_left_out"]
    assert (line["task"], line["objects"], line["of"]) == (1, 1, 2)
    assert "at most 1 objects" in line["reason"]
    assert set(regions_of(control("BrushLabels"))) == {"cat"}


def test_a_request_out_of_time_is_asked_again(predict, monkeypatch):
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr("ml_backend.predict.predictor.time.monotonic", lambda: float(next(clock)))
    [entry], _ = predict(control("BrushLabels"))
    assert isinstance(entry, FailedPrediction)
    assert "time" in entry.error


def test_a_broken_segmenter_leaves_the_boxes(regions_of, monkeypatch):
    def broken(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr("ml_backend.segmentation.outline_network.OutlineSegmenter.segment_boxes", broken)
    with structlog.testing.capture_logs() as logs:
        assert [len(polygon.points) for polygon in regions_of(control("PolygonLabels")).values()] == [4, 4]
    assert {line["event"] for line in logs} >= {"box_masks_failed", "box_masks_left_out"}


def test_images_of_a_list_are_segmented_each(predict, photo):
    shifted = np.roll(photo, 20, axis=1)
    images = {"image": ["x", "y"]}
    [entry], _ = predict(control("PolygonLabels"), data=images, photos={"x": photo, "y": shifted})
    assert [result["item_index"] for result in entry.result] == [0, 0, 1, 1]
    first, second = (min(x for x, _ in entry.result[index]["value"]["points"]) for index in (0, 2))
    assert second - first > 1  # percent


def test_tiles_of_a_large_image_are_segmented(predict):
    [entry], config = predict(control("BrushLabels"), ProjectOptions(slice=300, score_threshold=0.5))
    logged = {"id": 1, "data": {}, "predictions": [{"id": 2, "result": entry.result, "model_version": "v"}]}
    regions = read_annotation(read_task(logged).predictions[0], config=config).regions
    assert max(iou(region.geometry, OBJECTS["cat"]) for region in regions) > 0.8


def test_regions_lie_on_the_image(regions_of, photo):
    shifted = np.roll(photo, -70, axis=1)
    for shape in regions_of(control("PolygonLabels"), photos={"x": shifted}).values():
        left, top, right, bottom = shape.bounds
        assert left >= 0 <= top
        assert right <= W
        assert bottom <= H


def test_opencv_draws_the_polygon_like_the_mask(regions_of):
    polygon, mask = (regions_of(control(tag))["cat"] for tag in ("PolygonLabels", "BrushLabels"))
    drawn = np.zeros((H, W), np.uint8)
    cv2.fillPoly(drawn, [np.round(np.array(polygon.points)).astype(np.int32)], 1)
    truth = mask.array()
    assert ((drawn > 0) & truth).sum() / ((drawn > 0) | truth).sum() > 0.9
