"""The poller finds what no webhook said, tells it once, and reads no more than it must."""

import pytest

from labelloop.service.inbox import Inbox
from labelloop.service.studio import NotFound
from qc_webhooks import reconcile
from qc_webhooks.projects import ProjectStore
from qc_webhooks.reconcile import SWEEP_EVERY_S, Reconciler

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
        for topic, subject in inbox.due(100):
            claim = inbox.claim(topic, subject, "test")
            check(int(subject.partition(":")[2]))
            inbox.done(claim)

    return run


def dispute(studio, box, task=None):
    task = task or studio.add_task()
    return task, studio.annotate(task, 1, [box(0)]), studio.annotate(task, 2, [box(60)])


def test_it_carries_the_service_alone(studio, box, poller, work):
    task, *_ = dispute(studio, box)
    poller.run()
    work()
    assert studio.stored[task]["data"]["qc_status"] == "disputed"
    studio.annotate(task, 3, [box(1)])
    poller.run()
    work()
    assert studio.stored[task]["data"]["qc_status"] == "agreed"


def test_a_task_that_the_model_doubts_is_judged_again_once_a_change(studio, box, poller, work, settings):
    (settings.home / "qc").mkdir(parents=True)
    (settings.home / "qc" / "policy.toml").write_text("least_model_doubt = 0.5\n")
    task = studio.add_task(overlap=1)
    studio.annotate(task, 1, [box(0)])
    poller.run()
    work()
    data = studio.stored[task]["data"]
    assert "qc_review" not in data
    studio.update_task(task, data={**data, "qc_model_note": "Perhaps a Car is missing.", "qc_model_score": 0.8})
    assert poller.poll(PROJECT) == 1
    work()
    assert studio.stored[task]["data"]["qc_review"] == "yes"
    assert poller.poll(PROJECT) == 1  # what was written just now
    work()
    assert poller.poll(PROJECT) == 0
    data = {key: value for key, value in studio.stored[task]["data"].items() if not key.startswith("qc_model")}
    studio.update_task(task, data=data)
    poller.run()
    work()
    assert studio.stored[task]["data"]["qc_review"] == "no"


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
    studio.change(second, result=[box(1)])
    assert poller.poll(PROJECT) == 1
    work()
    assert studio.stored[task]["data"]["qc_status"] == "agreed"
    studio.change(first, was_cancelled=True)
    assert poller.poll(PROJECT) == 1
    work()
    studio.remove(second)
    assert poller.poll(PROJECT) == 1
    work()
    assert studio.stored[task]["data"]["qc_annotators"] == 0


def test_a_deletion_that_leaves_no_trace_in_the_task_is_found_by_the_sweep(studio, box, poller, work, monkeypatch):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    while poller._projects.get(PROJECT).settled is False:
        poller.poll(PROJECT)
    studio.stored[task]["annotations"] = []
    assert poller.poll(PROJECT) == 0
    now = reconcile.time.time()
    monkeypatch.setattr(reconcile.time, "time", lambda: now + SWEEP_EVERY_S + 60)
    assert poller.poll(PROJECT) == 2
    work()
    assert studio.stored[task]["data"]["qc_status"] == "waiting"


def test_what_was_given_up_while_label_studio_was_down_is_healed_by_the_next_poll(studio, box, poller, work, engine):
    task, *_ = dispute(studio, box)
    assert poller.poll(PROJECT) == 2
    inbox = Inbox(engine)
    inbox.dead(inbox.claim("qc.task", f"{PROJECT}:{task}", "test"), "Label Studio does not answer")
    assert poller.poll(PROJECT) == 2
    work()
    assert studio.stored[task]["data"]["qc_status"] == "disputed"
    assert inbox.dead_letters() == []


def test_what_was_done_and_is_yet_unknown_is_told_once_more(studio, box, poller, work, memory, engine):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    memory.forget(PROJECT, task)
    assert poller.sweep(PROJECT) == 2
    assert poller.sweep(PROJECT) == 0
    work()
    assert poller.sweep(PROJECT) == 0


def test_deleted_tasks_are_forgotten(studio, box, poller, work, memory):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    del studio.stored[task]
    assert poller.sweep(PROJECT) == 1
    work()
    assert memory.known_in(PROJECT) == {}


def test_a_quiet_project_is_read_from_its_newest_task_on(studio, box, poller, work):
    for _ in range(5):
        dispute(studio, box)
    poller.poll(PROJECT)
    work()
    read = []
    plain = studio.tasks

    def counted(*args, **kwargs):
        found = list(plain(*args, **kwargs))
        read.append(len(found))
        return iter(found)

    studio.tasks = counted
    for _ in range(4):
        poller.poll(PROJECT)
    assert read[-1] == 0


def test_one_project_that_cannot_be_read_keeps_no_other_waiting(studio, box, poller, projects, work):
    projects.add(1)
    plain = studio.tasks

    def refused(project, **kwargs):
        if project == 1:
            from labelloop.service.studio import StudioUnreachable

            raise StudioUnreachable("http://x", "down")
        return plain(project, **kwargs)

    studio.tasks = refused
    task, *_ = dispute(studio, box)
    poller.run()
    work()
    assert studio.stored[task]["data"]["qc_status"] == "disputed"


def test_a_time_in_the_future_does_not_blind_the_poller(studio, box, poller, work):
    task, *_ = dispute(studio, box)
    poller.poll(PROJECT)
    work()
    studio.stored[task]["updated_at"] = "2999-01-01T00:00:00.000000Z"
    poller.poll(PROJECT)
    assert ProjectStore(poller._projects.engine).get(PROJECT).cursor < "2999"


def test_a_sweep_reads_only_the_tasks_that_changed_since_it_compared_them(studio, box, poller, work):
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
    studio.remove(studio.stored[3]["annotations"][0]["id"])
    assert poller.sweep(PROJECT) == 1
    assert read == [3]


def test_a_project_that_is_gone_is_forgotten_once_its_absence_is_certain(studio, box, poller, work, projects, memory):
    dispute(studio, box)
    poller.run()
    work()

    def gone(*_args, **_more):
        raise NotFound("GET", 404, "No Project matches the given query.")

    studio.tasks = studio.stamps = gone
    poller.run()
    assert projects.get(PROJECT), "it is still in the list: an answer of 404 alone may mean many things"
    studio.projects = list
    poller.run()
    assert projects.get(PROJECT) is None
    assert memory.tasks(PROJECT) == set()
