import msgspec
import numpy as np
import pytest
import shapely
import shapely.affinity

from labelloop.labeling.errors import LabelingError, MalformedValue, RegionError
from labelloop.labeling.geometry.brush_codec import encode_rle
from labelloop.labeling.geometry.png_codec import encode_data_url
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle, Vector, Vertex
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation, region_from_results
from labelloop.labeling.studio.task import Annotation, read_task
from labelloop.labeling.studio.writing import detection_result, to_results
from tests.read_regions import read_regions

MASK = np.zeros((100, 200), dtype=bool)
MASK[20:50, 30:90] = True


def read(task, **options):
    return read_annotation(task.annotations[0], task=task, **options)


@pytest.mark.parametrize(
    ("kind", "value", "geometry"),
    [
        (
            "rectanglelabels",
            {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 30},
            Rectangle(20, 10, 40, 30, 30),
        ),
        ("rectanglelabels", {"x": 10, "y": 10, "width": 20, "height": 30}, Rectangle(20, 10, 40, 30)),
        ("rectanglelabels", {"x": -5, "y": 90, "width": 120, "height": 30}, Rectangle(-10, 90, 240, 30)),
        ("polygonlabels", {"points": [[10, 10], [50, 10], [50, 50]]}, Polygon(((20, 10), (100, 10), (100, 50)))),
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20}, Ellipse(100, 50, 20, 20)),
        ("keypointlabels", {"x": 50, "y": 50, "width": 0.5}, KeyPoint(100, 50, 1)),
        ("brushlabels", {"format": "rle", "rle": encode_rle(MASK)}, Mask.from_array(MASK)),
        ("bitmasklabels", {"imageDataURL": encode_data_url(MASK)}, Mask.from_array(MASK)),
        (
            "vectorlabels",
            {
                "vertices": [
                    {"x": 10, "y": 10, "id": "a", "prevPointId": None, "isBezier": False},
                    {
                        "x": 50,
                        "y": 50,
                        "id": "b",
                        "prevPointId": "a",
                        "isBezier": True,
                        "controlPoint1": {"x": 20, "y": 30},
                    },
                ],
                "closed": False,
            },
            Vector((Vertex(20, 10, id="a"), Vertex(100, 50, id="b", previous="a", before=(40, 30), bezier=True))),
        ),
    ],
)
def test_every_type_is_read_in_pixels(make_task, box, kind, value, geometry):
    labelled = box(type=kind) | {"value": value | {kind: ["A", "B"]}}
    bare = box("r2", type=kind.removesuffix("labels")) | {"value": value}
    reading = read(make_task(labelled, bare))
    assert not reading.errors
    first, second = reading.regions
    assert first.geometry == second.geometry == geometry
    assert (first.labels, second.labels) == (("A", "B"), ())
    assert (first.width, first.height, first.type) == (200, 100, kind)


def test_rotated_box_keeps_its_shape_on_wide_images(make_task, box):
    # The converter that ships with Label Studio turns in percent space, where this box would be sheared.
    region = read(make_task(box(value={"rotation": 30}))).regions[0]
    expected = shapely.affinity.rotate(shapely.box(20, 10, 60, 40), 30, origin=(20, 10))
    assert region.geometry.polygon().symmetric_difference(expected).area < 1e-9
    assert region.geometry.bounds == pytest.approx(expected.bounds)


@pytest.mark.parametrize("rotation", [0, 30, 200])
def test_boxes_drawn_leftwards_or_upwards_are_the_same_boxes(make_task, box, rotation):
    value = {"x": 50, "y": 50, "width": -20, "height": -30, "rotation": rotation}
    region = read(make_task(box(value=value))).regions[0]
    expected = shapely.affinity.rotate(shapely.box(60, 20, 100, 50), rotation, origin=(100, 50))
    assert region.geometry.width > 0
    assert region.geometry.height > 0
    assert region.geometry.polygon().symmetric_difference(expected).area < 1e-9


