"""A dispute that waits for a reviewer: what overlays it gets and when, what accepting one does, and that it heals."""

import hashlib
import json

import pytest
import sqlalchemy as sa

from labelloop.labeling.studio.task import read_task
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import StudioRefused
from qc_webhooks.artifacts.overlays import CONSENSUS, digest, overlays_of
from qc_webhooks.jobs import requeue_without_overlays
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.store.tables import ACTIONS

ANNE, BEN, CLEO, RITA = 1, 2, 3, 9
PROJECT = 7
TABS = ["QC consensus", "QC: A", "QC: B", "QC: C", "base-1"]


@pytest.fixture
def review(studio, box, check):
    """A task that three annotators dispute: all have a car, and each has something else besides."""
    task = studio.add_task()
    studio.put_prediction(task, [box(50)], "base-1", 0.4)
    studio.annotate(task, ANNE, [box(0), box(60)])
    studio.annotate(task, BEN, [box(1), box(40, "Person")])
    check(task)
    studio.annotate(task, CLEO, [box(0, "Person"), box(20)])
    return task


def routes(engine):
    with engine.connect() as connection:
        rows = connection.execute(sa.select(ACTIONS).order_by(ACTIONS.c.id)).all()
    return [(row.route, row.state) for row in rows]


def keys(studio, task):
    return {name: studio.tasks_by_id[task]["data"].get(name) for name in ("qc_status", "qc_review")}


def accept(studio, task, version=CONSENSUS, annotator=RITA):
    overlay = studio.overlay(task, version)
    return studio.annotate(task, annotator, overlay["result"], parent_prediction=overlay["id"])


def test_the_consensus_comes_first_then_the_stances(studio, check, review):
    check(review)
    assert studio.tabs(review) == TABS
    assert all(len(name) <= 15 for name in studio.tabs(review))
    assert studio.overlay(review, "QC: A")["score"] == pytest.approx(1 / 3, abs=1e-4)


def test_nothing_is_shown_before_the_last_blind_annotation(studio, box, check):
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0)])
    studio.annotate(task, BEN, [box(60)])
    check(task)
    assert studio.serves(task, CLEO)
    assert studio.tabs(task) == []


def test_withdrawn_further_annotator_brings_the_overlays(studio, box, check):
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0)])
    studio.annotate(task, BEN, [box(60)])
    check(task)
    studio.tasks_by_id[task] |= {"overlap": 2, "is_labeled": True}
    check(task)
    assert studio.tabs(task) == ["QC consensus", "QC: A", "QC: B"]


def test_regions_say_what_is_disputed_and_name_nobody(studio, check, review):
    check(review)
    car, *others = studio.overlay(review, CONSENSUS)["result"]
    assert others == []  # what one of three drew is likelier not there
    assert car["value"]["rectanglelabels"] == ["Car"]
    assert car["meta"]["text"] == ["2 x Car, 1 x Person."]
    assert 0.5 < car["score"] <= 1
    label, extra = (item["meta"]["text"][0] for item in studio.overlay(review, "QC: C")["result"])
    assert label.startswith("One annotator says Car, another says Person")
    assert extra.startswith("One annotator has a Car")
    assert "annotator" not in json.dumps(studio.tasks_by_id[review]["predictions"]).replace(
        "annotators marked", ""
    ).replace("One annotator", "")


def test_stances_that_agree_are_one_and_an_own_note_stays(studio, box, check, settings):
    (settings.home / "qc").mkdir(parents=True, exist_ok=True)
    (settings.home / "qc" / "policy.toml").write_text("annotators = 4\nmax_annotators = 4\n")
    task = studio.add_task(overlap=4)
    for annotator, index in ((ANNE, 60), (BEN, 0), (CLEO, 1), (RITA, 61)):
        studio.annotate(task, annotator, [box(index, score=0.3, origin="prediction", meta={"text": ["look"]})])
    check(task)
    assert studio.tabs(task) == ["QC consensus", "QC: A", "QC: B"]
    (region,) = studio.overlay(task, "QC: A")["result"]
    assert region["value"]["x"] == 60
    assert {"score", "origin"} & region.keys() == set()
    assert region["meta"]["text"][-1] == "look"
    assert studio.overlay(task, "QC: A")["score"] == 0.5


