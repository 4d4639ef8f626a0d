"""The job on one task: what it writes, that it writes it once, and that a human's change stands."""

import json
from dataclasses import replace

import pytest
import sqlalchemy as sa

from labelloop.service.studio import StudioRefused
from qc_webhooks.annotators.diagnosis import say
from qc_webhooks.decision.context import KEYS
from qc_webhooks.errors import PolicyError
from qc_webhooks.schedulers.project_summary import SummaryStore
from qc_webhooks.store.tables import ACTIONS
from tests.qc_webhooks.conftest import PROJECT

ANNE, BEN, CLEO, DAN = 1, 2, 3, 4


def keys(studio, task):
    return {key: value for key, value in studio.tasks_by_id[task]["data"].items() if key in KEYS}


def dispute(studio, box, task=None):
    task = task or studio.add_task()
    return task, studio.annotate(task, ANNE, [box(0)]), studio.annotate(task, BEN, [box(60)])


def logged(engine):
    with engine.connect() as connection:
        return connection.execute(sa.select(ACTIONS).order_by(ACTIONS.c.id)).all()


def test_dispute_and_further_annotator_are_one_write(studio, box, check):
    task, *_ = dispute(studio, box)
    assert not studio.serves(task, CLEO)
    check(task)
    assert len(studio.writes) == 1
    assert studio.serves(task, CLEO)
    assert not studio.serves(task, ANNE)
    assert keys(studio, task) == {
        "qc_status": "disputed",
        "qc_agreement": 0.0,
        "qc_annotators": 2,
        "qc_note": "One annotator has a Car at the upper left, another does not. "
        "One annotator has a Car at the upper right, another does not.",
        "qc_review": "no",
    }


def test_note_of_a_dispute_says_why_annotators_differ(studio, box, check, monkeypatch):
    asked = "whether objects smaller than 34 x 34 pixels are to be marked"
    split = say("guideline", "label", ("objects", "(absent)"), 20, what=asked, first=(ANNE, CLEO), second=(BEN, DAN),
                evidence="", measure="misses")  # fmt: skip
    careless = say("careless", "label", ("", ""), 20, what="errs", who=(BEN,), evidence="", measure="misses")
    diagnoses = [replace(split, most_area=34.0**2), careless]
    monkeypatch.setattr(SummaryStore, "diagnoses", lambda *_: diagnoses)
    large, small = studio.add_task(), studio.add_task()
    for task, size in ((large, 30), (small, 5)):
        studio.annotate(task, ANNE, [box(0, width=size, height=size)])
        studio.annotate(task, BEN, [])
        check(task)
    why = "The guideline leaves it open, and annotators read it in two ways: whether objects smaller than 34 x 34"
    assert why in keys(studio, small)["qc_note"]
    assert why not in keys(studio, large)["qc_note"]
    assert "errs" not in keys(studio, small)["qc_note"]  # annotators read it: nobody is named


def test_the_rest_of_the_data_stays_as_stored(studio, box, check):
    task = studio.add_task(more={"nested": ["s3://bucket/b.jpg", 1, None]})
    dispute(studio, box, task)
    before = dict(studio.tasks_by_id[task]["data"])
    check(task)
    assert {name: value for name, value in studio.tasks_by_id[task]["data"].items() if name not in KEYS} == before


def test_a_third_annotator_who_agrees_with_one_settles_it(studio, box, check):
    task, *_ = dispute(studio, box)
    check(task)
    studio.annotate(task, CLEO, [box(1)])
    checked = check(task)
    assert checked.verdict.outcome == "agreed"
    assert keys(studio, task)["qc_status"] == "agreed"
    assert keys(studio, task)["qc_note"] == "2 of 3 annotators agree. The majority settles 2 differences."
    assert studio.tasks_by_id[task]["overlap"] == 3
    assert not studio.serves(task, DAN)


def test_dispute_at_the_maximum_goes_to_review_only(studio, box, check):
    task, *_ = dispute(studio, box)
    check(task)
    studio.annotate(task, CLEO, [box(30)])
    check(task)
    assert keys(studio, task)["qc_status"] == "disputed"
    assert keys(studio, task)["qc_review"] == "yes"
    assert not studio.serves(task, DAN)


