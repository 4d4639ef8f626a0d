"""The review project: what is copied into it, what comes back, and that nothing is copied twice or lost."""

import copy
import threading
import time
from functools import partial

import pytest
import sqlalchemy as sa

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.studio.task import read_task
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import EVENTS, Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings, settings_file
from labelloop.service.studio import StudioRefused
from labelloop.service.web.webhook_secret import SECRET_HEADER
from qc_webhooks.artifacts.review_copy import ReviewCopyContent, copy_data, with_note
from qc_webhooks.decision.context import KEYS
from qc_webhooks.jobs import handlers, periodic_jobs, requeue_submitted, requeue_without_copy
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.review_project import ReviewStore, ensure_review_project
from qc_webhooks.pipeline.undo import Undo
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import ACTIONS
from tests.qc_webhooks.conftest import CONFIG, PROJECT, QcStudio

ANNE, BEN, CLEO, RITA = 1, 2, 3, 9
REVIEW = 8


class ReviewStudio(QcStudio):
    """The project under quality control is "Streets"; all others are review projects."""

    def __init__(self):
        super().__init__()
        self.fields["title"] = "Streets"

    @property
    def review_projects(self):
        return {number: fields for number, fields in self.projects_by_id.items() if number != PROJECT}

    @property
    def copies(self):
        return [source for source in self.tasks_by_id.values() if source["project"] != PROJECT]


@pytest.fixture
def studio():
    return ReviewStudio()


@pytest.fixture
def store(engine):
    return ReviewStore(engine)


@pytest.fixture
def policy(settings):
    file = settings.home / "qc" / "policy.toml"
    file.parent.mkdir(parents=True)
    file.write_text("review_project = true\nadjudicate = false\n")
    return file


@pytest.fixture
def review_project(studio, policy, settings, store):
    """The project has a review project."""
    ensure_review_project(studio, PROJECT, settings, store)


@pytest.fixture
def review(studio, box, check, review_project):
    """A task that three annotators dispute, in a project with a review project."""
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0), box(60)])
    studio.annotate(task, BEN, [box(1), box(40, "Person")])
    check(task)
    studio.annotate(task, CLEO, [box(0, "Person"), box(20)])
    check(task)
    return task


def submit(studio, who=RITA, **fields):
    """Submit in the review stream, as it stands."""
    (created,) = studio.copies
    proposal = next(entry for entry in created["predictions"] if entry["model_version"] == "QC consensus")
    return studio.annotate(created["id"], who, copy.deepcopy(proposal["result"]), lead_time=3.0, **fields)


def truth(studio, task):
    return [entry for entry in studio.tasks_by_id[task]["annotations"] if entry.get("ground_truth")]


def test_a_dispute_is_copied_with_its_stances_and_its_note(studio, review):
    (created,) = studio.copies
    assert created["project"] == REVIEW
    assert studio.tabs(created["id"]) == ["QC consensus", "QC: A", "QC: B", "QC: C"]
    assert "No majority among 3 annotators" in created["data"]["qc_note"]
    assert created["data"]["qc_task"] == f"{PROJECT}:{review}"
    assert studio.review_projects[REVIEW]["model_version"] == "QC consensus", "the stream fills the consensus in"
    assert '<Header value="$qc_note"/>' in studio.review_projects[REVIEW]["label_config"]
    assert studio.tabs(review) == [], "adjudicate = false"


def test_one_submit_decides_the_original_under_the_reviewers_name(studio, check, review):
    submit(studio)
    check(review)
    (decided,) = truth(studio, review)
    assert (decided["completed_by"], decided["lead_time"]) == (RITA, 3.0)
    assert studio.tasks_by_id[review]["data"]["qc_status"] == "agreed"
    assert studio.copies == []
    assert check(review).actions == ()


def test_a_skip_decides_nothing(studio, check, review):
    submit(studio, was_cancelled=True)
    check(review)
    assert truth(studio, review) == []
    assert len(studio.copies) == 1


def test_a_dispute_that_ends_otherwise_takes_its_copy_along(studio, box, check, review):
    for annotation in studio.tasks_by_id[review]["annotations"]:
        studio.edit_annotation(annotation["id"], result=[box(0)])
    check(review)
    assert studio.copies == []


def test_a_dispute_that_changes_changes_its_copy_in_place(studio, box, check, review):
    (before,) = copy.deepcopy(studio.copies)
    studio.edit_annotation(studio.tasks_by_id[review]["annotations"][0]["id"], result=[box(5, "Person"), box(75)])
    check(review)
    (after,) = studio.copies
    assert after["id"] == before["id"]
    assert after["predictions"] != before["predictions"]


def test_a_copy_that_somebody_removed_stays_removed(studio, check, review, box):
    studio.delete_task(studio.copies[0]["id"])
    assert check(review).actions == ()
    assert studio.copies == []
    studio.edit_annotation(studio.tasks_by_id[review]["annotations"][0]["id"], result=[box(5, "Person"), box(75)])
    check(review)
    assert len(studio.copies) == 1, "the dispute is another one now"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(9))