def test_where_nothing_is_shared_the_nearest_annotation_is_proposed(studio, box, check):
    task = studio.add_task(overlap=3)
    for annotator, index in ((ANNE, 0), (BEN, 30), (CLEO, 60)):
        studio.annotate(task, annotator, [box(index)])
    check(task)
    assert [item["value"]["x"] for item in studio.overlay(task, CONSENSUS)["result"]] == [0]


def test_answers_about_the_whole_task_are_proposed_too(studio, box, choice, check):
    task = studio.add_task(overlap=3)
    text = {"id": "t", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["a car"]}}
    for annotator, index, output in ((ANNE, 0, "good"), (BEN, 30, "good"), (CLEO, 60, "bad")):
        studio.annotate(task, annotator, [box(index), box(80, width=10.0), choice(output), text])
    check(task)
    result = studio.overlay(task, CONSENSUS)["result"]
    assert [item["type"] for item in result] == ["rectanglelabels", "choices", "textarea"]
    assert result[1]["value"] == {"choices": ["good"]}
    assert result[2]["value"] == {"text": ["a car"]}


def test_regions_of_the_consensus_have_ids_of_their_own(studio, box, check):
    """Annotators who began from one pre-label have regions of the same id, in one place or another."""
    task = studio.add_task(overlap=3)
    for annotator, (first, other) in ((ANNE, ("a", "b")), (BEN, ("b", "a")), (CLEO, ("a", "b"))):
        drawn = [box(0) | {"id": first}, box(40) | {"id": other}, box(20 * annotator, y=60.0)]
        studio.annotate(task, annotator, drawn)
    check(task)
    ids = [item["id"] for item in studio.overlay(task, CONSENSUS)["result"]]
    assert len(ids) == len(set(ids)) == 2


@pytest.mark.parametrize("version", [CONSENSUS, "QC: B"])
def test_accepted_overlay_becomes_the_ground_truth(studio, check, review, version):
    check(review)
    created = accept(studio, review, version)
    checked = check(review)
    assert [held["id"] for held in studio.tasks_by_id[review]["annotations"] if held.get("ground_truth")] == [created]
    assert checked.verdict.ground_truth == created
    assert studio.tabs(review) == ["base-1"]
    assert keys(studio, review) == {"qc_status": "agreed", "qc_review": "no"}
    assert [action.route for action in checked.actions] == ["accept", "flag", "overlay"]
    assert not studio.serves(review, 5)


def test_an_annotation_of_ones_own_is_one_more_opinion(studio, box, check, review):
    check(review)
    studio.annotate(review, RITA, [box(80)])
    check(review)
    assert not any(held.get("ground_truth") for held in studio.tasks_by_id[review]["annotations"])
    assert studio.tabs(review) == ["QC consensus", "QC: A", "QC: B", "QC: C", "QC: D", "base-1"]
    studio.edit_annotation(4, ground_truth=True)  # marked over the API instead
    check(review)
    assert studio.tabs(review) == ["base-1"]
    assert keys(studio, review)["qc_status"] == "agreed"


def test_ground_truth_removed_by_a_person_stays_removed(studio, check, review):
    check(review)
    created = accept(studio, review)
    check(review)
    studio.edit_annotation(created, ground_truth=False)
    check(review)
    assert not any(held.get("ground_truth") for held in studio.tasks_by_id[review]["annotations"])


def test_a_skip_of_an_overlay_accepts_nothing(studio, check, review):
    check(review)
    overlay = studio.overlay(review, CONSENSUS)
    studio.annotate(review, RITA, [], parent_prediction=overlay["id"], was_cancelled=True)
    check(review)
    assert studio.tabs(review) == TABS


def test_checking_again_writes_nothing(studio, check, review):
    check(review)
    written = len(studio.writes)
    for _ in range(3):
        check(review)
    accept(studio, review)
    check(review)
    closed = len(studio.writes)
    assert closed > written
    for _ in range(3):
        check(review)
    assert len(studio.writes) == closed


def test_a_new_annotation_rewrites_the_overlays(studio, box, check, review):
    check(review)
    ids = {entry.id for entry in overlays_of(read_task(studio.tasks_by_id[review]))}
    studio.edit_annotation(3, result=[box(0, "Person"), box(30)])
    check(review)
    assert studio.tabs(review) == TABS
    fresh = {entry.id for entry in overlays_of(read_task(studio.tasks_by_id[review]))}
    assert fresh != ids


