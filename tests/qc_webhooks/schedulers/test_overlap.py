"""Tasks that get fewer annotators than a verdict needs are named and, where the policy says so, raised."""

import pytest
from structlog.testing import capture_logs

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.policies import qc_policy
from labelloop.service.jobs.inbox import Inbox
from qc_webhooks.events import TASK
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.undo import Undo
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.schedulers.overlap import MAX_PER_RUN, OverlapScheduler
from qc_webhooks.studio.connect import connect
from tests.qc_webhooks.conftest import PROJECT

RAISED = Policy(raise_overlap=True)


@pytest.fixture
def studio(studio):
    studio.fields |= {"maximum_annotations": 2, "task_number": 10}
    return studio


@pytest.fixture
def inbox(settings, engine):
    return Inbox.from_settings(settings, engine)


def keeper(studio, inbox, policy):
    return OverlapScheduler(studio, inbox, lambda _project: policy)


@pytest.fixture
def raising(settings):
    path = settings.home / "qc" / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("raise_overlap = true")


def warned(run):
    with capture_logs() as logs:
        run(PROJECT)
    return [item for item in logs if item["event"] == "tasks_without_further_annotators"]


def test_low_overlaps_are_reported_again_when_more_appear(studio, inbox):
    run = keeper(studio, inbox, Policy()).raise_overlaps
    studio.add_task()
    assert not warned(run)
    studio.add_task(overlap=1)
    (line,) = warned(run)
    assert line["tasks"] == 1
    assert "raise_overlap = true" in line["fix"]
    assert not warned(run)
    studio.add_task(overlap=1)
    assert warned(run)[0]["tasks"] == 2
    assert not inbox.due_subjects(10)


@pytest.mark.parametrize("chosen", [{"maximum_annotations": 1}, {"overlap_cohort_percentage": 50}])
def test_what_the_project_asks_for_itself_is_not_named(studio, inbox, chosen):
    studio.fields |= chosen
    studio.add_task(overlap=1)
    assert not warned(keeper(studio, inbox, Policy()).raise_overlaps)


def test_a_run_reads_no_task_while_nothing_changes(studio, inbox, monkeypatch):
    studio.add_task(overlap=1)
    held = keeper(studio, inbox, RAISED)
    assert held.raise_overlaps(PROJECT) == 1
    monkeypatch.setattr(studio, "stamps", None)
    assert held.raise_overlaps(PROJECT) == 0


def test_many_short_tasks_are_raised_some_at_a_time(studio, inbox):
    for _ in range(MAX_PER_RUN + 3):
        studio.add_task(overlap=1)
    held = keeper(studio, inbox, RAISED)
    assert [held.raise_overlaps(PROJECT) for _ in range(3)] == [MAX_PER_RUN, 3, 0]


@pytest.mark.parametrize("annotated", [0, 1])
def test_a_short_task_is_raised_and_gets_its_verdict(studio, inbox, box, check, raising, settings, annotated):
    task = studio.add_task(overlap=1)
    if annotated:
        studio.annotate(task, 1, [box()])
        assert studio.tasks_by_id[task]["is_labeled"]
    keeper(studio, inbox, read_policy(settings.home, PROJECT)).raise_overlaps(PROJECT)
    assert inbox.due_subjects(10) == [(TASK, f"{PROJECT}:{task}")]
    check(task)
    assert (studio.tasks_by_id[task]["overlap"], studio.tasks_by_id[task]["is_labeled"]) == (2, False)
    for annotator in range(annotated + 1, 3):
        studio.annotate(task, annotator, [box()])
        check(task)
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "agreed"
    assert (studio.tasks_by_id[task]["overlap"], studio.tasks_by_id[task]["is_labeled"]) == (2, True)


def test_an_overlap_that_somebody_lowers_again_stays(studio, box, check, raising):
    task = studio.add_task(overlap=1)
    check(task)
    studio.tasks_by_id[task]["overlap"] = 1
    studio.annotate(task, 1, [box()])
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 1


def test_a_raised_overlap_is_undone_and_stays_so(studio, memory, settings, inbox, check, raising):
    task = studio.add_task(overlap=1)
    check(task)
    undone = list(Undo(studio, memory, Checker(studio, memory, settings.home), inbox).run(PROJECT))
    assert [(item.part, item.left) for item in undone] == [("overlap", False)]
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 1


def test_without_the_policy_no_overlap_is_touched(studio, box, check):
    task = studio.add_task(overlap=1)
    studio.annotate(task, 1, [box()])
    check(task)
    assert studio.tasks_by_id[task]["overlap"] == 1


@pytest.mark.parametrize("policy", ["", "raise_overlap = true"])
def test_connect_and_doctor_name_short_tasks(studio, settings, engine, policy):
    studio.fields["maximum_annotations"] = 2
    for _ in range(3):
        studio.add_task(overlap=1)
    studio.add_task(overlap=2)
    path = settings.home / "qc" / "policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(policy)
    messages = [change.what for change in connect(studio, PROJECT, settings, engine)]
    result = qc_policy(DoctorContext(settings, PROJECT, studio=studio))
    if policy:
        assert "the worker raises the overlap of 3 tasks to 2" in messages
        assert result.level == "ok"
    else:
        (line,) = (item for item in messages if item.startswith("3 tasks have an overlap below 2"))
        assert "raise_overlap = true" in line
        assert result.level == "warning"
        assert "3 tasks have an overlap below 2" in result.what
