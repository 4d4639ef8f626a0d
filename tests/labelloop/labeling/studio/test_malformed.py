"""What is malformed costs itself alone, says where it is, and is never lost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import read_task
from labelloop.labeling.studio.writing import to_results

NAN, INF = math.nan, math.inf

BROKEN = [  # what is wrong, the type, the value, the field that is named
    ("null coordinate", "rectanglelabels", {"x": None, "y": 1, "width": 1, "height": 1}, "x"),
    ("text coordinate", "rectanglelabels", {"x": "10", "y": 1, "width": 1, "height": 1}, "x"),
    ("boolean coordinate", "rectanglelabels", {"x": True, "y": 1, "width": 1, "height": 1}, "x"),
    ("missing coordinate", "rectanglelabels", {"x": 1, "y": 1, "width": 1}, "height"),
    ("NaN", "rectanglelabels", {"x": 1, "y": NAN, "width": 1, "height": 1}, "y"),
    ("infinity", "rectanglelabels", {"x": 1, "y": 1, "width": INF, "height": 1}, "width"),
    ("a number beyond floats", "rectanglelabels", {"x": 10**400, "y": 1, "width": 1, "height": 1}, "x"),
    ("an absurd number", "rectanglelabels", {"x": 1e300, "y": 1, "width": 1, "height": 1}, "x"),
    ("width 0 with rotation", "rectanglelabels", {"x": 1, "y": 1, "width": 0, "height": 9, "rotation": 30}, "width"),
    ("height 0", "rectanglelabels", {"x": 1, "y": 1, "width": 3, "height": 0}, "height"),
    ("rotation is text", "rectanglelabels", {"x": 1, "y": 1, "width": 3, "height": 3, "rotation": "left"}, "rotation"),
    (
        "labels are no texts",
        "rectanglelabels",
        {"x": 1, "y": 1, "width": 3, "height": 3, "rectanglelabels": [1]},
        "rectanglelabels",
    ),
    (
        "labels are an object",
        "rectanglelabels",
        {"x": 1, "y": 1, "width": 3, "height": 3, "rectanglelabels": {}},
        "rectanglelabels",
    ),
    ("missing value", "rectanglelabels", None, "value"),
    ("value is a list", "rectanglelabels", [1, 2], "value"),
    ("empty value", "rectanglelabels", {}, "x"),
    ("empty polygon", "polygonlabels", {"points": []}, "points"),
    ("two points", "polygonlabels", {"points": [[1, 1], [2, 2]]}, "points"),
    ("missing points", "polygonlabels", {}, "points"),
    ("points are no list", "polygonlabels", {"points": "1,2"}, "points"),
    ("half a point", "polygonlabels", {"points": [[1, 1], [2], [3, 3]]}, "points[1]"),
    ("null in a point", "polygonlabels", {"points": [[1, 1], [2, 2], [3, None]]}, "points[2]"),
    ("no radius", "ellipselabels", {"x": 1, "y": 1, "radiusX": 0, "radiusY": 2}, "radiusX"),
    ("missing radius", "ellipselabels", {"x": 1, "y": 1, "radiusX": 2}, "radiusY"),
    ("key point nowhere", "keypointlabels", {"x": 1, "width": 2}, "y"),
    ("broken code", "brushlabels", {"format": "rle", "rle": [0, 0, 1, 64, 73, 235, 7, 1]}, "rle"),
    ("code is no list", "brushlabels", {"format": "rle", "rle": "abc"}, "rle"),
    ("code of texts", "brushlabels", {"format": "rle", "rle": ["a"]}, "rle"),
    ("no code", "brushlabels", {"format": "rle"}, "rle"),
    ("bitmask without a picture", "bitmasklabels", {}, "imageDataURL"),
    ("bitmask that is no picture", "bitmasklabels", {"imageDataURL": "data:image/png;base64,AAAA"}, "imageDataURL"),
    ("vector without vertices", "vectorlabels", {"vertices": []}, "vertices"),
    ("vertex that is no object", "vectorlabels", {"vertices": [[1, 2]]}, "vertices[0]"),
    ("vertex nowhere", "vectorlabels", {"vertices": [{"x": 1}]}, "vertices[0].y"),
    (
        "handle nowhere",
        "vectorlabels",
        {"vertices": [{"x": 1, "y": 1, "controlPoint1": {}}]},
        "vertices[0].controlPoint1.x",
    ),
    ("choices are numbers", "choices", {"choices": [1]}, "choices"),
    ("no choices", "choices", {}, "choices"),
    ("taxonomy of numbers", "taxonomy", {"taxonomy": [[1]]}, "taxonomy"),
]


@pytest.mark.parametrize(("kind", "value", "field"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_malformed_result_costs_itself_alone_and_is_named(make_task, box, kind, value, field):
    broken = box("bad", type=kind) | {"value": value}
    task = make_task(box("before"), broken, box("after"))
    reading = read_annotation(task.annotations[0], task=task)
    assert [region.id for region in reading.regions] == ["before", "after"]
    (error,) = reading.errors
    assert (error.task, error.annotation, error.result, error.field) == (53, 30, "bad", field)
    assert error.reason
    assert error.source == broken
    assert "task 53, annotation 30, result bad" in str(error)


@pytest.mark.parametrize("junk", [None, 5, "text", [], True])
def test_a_result_that_is_no_object_costs_itself_alone(make_task, box, junk):
    reading = read_annotation(make_task(box(), junk, box("b")).annotations[0])
    assert len(reading.regions) == 2
    assert (reading.errors[0].field, reading.errors[0].source) == ("result[1]", junk)


@pytest.mark.parametrize("name", [None, 5, [], {}])
def test_odd_ids_types_and_names_crash_nothing(make_task, box, name):
    for field in ("id", "from_name", "to_name", "type", "image_rotation", "item_index", "score", "meta", "parentID"):
        reading = read_annotation(make_task(box(**{field: name}), box("b")).annotations[0])
        assert reading.regions[-1].id == "b"
        assert len(reading.regions) + len(reading.errors) + len(reading.other_results) == 2


def test_malformed_answer_keeps_its_region(make_task, box):
    reading = read_annotation(
        make_task(box(), box(from_name="occl", type="choices", value={"choices": 4})).annotations[0]
    )
    assert reading.regions[0].labels == ("Car",)
    assert reading.errors[0].field == "choices"


def test_answers_about_unreadable_regions_are_other_results(make_task, box):
    about = box(from_name="occl", type="choices") | {"value": {"choices": ["yes"]}}
    reading = read_annotation(make_task(box(value={"x": None}), about).annotations[0])
    assert [result.raw for result in reading.other_results] == [about]
    assert reading.choices == {}


def test_unknown_control_is_an_error_only_with_a_config(make_task, box):
    config = LabelConfig.parse(
        '<View><Image name="image" value="$image"/><RectangleLabels name="new" toName="image"/></View>'
    )
    annotation = make_task(box(), box("b", from_name="new")).annotations[0]
    assert len(read_annotation(annotation).regions) == 2
    reading = read_annotation(annotation, config=config)
    assert [region.id for region in reading.regions] == ["b"]
    assert (reading.errors[0].result, reading.errors[0].field) == ("r1", "from_name")


def test_errors_name_no_task_where_none_is_known(box):
    task = read_task({"data": {}, "annotations": [{"result": [box(value={"x": None})]}]})
    error = read_annotation(task.annotations[0]).errors[0]
    assert (error.task, error.annotation) == (None, None)


names = st.sampled_from(["", "a", "b", "c"])
kinds = st.sampled_from(
    [
        "rectanglelabels",
        "rectangle",
        "labels",
        "choices",
        "taxonomy",
        "rating",
        "textarea",
        "relation",
        "videorectangle",
        "polygon",
        "",
    ]
)
scalars = st.none() | st.booleans() | st.integers(-5, 120) | st.floats() | st.sampled_from(["x", "Car"])
fields = st.sampled_from(
    [
        "x",
        "y",
        "width",
        "height",
        "rotation",
        "points",
        "labels",
        "rectanglelabels",
        "choices",
        "text",
        "rating",
        "taxonomy",
        "start",
    ]
)
values = (
    st.dictionaries(fields, scalars | st.lists(scalars | st.lists(scalars, max_size=3), max_size=4), max_size=8)
    | scalars
)
sizes = st.sampled_from([None, 0, 100, 640, "100"])
anything = st.fixed_dictionaries(
    {"id": names, "type": kinds, "from_name": names, "to_name": names, "value": values},
    optional={"original_width": sizes, "original_height": sizes, "item_index": st.sampled_from([0, 1, None])},
)


@given(st.lists(anything | scalars, max_size=8))
def test_every_result_is_accounted_for_exactly_once(results):
    annotation = read_task({"id": 1, "data": {}, "annotations": [{"id": 2, "result": results}]}).annotations[0]
    reading = read_annotation(annotation)
    sources = [result.raw for region in reading.regions for result in region.result]
    sources += [
        result.raw for group in (reading.choice_results, reading.relations, reading.other_results) for result in group
    ]
    sources += [error.source for error in reading.errors]
    assert sorted(map(repr, sources)) == sorted(map(repr, results))
    for region in reading.regions:
        assert list(map(repr, to_results(region))) == [repr(result.raw) for result in region.result]