def test_answers_about_a_region_are_its_attributes(make_task, box):
    geometry = {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0}
    task = make_task(
        box(),
        box(from_name="occl", type="choices") | {"value": geometry | {"choices": ["yes", "partly"]}},
        box(from_name="stars", type="rating") | {"value": geometry | {"rating": 3}},
        box(from_name="age", type="number") | {"value": geometry | {"number": 4.5}},
        box(from_name="note", type="textarea") | {"value": geometry | {"text": ["n1"]}},
        box(from_name="kind", type="taxonomy") | {"value": geometry | {"taxonomy": [["a", "b"], ["c"]]}},
    )
    reading = read(task)
    (region,) = reading.regions
    assert region.labels == ("Car",)
    assert region.attributes == {
        "occl": ("yes", "partly"),
        "stars": (3,),
        "age": (4.5,),
        "note": ("n1",),
        "kind": ("a/b", "c"),
    }
    assert reading.choices == {}
    assert len(region.result) == 6


def test_a_shape_and_its_separate_labels_are_one_region(make_task, box):
    shape = {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0}
    task = make_task(
        box(from_name="kind", type="labels") | {"value": shape | {"labels": ["Car"]}},
        box(from_name="shape", type="rectangle") | {"value": shape},
        box(from_name="colour", type="labels") | {"value": shape | {"labels": ["red"]}},
    )
    (region,) = read_regions(task.annotations[0])
    assert (region.labels, region.control, region.type) == (("Car",), "kind", "rectangle")
    assert region.attributes == {"colour": ("red",)}


def test_labels_without_a_shape_result_define_the_shape(make_task, box):
    points = {"points": [[0, 0], [10, 0], [0, 10]], "closed": True}
    (region,) = read_regions(make_task(box(type="labels") | {"value": points | {"labels": ["Roof"]}}).annotations[0])
    assert region.labels == ("Roof",)
    assert region.geometry == Polygon(((0, 0), (20, 0), (0, 10)))
    assert to_results(region) == [region.result[0].raw]


def test_two_controls_may_label_one_shape(make_task, box):
    second = box(from_name="colour", value={"rectanglelabels": ["red"]})
    (region,) = read_regions(make_task(box(), second).annotations[0])
    assert region.labels == ("Car",)
    assert region.attributes == {"colour": ("red",)}


def test_repeated_id_of_one_control_is_two_regions(make_task, box):
    regions = read_regions(make_task(box("1"), box("1", value={"x": 40}), box("1")).annotations[0])
    assert [region.geometry.x for region in regions] == [20, 80, 20]


def test_results_without_an_id_stay_apart(make_task, box):
    first, second = box(), box(value={"x": 40})
    del first["id"], second["id"]
    assert len(read_regions(make_task(first, second).annotations[0])) == 2


def test_answers_about_the_task(make_task):
    reading = read(
        make_task(
            {"id": "c", "from_name": "scene", "to_name": "image", "type": "choices", "value": {"choices": ["day"]}},
            {
                "id": "t",
                "from_name": "species",
                "to_name": "image",
                "type": "taxonomy",
                "value": {"taxonomy": [["a", "b"]]},
            },
            {"id": "s", "from_name": "stars", "to_name": "image", "type": "rating", "value": {"rating": 2}},
            {
                "id": "n",
                "from_name": "nested",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [["x", "y"], "z"]},
            },
            {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right", "labels": ["on"]},
        )
    )
    assert reading.choices == {"scene": ("day",), "species": ("a/b",), "nested": ("x/y", "z")}
    assert [result.id for result in reading.choice_results] == ["c", "t", "n"]
    assert [result.id for result in reading.other_results] == ["s"]
    assert reading.relations[0].raw["to_id"] == "b"


def test_other_regions_are_kept_with_their_answers(make_task):
    span = {"start": 0, "end": 5, "text": "hello"}
    others = [
        {"id": "s", "from_name": "ner", "to_name": "text", "type": "labels", "value": span | {"labels": ["PER"]}},
        {"id": "s", "from_name": "sure", "to_name": "text", "type": "choices", "value": span | {"choices": ["yes"]}},
        {"id": "v", "from_name": "box", "to_name": "video", "type": "videorectangle", "value": {"sequence": []}},
        {"id": "w", "from_name": "ts", "to_name": "ts", "type": "timeserieslabels", "value": {"start": 1, "end": 2}},
    ]
    reading = read(make_task(*others))
    assert [result.raw for result in reading.other_results] == others
    assert not reading.choices
    assert not reading.errors


def test_regions_know_their_image_of_several(make_task, box):
    regions = read(make_task(box("a", item_index=0), box("b", item_index=2))).regions
    assert [region.item_index for region in regions] == [0, 2]
    assert "item_index" in to_results(regions[0])[0]


