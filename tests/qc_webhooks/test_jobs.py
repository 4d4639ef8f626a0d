"""The handlers behind the inbox and the periodic jobs, on SQLite and on Postgres."""

import threading

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs, Reject
from labelloop.service.jobs.lanes import LongJob, may_leave_thread
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings
from qc_webhooks.cli.qc import project_status
from qc_webhooks.events import PROJECT, TASK, annotation_event, sweep_event
from qc_webhooks.jobs import estimated_seconds, handlers, periodic_jobs
from qc_webhooks.server.app import QcMetricsCollector
from qc_webhooks.store.projects import ProjectStore


@pytest.fixture
def disputed(studio, box):
    """A task that two annotators see differently."""
    task = studio.add_task()
    studio.annotate(task, 1, [box(0)])
    studio.annotate(task, 2, [box(60)])
    return task


def test_an_unreadable_task_becomes_a_dead_letter(studio, disputed, settings, engine):
    studio.tasks_by_id[disputed]["data"] = None
    with pytest.raises(Reject, match="task 1: data"):
        handlers(settings, studio, engine)[TASK](f"7:{disputed}", [])


@pytest.mark.parametrize("subject", ["7", "*"])
def test_a_project_event_compares_its_tasks(studio, disputed, settings, engine, subject):
    ProjectStore(engine).add(7)
    handlers(settings, studio, engine)[PROJECT](subject, [])
    assert Inbox(engine).due_subjects(10) == [(TASK, f"7:{disputed}")]


def test_the_periodics_and_how_often_they_run(studio, settings, engine):
    assert [(job.name, job.every_s) for job in periodic_jobs(settings, studio, engine)] == [
        ("qc.poll", settings.poll_seconds),
        ("qc.reviews", settings.poll_seconds),
        ("qc.tabs", 60.0),
        ("qc.crowd", 30.0),
        ("qc.truths", 3.0),
        ("qc.board", 15.0),
    ]


def test_a_dense_task_leaves_the_thread_of_a_worker_before_it_is_judged(studio, disputed, box, settings, engine):
    check = handlers(settings, studio, engine)[TASK]
    check(f"7:{disputed}", [])
    before = len(studio.writes)
    studio.annotate(disputed, 3, [box(at % 90) for at in range(8000)])
    with may_leave_thread():
        with pytest.raises(LongJob):
            check(f"7:{disputed}", [])
        other = studio.add_task()
        check(f"7:{other}", [])
    assert len(studio.writes) == before


@pytest.mark.parametrize(
    ("annotations", "seconds"),
    [
        ([], 0),
        ([{"result": None}, {}], 0),
        ([None, 5, {"result": 5}, {"result": "x"}], 0),  # read as malformed
        ([{"result": [{"value": {"x": 1}}] * 1000}] * 2, 0.8),
        ([{"result": [{"value": {"x": 1}}] * 1000}] * 20, 26),
        ([{"result": [{"value": {"points": [[1, 2]] * 30}}] * 1000}] * 2, 8.6),
        ([{"result": [{"value": {"rle": [0] * 9000, "format": "rle"}}, {"value": None}, "x"]}], 0.001),
    ],
)
def test_the_time_of_a_check_is_estimated_from_what_is_drawn(annotations, seconds):
    assert estimated_seconds({"annotations": annotations}) == pytest.approx(seconds, rel=0.1)


def test_a_burst_of_events_is_one_check(studio, disputed, settings, engine):
    inbox = Inbox(engine)
    for version in range(20):
        hint = annotation_event(7, disputed, 1, f"2026-01-01T00:00:{version:02}Z", source="test")
        inbox.put(hint.topic, hint.subject, hint.key, hint.payload)
    claim = inbox.claim(TASK, f"7:{disputed}", "test")
    assert len(claim.events) == 20
    handlers(settings, studio, engine)[TASK](claim.subject, claim.events)
    assert len(studio.writes) == 1


def test_the_whole_way_on_postgres(studio, disputed, postgres_url, tmp_path, wait_until):
    settings = Settings(home=tmp_path, database_url=postgres_url, poll_seconds=0.2)
    engine = open_database(settings)
    ProjectStore(engine).add(7)
    jobs = Jobs(settings, Inbox.from_settings(settings, engine), handlers(settings, studio, engine))
    stop = threading.Event()
    worker = threading.Thread(target=run_worker, args=(jobs,), kwargs={"stop": stop})
    worker.start()
    try:
        hint = sweep_event(7, source="test")
        jobs.submit(hint.topic, hint.subject, hint.key, hint.payload)
        wait_until(lambda: studio.tasks_by_id[disputed]["data"].get("qc_status") == "disputed")
        wait_until(lambda: project_status(7, settings, engine).outcomes == {"disputed": 1})
        assert any(metric.samples for metric in QcMetricsCollector(engine).collect())
    finally:
        stop.set()
        worker.join(30)
        engine.dispose()