def test_removed_overlay_stays_removed_until_a_change(studio, box, check, review):
    check(review)
    studio.delete_prediction(studio.overlay(review, "QC: B")["id"])
    check(review)
    assert "QC: B" not in studio.tabs(review)
    studio.edit_annotation(3, result=[box(0, "Person"), box(30)])
    check(review)
    assert studio.tabs(review) == TABS


def test_a_correction_removes_them(studio, box, check, review):
    check(review)
    studio.edit_annotation(3, result=[box(0), box(60)])
    check(review)
    assert studio.tabs(review) == ["base-1"]


def test_the_policy_may_do_without(studio, check, review, settings):
    (settings.home / "qc").mkdir(parents=True, exist_ok=True)
    (settings.home / "qc" / "policy.toml").write_text("adjudicate = false\n")
    check(review)
    assert studio.tabs(review) == ["base-1"]
    assert keys(studio, review)["qc_review"] == "yes"


@pytest.mark.parametrize("empty", ["", None])
def test_no_overlays_without_a_model_version_of_the_project(studio, check, review, memory, settings, engine, empty):
    inbox = Inbox.from_settings(settings, engine)
    studio.fields["model_version"] = empty
    check(review)
    assert studio.tabs(review) == ["base-1"]
    assert keys(studio, review)["qc_review"] == "yes"
    assert list(memory.reviews_without_overlays(PROJECT)) == [review]
    assert requeue_without_overlays(studio, memory, inbox, PROJECT) == 0
    studio.fields["model_version"] = "base-1"
    assert requeue_without_overlays(studio, memory, inbox, PROJECT) == 1
    check(review)
    assert studio.tabs(review) == TABS
    assert memory.reviews_without_overlays(PROJECT) == {}


@pytest.mark.parametrize("write", range(5))
@pytest.mark.parametrize("when", ["before", "after"])
def test_review_killed_at_any_write_ends_the_same(studio, check, review, engine, when, write):
    """Three stances, the consensus and the task itself: five writes."""
    studio.fail_next(when, skip=write)
    with pytest.raises(StudioRefused):
        check(review)
    check(review)
    assert studio.tabs(review) == TABS
    assert keys(studio, review) == {"qc_status": "disputed", "qc_review": "yes"}
    assert {state for _, state in routes(engine)} <= {"done", "overtaken"}


@pytest.mark.parametrize("write", range(6))
@pytest.mark.parametrize("when", ["before", "after"])
def test_acceptance_killed_at_any_write_ends_the_same(studio, check, review, engine, when, write):
    """The ground truth, the task itself, four overlays removed: six writes."""
    check(review)
    created = accept(studio, review)
    studio.fail_next(when, skip=write)
    with pytest.raises(StudioRefused):
        check(review)
    check(review)
    assert [held["id"] for held in studio.tasks_by_id[review]["annotations"] if held.get("ground_truth")] == [created]
    assert studio.tabs(review) == ["base-1"]
    assert keys(studio, review) == {"qc_status": "agreed", "qc_review": "no"}
    assert {state for _, state in routes(engine)} <= {"done", "overtaken"}


def test_another_worker_proposes_the_same(studio, check, review, memory, settings):
    check(review)
    written = len(studio.writes)
    memory.delete_task(PROJECT, review)
    Checker(studio, memory, settings.home).check(PROJECT, review)
    assert len(studio.writes) == written


def test_a_digest_outlives_storage():
    result = [{"value": {"x": 10.0, "y": 0.1}, "b": [1, None, "é"], "a": True}]
    stored = [{"a": True, "b": [1, None, "é"], "value": {"y": 0.1, "x": 10}}]
    assert digest(result) == digest(stored)
    assert digest(result) != digest([{**result[0], "a": False}])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_digest_is_that_of_the_whole_json(count):
    results = [
        {"id": f"r{number}", "value": {"x": 10.0, "points": [[1.5, number]], "ü": "é"}} for number in range(count)
    ]
    plain = [{**result, "value": {**result["value"], "x": 10}} for result in results]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    assert digest(results) == digest(plain) == hashlib.sha256(text.encode()).hexdigest()[:16]
