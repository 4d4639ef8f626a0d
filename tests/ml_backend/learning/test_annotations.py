"""Whose annotation of a task counts, what it teaches, and what teaches nothing."""

import msgspec
import numpy as np
import pytest

from labelloop.labeling.geometry.shapes import Mask
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.labeling.studio.writing import to_results
from ml_backend.learning import annotations as annotations_module
from ml_backend.learning.annotations import (
    LabelledImage,
    config_hash_of,
    count_labelled,
    is_held_out,
    task_checksum,
    training_data_of,
)
from ml_backend.training.mask_codec import decode_mask
from tests.ml_backend.learning.conftest import CONFIG, PROJECT, box_json

BOXES = {name: box_json("Disc", box) for name, box in (("a", (10, 10, 60, 60)), ("b", (200, 200, 300, 300)))}
ABOUT_A = box_json("Disc", (12, 11, 62, 61))


def annotation(number, annotator, results, **fields):
    return {
        "id": number, "completed_by": annotator, "result": results, "updated_at": f"2026-01-01T00:00:{number:02}Z",
        **fields,
    }  # fmt: skip


def taught(*annotations, data=None, config=CONFIG, held_out=0.0, size=lambda _url, _task: None, predictions=()):
    text = {"annotations": list(annotations), "predictions": list(predictions)}
    task = read_task({"id": 1, "data": {"image": "a.jpg", **(data or {})}, **text})
    return training_data_of(task, LabelConfig.parse(config), project=PROJECT, held_out=held_out, size=size)


