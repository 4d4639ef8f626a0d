"""`labelloop qc undo`: writes are undone once, and values changed since are skipped."""

import pytest

from labelloop.service.jobs.inbox import Inbox
from qc_webhooks.artifacts.overlays import CONSENSUS
from qc_webhooks.decision.context import KEYS
from qc_webhooks.errors import QualityControlError
from qc_webhooks.events import TASK, recheck_event
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.undo import Undo, describe
from qc_webhooks.store.decisions import MAX_LOGGED_WRITES

ANNE, BEN, CLEO, RITA = 1, 2, 3, 9
PROJECT = 7


@pytest.fixture
def inbox(settings, engine):
    return Inbox.from_settings(settings, engine)


@pytest.fixture
def undo(studio, memory, settings, inbox):
    """undo(task=..., last=...) -> what came of it, as (part, left)."""
    undoing = Undo(studio, memory, Checker(studio, memory, settings.home), inbox)
    return lambda **which: [(item.part, item.left) for item in undoing.run(PROJECT, **which)]


@pytest.fixture
def disputed(studio, box, check):
    task = studio.add_task(image="s3://bucket/b c.jpg")
    studio.annotate(task, ANNE, [box(0)])
    studio.annotate(task, BEN, [box(60)])
    check(task)
    return task


@pytest.fixture
def review(studio, box, check, disputed):
    studio.annotate(disputed, CLEO, [box(30)])
    check(disputed)
    return disputed


@pytest.fixture
def closed(studio, check, review):
    overlay = studio.overlay(review, CONSENSUS)
    studio.annotate(review, RITA, overlay["result"], parent_prediction=overlay["id"])
    check(review)
    return review


def keys(studio, task):
    return {name: value for name, value in studio.tasks_by_id[task]["data"].items() if name in KEYS}


def test_everything_is_taken_back_and_stays_so(studio, check, undo, review):
    assert undo() == [("overlays", False), ("keys", False), ("keys", False), ("overlap", False)]
    assert studio.tasks_by_id[review]["data"] == {"image": "s3://bucket/b c.jpg"}
    assert studio.tasks_by_id[review]["overlap"] == 2
    assert studio.tasks_by_id[review]["is_labeled"]
    assert studio.tabs(review) == []
    written = len(studio.writes)
    for _ in range(2):
        check(review)
    assert len(studio.writes) == written
    assert undo() == []


def test_what_was_undone_comes_again_when_something_happens(studio, box, check, undo, review):
    undo()
    studio.edit_annotation(3, result=[box(31)])
    check(review)
    assert keys(studio, review)["qc_status"] == "disputed"
    assert studio.tabs(review) == ["QC consensus", "QC: A", "QC: B", "QC: C"]
    assert studio.tasks_by_id[review]["overlap"] == 2  # as after a human's own change


def test_only_the_last_write_is_undone(studio, undo, review):
    assert undo(last=1) == [("overlays", False)]
    assert keys(studio, review)["qc_review"] == "yes"
    assert studio.tabs(review) == []
    assert undo(last=1) == [("keys", False)]
    assert keys(studio, review)["qc_review"] == "no"


def test_only_one_task_is_undone(studio, box, check, undo, disputed):
    other = studio.add_task()
    studio.annotate(other, ANNE, [box(0)])
    studio.annotate(other, BEN, [box(60)])
    check(other)
    undo(task=other)
    assert keys(studio, other) == {}
    assert keys(studio, disputed)["qc_status"] == "disputed"


def test_undone_acceptance_reopens_the_dispute(studio, check, undo, closed):
    # the newest first: overlays removed, keys, ground truth
    assert undo(last=3) == [("overlays", True), ("keys", False), ("ground_truth", False)]
    assert not any(held.get("ground_truth") for held in studio.tasks_by_id[closed]["annotations"])
    assert keys(studio, closed)["qc_review"] == "yes"
    check(closed)
    assert studio.tabs(closed)[0] == CONSENSUS
    assert not any(held.get("ground_truth") for held in studio.tasks_by_id[closed]["annotations"])


def test_undo_skips_changed_values_with_the_reason(studio, memory, settings, inbox, closed, review):
    studio.tasks_by_id[closed]["data"]["qc_note"] = "I have seen it"
    studio.tasks_by_id[closed]["overlap"] = 5
    studio.edit_annotation(1, ground_truth=True)
    studio.edit_annotation(4, ground_truth=False)
    undoing = Undo(studio, memory, Checker(studio, memory, settings.home), inbox)
    messages = [describe(item) for item in undoing.run(PROJECT)]
    assert messages == [
        (
            f"task {closed}: overlays: skipped, removed overlays are not restored; the next check of an open dispute"
            " writes them"
        ),
        f"task {closed}: qc_* keys: skipped, the qc_* keys were changed since",
        f"task {closed}: ground truth: skipped, annotation 1 is the ground truth now, not 4",
        f"task {closed}: overlays: already has the previous value",
        f"task {closed}: qc_* keys: skipped, the qc_* keys were changed since",
        f"task {closed}: qc_* keys: skipped, the qc_* keys were changed since",
        f"task {closed}: overlap: skipped, it is 5 now, not 3 as written",
    ]
    assert list(undoing.run(PROJECT)) == []


def test_undo_skips_a_just_accepted_overlay(studio, undo, review):
    overlay = studio.overlay(review, CONSENSUS)
    studio.annotate(review, RITA, overlay["result"], parent_prediction=overlay["id"])
    assert undo(last=1) == [("overlays", True)]
    assert CONSENSUS in studio.tabs(review)


def test_an_annotation_that_nobody_judged_yet_is_judged_after_undo(studio, box, check, undo, review):
    studio.annotate(review, RITA, [box(0)])
    undo()
    assert keys(studio, review) == {}
    check(review)
    assert keys(studio, review)["qc_annotators"] == 4


def test_a_task_that_is_gone_is_said(studio, undo, disputed):
    del studio.tasks_by_id[disputed]
    assert undo() == [("task", True)]


def test_interrupted_undo_resumes(studio, memory, undo, review):
    (write,) = memory.finished_writes(PROJECT, last=1)
    undo(last=1)
    memory.set_write_state(write, "done")  # killed after the write, before it was saved
    assert undo(last=1) == [("overlays", False)]


def test_events_that_wait_are_kept(studio, inbox, undo, disputed):
    hint = recheck_event(PROJECT, disputed, source="test")
    inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
    undo()
    claim = inbox.claim(TASK, hint.subject, "worker")
    assert hint.key in {event.key for event in claim.events}


def test_a_task_in_a_workers_hands_is_waited_for(inbox, undo, disputed, monkeypatch):
    hint = recheck_event(PROJECT, disputed, source="test")
    inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
    assert inbox.claim(TASK, hint.subject, "worker")
    monkeypatch.setattr("qc_webhooks.pipeline.undo.LOCK_TIMEOUT_S", 0.0)
    with pytest.raises(QualityControlError, match="still being processed"):
        undo()


def test_write_log_is_bounded_per_task(memory):
    for number in range(MAX_LOGGED_WRITES + 30):
        write = memory.begin_write(PROJECT, 5, route="x", reason="", before={"n": number}, after={"n": number + 1})
        memory.finish_write(write, done=True)
    other = memory.begin_write(PROJECT, 6, route="x", reason="", before={}, after={})
    memory.finish_write(other, done=True)
    stored = [write.before["n"] for write in memory.finished_writes(PROJECT, task=5)]
    assert stored == list(range(MAX_LOGGED_WRITES + 29, 29, -1))
    assert len(memory.finished_writes(PROJECT, task=6)) == 1
