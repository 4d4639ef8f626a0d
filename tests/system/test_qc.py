"""Quality control on stock Label Studio: a dispute from its first click to its end, and what no webhook said."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import httpx
import pytest
import sqlalchemy as sa

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import EVENTS, Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings, env_name
from labelloop.service.studio import Studio
from qc_webhooks.jobs import handlers, periodic_jobs
from qc_webhooks.policy import Policy
from qc_webhooks.report.report import Export, write_consensus
from qc_webhooks.schedulers.overlap import count_low_overlap
from qc_webhooks.store.tables import ACTIONS
from qc_webhooks.studio.connect import connect
from qc_webhooks.studio.webhook import webhook_headers, webhook_url
from tests.qc_webhooks.verdict.test_merged_annotation import CONTROLS, renamed
from tests.qc_webhooks.verdict.test_merged_annotation import annotation as annotation_of

pytestmark = pytest.mark.system

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels></View>"""
STORED = {"image": "s3://bucket/dir/a b.jpg", "others": ["s3://bucket/c.jpg", "gs://x/y.jpg"]}


def box(x, label="Car"):
    value = {"x": x, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": f"r{x}", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 200,
        "original_height": 100, "value": value,
    }  # fmt: skip


@dataclass
class Qc:
    """The running service and worker, and Label Studio as the admin and as three annotators."""

    settings: Settings
    engine: sa.Engine
    admin: Studio
    people: list[Studio]
    poll: object

    def project(self, tasks=1, **fields):
        fields = {"maximum_annotations": 2, **fields}
        project = self.admin.create_project(title="quality", label_config=CONFIG, **fields)["id"]
        connect(self.admin, project, self.settings, self.engine)
        return project, self.admin.import_tasks(project, [{"data": STORED} for _ in range(tasks)])

    def data(self, project, task):
        return self.admin.task_json(project, task)["data"]

    def status(self, project, task):
        return self.data(project, task).get("qc_status")

    def tab(self, project, title):
        view = next(view for view in self.admin.views(project) if view["data"]["title"] == title)
        page = self.admin.request("GET", "api/tasks", params={"view": view["id"], "project": project})
        return [task["id"] for task in page["tasks"]]

    def writes(self, project):
        with self.engine.connect() as connection:
            return connection.execute(sa.select(ACTIONS).where(ACTIONS.c.project == project)).all()

    def idle(self):
        return Inbox(self.engine).counts() | {"done": 0} == {"pending": 0, "claimed": 0, "done": 0, "dead": 0}


@pytest.fixture(scope="module")
def qc(label_studio, tmp_path_factory):
    from labelloop.stack.ports import free_port

    port = free_port()
    values = {
        "home": str(tmp_path_factory.mktemp("qc")),
        "label_studio_url": label_studio.url,
        "label_studio_api_key": label_studio.admin_token,
        "webhook_secret": "s3cret",
        "qc_url": f"http://127.0.0.1:{port}",
    }
    settings = Settings(**values)
    engine = open_database(settings)
    admin = Studio.from_settings(settings)
    people = [Studio(label_studio.url, label_studio.user(f"{name}@example.com")[0]) for name in ("anne", "ben", "cleo")]
    jobs = Jobs(settings, Inbox.from_settings(settings, engine), handlers(settings, admin, engine))
    stop = threading.Event()
    worker = threading.Thread(target=run_worker, args=(jobs,), kwargs={"stop": stop})
    service = subprocess.Popen(
        [sys.executable, "-c", f"from qc_webhooks.cli.qc import serve; serve(port={port})"],
        env=os.environ | {env_name(name): value for name, value in values.items()},
    )
    worker.start()
    try:
        deadline = time.monotonic() + 90
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            assert service.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        poller = next(job for job in periodic_jobs(settings, admin, engine) if job.name == "qc.poll")
        yield Qc(settings, engine, admin, people, poller.run)
    finally:
        stop.set()
        service.terminate()
        worker.join(60)
        service.wait(60)
        for studio in (admin, *people):
            studio.close()
        engine.dispose()


