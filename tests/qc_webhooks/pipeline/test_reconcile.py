"""The poller finds what no webhook said, tells it once, and reads no more than it must."""

from urllib.parse import unquote

import httpx
import msgspec
import pytest

from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import Studio, StudioNotFound
from qc_webhooks.pipeline import reconcile
from qc_webhooks.pipeline.reconcile import COUNT_EVERY_S, JUDGED_WITHIN_S, SWEEP_EVERY_S, Reconciler
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import ANNOTATIONS, TASKS

PROJECT = 7


@pytest.fixture
def projects(engine):
    store = ProjectStore(engine)
    store.add(PROJECT)
    return store


@pytest.fixture
def poller(studio, memory, projects, engine):
    return Reconciler(studio, memory, projects, Inbox(engine))


@pytest.fixture
def work(engine, check):
    """Do everything that is in the inbox, as a worker would."""

    def run():
        inbox = Inbox(engine)
        for topic, subject in inbox.due_subjects(100):
            claim = inbox.claim(topic, subject, "test")
            check(int(subject.partition(":")[2]))
            inbox.mark_done(claim)

    return run


def dispute(studio, box, task=None):
    task = task or studio.add_task()
    return task, studio.annotate(task, 1, [box(0)]), studio.annotate(task, 2, [box(60)])


def test_it_carries_the_service_alone(studio, box, poller, work):
    task, *_ = dispute(studio, box)
    poller.run()
    work()
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "disputed"
    studio.annotate(task, 3, [box(1)])
    poller.run()
    work()
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "agreed"


def test_model_disagreement_rechecks_once_per_change(studio, box, poller, work, settings):
    (settings.home / "qc").mkdir(parents=True)
    (settings.home / "qc" / "policy.toml").write_text("least_model_doubt = 0.5\n")
    task = studio.add_task(overlap=1)
    studio.annotate(task, 1, [box(0)])
    poller.run()
    work()
    data = studio.tasks_by_id[task]["data"]
    assert "qc_review" not in data
    studio.update_task(task, data={**data, "qc_model_note": "Perhaps a Car is missing.", "qc_model_score": 0.8})
    assert poller.poll(PROJECT) == 1
    work()
    assert studio.tasks_by_id[task]["data"]["qc_review"] == "yes"
    assert poller.poll(PROJECT) == 1  # what was written just now
    work()
    assert poller.poll(PROJECT) == 0
    data = {key: value for key, value in studio.tasks_by_id[task]["data"].items() if not key.startswith("qc_model")}
    studio.update_task(task, data=data)
    poller.run()
    work()
    assert studio.tasks_by_id[task]["data"]["qc_review"] == "no"


def test_what_was_judged_is_not_told_again(studio, box, poller, work):
    dispute(studio, box)
    assert poller.poll(PROJECT) == 2
    work()
    assert [poller.poll(PROJECT), poller.poll(PROJECT), poller.sweep(PROJECT)] == [0, 0, 0]


def test_what_is_in_the_inbox_is_not_told_again(studio, box, poller):
    dispute(studio, box)
    assert [poller.poll(PROJECT), poller.sweep(PROJECT)] == [2, 0]


def test_a_change_a_skip_and_a_deletion_are_found(studio, box, poller, work):
    task, first, second = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    studio.edit_annotation(second, result=[box(1)])
    assert poller.poll(PROJECT) == 1
    work()
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "agreed"
    studio.edit_annotation(first, was_cancelled=True)
    assert poller.poll(PROJECT) == 1
    work()
    studio.remove_annotation(second)
    assert poller.poll(PROJECT) == 1
    work()
    assert studio.tasks_by_id[task]["data"]["qc_annotators"] == 0


@pytest.fixture
def later(monkeypatch):
    """later(seconds): moves the poller's clock on."""
    moved = [0.0]
    clock = reconcile.time.time
    monkeypatch.setattr(reconcile.time, "time", lambda: clock() + moved[0])

    def move(seconds):
        moved[0] += seconds

    return move


def settle(poller):
    while poller._projects.get(PROJECT).caught_up is False:
        poller.poll(PROJECT)


@pytest.mark.parametrize("due", [COUNT_EVERY_S, SWEEP_EVERY_S])
def test_a_deletion_without_a_trace_is_found_within_the_hour(studio, box, poller, work, later, due):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    settle(poller)
    later(JUDGED_WITHIN_S + 60)
    assert poller.poll(PROJECT) == 0  # the count that later ones are compared with
    studio.tasks_by_id[task]["annotations"] = []
    assert poller.poll(PROJECT) == 0
    later(due + 60)
    assert poller.poll(PROJECT) == 2
    work()
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "waiting"