A, B = [BOXES["a"]], [BOXES["b"]]
CASES = {
    "one annotation": ([annotation(1, 1, A)], "teaches", "latest", [(10, 10, 60, 60)]),
    "the newest of one annotator": (
        [annotation(1, 1, A), annotation(2, 1, B)], "teaches", "latest", [(200, 200, 300, 300)],
    ),
    "ground truth before newer ones": (
        [annotation(1, 1, A, ground_truth=True), annotation(2, 2, B)], "teaches", "ground truth", [(10, 10, 60, 60)],
    ),
    "consensus of two": (
        [annotation(1, 1, A), annotation(2, 2, [ABOUT_A])], "teaches", "consensus of 2", [(11, 10.5, 61, 60.5)],
    ),
    "a skipped one too": (
        [annotation(1, 1, A), annotation(2, 2, [], was_cancelled=True)], "teaches", "latest", [(10, 10, 60, 60)],
    ),
    "only skipped": ([annotation(1, 1, A, was_cancelled=True)], "left_out", "it was only skipped", []),
    "submitted empty": ([annotation(1, 1, [])], "teaches", "latest", []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_policy_says_whose_annotation_counts(case):
    annotations, state, reason, boxes = CASES[case]
    result = taught(*annotations)
    assert (result.state, result.reason) == (state, reason)
    assert [box for photo in result.photos for box in photo.boxes] == [pytest.approx(box) for box in boxes]


def test_a_task_without_annotation_teaches_nothing():
    assert taught() is None


def test_a_task_not_judged_teaches_nothing_until_it_is_reviewed():
    two = annotation(1, 1, A), annotation(2, 2, B)
    held = taught(*two, data={"qc_status": "not_judged"})
    assert held.state == "left_out"
    assert "could not be compared" in held.reason
    assert held.checksum != taught(*two, data={"qc_status": "agreed"}).checksum
    truth = annotation(3, 3, A, ground_truth=True)
    assert taught(*two, truth, data={"qc_status": "not_judged"}).state == "teaches"


def test_a_disputed_task_teaches_nothing_until_it_is_settled():
    two = annotation(1, 1, A), annotation(2, 2, B)
    disputed = taught(*two, data={"qc_status": "disputed"})
    assert disputed.state == "left_out"
    assert "disagree" in disputed.reason
    truth = annotation(3, 3, A, ground_truth=True)
    assert taught(*two, truth, data={"qc_status": "disputed"}).state == "teaches"
    assert taught(*two, data={"qc_status": "agreed"}).state == "teaches"


CORNERS = [[10, 10], [60, 10], [60, 50], [10, 50]]
SHAPES = {
    "polygonlabels": {"points": CORNERS, "closed": True},
    "ellipselabels": {"x": 35, "y": 30, "radiusX": 25, "radiusY": 20, "rotation": 0},
    "rectanglelabels": {"x": 60, "y": 10, "width": 40, "height": 50, "rotation": 90},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_teaches_through_the_box_around_it(kind):
    value = {**SHAPES[kind], kind: ["Disc"]}
    size = {"original_width": 100, "original_height": 100}
    result = {"id": "r", "from_name": "label", "to_name": "image", "type": kind, "value": value, **size}
    [photo] = taught(annotation(1, 1, [result])).photos
    assert photo.boxes == (pytest.approx((10, 10, 60, 50), abs=0.5),)
    assert photo.labels == ("Disc",)


def test_unreadable_result_makes_the_image_incomplete():
    broken = {**BOXES["b"], "value": {"x": "far", "y": 0, "width": 1, "height": 1, "rectanglelabels": ["Disc"]}}
    [photo] = taught(annotation(1, 1, [BOXES["a"], broken])).photos
    assert len(photo.boxes) == 1
    assert not photo.complete
    [whole] = taught(annotation(1, 1, A)).photos
    assert whole.complete


def test_image_size_is_read_if_no_result_has_it():
    bare = {key: value for key, value in BOXES["a"].items() if not key.startswith("original")}
    sizes = {("a.jpg", 1): (640, 320)}
    [photo] = taught(annotation(1, 1, [bare]), size=lambda *place: sizes[place]).photos
    assert photo.boxes == (pytest.approx((20, 10, 120, 60)),)


def test_a_task_of_several_photos_teaches_each():
    config = CONFIG.replace('value="$image"', 'valueList="$images"')
    second = {**BOXES["a"], "item_index": 1}
    photos = taught(annotation(1, 1, [second]), data={"images": ["a.jpg", "b.jpg"]}, config=config).photos
    assert [(photo.url, len(photo.boxes)) for photo in photos] == [("a.jpg", 0), ("b.jpg", 1)]


def test_the_pre_label_that_the_annotator_began_with_is_kept():
    prediction = {"id": 5, "model_version": "m-1", "result": [{**BOXES["b"], "score": 0.4}]}
    result = taught(annotation(1, 1, A, parent_prediction=5), predictions=[prediction])
    assert result.prelabel_version == "m-1"
    assert result.prelabels[0].scores == (0.4,)
    assert taught(annotation(1, 1, A), predictions=[prediction]).prelabels is None


def test_held_out_tasks_are_a_fixed_tenth():
    held = [is_held_out(PROJECT, number, 0.1) for number in range(5000)]
    assert 0.08 < sum(held) / len(held) < 0.12
    assert held == [is_held_out(PROJECT, number, 0.1) for number in range(5000)]
    assert held != [is_held_out(PROJECT + 1, number, 0.1) for number in range(5000)]
    fewer = [is_held_out(PROJECT, number, 0.05) for number in range(5000)]
    assert all(more for item, more in zip(fewer, held, strict=True) if item)
    assert taught(annotation(1, 1, A), held_out=1.0).state == "held_out"


def test_checksum_covers_only_training_data():
    def seen(*annotations, config_hash="", **data):
        return task_checksum(
            read_task({"id": 1, "data": {"image": "a.jpg", **data}, "annotations": list(annotations)}), config_hash
        )

    item = annotation(1, 1, A)
    before = seen(item)
    assert seen(item, qc_agreement=0.9, qc_status="agreed") == before
    changes = [
        seen(item, qc_status="disputed"), seen(item, image="b.jpg"), seen(), seen({**item, "ground_truth": True}),
        seen({**item, "updated_at": "2026-02-01T00:00:00Z"}), seen(item, annotation(2, 2, A)),
        seen(item, config_hash="another label config"),
    ]  # fmt: skip
    assert len({before, *changes}) == len(changes) + 1
    truth = {**item, "ground_truth": True}
    assert seen(truth, annotation(2, 2, A)) == seen(truth), "other annotations do not count with a ground truth"


def test_labels_go_by_the_label_config_as_it_is_now():
    drawn = [box_json("Disc", (10, 10, 60, 60)), box_json("Square", (200, 200, 300, 300))]

    def labels(*, square):
        return (
            taught(annotation(1, 1, drawn), config=CONFIG.replace('<Label value="Square"/>', square)).photos[0].labels
        )

    assert labels(square='<Label value="Square"/>') == ("Disc", "Square")
    assert labels(square='<Label value="Block" predicted_values="Square"/>') == ("Disc", "Block")
    assert labels(square="") == ("Disc",)


def test_what_only_looks_different_is_no_other_label_config():
    def config_hash(text):
        return config_hash_of(LabelConfig.parse(text))

    assert config_hash(CONFIG.replace('"Square"/>', '"Square" background="#fff" hotkey="s"/>')) == config_hash(CONFIG)
    assert config_hash(CONFIG.replace("<View>", '<View><Header value="$qc_note"/>')) == config_hash(CONFIG)
    others = [CONFIG.replace('"Square"', '"Block"'), CONFIG.replace("$image", "$photo"),
              CONFIG.replace('"Square"/>', '"Square" predicted_values="Block"/>')]  # fmt: skip
    assert len({config_hash(CONFIG), *map(config_hash, others)}) == 4


EVERYTHING = """<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image"><Label value="Car"/></RectangleLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="Car"/><Label value="Tree"/></PolygonLabels>
  <BrushLabels name="brush" toName="image"><Label value="Road"/></BrushLabels>
  <KeyPointLabels name="point" toName="image"><Label value="Nose"/></KeyPointLabels>
  <Choices name="weather" toName="image"><Choice value="Sun"/><Choice value="Rain" alias="wet"/></Choices>
  <Taxonomy name="place" toName="image"><Choice value="Town"><Choice value="Square"/></Choice></Taxonomy>
  <Rating name="quality" toName="image"/>
  <Choices name="occluded" toName="image" perRegion="true"><Choice value="Yes"/><Choice value="No"/></Choices>
  <Rating name="sharp" toName="image" perRegion="true"/>
</View>"""
SIZE = {"original_width": 200, "original_height": 100, "image_rotation": 0, "to_name": "image"}


def stock(kind, control, value, region="", **more):
    """A result as stock Label Studio 1.23.2 stores it."""
    size = SIZE if kind not in {"choices", "taxonomy", "rating"} or region else {"to_name": "image"}
    return {"id": region or f"{control}-1", "type": kind, "from_name": control, "value": value, "origin": "manual",
            **size, **more}  # fmt: skip


def brush(pixels):
    region = Region(Mask.from_array(pixels), ("Road",), "m", "brush", "image", "brushlabels", None, 0, 200, 100)
    [result] = to_results(region, config=LabelConfig.parse(EVERYTHING))
    return result


TURNED = {"x": 50.0, "y": 20.0, "width": 20.0, "height": 20.0, "rotation": 30, "rectanglelabels": ["Car"]}
ANSWERS = [
    stock("choices", "weather", {"choices": ["wet"]}),
    stock("taxonomy", "place", {"taxonomy": [["Town", "Square"]]}),
    stock("rating", "quality", {"rating": 4}),
]


def drawn(*results, config=EVERYTHING):
    [photo] = taught(annotation(1, 1, list(results)), config=config).photos
    return photo


def test_answers_about_the_image_are_read_by_control():
    photo = drawn(*ANSWERS)
    assert photo.choices == {"weather": ("wet",), "place": ("Town/Square",), "quality": ("4",)}
    assert photo.boxes == ()
    assert photo.is_labelled
    assert count_labelled([(1, "", (photo,)), (2, "", (drawn(),))]) == 1


def test_choices_that_the_config_dropped_are_left_out():
    photo = drawn(*ANSWERS, config=EVERYTHING.replace('<Choice value="Rain" alias="wet"/>', ""))
    assert "weather" not in photo.choices


def test_turned_boxes_keep_their_angle():
    photo = drawn(stock("rectanglelabels", "box", TURNED, "r"))
    centre_x, centre_y, width, height, angle = photo.rotated[0]
    assert (width, height, angle) == (40, 20, 30)
    x_min, y_min, x_max, y_max = photo.boxes[0]
    assert (centre_x, centre_y) == pytest.approx(((x_min + x_max) / 2, (y_min + y_max) / 2), abs=0.02)
    assert drawn(stock("rectanglelabels", "box", {**TURNED, "rotation": 0}, "r")).rotated == ()


def test_polygons_and_brushes_keep_their_mask():
    pixels = np.zeros((100, 200), bool)
    pixels[20:60, 30:50] = True
    pixels[20:40, 30:40] = False
    outline = {"points": [[5, 10], [15, 10], [15, 30]], "closed": True, "polygonlabels": ["Tree"]}
    photo = drawn(brush(pixels), stock("polygonlabels", "polygon", outline, "p"))
    assert photo.labels == ("Road", "Tree")
    assert (decode_mask(photo.masks[0], 40, 20) == pixels[20:60, 30:50]).all()
    assert decode_mask(photo.masks[1], 20, 20).mean() == pytest.approx(0.5, abs=0.06)
    assert drawn(stock("rectanglelabels", "box", TURNED, "r")).masks == ()


def test_masks_of_an_image_are_bounded(monkeypatch):
    monkeypatch.setattr(annotations_module, "MAX_MASK_TEXT", 100)
    noise = np.random.default_rng(0).random((100, 200)) > 0.5
    small = np.zeros((100, 200), bool)
    small[:4, :4] = True
    assert drawn(brush(noise)).masks == ()
    assert drawn(brush(small)).masks != ()


def test_points_belong_to_their_parent_or_the_smallest_box_around_them():
    box = {**TURNED, "rotation": 0}
    inner = {"x": 55.0, "y": 25.0, "width": 5.0, "height": 5.0, "rotation": 0, "rectanglelabels": ["Car"]}
    point = {"x": 56, "y": 26, "width": 0.5, "keypointlabels": ["Nose"]}
    photo = drawn(
        stock("rectanglelabels", "box", box, "r"), stock("rectanglelabels", "box", inner, "i"),
        stock("keypointlabels", "point", point, "k", parentID="r"), stock("keypointlabels", "point", point, "l"),
        stock("keypointlabels", "point", {**point, "x": 1}, "m"),
    )  # fmt: skip
    assert photo.keypoints == (("Nose", 112, 26, 0), ("Nose", 112, 26, 1), ("Nose", 2, 26, -1))
    assert len(photo.boxes) == 2
    alone = drawn(stock("keypointlabels", "point", point, "k"))
    assert (alone.boxes, alone.is_labelled, alone.width) == ((), True, 200)


def test_answers_about_a_region_are_read_with_its_box():
    box = {**TURNED, "rotation": 0}
    value = {key: value for key, value in box.items() if key != "rectanglelabels"}
    photo = drawn(
        stock("rectanglelabels", "box", box, "r"), stock("rectanglelabels", "box", {**box, "x": 1}, "s"),
        stock("choices", "occluded", {**value, "choices": ["Yes"]}, "r"),
        stock("rating", "sharp", {**value, "rating": 2}, "r"),
    )  # fmt: skip
    assert photo.region_choices == ({"occluded": ("Yes",), "sharp": ("2",)}, {})
    assert photo.choices == {}


def test_answers_of_several_annotators_count_where_they_agree():
    other = [ANSWERS[0], ANSWERS[1], stock("rating", "quality", {"rating": 5})]
    result = taught(annotation(1, 1, ANSWERS), annotation(2, 2, other), config=EVERYTHING)
    assert result.photos[0].choices == {"weather": ("wet",), "place": ("Town/Square",)}
    assert result.reason == "consensus of 2, without answers on which they disagree (quality)"


def test_answers_about_several_images_at_once_belong_to_none():
    config = EVERYTHING.replace('value="$image"', 'valueList="$images"')
    per_item = config.replace('name="weather"', 'name="weather" perItem="true"')
    about_second = {**ANSWERS[0], "item_index": 1}
    task = {"data": {"images": ["a.jpg", "b.jpg"]}}
    photos = taught(annotation(1, 1, [*ANSWERS, about_second]), config=per_item, **task).photos
    assert [photo.choices for photo in photos] == [{}, {"weather": ("wet",)}]


def test_rows_of_earlier_releases_are_read():
    row = b'[{"url":"a.jpg","width":9,"height":9,"boxes":[[1,2,3,4]],"labels":["Car"],"complete":true,"scores":[]}]'
    [photo] = msgspec.json.decode(row, type=tuple[LabelledImage, ...])
    assert photo == LabelledImage("a.jpg", 9, 9, ((1, 2, 3, 4),), ("Car",))
    full = msgspec.structs.replace(
        photo, masks=("4 4 0",), rotated=((1, 2, 3, 4, 5),), keypoints=(("Nose", 1, 2, -1),), choices={"a": ("b",)},
        region_choices=({"c": ("d",)},),
    )  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode((full,)), type=tuple[LabelledImage, ...]) == (full,)


def test_config_hash_covers_answers():
    hashes = {
        config_hash_of(LabelConfig.parse(text))
        for text in (EVERYTHING, EVERYTHING.replace('perRegion="true"', "", 1),
                     EVERYTHING.replace('value="Square"', 'value="Park"'))
    }  # fmt: skip
    assert len(hashes) == 3
