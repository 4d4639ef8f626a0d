"""Every webhook body that Label Studio sends becomes the right inbox rows. The bodies are shortened recordings."""

import pytest

from qc_webhooks.errors import NotAnEvent
from qc_webhooks.events import (
    ACTIONS,
    MAX_ROWS,
    PROJECT,
    SUBSCRIBED_ACTIONS,
    TASK,
    StoredAnnotation,
    annotation_event,
    read_event,
    timestamp,
)

FIVE = {"id": 5, "title": "contract", "maximum_annotations": 2}


def annotation(id_=1, task=1, **more):
    return {
        "id": id_, "result": [], "was_cancelled": False, "ground_truth": False, "completed_by": 1, "task": task,
        "project": 5, "created_at": "2026-11-23T21:02:28.534512Z", "updated_at": "2026-11-23T21:02:28.534548Z",
    } | more  # fmt: skip


def task(id_=1, **more):
    return {"id": id_, "data": {}, "project": 5, "created_at": "2026-11-23T20:59:49Z", "total_annotations": 0} | more


def rows(body, published=None):
    return [(hint.topic, hint.subject) for hint in read_event(body, task_of=lambda _ids: published or {})]


KNOWN = {
    5: [StoredAnnotation(5, 4, "2026-11-23T21:02:36.306840Z")],
    6: [StoredAnnotation(5, 9, "2026-11-23T21:02:36.306932Z")],
}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"action": "ANNOTATION_CREATED", "annotation": annotation(), "task": task()}, [(TASK, "5:1")]),
        ({"action": "ANNOTATION_CREATED", "annotation": annotation(was_cancelled=True)}, [(TASK, "5:1")]),
        ({"action": "ANNOTATION_UPDATED", "annotation": annotation(ground_truth=True)}, [(TASK, "5:1")]),
        ({"action": "ANNOTATIONS_CREATED", "annotation": [annotation(5, 4), annotation(6, 5)], "project": FIVE},
         [(TASK, "5:4"), (TASK, "5:5")]),
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 5}, {"id": 6}], "project": FIVE},
         [(TASK, "5:4"), (TASK, "5:9")]),
        # one we never read: the whole project is compared
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 5}, {"id": 99}], "project": FIVE},
         [(TASK, "5:4"), (PROJECT, "5")]),
        ({"action": "TASKS_CREATED", "tasks": [task(1), task(2)], "project": FIVE}, []),
        # an import with annotations tells it here only
        ({"action": "TASKS_CREATED", "tasks": [task(1), task(30, total_annotations=1)]}, [(TASK, "5:30")]),
        ({"action": "TASKS_DELETED", "tasks": [{"id": 6}], "project": FIVE}, [(TASK, "5:6")]),
        ({"action": "PROJECT_UPDATED", "project": FIVE}, []),
        ({"action": "LABEL_LINK_CREATED", "label_link": [], "project": FIVE}, []),
        ({"action": "START_TRAINING", "project": FIVE}, []),
        ({"action": "SOMETHING_NEW", "project": FIVE}, []),
        # send_payload off: nothing but the action
        ({"action": "ANNOTATION_CREATED"}, [(PROJECT, "*")]),
        ({"action": "ANNOTATIONS_DELETED"}, [(PROJECT, "*")]),
        ({"action": "TASKS_CREATED"}, [(PROJECT, "*")]),
        ({"action": "TASKS_DELETED"}, [(PROJECT, "*")]),
        ({"action": "PROJECT_UPDATED"}, []),
    ],
)  # fmt: skip
def test_each_action_asks_for_the_right_tasks(body, expected):
    assert rows(body, KNOWN) == expected


def test_a_batch_of_thousands_is_one_row():
    tasks = [task(n, total_annotations=2) for n in range(MAX_ROWS + 1)]
    assert rows({"action": "TASKS_CREATED", "tasks": tasks, "project": FIVE}) == [(PROJECT, "5")]
    gone = [{"id": n} for n in range(MAX_ROWS + 1)]
    assert rows({"action": "ANNOTATIONS_DELETED", "annotations": gone, "project": FIVE}) == [(PROJECT, "5")]


def test_a_duplicate_and_the_poller_give_the_same_key():
    body = {"action": "ANNOTATION_CREATED", "annotation": annotation(3, 8), "project": FIVE}
    (first,), (again,) = (read_event(body, task_of=lambda _: {}) for _ in range(2))
    polled = annotation_event(5, 8, 3, "2026-11-23T21:02:28.534548+00:00", source="poll")
    assert first.key == again.key == polled.key
    assert first.subject == polled.subject


def test_another_version_of_an_annotation_gives_another_key():
    keys = {
        hint.key
        for moment in ("2026-11-23T21:02:28.534548Z", "2026-11-23T21:02:28.534549Z")
        for hint in read_event(
            {"action": "ANNOTATION_UPDATED", "annotation": annotation(updated_at=moment)}, task_of=lambda _: {}
        )
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": 5},
        {"action": ""},
        {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}},
        {"action": "ANNOTATION_CREATED", "annotation": "x"},
        {"action": "ANNOTATION_CREATED", "annotation": None},
        {"action": "ANNOTATIONS_DELETED", "annotations": [5]},
        {"action": "TASKS_DELETED", "tasks": [{"id": None}], "project": FIVE},
        {"action": "TASKS_CREATED", "tasks": [{"id": 1, "total_annotations": 1}], "project": FIVE},
    ],
)
def test_what_no_label_studio_sends_is_refused(body):
    with pytest.raises(NotAnEvent):
        read_event(body, task_of=lambda _: {})


def test_label_studio_is_asked_for_actions_that_we_read():
    assert set(SUBSCRIBED_ACTIONS) < set(ACTIONS)


def test_moments_have_one_spelling():
    assert timestamp("2026-11-23T22:02:28.5+01:00") == timestamp("2026-11-23T21:02:28.500000Z")
    assert timestamp("2026-11-23T21:02:28") == "2026-11-23T21:02:28.000000Z"
    assert timestamp("not a time") == "not a time"