def test_first_poll_finds_deletions_made_without_a_worker(studio, box, poller, work, later, memory, projects):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    settle(poller)
    studio.tasks_by_id[task]["annotations"].pop()
    later(JUDGED_WITHIN_S + 60)
    restarted = Reconciler(studio, memory, projects, poller._inbox)
    assert restarted.poll(PROJECT) == 1


def test_unjudgeable_annotations_do_not_trigger_hourly_sweeps(studio, box, poller, work, later):
    dispute(studio, box)
    poller.poll(PROJECT)
    work()
    studio.fields |= {"total_annotations_number": 5}  # three that no task shows
    sweeps = []
    plain = poller.sweep
    poller.sweep = lambda *args: sweeps.append(1) or plain(*args)
    for _ in range(5):
        later(COUNT_EVERY_S + 60)
        poller.poll(PROJECT)
        work()
    assert len(sweeps) <= 1


def test_polls_do_not_retry_a_job_that_killed_its_workers(studio, box, poller, engine):
    task, *_ = dispute(studio, box)
    assert poller.poll(PROJECT) == 2
    inbox = Inbox(engine)
    inbox.mark_dead(inbox.claim("qc.task", f"{PROJECT}:{task}", "test"), "ended by signal 9", killed=True)
    assert [poller.poll(PROJECT), poller.sweep(PROJECT)] == [0, 0]
    assert inbox.counts()["dead"] == 2


def test_next_poll_retries_events_given_up_during_an_outage(studio, box, poller, work, engine):
    task, *_ = dispute(studio, box)
    assert poller.poll(PROJECT) == 2
    inbox = Inbox(engine)
    inbox.mark_dead(inbox.claim("qc.task", f"{PROJECT}:{task}", "test"), "Label Studio does not answer")
    assert poller.poll(PROJECT) == 2
    work()
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "disputed"
    assert inbox.dead_letters() == []


def test_done_event_with_a_remaining_difference_is_resubmitted(studio, box, poller, work, memory, engine):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    memory.delete_task(PROJECT, task)
    assert poller.sweep(PROJECT) == 2
    assert poller.sweep(PROJECT) == 0
    work()
    assert poller.sweep(PROJECT) == 0


def test_deleted_tasks_are_forgotten(studio, box, poller, work, memory):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    del studio.tasks_by_id[task]
    assert poller.sweep(PROJECT) == 1
    work()
    assert memory.annotation_versions(PROJECT) == {}


def test_a_quiet_project_is_read_from_its_newest_task_on(studio, box, poller, work):
    for _ in range(5):
        dispute(studio, box)
    poller.poll(PROJECT)
    work()
    read = []
    plain = studio.stamps

    def counted(*args, **kwargs):
        result = list(plain(*args, **kwargs))
        read.append(len(result))
        return iter(result)

    studio.stamps = counted
    for _ in range(4):
        poller.poll(PROJECT)
    assert read[-1] == 0


def test_a_new_import_is_not_read_in_full(studio, box, poller):
    poller.poll(PROJECT)
    numbers = [studio.add_task() for _ in range(5)]
    whole, plain = [], studio.tasks
    studio.tasks = lambda *args, **more: whole.append(more) or plain(*args, **more)
    poller.poll(PROJECT)
    assert whole == []
    studio.annotate(numbers[2], 1, [box(0)])
    assert poller.poll(PROJECT) == 1
    assert [more["only_ids"] for more in whole] == [[numbers[2]]]


def test_one_project_that_cannot_be_read_keeps_no_other_waiting(studio, box, poller, projects, work):
    projects.add(1)
    plain = studio.tasks

    def refused(project, **kwargs):
        if project == 1:
            from labelloop.service.studio import StudioUnreachable

            raise StudioUnreachable(url="http://x", reason="down")
        return plain(project, **kwargs)

    studio.tasks = refused
    task, *_ = dispute(studio, box)
    poller.run()
    work()
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "disputed"


def test_a_time_in_the_future_does_not_blind_the_poller(studio, box, poller, work):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    studio.tasks_by_id[task]["updated_at"] = "2999-01-01T00:00:00.000000Z"
    poller.poll(PROJECT)
    assert ProjectStore(poller._projects.engine).get(PROJECT).cursor < "2999"


def test_sweep_reads_only_changed_tasks(studio, box, poller, work):
    for _ in range(5):
        dispute(studio, box)
    poller.sweep(PROJECT)
    work()
    poller.sweep(PROJECT)  # what we wrote ourselves changed the tasks: they are read once more
    read = []
    tasks = studio.tasks
    studio.tasks = lambda *args, only_ids=None, **more: (
        read.extend(only_ids or ()),
        tasks(*args, only_ids=only_ids, **more),
    )[1]
    assert poller.sweep(PROJECT) == 0
    assert read == []
    studio.remove_annotation(studio.tasks_by_id[3]["annotations"][0]["id"])
    assert poller.sweep(PROJECT) == 1
    assert read == [3]