def _is_up(url):
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def test_a_dispute_goes_blind_to_a_third_annotator_who_settles_it(qc, wait_until):
    anne, ben, cleo = qc.people
    project, (task, _other) = qc.project(tasks=2)
    assert anne.next_task(project)["id"] == task
    anne.add_annotation(task, [box(0)])
    ben.add_annotation(task, [box(60)])
    wait_until(lambda: qc.status(project, task) == "disputed")

    data = qc.data(project, task)
    assert {name: data[name] for name in STORED} == STORED
    assert (data["qc_annotators"], data["qc_agreement"], data["qc_review"]) == (2, 0.0, "no")
    assert "One annotator has a Car at the upper left, another does not." in data["qc_note"]
    assert qc.tab(project, "QC: disputed") == [task]
    assert qc.tab(project, "QC: to review") == []

    served = cleo.next_task(project)
    assert served["id"] == task
    assert served["annotations"] == []
    assert anne.next_task(project)["id"] != task
    cleo.add_annotation(task, [box(1)])
    wait_until(lambda: qc.status(project, task) == "agreed")
    assert qc.tab(project, "QC: disputed") == []
    found = qc.admin.task_json(project, task)
    assert (found["overlap"], found["is_labeled"]) == (3, True)
    assert {name: found["data"][name] for name in STORED} == STORED
    assert [row.state for row in qc.writes(project)] == ["done", "done"]


def test_a_dispute_that_three_do_not_settle_waits_for_a_reviewer(qc, wait_until):
    project, (task,) = qc.project()
    for person, place in zip(qc.people, (0, 30, 60), strict=True):
        person.add_annotation(task, [box(place)])
    wait_until(lambda: qc.data(project, task).get("qc_review") == "yes")
    assert qc.tab(project, "QC: to review") == [task]
    assert qc.admin.task_json(project, task)["overlap"] <= 3


def test_two_who_agree_are_left_in_peace(qc, wait_until):
    anne, ben, cleo = qc.people
    project, (task,) = qc.project()
    anne.add_annotation(task, [box(0)])
    ben.add_annotation(task, [box(1)])
    wait_until(lambda: qc.status(project, task) == "agreed")
    assert qc.admin.task_json(project, task)["overlap"] == 2
    assert cleo.next_task(project) is None


def test_a_correction_and_a_ground_truth_settle_too(qc, wait_until):
    anne, ben, _ = qc.people
    project, (one, two) = qc.project(tasks=2)
    for task in (one, two):
        first = anne.add_annotation(task, [box(0)])
        ben.add_annotation(task, [box(60)])
        wait_until(lambda task=task: qc.status(project, task) == "disputed")
        if task == one:
            anne.update_annotation(first["id"], result=[box(60)])
        else:
            qc.admin.update_annotation(first["id"], ground_truth=True)
        wait_until(lambda task=task: qc.status(project, task) == "agreed")
        found = qc.admin.task_json(project, task)
        assert (found["overlap"], found["is_labeled"]) == (2, True)


def test_a_deleted_annotation_reopens_the_question(qc, wait_until):
    anne, ben, _ = qc.people
    project, (task,) = qc.project()
    anne.add_annotation(task, [box(0)])
    second = ben.add_annotation(task, [box(60)])
    wait_until(lambda: qc.status(project, task) == "disputed")
    qc.admin.request("DELETE", f"api/annotations/{second['id']}/")
    wait_until(lambda: qc.status(project, task) == "waiting")
    found = qc.admin.task_json(project, task)
    assert (found["overlap"], found["is_labeled"]) == (2, False)


def test_the_poller_heals_what_webhooks_did_not_say(qc, wait_until):
    anne, ben, cleo = qc.people
    project, (task,) = qc.project()
    for hook in qc.admin.webhooks(project):
        qc.admin.delete_webhook(hook["id"])
    qc.poll()  # the first look at a project, before anything happened
    anne.add_annotation(task, [box(0)])
    ben.add_annotation(task, [box(60)])
    qc.poll()
    wait_until(lambda: qc.status(project, task) == "disputed")
    cleo.add_annotation(task, [box(1)])
    qc.poll()
    wait_until(lambda: qc.status(project, task) == "agreed")

    people = [person.me()["id"] for person in (anne, ben)]
    annotations = [
        {"result": [box(place)], "completed_by": person, "ground_truth": False}
        for person, place in zip(people, (0, 60), strict=True)
    ]
    (imported,) = qc.admin.import_tasks(project, [{"data": STORED, "annotations": annotations}])
    qc.poll()
    wait_until(lambda: qc.status(project, imported) == "disputed")
    selected = {"selectedItems": {"all": False, "included": [imported]}}
    params = {"id": "delete_tasks_annotations", "project": project}
    qc.admin.request("POST", "api/dm/actions/", params=params, json=selected)
    qc.poll()
    wait_until(lambda: qc.status(project, imported) == "waiting")
    wait_until(qc.idle)
    written = len(qc.writes(project))
    for _ in range(3):
        qc.poll()
    wait_until(qc.idle)
    assert len(qc.writes(project)) == written


