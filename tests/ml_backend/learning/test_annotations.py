"""Whose annotation of a task counts, what it teaches, and what teaches nothing."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from ml_backend.learning.annotations import config_hash_of, is_held_out, task_checksum, training_data_of
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