def test_deleted_project_is_removed_once_confirmed(studio, box, poller, work, projects, memory):
    dispute(studio, box)
    poller.run()
    work()

    def gone(*_args, **_more):
        raise StudioNotFound("GET", 404, "No Project matches the given query.")

    studio.tasks = studio.stamps = gone
    poller.run()
    assert projects.get(PROJECT), "it is still in the list: an answer of 404 alone may mean many things"
    studio.projects = list
    poller.run()
    assert projects.get(PROJECT) is None
    assert memory.judged_tasks(PROJECT) == set()


class PagedTasks:
    """Label Studio's list of tasks over HTTP, for projects that are too large to hold as JSON; counts what it sends."""

    def __init__(self, tasks: int, changed: dict[int, str]) -> None:
        self.tasks, self.changed = tasks, changed
        self.requests, self.sent, self.whole = 0, 0, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if request.url.path.startswith("/api/projects/"):
            counts = {"id": PROJECT, "total_annotations_number": self.tasks, "skipped_annotations_number": 0}
            return self._answer(counts)
        query = msgspec.json.decode(unquote(request.url.params["query"]))
        items = {item["filter"].rpartition(":")[2]: item["value"] for item in query.get("filters", {}).get("items", ())}
        ids = range(items.get("id", 0) + 1, self.tasks + 1)
        if since := items.get("updated_at"):
            ids = [id_ for id_, at in self.changed.items() if at > since and id_ in ids]
        if query.get("selectedItems"):
            ids = query["selectedItems"]["included"]
        page = list(ids[: int(request.url.params["page_size"])])
        whole = request.url.params.get("fields") == "all"
        self.whole += whole * len(page)
        return self._answer({"total": len(ids), "tasks": [self._task(id_, whole=whole) for id_ in page]})

    def _task(self, id_, *, whole):
        at = self.changed.get(id_, "2026-01-01T00:00:00.000000Z")
        stamp = {"id": id_, "updated_at": at, "total_annotations": 1, "cancelled_annotations": 0}
        annotation = {"id": id_, "completed_by": 1, "result": [], "updated_at": at}
        return stamp | ({"project": PROJECT, "data": {}, "annotations": [annotation]} if whole else {})

    def _answer(self, value):
        body = msgspec.json.encode(value)
        self.sent += len(body)
        return httpx.Response(200, content=body)


def test_an_hour_of_a_large_project_costs_few_small_requests(engine, memory, projects, later):
    """100,000 judged tasks, three of which changed: the figures that docs/how-to/operate.md states."""
    size, changed = 100_000, dict.fromkeys((5, 50_000, 99_999), "2026-03-01T00:00:00.000000Z")
    pages = PagedTasks(size, changed)
    studio = Studio("http://label-studio", "0" * 40)
    studio._http = httpx.Client(transport=httpx.MockTransport(pages))
    old = "2026-01-01T00:00:00.000000Z"
    with engine.begin() as connection:
        entry = [
            {"project": PROJECT, "task": n, "annotation": n, "updated_at": old, "stamp": old}
            for n in range(1, size + 1)
        ]
        tasks = [
            {"review": False, "outcome": "agreed", "annotators": 1, "born": "", "fingerprint": "", "decided_at": 0.0}
            | first_item
            for first_item in entry
        ]
        connection.execute(
            TASKS.insert(), [{k: v for k, v in first_item.items() if k in TASKS.c} for first_item in tasks]
        )
        connection.execute(
            ANNOTATIONS.insert(), [{k: v for k, v in first_item.items() if k in ANNOTATIONS.c} for first_item in entry]
        )
    projects.advance(PROJECT, cursor="2026-02-01T00:00:00.000000Z", caught_up=False, swept=True)
    poller = Reconciler(studio, memory, projects, Inbox(engine))
    assert poller.poll(PROJECT) == 3
    later(COUNT_EVERY_S + 60)
    pages.requests = pages.sent = pages.whole = 0
    polls = 40
    for _ in range(polls):
        poller.poll(PROJECT)
    assert pages.requests <= polls + 2  # each poll, those as young as the youngest, one count of annotations an hour
    assert pages.whole <= 6  # those that are as young as the youngest, once more
    assert pages.sent < 100_000
    later(SWEEP_EVERY_S)
    pages.requests = pages.sent = pages.whole = 0
    poller.poll(PROJECT)
    assert pages.requests <= 110
    assert pages.whole <= 10
    studio.close()