def test_an_import_with_annotations_is_judged_by_its_one_event(qc, wait_until):
    project, _ = qc.project()
    people = [person.me()["id"] for person in qc.people[:2]]
    annotations = [{"result": [box(40 * n)], "completed_by": p, "ground_truth": False} for n, p in enumerate(people)]
    (task,) = qc.admin.import_tasks(project, [{"data": STORED, "annotations": annotations}])
    wait_until(lambda: qc.status(project, task) == "disputed")


def test_duplicates_and_reordered_events_change_nothing(qc, wait_until):
    anne, ben, cleo = qc.people
    project, (task,) = qc.project()
    made = [
        anne.add_annotation(task, [box(0)]),
        ben.add_annotation(task, [box(60)]),
        cleo.add_annotation(task, [box(1)]),
    ]
    wait_until(lambda: qc.status(project, task) == "agreed")
    wait_until(qc.idle)
    before, written = qc.admin.task_json(project, task), len(qc.writes(project))
    with qc.engine.connect() as connection:
        rows = connection.scalar(sa.select(sa.func.count()).select_from(EVENTS))
    for annotation in [*reversed(made), *made, *made]:
        body = {"action": "ANNOTATION_CREATED", "annotation": annotation | {"task": task, "project": project}}
        answer = httpx.post(webhook_url(qc.settings), json=body, headers=webhook_headers(qc.settings))
        assert answer.json() == {"events": 1, "new": 0}
    # an old version of an annotation, told late, is a hint like any other: the server is the truth
    late = made[0] | {"task": task, "project": project, "updated_at": "2020-01-01T00:00:00Z", "result": [box(90)]}
    httpx.post(
        webhook_url(qc.settings),
        json={"action": "ANNOTATION_UPDATED", "annotation": late},
        headers=webhook_headers(qc.settings),
    )
    with qc.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(EVENTS)) == rows + 1
    wait_until(qc.idle)
    assert qc.admin.task_json(project, task) == before
    assert len(qc.writes(project)) == written


def test_connecting_twice_changes_nothing_and_dropped_tabs_come_back(qc):
    project, _ = qc.project()
    state = [qc.admin.webhooks(project), qc.admin.views(project), qc.admin.project(project)["maximum_annotations"]]
    assert not any(change.done for change in connect(qc.admin, project, qc.settings, qc.engine))
    assert state == [
        qc.admin.webhooks(project),
        qc.admin.views(project),
        qc.admin.project(project)["maximum_annotations"],
    ]
    qc.admin.request("DELETE", "api/dm/views/reset/", json={"project": project})
    assert qc.admin.views(project) == []
    tabs = next(job for job in periodic_jobs(qc.settings, qc.admin, qc.engine) if job.name == "qc.tabs")
    for _ in range(2):
        tabs.run()
    titles = [view["data"]["title"] for view in qc.admin.views(project)]
    assert titles == ["Default", "QC: disputed", "QC: to review", "QC: sent back", "QC: model doubts"]


def test_an_overlap_that_a_human_took_back_stays(qc, wait_until):
    anne, ben, cleo = qc.people
    project, (task,) = qc.project()
    first = anne.add_annotation(task, [box(0)])
    ben.add_annotation(task, [box(60)])
    wait_until(lambda: qc.status(project, task) == "disputed")
    qc.admin.update_task(task, overlap=2, is_labeled=True)
    anne.update_annotation(first["id"], result=[box(2)])
    wait_until(lambda: qc.data(project, task)["qc_review"] == "yes")
    assert qc.admin.task_json(project, task)["overlap"] == 2
    assert cleo.next_task(project) is None


