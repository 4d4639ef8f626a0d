import json

import pytest

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.task import read_task


def test_task_is_the_same_from_text_and_decoded_json():
    source = {
        "id": 7,
        "data": {"image": "s3://a/ä.jpg", "n": 1.5},
        "annotations": [{"id": 1, "result": [], "completed_by": 3, "was_cancelled": True, "ground_truth": True}],
        "predictions": [{"id": 9, "result": [], "model_version": "m1", "score": 0.5}],
        "project": 5,
        "overlap": 2,
        "is_labeled": False,
    }
    task = read_task(source)
    assert task == read_task(json.dumps(source).encode())
    assert (task.id, task.project, task.overlap, task.is_labeled) == (7, 5, 2, False)
    assert task.annotations[0].was_cancelled
    assert task.annotations[0].ground_truth
    assert task.predictions[0].model_version == "m1"


def test_completed_by_is_an_id_or_an_object():
    for who in (4, {"id": 4, "email": "a@example.com"}):
        task = read_task({"data": {}, "annotations": [{"result": [], "completed_by": who}]})
        assert task.annotations[0].completed_by == 4


def test_bare_prediction_ids_of_an_export_are_no_predictions():
    task = read_task({"data": {}, "predictions": [57, {"id": 58, "result": []}, 59]})
    assert task.prediction_ids == (57, 59)
    assert [prediction.id for prediction in task.predictions] == [58]


def test_a_task_without_an_id_is_read():
    assert read_task({"data": {"image": "x"}}).id is None


def test_members_that_are_no_objects_cost_themselves_alone():
    task = read_task(
        {
            "id": 1,
            "data": {},
            "annotations": ["oops", {"id": 2, "result": [3, {"id": "a"}, None]}],
            "predictions": "none",
        }
    )
    assert [annotation.id for annotation in task.annotations] == [2]
    assert [result.id for result in task.annotations[0].results] == ["a"]
    assert [broken.field for broken in task.annotations[0].malformed] == ["result[0]", "result[2]"]
    assert [broken.field for broken in task.malformed] == ["annotations[0]"]


@pytest.mark.parametrize(
    ("source", "field"),
    [(b"{", ""), (b"[1]", ""), (b'{"id": 4}', "data"), (b'{"id": 4, "data": []}', "data"), (b"\xff\xfe", "")],
)
def test_what_is_no_task_says_so(source, field):
    with pytest.raises(MalformedTask) as caught:
        read_task(source)
    assert caught.value.field == field
    if field:
        assert caught.value.task == 4


def test_one_nan_does_not_cost_the_task():
    task = read_task(b'{"id": 1, "data": {}, "annotations": [{"id": 2, "result": [{"id": "a", "value": {"x": NaN}}]}]}')
    assert task.annotations[0].results[0].id == "a"


def test_unknown_fields_of_a_result_are_kept():
    raw = {"id": "a", "type": "RectangleLabels", "value": {}, "readonly": True, "parentID": "p", "future": [1]}
    result = read_task({"data": {}, "annotations": [{"result": [raw]}]}).annotations[0].results[0]
    assert result.raw == raw
    assert result.type == "rectanglelabels"
    assert result.parent_id == "p"


@pytest.mark.parametrize("skipped", ["skipped", "was_cancelled"])
def test_completions_of_old_exports_are_annotations(skipped):
    completions = [{"id": 1, "result": []}, {"id": 2, "result": [], skipped: True}]
    task = read_task({"id": 1, "data": {"image": "a.jpg"}, "completions": completions})
    assert [(one.id, one.was_cancelled) for one in task.annotations] == [(1, False), (2, True)]
