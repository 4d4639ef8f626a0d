"""Model outputs become the shapes of the label config; mismatches are reported."""

import math

import numpy as np
import pytest
import shapely

from labelloop.labeling.geometry.mask_shapes import outline_polygon
from labelloop.labeling.geometry.shapes import Mask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import read_task
from ml_backend.inference.detector import load_detector
from ml_backend.predict.label_mapping import find_targets, mapping_report
from ml_backend.predict.predictor import Predictor
from ml_backend.predict.protocol import BOX, ProjectOptions

HEIGHT, WIDTH = 64, 96
LABELS = '<Label value="A"/><Label value="B"/>'
ANCHORS = 8 * 12 + 4 * 6 + 2 * 3


def columns(*rows):
    """A v8 output (1, numbers, anchors): these rows, and anchors on which nothing is seen."""
    filled = np.zeros((ANCHORS, len(rows[0])))
    filled[: len(rows)] = rows
    return filled.T[None]


@pytest.fixture
def models(make_onnx):
    """models(task) -> a detector of classes a and b whose photos show the same, in an input of 96 x 64."""

    def make(task):
        metadata = {"names": "{0: 'a', 1: 'b'}", "task": task}
        if task == "detect":
            outputs = {"o": columns([30, 20, 20, 10, 0.9, 0], [60, 40, 16, 24, 0, 0.6])}
        elif task == "obb":
            outputs = {"o": columns([40, 30, 30, 10, 0.9, 0, math.pi / 6], [70, 40, 8, 16, 0, 0.6, 0])}
        elif task == "segment":
            planes = np.full((2, HEIGHT // 4, WIDTH // 4), -1.0)
            planes[0, 2:8, 4:12] = 1  # 16..48 x 8..32 in the input
            planes[0, 5:8, 8:12] = -1  # less its lower right quarter, from 32, 20
            rows = [32, 20, 32, 24, 0.9, 0, 3, 0], [60, 40, 16, 24, 0, 0.6, 0, 3]  # the second mask is empty
            outputs = {"o": columns(*rows), "protos": planes[None]}
        elif task == "pose":
            metadata.update(kpt_shape="[3, 3]", kpt_names="{0: ['left_eye', 'tail', 'fin']}")
            outputs = {"o": columns([30, 20, 20, 10, 0.9, 0, 24, 18, 0.9, 38, 22, 0.8, 1, 1, 0.1])}
        else:
            outputs = {"o": [[0.7, 0.3]]}
        return load_detector(make_onnx(outputs, metadata=metadata, shape=("batch", 3, HEIGHT, WIDTH)))

    return make


@pytest.fixture
def regions_of(models, album):
    """regions_of(task, controls, **options) -> (regions read back by `labeling`, raw results, score)."""

    def make(task, drawn, **options):
        detector = models(task)
        config = LabelConfig.parse(f'<View><Image name="image" value="$image"/>{drawn}</View>')
        targets = find_targets(
            config,
            detector.names.names,
            provides=detector.provides,
            keypoint_names=detector.keypoint_names,
            controls=options.get("controls", {}),
        )
        photo = np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.uint8)
        [entry] = Predictor(album(x=photo), score_threshold=0.3).predict(
            [{"id": 1, "data": {"image": "x"}}], detector=detector, targets=targets, options=ProjectOptions(**options)
        )
        logged = {"id": 1, "data": {}, "predictions": [{"id": 2, "result": entry.result, "model_version": "v"}]}
        [prediction] = read_task(logged).predictions
        reading = read_annotation(prediction, config=config)
        assert not reading.errors
        return reading, entry.result, entry.score

    return make


def control(tag, labels=LABELS, more=""):
    return f'<{tag} name="c" toName="image" {more}>{labels}</{tag}>'


def test_turned_boxes_become_rectangles_with_rotation(regions_of):
    reading, results, _ = regions_of("obb", control("RectangleLabels"))
    [turned, upright] = [region.geometry for region in reading.regions]
    assert turned.rotation == pytest.approx(30, abs=0.01)
    assert (turned.width, turned.height) == pytest.approx((60, 20), abs=0.05)
    centre = shapely.centroid(turned.polygon())
    assert (centre.x, centre.y) == pytest.approx((80, 60), abs=0.05)
    # The left end of the long side, turned clockwise by 30 degrees, lies above its right end.
    assert turned.corners[0][1] < turned.corners[1][1]
    assert (upright.x, upright.y, upright.rotation) == pytest.approx((132, 64, 0), abs=0.05)
    assert results[0]["value"]["rectanglelabels"] == ["A"]


def test_turned_boxes_become_polygons_and_ellipses_of_the_same_place(regions_of):
    [rectangle] = regions_of("obb", control("RectangleLabels", '<Label value="a"/>'))[0].regions
    [polygon] = regions_of("obb", control("PolygonLabels", '<Label value="a"/>'))[0].regions
    [ellipse] = regions_of("obb", control("EllipseLabels", '<Label value="a"/>'))[0].regions
    outline = rectangle.geometry.polygon()
    assert outline.symmetric_difference(polygon.geometry.polygon()).area < 0.01 * outline.area
    assert ellipse.geometry.area == pytest.approx(outline.area * math.pi / 4, rel=0.01)
    assert ellipse.geometry.polygon().difference(outline).area < 0.01 * outline.area


def the_mask():
    """Pixels of the photo: 32..96 x 16..64, less 64..96 x 40..64."""
    mask = np.zeros((HEIGHT * 2, WIDTH * 2), bool)
    mask[16:64, 32:96] = True
    mask[40:64, 64:96] = False
    return mask


def overlap(mask, other):
    return (mask & other).sum() / (mask | other).sum()


@pytest.mark.parametrize("tag", ["BrushLabels", "BitmaskLabels", "PolygonLabels"])
def test_masks_become_what_the_project_draws(tag, regions_of):
    reading, _, score = regions_of("segment", control(tag))
    [region] = reading.regions  # the mask without a pixel is no region
    assert region.labels == ("A",)
    drawn = region.geometry.mask(WIDTH * 2, HEIGHT * 2)
    assert overlap(drawn, the_mask()) > 0.85
    assert isinstance(region.geometry, Mask) == (tag != "PolygonLabels")
    if tag == "PolygonLabels":
        assert 6 <= len(region.geometry.points) <= 16
    assert 0 < score < 1


def test_masks_are_boxes_where_only_boxes_are_asked_for(regions_of):
    reading, _, _ = regions_of("segment", control("RectangleLabels"))
    assert [region.geometry.bounds for region in reading.regions] == [(32, 16, 96, 64), (104, 56, 136, 104)]


def test_labels_beside_a_brush_give_two_results_of_one_region(regions_of):
    extra = '<Labels name="l" toName="image"><Label value="a"/></Labels><Brush name="c" toName="image"/>'
    _, results, _ = regions_of("segment", extra)
    assert [(first["type"], first["from_name"]) for first in results] == [("brush", "c"), ("labels", "l")]
    assert results[0]["id"] == results[1]["id"]


def test_visible_keypoints_become_named_points(regions_of):
    labels = '<Label value="Left eye"/><Label value="T" predicted_values="tail"/><Label value="Fin"/>'
    reading, _, _ = regions_of("pose", control("KeyPointLabels", labels))
    points = {region.labels[0]: (region.geometry.x, region.geometry.y) for region in reading.regions}
    assert points == {"Left eye": pytest.approx((48, 36), abs=0.01), "T": pytest.approx((76, 44), abs=0.01)}
    assert len({region.id for region in reading.regions}) == 2


def test_keypoints_that_have_labels_are_told_as_matched(models):
    detector = models("pose")
    labels = '<Label value="Left eye"/><Label value="Wing"/>'
    config = LabelConfig.parse(f'<View><Image name="image" value="$image"/>{control("KeyPointLabels", labels)}</View>')
    report = mapping_report(
        config, detector.names.names, provides=detector.provides, keypoint_names=detector.keypoint_names
    )
    assert report.matched == (("left_eye", "Left eye"),)
    assert (report.classes_without_label, report.labels_without_class) == ((), ("Wing",))


def test_keypoints_may_be_named_by_their_number(regions_of):
    labels = '<Label value="Schwanz" model_index="1"/>'
    [region] = regions_of("pose", control("KeyPointLabels", labels))[0].regions
    assert (region.geometry.x, region.labels) == (pytest.approx(76, abs=0.01), ("Schwanz",))


def test_boxes_become_ellipses_or_points_without_another_control(regions_of):
    [ellipse, _] = regions_of("detect", control("EllipseLabels"), controls={"c": BOX})[0].regions
    assert (ellipse.geometry.cx, ellipse.geometry.ry) == pytest.approx((60, 10), abs=0.01)
    [point, _] = regions_of("detect", control("KeyPointLabels"))[0].regions
    assert (point.geometry.x, point.geometry.y) == pytest.approx((60, 40), abs=0.01)


def test_smart_tool_keypoints_stay_empty_next_to_boxes(regions_of):
    smart = '<KeyPointLabels name="k" toName="image" smart="true"><Label value="a"/><Label value="b"/></KeyPointLabels>'
    reading, _, _ = regions_of("detect", smart + control("RectangleLabels"))
    assert [region.control for region in reading.regions] == ["c", "c"]


CHOICES = '<Choice value="A"/><Choice value="B"/>'


def test_a_classifier_picks_the_best_choice(regions_of):
    reading, results, score = regions_of("classify", control("Choices", CHOICES))
    assert dict(reading.choices) == {"c": ("A",)}
    assert results[0]["score"] == pytest.approx(0.7)
    assert "item_index" not in results[0]
    assert 0.5 < score < 1


def test_a_classifier_picks_several_where_several_may_be(regions_of):
    reading, _, _ = regions_of("classify", control("Choices", CHOICES, 'choice="multiple"'), score_threshold=0.25)
    assert dict(reading.choices) == {"c": ("A", "B")}
    nothing, results, _ = regions_of("classify", control("Choices", CHOICES), score_threshold=0.9)
    assert (dict(nothing.choices), results) == ({}, [])


UNFILLED = {
    "polygons of a classifier": ("classify", control("PolygonLabels")),
    "masks of a classifier": ("classify", control("BrushLabels")),
    "boxes of a classifier": ("classify", control("RectangleLabels")),
    "choices of a detector": ("detect", control("Choices", CHOICES)),
    "choices about a region": ("classify", control("Choices", CHOICES, 'perRegion="true"')),
}


@pytest.mark.parametrize("case", UNFILLED)
def test_what_a_model_cannot_give_is_left_out_and_told(case, models):
    task, controls = UNFILLED[case]
    detector = models(task)
    config = LabelConfig.parse(f'<View><Image name="image" value="$image"/>{controls}</View>')
    assert find_targets(config, detector.names.names, provides=detector.provides) == ()
    [line] = mapping_report(config, detector.names.names, provides=detector.provides).lines()
    assert ("Choices" if task == "classify" else "RectangleLabels") in line


THRESHOLDS = {
    "none": ({}, "", ["A", "B"]),
    "by class": ({"score_thresholds": {"a": 0.95}}, "", ["B"]),
    "by label, in another case": ({"score_thresholds": {"b": 0.7}}, "", ["A"]),
    "lower than the project's": ({"score_threshold": 0.95, "score_thresholds": {"B": 0.5}}, "", ["B"]),
    "before the control's": ({"score_thresholds": {"b": 0.5}}, 'model_score_threshold="0.95"', ["B"]),
    "of the version": ({"model_thresholds": {"a": 0.95}}, "", ["B"]),
    "the project's before the version's": ({"score_threshold": 0.5, "model_thresholds": {"a": 0.95}}, "", ["A", "B"]),
    "the class's before the version's": (
        {"score_thresholds": {"A": 0.5}, "model_thresholds": {"a": 0.95}},
        "",
        ["A", "B"],
    ),
    "the control's before the version's": (
        {"model_thresholds": {"a": 0.95}},
        'model_score_threshold="0.5"',
        ["A", "B"],
    ),
}


@pytest.mark.parametrize("case", THRESHOLDS)
def test_each_class_may_have_a_threshold_of_its_own(case, regions_of):
    options, more, expected = THRESHOLDS[case]
    reading, _, _ = regions_of("detect", control("RectangleLabels", more=more), **options)
    assert [region.labels[0] for region in reading.regions] == expected


def test_masks_are_placed_correctly_on_padded_images(models):
    from ml_backend.detection.preprocess import prepare

    detector = models("segment")
    assert detector.spec.placement == "centre"
    # 200 x 200 becomes 64 x 64 from 16, 0 in the input: the mask 16..48 x 8..32 is 0..100 x 25..100 of the photo.
    [result] = detector.detect([prepare(np.zeros((200, 200, 3), np.uint8), detector.spec)], floor=0.8)
    expected = np.zeros((200, 200), bool)
    expected[25:100, 0:100] = True
    expected[62:100, 50:100] = False
    assert overlap(result.segments[0].mask(), expected) > 0.85
    outline = outline_polygon(*result.segments[0].crop()).polygon()
    truth = shapely.Polygon([(0, 25), (100, 25), (100, 62.5), (50, 62.5), (50, 100), (0, 100)])
    assert outline.intersection(truth).area / outline.union(truth).area > 0.85