def test_worker_failing_at_any_write_loses_nothing(studio, check, box, policy, settings, store, when, write):
    ensure_review_project(studio, PROJECT, settings, store)
    task = studio.add_task()
    for who, results in ((ANNE, [box(0), box(60)]), (BEN, [box(1), box(40)]), (CLEO, [box(0, "Person"), box(20)])):
        studio.annotate(task, who, results)
    studio.fail_next(when, skip=write)
    for _ in range(2):
        try:
            check(task)
        except StudioRefused:
            continue
    check(task)
    assert len(studio.copies) == 1
    assert studio.tabs(studio.copies[0]["id"]) == ["QC consensus", "QC: A", "QC: B", "QC: C"]
    submit(studio)
    studio.fail_next(when, skip=write)
    for _ in range(2):
        try:
            check(task)
        except StudioRefused:
            continue
    check(task)
    studio.clear_faults()
    check(task)
    assert len(truth(studio, task)) == 1
    assert len([entry for entry in studio.tasks_by_id[task]["annotations"] if entry["completed_by"] == RITA]) == 1
    assert studio.copies == []


def test_events_of_a_copy_recheck_the_original(studio, review, settings, engine, store):
    inbox = Inbox.from_settings(settings, engine)
    (created,) = studio.copies
    submit(studio)
    assert requeue_submitted(studio, store, inbox, REVIEW) == 1
    handlers(settings, studio, engine)["qc.task"](f"{REVIEW}:{created['id']}", [])
    with engine.connect() as connection:
        subjects = set(connection.scalars(sa.select(EVENTS.c.subject)))
    assert subjects == {f"{PROJECT}:{review}"}
    handlers(settings, studio, engine)["qc.task"](f"{PROJECT}:{review}", [])
    assert len(truth(studio, review)) == 1


def test_existing_disputes_are_copied_into_a_new_review_project(studio, box, check, policy, settings, store, memory):
    task = studio.add_task()
    for who, results in ((ANNE, [box(0)]), (BEN, [box(40)]), (CLEO, [box(70)])):
        studio.annotate(task, who, results)
    check(task)
    assert studio.copies == []
    ensure_review_project(studio, PROJECT, settings, store)
    assert requeue_without_copy(memory, store, Inbox.from_settings(settings, memory.engine), PROJECT) == 1
    check(task)
    assert len(studio.copies) == 1


def test_a_review_project_that_was_deleted_is_filled_again(studio, review, check, settings, store, memory):
    inbox = Inbox.from_settings(settings, memory.engine)
    for _ in range(2):
        for created in list(studio.copies):
            studio.delete_task(created["id"])
        del studio.projects_by_id[store.review_of(PROJECT)]
        ensure_review_project(studio, PROJECT, settings, store)
        assert requeue_without_copy(memory, store, inbox, PROJECT) == 1
        check(review)
        (created,) = studio.copies
        assert created["project"] == store.review_of(PROJECT)


def test_review_project_is_created_once_updated_and_recreated(studio, policy, settings, store):
    ensure = partial(ensure_review_project, studio, PROJECT, settings, store)
    assert ensure().done
    assert not ensure().done
    assert list(studio.review_projects) == [REVIEW]
    studio.review_projects[REVIEW]["label_config"] = "<View>own interface</View>"
    assert not ensure().done, "what people made of it is theirs"
    studio.fields["label_config"] = CONFIG.replace("Car", "Lorry")
    assert ensure().done
    assert "Lorry" in studio.review_projects[REVIEW]["label_config"]
    del studio.projects_by_id[REVIEW]
    assert ensure().done
    assert store.review_of(PROJECT) in studio.review_projects


def test_unsaved_review_project_is_found_again(studio, policy, settings, store):
    ensure_review_project(studio, PROJECT, settings, store)
    store.set_review_project(PROJECT, None)
    ensure_review_project(studio, PROJECT, settings, store)
    assert store.review_of(PROJECT) == REVIEW
    assert len(studio.review_projects) == 1


def test_undo_opens_the_dispute_again_and_keeps_the_reviewers_work(studio, check, review, memory, settings):
    submit(studio)
    check(review)
    checker = Checker(studio, memory, settings.home)
    undo = Undo(studio, memory, checker, Inbox.from_settings(settings, memory.engine))
    outcomes = {entry.part: entry for entry in undo.run(PROJECT, task=review)}
    assert truth(studio, review) == []
    assert outcomes["brought"].left
    assert "stays" in outcomes["brought"].text
    assert len(studio.tasks_by_id[review]["annotations"]) == 4
    assert "qc_status" not in studio.tasks_by_id[review]["data"]
    assert checker.check(PROJECT, review).actions == ()


def test_undo_takes_a_copy_back_for_good(studio, check, review, memory, settings):
    checker = Checker(studio, memory, settings.home)
    undo = Undo(studio, memory, checker, Inbox.from_settings(settings, memory.engine))
    assert "copy" in {entry.part for entry in undo.run(PROJECT, task=review) if not entry.left}
    assert studio.copies == []
    check(review)
    assert studio.copies == []


