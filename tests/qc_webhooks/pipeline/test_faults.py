"""Faults of every kind at once, and the same final state as without any: nothing is lost, nothing done twice.

Label Studio is the one in memory; the web service, inbox, jobs, poller and database are the real ones. Events are
dropped, doubled and shuffled; Label Studio answers 500; workers are killed before and after every kind of write; two
instances share the database.
"""

import random
import threading
import time

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Backoff, Inbox
from labelloop.service.settings import Settings
from labelloop.service.studio import StudioRefused
from qc_webhooks.decision.context import KEYS
from qc_webhooks.jobs import handlers
from qc_webhooks.pipeline.reconcile import Reconciler
from qc_webhooks.server.app import create_app
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore
from tests.qc_webhooks.conftest import PROJECT, QcStudio

TASKS, ANNOTATORS, REVIEWER = 8, (1, 2, 3, 4), 9
LEASE_S = 0.25
READS = ("task_json", "tasks")
WRITES = ("update_task", "add_prediction", "delete_prediction", "update_annotation")


class Killed(BaseException):
    """The worker's process is gone: nothing cleans up after it."""


class FaultyStudio(QcStudio):
    """A Label Studio that can be told to fail, and workers that die at their writes."""

    def __init__(self, seed=0):
        super().__init__()
        self.random, self.faults, self.killed, self.refused = random.Random(seed), False, 0, 0
        self._dies = False

    def before_call(self, call):
        if call.name not in (*READS, *WRITES):
            return
        chance = self.random.random() if self.faults else 1.0
        if chance < 0.1:
            self.refused += 1
            raise StudioRefused("GET", 500, "it failed")
        self._dies = call.name in WRITES and chance < 0.4
        self.killed += self._dies
        if self._dies and chance < 0.25:
            raise Killed

    def after_call(self, call):
        if self._dies and call.name in WRITES:
            raise Killed


