"""A home folder of an earlier release, and one of a backup, open without loss: the story goes on."""

import itertools
import json
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from labelloop.stack.backup import restore_backup, write_backup
from labelloop.stack.state import DemoProject, read_state
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.reconcile import Reconciler
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore

OLD = Path(__file__).parents[2] / "state"
PROJECT = 7


@pytest.fixture(params=sorted(path.name for path in OLD.iterdir() if path.is_dir()))
def home(request, tmp_path):
    """A home folder as that commit left it."""
    home, old = tmp_path / "old", OLD / request.param
    home.mkdir()
    for name in ("state.json", "settings.env"):
        shutil.copy(old / name, home)
    with sqlite3.connect(home / "labelloop.sqlite3") as database:
        database.executescript((old / "labelloop.sql").read_text())
    database.close()
    return home


@pytest.fixture
def studio(request, studio):
    """Label Studio as it was then."""
    commit = request.getfixturevalue("home") and request.node.callspec.params["home"]
    stored = json.loads((OLD / commit / "studio.json").read_text())
    studio.tasks_by_id = {int(id_): task for id_, task in stored.items()}
    studio.now += timedelta(seconds=1000)
    studio.ids = {name: itertools.count(1000) for name in studio.ids}
    return studio


@pytest.fixture
def go_on(studio):
    """go_on(home): one round of the poller and of a worker, as a dictionary of what became of each event."""

    def run(home):
        settings = Settings(home=home)
        engine = open_database(settings)
        memory, inbox = DecisionStore(engine), Inbox(engine, lease_s=0.0)
        checker = Checker(studio, memory, settings.home)
        Reconciler(studio, memory, ProjectStore(engine), inbox).poll(PROJECT)
        handled = set()
        for topic, subject in inbox.due_subjects(100):
            claim = inbox.claim(topic, subject, "test")
            checker.check(PROJECT, int(subject.partition(":")[2]))
            handled |= {event.key for event in claim.events}
            inbox.mark_done(claim)
        letters = {letter.event.key: letter.reason for letter in inbox.dead_letters()}
        engine.dispose()
        return handled, letters

    return run


def test_state_of_an_earlier_release_opens_without_loss(home, studio, box, go_on):
    with sqlite3.connect(home / "labelloop.sqlite3") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        before = {name: database.execute(f"SELECT count(*) FROM {name}").fetchone() for name in tables}
    database.close()
    open_database(Settings(home=home)).dispose()
    with sqlite3.connect(home / "labelloop.sqlite3") as database:
        assert {name: database.execute(f"SELECT count(*) FROM {name}").fetchone() for name in tables} == before
    database.close()
    assert read_state(home).projects == {"demo": DemoProject(PROJECT, 25, complete=True)}
    assert Settings(home=home).webhook_secret.get_secret_value() == "an-old-secret"

    studio.annotate(1, 3, [box(1)])  # the one who was asked
    handled, letters = go_on(home)
    assert {"pending", "retried", "claimed", "orphan"} <= handled
    assert letters == {"dead": "unreadable"}
    assert studio.tasks_by_id[1]["data"]["qc_status"] == "agreed"
    assert studio.tasks_by_id[2]["data"]["qc_status"] == "agreed"


def test_the_story_goes_on_in_a_home_that_was_restored(home, studio, box, go_on, tmp_path):
    open_database(Settings(home=home)).dispose()
    file = tmp_path / "backup"
    write_backup(Settings(home=home), file, database=True, label_studio=True, datasets=False)
    shutil.rmtree(home)
    studio.annotate(1, 3, [box(1)])  # while nothing ran
    other = tmp_path / "other"
    restore_backup(Settings(home=other), file, force=False)
    handled, letters = go_on(other)
    assert {"pending", "retried", "claimed", "orphan"} <= handled
    assert letters == {"dead": "unreadable"}
    assert studio.tasks_by_id[1]["data"]["qc_status"] == "agreed"