def test_every_write_is_logged(studio, check, review, engine):
    submit(studio)
    check(review)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(ACTIONS.c.route, ACTIONS.c.state).order_by(ACTIONS.c.id)).all()
    assert [row.route for row in rows if row.route in {"copy", "bring_back", "accept"}] == [
        "copy", "bring_back", "accept", "copy",
    ]  # fmt: skip
    assert {row.state for row in rows} == {"done"}


def test_storage_urls_resolve_through_the_original_project():
    data = {
        "image": "s3://bucket/a b.jpg",
        "pages": ["gs://x/1.png", "/data/upload/1/a.jpg"],
        "qc_note": "old",
        "qc_batch": 4,
    }
    task = read_task({"id": 5, "data": data})
    created = copy_data(task, PROJECT, ReviewCopyContent(note="new"), own_keys=KEYS, base="/ls")
    assert created["image"] == "/ls/tasks/5/resolve/?fileuri=czM6Ly9idWNrZXQvYSBiLmpwZw=="
    assert created["pages"][1] == "/data/upload/1/a.jpg"
    assert (created["qc_note"], created["qc_batch"]) == ("new", 4), "what people call their own keys is theirs"


@pytest.mark.parametrize(
    ("config", "begins"),
    [
        ("<View><Image/></View>", '<View>\n  <Header value="$qc_note"/><Image/>'),
        ('<View style="a > b"><Image/></View>', '<View style="a > b">'),
        ('<View><Header value="$qc_note"/></View>', '<View><Header value="$qc_note"/></View>'),
    ],
)
def test_the_note_stands_above_everything_else(config, begins):
    assert with_note(config).startswith(begins)
    assert with_note(config).count("$qc_note") == 1


def test_running_worker_writes_the_rotated_secret_into_the_review_webhook(studio, review_project, settings, engine):
    file = settings_file(settings.home)
    file.write_text("LABELLOOP_WEBHOOK_SECRET=first-secret\n")
    started = Settings(home=settings.home)
    tabs = next(job for job in periodic_jobs(started, studio, engine) if job.name == "qc.tabs")
    ProjectStore(engine).add(PROJECT)
    for secret in ("first-secret", "second-secret-after-a-rotation"):
        file.write_text(f"LABELLOOP_WEBHOOK_SECRET={secret}\n")
        tabs.run()
        assert [hook["headers"][SECRET_HEADER] for hook in studio.webhooks(REVIEW)] == [secret]


def test_an_interface_without_a_view_is_refused():
    with pytest.raises(LabelingError, match="<View>"):
        with_note("<Image/>")


def test_two_instances_on_one_postgres_copy_and_decide_once(studio, box, settings, policy, postgres_url, wait_until):
    """And measure an annotator once: each instance has its own worker, periodic jobs included."""
    policy.write_text("review_project = true\nadjudicate = false\nground_truth_share = 0.5\nmax_annotators = 2\n")
    both = Settings(home=settings.home, database_url=postgres_url, poll_seconds=0.2)
    engine = open_database(both)
    ProjectStore(engine).add(PROJECT)
    ensure_review_project(studio, PROJECT, both, ReviewStore(engine))
    gold = studio.add_task(overlap=2)
    studio.annotate(gold, RITA, [box(10)], ground_truth=True)
    disputed = [studio.add_task() for _ in range(6)]
    for task in disputed:
        studio.annotate(task, ANNE, [box(0)])
        studio.annotate(task, BEN, [box(50)])
    stop, workers = threading.Event(), []
    for _ in range(2):
        inbox = Inbox.from_settings(both, engine)
        jobs = Jobs(both, inbox, handlers(both, studio, engine), periodic_jobs(both, studio, engine))
        workers.append(threading.Thread(target=run_worker, args=(jobs,), kwargs={"stop": stop}))
        workers[-1].start()
    try:
        wait_until(lambda: len(studio.copies) == 6)
        wait_until(lambda: studio.fields.get("annotator_evaluation_enabled"))
        wait_until(lambda: studio.tasks_by_id[gold]["is_labeled"])
        for created in list(studio.copies):
            proposal = next(entry for entry in created["predictions"] if entry["model_version"] == "QC consensus")
            studio.annotate(created["id"], RITA, copy.deepcopy(proposal["result"]))
        wait_until(lambda: studio.copies == [])
        time.sleep(1)
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
    try:
        assert all(len(truth(studio, task)) == 1 for task in disputed)
        assert all(len(studio.tasks_by_id[task]["annotations"]) == 3 for task in disputed)
        with engine.connect() as connection:
            routes = connection.execute(sa.select(ACTIONS.c.task, ACTIONS.c.route)).all()
        for task in disputed:
            assert [route for number, route in routes if number == task].count("bring_back") == 1
            assert [route for number, route in routes if number == task].count("copy") == 2, "made, and removed"
    finally:
        engine.dispose()