class World:
    """One Label Studio, the people who work in it, and several instances of quality control on one database."""

    def __init__(self, studio, settings, instances):
        self.studio, self.settings = studio, settings
        self.random = random.Random(5)
        self.events = []
        self.instances = []
        for _ in range(instances):
            engine = open_database(settings)
            inbox = Inbox(engine, lease_s=LEASE_S, backoff=Backoff(attempts=1000, base_s=0.005, max_s=0.02))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("qc_webhooks.server.app.open_database", lambda _, engine=engine: engine)
                app = create_app(settings).test_client()
            self.instances.append((engine, inbox, handlers(settings, studio, engine), app))
        ProjectStore(self.instances[0][0]).add(PROJECT)

    def close(self):
        for engine, *_ in self.instances:
            engine.dispose()

    # --- people ------------------------------------------------------------------------------------------------------

    def submit(self, task, who, results, **fields):
        id_ = self.studio.annotate(task, who, results, **fields)
        self.tell(task, id_, "ANNOTATION_CREATED")
        return id_

    def tell(self, task, annotation, action):
        held = next(item for item in self.studio.tasks_by_id[task]["annotations"] if item["id"] == annotation)
        body = {"id": annotation, "task": task, "project": PROJECT, "updated_at": held["updated_at"]}
        self.events.append({"action": action, "annotation": body, "project": {"id": PROJECT}})

    def annotation(self, task, who):
        return next(
            (item["id"] for item in self.studio.tasks_by_id[task]["annotations"] if item["completed_by"] == who), None
        )

    def label(self, answers):
        """Annotate all served tasks, until none is served."""
        while served := [
            (task, who) for task in self.studio.tasks_by_id for who in ANNOTATORS if self.studio.serves(task, who)
        ]:
            task, who = served[0]
            self.submit(task, who, answers[task, who])
            if len(self.events) >= 6 or len(served) == 1:
                self.settle()
        self.settle()

    # --- delivery ----------------------------------------------------------------------------------------------------

    def settle(self):
        """The events come, or not; the workers do what there is to do; then one poll."""
        events, self.events = self.events, []
        if self.studio.faults:
            events = [event for event in events if self.random.random() >= 0.3] * 5
            self.random.shuffle(events)
        for event in events:
            client = self.random.choice(self.instances)[3]
            assert client.post("/webhook", json=event).status_code == 200
        self.work()
        faults, self.studio.faults = self.studio.faults, False  # the poll that comes through
        engine, inbox, *_ = self.instances[0]
        Reconciler(self.studio, DecisionStore(engine), ProjectStore(engine), inbox).run()
        self.studio.faults = faults
        self.work()

    def work(self):
        """Every instance works until nothing is left; a killed one is started again, and finds its leases over."""
        threads = [threading.Thread(target=self._worker, args=instance) for instance in self.instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
        assert not any(thread.is_alive() for thread in threads), "a worker hangs"

    def _worker(self, _engine, inbox, handle, _app):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            due = inbox.due_subjects(50)
            counts = inbox.counts()
            if not due and not counts.get("pending", 0) and not counts.get("claimed", 0):
                return
            for topic, subject in due:
                claim = inbox.claim(topic, subject, "worker")
                if claim is None:
                    continue
                try:
                    handle[topic](subject, claim.events)
                except Killed:
                    continue  # its claim stays until the lease is over
                except LabelloopError as error:
                    inbox.retry(claim, str(error))
                else:
                    inbox.mark_done(claim)
            time.sleep(0.01)

    # --- what is left ------------------------------------------------------------------------------------------------

    def state(self):
        """Everything that a person sees in Label Studio, without the numbers that depend on the order of doing."""
        return {task: self._state(source) for task, source in self.studio.tasks_by_id.items()}

    @staticmethod
    def _state(source):
        def overlay_of(prediction):
            stored = [{name: value for name, value in item.items() if name != "id"} for item in prediction["result"]]
            return prediction["model_version"], prediction["score"], stored

        return {
            "keys": {key: source["data"].get(key) for key in KEYS},
            "overlap": source["overlap"],
            "is_labeled": source["is_labeled"],
            "overlays": [overlay_of(item) for item in sorted(source["predictions"], key=lambda item: item["id"])],
            "truth": sorted(item["completed_by"] for item in source["annotations"] if item.get("ground_truth")),
        }


@pytest.fixture
def answers(box):
    """(task, annotator) -> what that annotator draws there: alike, or each something else."""
    rng = random.Random(11)
    return {
        (task, who): [box(rng.choice((10, 12, 40, 65)), rng.choice(("Car", "Car", "Person")))]
        for task in range(1, TASKS + 1)
        for who in ANNOTATORS
    }


def story(world, answers, box):
    """People label, correct and delete; a reviewer accepts what is proposed. Returns the state after each chapter."""
    for _ in range(TASKS):
        world.studio.add_task()
    chapters = []
    world.label(answers)
    chapters.append(world.state())
    for task in (1, 2, 3):  # corrections, and an annotation that is taken back
        if annotation := world.annotation(task, 1):
            world.studio.edit_annotation(annotation, result=[box(30 + task)])
            world.tell(task, annotation, "ANNOTATION_UPDATED")
    gone = world.annotation(4, 2)
    world.studio.remove_annotation(gone)
    world.events.append({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": gone}], "project": {"id": PROJECT}})
    world.settle()
    world.label(answers)
    chapters.append(world.state())
    for task, source in world.studio.tasks_by_id.items():
        proposed = [item for item in source["predictions"] if item["model_version"] == "QC consensus"]
        if proposed:
            world.submit(task, REVIEWER, proposed[0]["result"], parent_prediction=proposed[0]["id"])
    world.settle()
    chapters.append(world.state())
    return chapters


@pytest.fixture(params=["sqlite", "postgres"])
def database(request):
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def test_faults_of_every_kind_leave_the_same_state_as_none(tmp_path, answers, box, database):
    clean = World(FaultyStudio(), Settings(home=tmp_path / "clean"), 1)
    expected = story(clean, answers, box)
    clean.close()
    reviewed = [task for task, calls in expected[1].items() if calls["keys"]["qc_review"] == "yes"]
    assert reviewed, "the story has disputes for the reviewer"
    assert all(expected[2][task]["truth"] == [REVIEWER] for task in reviewed)

    studio = FaultyStudio(seed=3)
    more = {"database_url": database} if database else {}
    faulty = World(studio, Settings(home=tmp_path / "faulty", **more), 2 if database else 1)
    studio.faults = True
    result = story(faulty, answers, box)
    counts = faulty.instances[0][1].counts()
    faulty.close()
    for chapter, (calls, wanted) in enumerate(zip(result, expected, strict=True), start=1):
        assert calls == wanted, f"chapter {chapter}"
    assert studio.killed > 10
    assert studio.refused > 10
    assert not counts.get("dead", 0)