def test_the_maximum_is_the_policys(studio, box, check, settings):
    (settings.home / "qc").mkdir(parents=True, exist_ok=True)
    (settings.home / "qc" / "policy.toml").write_text("max_annotators = 4\n")
    task, *_ = dispute(studio, box)
    check(task)
    studio.annotate(task, CLEO, [box(30)])
    check(task)
    assert keys(studio, task)["qc_review"] == "no"
    assert studio.serves(task, DAN)


@pytest.mark.parametrize("people", [0, 1])
def test_nothing_is_written_before_two_annotators_submitted(studio, box, check, people):
    task = studio.add_task()
    for annotator in range(people):
        studio.annotate(task, annotator, [box()])
    assert check(task).verdict.outcome == "waiting"
    assert studio.writes == []


def test_a_skip_is_no_second_opinion(studio, box, check):
    task = studio.add_task()
    studio.annotate(task, ANNE, [box()])
    studio.annotate(task, BEN, [], was_cancelled=True)
    assert check(task).verdict.outcome == "waiting"
    assert studio.writes == []


def test_an_imported_ground_truth_alone_writes_nothing(studio, box, check):
    task = studio.add_task()
    studio.annotate(task, ANNE, [box()], ground_truth=True)
    assert check(task).verdict.outcome == "agreed"
    assert studio.writes == []


def test_ground_truth_resolves_a_dispute_and_withdraws_the_overlap(studio, box, check):
    task, first, _ = dispute(studio, box)
    check(task)
    studio.edit_annotation(first, ground_truth=True)
    check(task)
    assert keys(studio, task)["qc_status"] == "agreed"
    assert (studio.tasks_by_id[task]["overlap"], studio.tasks_by_id[task]["is_labeled"]) == (2, True)
    assert not studio.serves(task, CLEO)


def test_checking_again_writes_nothing(studio, box, check, engine):
    task, *_ = dispute(studio, box)
    for _ in range(3):
        check(task)
    assert len(studio.writes) == len(logged(engine)) == 1


def test_a_correction_takes_the_further_annotator_back(studio, box, check):
    task, _, second = dispute(studio, box)
    check(task)
    studio.edit_annotation(second, result=[box(1)])
    check(task)
    assert keys(studio, task)["qc_status"] == "agreed"
    assert not studio.serves(task, CLEO)
    assert studio.tasks_by_id[task]["overlap"] == 2


def test_deleted_annotation_resets_the_task_for_a_new_dispute(studio, box, check):
    task, _, second = dispute(studio, box)
    check(task)
    studio.remove_annotation(second)
    assert check(task).verdict.outcome == "waiting"
    assert keys(studio, task)["qc_status"] == "waiting"
    assert studio.tasks_by_id[task]["overlap"] == 2
    assert studio.serves(task, BEN)
    studio.annotate(task, BEN, [box(60)])
    check(task)
    assert keys(studio, task)["qc_status"] == "disputed"
    assert studio.serves(task, CLEO)


def test_overlap_reset_by_a_person_stays_and_the_task_needs_review(studio, box, check):
    task, first, _ = dispute(studio, box)
    check(task)
    studio.tasks_by_id[task] |= {"overlap": 2, "is_labeled": True}
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 2
    assert keys(studio, task)["qc_review"] == "yes"
    studio.edit_annotation(first, result=[box(2)])  # and stays left alone when something new comes
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 2
    assert not studio.serves(task, CLEO)


def test_a_task_that_a_human_closed_is_not_opened_again(studio, box, check):
    task, *_ = dispute(studio, box)
    check(task)
    studio.tasks_by_id[task]["is_labeled"] = True
    check(task)
    assert studio.tasks_by_id[task]["is_labeled"]
    assert keys(studio, task)["qc_review"] == "yes"


def test_an_overlap_that_a_human_raised_further_stays(studio, box, check):
    task, _, second = dispute(studio, box)
    check(task)
    studio.tasks_by_id[task]["overlap"] = 5
    writes = len(studio.writes)
    check(task)
    studio.edit_annotation(second, result=[box(1)])
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 5
    assert all("overlap" not in write.arguments for write in studio.writes[writes:])


def test_sufficient_overlap_needs_no_write(studio, box, check):
    task = studio.add_task(overlap=4)
    dispute(studio, box, task)
    check(task)
    assert all("overlap" not in write.arguments for write in studio.writes)
    assert keys(studio, task)["qc_review"] == "no"
    assert studio.serves(task, CLEO)