def without_size(result):
    return {key: value for key, value in result.items() if not key.startswith("original_")}


class TestMissingImageSizes:
    def test_are_found_in_a_sibling_on_the_same_image(self, make_task, box):
        task = make_task(
            without_size(box("a")),
            box("b"),
            box("c", item_index=1, original_width=999),
            without_size(box("d", item_index=1)),
        )
        widths = {region.id: region.width for region in read(task).regions}
        assert widths == {"a": 200, "b": 200, "c": 999, "d": 999}

    def test_are_found_in_another_annotation_or_prediction(self, box):
        task = read_task(
            {
                "id": 1,
                "data": {},
                "annotations": [{"id": 1, "result": [without_size(box())]}],
                "predictions": [{"id": 2, "result": [box()]}],
            }
        )
        assert read(task).regions[0].geometry == Rectangle(20, 10, 40, 30)

    def test_are_asked_for_once_an_image(self, make_task, box):
        requested = []

        def size(item_index):
            requested.append(item_index)
            return 400, 100

        task = make_task(without_size(box("a")), without_size(box("b")), without_size(box("c", item_index=3)))
        reading = read(task, size=size)
        assert [region.width for region in reading.regions] == [400, 400, 400]
        assert requested == [0, 3]

    def test_are_not_asked_for_where_results_say(self, make_task, box):
        def size(item_index):
            raise AssertionError(item_index)

        assert read(make_task(box(), without_size(box("b"))), size=size).regions

    @pytest.mark.parametrize("stated", [None, 0, -5, "wide", 1.5, True])
    def test_are_an_error_where_nothing_says(self, make_task, box, stated):
        reading = read(make_task(box(original_width=stated)), size=lambda _: None)
        assert reading.errors[0].field == "original_width"


def test_predictions_read_like_annotations(box):
    prediction = {"id": 4, "model_version": "m", "result": [box(score=0.75)]}
    task = read_task({"id": 1, "data": {}, "predictions": [prediction]})
    (region,) = read_regions(task.predictions[0], task=task)
    assert region.score == 0.75


CONFIG = LabelConfig.parse(
    """<View><Image name="image" value="$image"/>
    <RectangleLabels name="rect" toName="image"><Label value="Car"/></RectangleLabels>
    <Rectangle name="shape" toName="image"/><Labels name="kind" toName="image"><Label value="Car"/></Labels>
    <Choices name="occl" toName="image" perRegion="true"><Choice value="yes"/></Choices>
    <Taxonomy name="tax" toName="image" perRegion="true"><Choice value="a"/></Taxonomy>
    <Rating name="stars" toName="image" perRegion="true"/>
    <Image name="pages" valueList="$pages"/>
    <RectangleLabels name="page" toName="pages"><Label value="Car"/></RectangleLabels>
    </View>"""
)