def test_submit_is_not_slowed_by_our_webhook(qc, capsys):
    """With and without the webhook in turn on the same server. `bench/submit.py` measures; here others work too."""
    anne = qc.people[0]
    _, tasks = qc.project(tasks=12)
    without, plain = qc.project(tasks=12)
    for hook in qc.admin.webhooks(without):
        qc.admin.delete_webhook(hook["id"])
    took = {True: [], False: []}
    for one, other in zip(tasks, plain, strict=True):
        for hooked, task in ((True, one), (False, other)):
            started = time.perf_counter()
            anne.add_annotation(task, [box(0)])
            took[hooked].append(time.perf_counter() - started)
    slower_ms = 1000 * (statistics.median(took[True]) - statistics.median(took[False]))
    with capsys.disabled():
        print(f"\nsubmit: {1000 * statistics.median(took[False]):.0f} ms, with our webhook {slower_ms:+.0f} ms")
    assert slower_ms < 400


def test_the_log_of_writes_can_be_read_back(qc, wait_until):
    anne, ben, _ = qc.people
    project, (task,) = qc.project()
    anne.add_annotation(task, [box(0)])
    ben.add_annotation(task, [box(60)])
    wait_until(lambda: [row.state for row in qc.writes(project)] == ["done"])
    (row,) = qc.writes(project)
    assert json.loads(row.before)["overlap"] == 2
    assert json.loads(row.after)["overlap"] == 3
    assert (row.task, row.route) == (task, "one_more_annotator+flag")
    assert row.reason.startswith("disputed by 2 annotators, ")
    assert row.reason.endswith(" to gain; disputed")


def test_a_task_made_by_a_single_call_gets_its_second_annotator_by_policy(qc, wait_until):
    anne, ben, _cleo = qc.people
    project, _ = qc.project(tasks=1)
    task = qc.admin.request("POST", "api/tasks", json={"project": project, "data": STORED})["id"]
    assert qc.admin.task_json(project, task)["overlap"] == 1
    anne.add_annotation(task, [box(0)])
    assert count_low_overlap(qc.admin, qc.admin.project(project), Policy()) == 1
    assert any(
        "1 task has an overlap below 2" in each.what for each in connect(qc.admin, project, qc.settings, qc.engine)
    )
    path = qc.settings.home / "qc" / str(project) / "policy.toml"
    path.parent.mkdir(parents=True)
    path.write_text("raise_overlap = true")
    next(job for job in periodic_jobs(qc.settings, qc.admin, qc.engine) if job.name == "qc.tabs").run()
    wait_until(lambda: qc.admin.task_json(project, task)["overlap"] == 2)
    assert ben.next_task(project)["id"] == task
    ben.add_annotation(task, [box(0)])
    wait_until(lambda: qc.status(project, task) == "agreed")
    assert count_low_overlap(qc.admin, qc.admin.project(project), Policy()) == 0


@pytest.mark.slow
def test_a_consensus_of_every_control_is_imported_as_it_was_written(qc, tmp_path):
    data = dict.fromkeys(("image", "audio", "video", "csv", "page", "text", "other"), "s3://b/a")
    data |= {"images": ["s3://b/a"], "talk": [{"text": "hi", "author": "a"}], "list": [], "chat": []}
    for name, (config, results) in CONTROLS.items():
        if name == "an unknown control":
            continue  # Label Studio takes no such label config
        everybody = [annotation_of(who, renamed(results, who)) for who in (1, 2)]
        source = tmp_path / "export.json"
        source.write_text(json.dumps([{"id": 1, "data": data, "annotations": everybody}]))
        with (tmp_path / "consensus.json").open("wb") as file:
            write_consensus(Export(source, LabelConfig.parse(f"<View>{config}</View>")), file)
        (made,) = json.loads((tmp_path / "consensus.json").read_text())
        project = qc.admin.create_project(title="every control", label_config=f"<View>{config}</View>")["id"]
        (task,) = qc.admin.import_tasks(project, [made])
        (held,) = qc.admin.task_json(project, task)["annotations"]
        assert held["result"] == made["annotations"][0]["result"], name
        assert not held["was_cancelled"]