def test_a_key_that_a_human_changed_stands_until_something_happens(studio, box, check):
    task, *_ = dispute(studio, box)
    check(task)
    studio.tasks_by_id[task]["data"] |= {"qc_status": "fine by me"}
    check(task)
    assert keys(studio, task)["qc_status"] == "fine by me"
    studio.annotate(task, CLEO, [box(1)])
    check(task)
    assert keys(studio, task)["qc_status"] == "agreed"


def test_data_that_a_human_edited_meanwhile_is_kept(studio, box, check):
    task, *_ = dispute(studio, box)
    check(task)
    studio.tasks_by_id[task]["data"]["comment"] = "look at the mirror"
    studio.annotate(task, CLEO, [box(1)])
    check(task)
    assert studio.tasks_by_id[task]["data"]["comment"] == "look at the mirror"


def test_every_write_is_logged_with_before_and_after(studio, box, check, engine):
    task, *_ = dispute(studio, box)
    check(task)
    (row,) = logged(engine)
    assert (row.project, row.task, row.route, row.state) == (7, task, "one_more_annotator+flag", "done")
    assert json.loads(row.before) == {"keys": {}, "overlap": 2, "is_labeled": True}
    after = json.loads(row.after)
    assert (after["overlap"], after["is_labeled"], after["keys"]["qc_status"]) == (3, False, "disputed")


@pytest.mark.parametrize("when", ["before", "after"])
def test_worker_killed_around_a_write_ends_the_same(studio, box, check, engine, when):
    task, _, second = dispute(studio, box)
    studio.fail_next(when)
    with pytest.raises(StudioRefused):
        check(task)
    check(task)
    assert keys(studio, task)["qc_status"] == "disputed"
    assert studio.serves(task, CLEO)
    assert {"before": ["overtaken", "done"], "after": ["done"]}[when] == [row.state for row in logged(engine)]
    # and it is still known that the overlap is ours to take back
    studio.edit_annotation(second, result=[box(1)])
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 2


def test_a_write_that_does_not_stick_is_an_error(studio, box, check, monkeypatch):
    task, *_ = dispute(studio, box)
    monkeypatch.setattr(studio, "update_task", lambda task, **_: studio.task_json(7, task))
    with pytest.raises(Exception, match="did not keep what was written"):
        check(task)


def test_deleted_task_is_forgotten(studio, box, check, memory):
    task, *_ = dispute(studio, box)
    check(task)
    del studio.tasks_by_id[task]
    assert check(task).verdict is None
    assert memory.annotation_versions(7) == {}
    assert memory.judged_tasks(7) == set()


def test_reused_task_id_starts_without_history(studio, box, check):
    task, *_ = dispute(studio, box)
    check(task)
    del studio.tasks_by_id[task]
    assert studio.add_task() == task
    studio.tasks_by_id[task]["created_at"] = "later"
    dispute(studio, box, task)
    check(task)
    assert studio.serves(task, CLEO)


@pytest.mark.parametrize("review", [True, False])
def test_task_that_cannot_be_judged_goes_to_a_reviewer(studio, box, check, settings, review):
    path = settings.home / "qc" / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"review_not_judged = {str(review).lower()}")
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0)])
    studio.annotate(task, BEN, [box(0) | {"value": {"x": "here"}}])
    check(task)
    held = studio.tasks_by_id[task]
    assert (held["data"]["qc_status"], held["data"]["qc_agreement"]) == ("not_judged", None)
    assert held["data"]["qc_review"] == ("yes" if review else "no")
    assert held["data"]["qc_note"].startswith("Not judged: 1 of 2 annotations cannot be read whole")
    assert (held["overlap"], held["is_labeled"]) == (2, True)
    assert bool(held["predictions"]) == review  # both stances and a proposal, for the reviewer
    studio.edit_annotation(2, result=[box(0)])
    check(task)
    assert (studio.tasks_by_id[task]["data"]["qc_status"], studio.tasks_by_id[task]["predictions"]) == ("agreed", [])


def test_a_misspelled_control_stops_the_check(studio, box, check, settings):
    path = settings.home / "qc" / str(PROJECT) / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[controls.lable]\nweight = 2")
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0)])
    with pytest.raises(PolicyError, match="names 'lable'"):
        check(task)