class TestWriting:
    def test_what_was_not_changed_keeps_its_very_numbers(self, make_task, box):
        raw = box(value={"x": 33.333333333333336, "y": 0.1}, meta={"text": ["hi"]}, future=1)
        (region,) = read_regions(make_task(raw).annotations[0])
        assert to_results(region) == [raw]
        moved = msgspec.structs.replace(region, geometry=msgspec.structs.replace(region.geometry, y=50.0))
        (written,) = to_results(moved)
        assert written == raw | {"value": raw["value"] | {"y": 50.0}}
        assert raw["value"]["y"] == 0.1

    def test_changed_labels_and_answers_go_where_they_came_from(self, make_task, box):
        shape = {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0}
        task = make_task(
            box(from_name="shape", type="rectangle") | {"value": shape},
            box(from_name="kind", type="labels") | {"value": shape | {"labels": ["Car"]}},
            box(from_name="occl", type="choices") | {"value": shape | {"choices": ["yes"]}},
            box(from_name="stars", type="rating") | {"value": shape | {"rating": 1}},
        )
        (region,) = read_regions(task.annotations[0])
        changed = msgspec.structs.replace(
            region,
            labels=("Van",),
            score=0.5,
            attributes={"occl": ("no",), "tax": ("a/b",)},
            geometry=Rectangle(0, 10, 40, 30),
        )
        first, second, third, fourth = to_results(changed, config=CONFIG)
        assert (first["value"]["x"], first["score"]) == (0, 0.5)
        assert second["value"] == shape | {"x": 0, "labels": ["Van"]}
        assert third["value"]["choices"] == ["no"]
        assert (fourth["type"], fourth["value"]["taxonomy"]) == ("taxonomy", [["a", "b"]])

    def test_a_new_region_is_written_and_read_back(self, make_task):
        region = Region(
            Rectangle(20, 10, 40, 30, 15),
            ("Car",),
            "n1",
            "rect",
            "image",
            "rectanglelabels",
            0.5,
            0,
            200,
            100,
            {"stars": (4,)},
        )
        written = to_results(region, config=CONFIG)
        (back,) = read_regions(make_task(*written).annotations[0], config=CONFIG)
        assert msgspec.structs.replace(back, result=()) == region

    def test_a_new_region_with_separate_labels_takes_its_shapes_control_from_the_config(self, make_task):
        region = Region(Rectangle(20, 10, 40, 30), ("Car",), "n1", "kind", "image", "rectangle", None, 0, 200, 100)
        written = to_results(region, config=CONFIG)
        assert [(result["from_name"], result["type"]) for result in written] == [
            ("shape", "rectangle"),
            ("kind", "labels"),
        ]
        (back,) = read_regions(make_task(*written).annotations[0])
        assert msgspec.structs.replace(back, result=()) == region
        with pytest.raises(LabelingError, match="rectangle"):
            to_results(region)

    def test_the_image_of_several_is_said_even_if_it_is_the_first(self):
        region = Region(Rectangle(0, 0, 4, 3), ("Car",), "n", "page", "pages", "rectanglelabels", None, 0, 200, 100)
        assert to_results(region, config=CONFIG)[0]["item_index"] == 0
        assert "item_index" not in to_results(region)[0]

    def test_a_shape_that_its_type_does_not_draw_is_refused(self):
        region = Region(KeyPoint(1, 1), (), "n", "rect", "image", "rectanglelabels", None, 0, 200, 100)
        with pytest.raises(LabelingError, match="Rectangle"):
            to_results(region)

    def test_a_prediction_is_what_label_studio_expects(self):
        result = detection_result(
            Rectangle(20, 10, 40, 30), "Car", control=CONFIG.controls["rect"], width=200, height=100, score=0.9, id="p1"
        )
        assert result == {
            "id": "p1",
            "from_name": "rect",
            "to_name": "image",
            "type": "rectanglelabels",
            "original_width": 200,
            "original_height": 100,
            "image_rotation": 0,
            "value": {"x": 10.0, "y": 10.0, "width": 20.0, "height": 30.0, "rotation": 0.0, "rectanglelabels": ["Car"]},
            "score": 0.9,
        }
        page = CONFIG.controls["page"]
        options = {"width": 200, "height": 100, "score": 0.9, "id": "p1"}
        assert detection_result(Rectangle(0, 0, 1, 1), "Car", control=page, item_index=0, **options)["item_index"] == 0
        with pytest.raises(LabelingError, match="kind"):
            detection_result(Rectangle(0, 0, 1, 1), "Car", control=CONFIG.controls["kind"], **options)


def test_regions_of_a_malformed_annotation_raise_the_first_error(make_task, box):
    task = make_task(box(), box("r9", value={"width": None}))
    with pytest.raises(RegionError, match=r"task 53, annotation 30, result r9: width: is missing"):
        read_regions(task.annotations[0], task=task)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rotation": 30},
        {"x": 10},
        {"x": True},
        {"x": float("nan")},
        {"x": 1e10},
        {"width": -5.0},
        {"width": 0.0},
        {"rectanglelabels": []},
        {"rectanglelabels": ["a", "b"]},
        {"rectanglelabels": [5]},
        {"rectanglelabels": "a"},
    ],
    ids=str,
)
def test_fast_path_of_rectangles_equals_the_general_path(change):
    value = {"x": 10.5, "y": 20.5, "width": 30.25, "height": 40.125, "rotation": 0, "rectanglelabels": ["a"]} | change
    raw = {"id": "r", "from_name": "l", "to_name": "i", "type": "rectanglelabels", "value": value}
    source = Annotation(results=(Result(raw | {"original_width": 640, "original_height": 360}),))
    fast = read_annotation(source)
    regions, errors = (), []
    try:
        regions = (region_from_results(source.results[0], (), 640, 360),)
    except MalformedValue as error:
        errors = [(error.field, error.reason)]
    assert fast.regions == regions
    assert [(error.field, error.reason) for error in fast.errors] == errors
