"""A project that was connected before single objects decided keeps its behaviour until it adopts the new default."""

import hashlib
from dataclasses import asdict

import msgspec
import pytest
import sqlalchemy as sa

from labelloop.cli.main import main
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from qc_webhooks.agreement import read_answers
from qc_webhooks.cli import defaults
from qc_webhooks.pipeline.checker import fingerprint
from qc_webhooks.policy import Policy
from qc_webhooks.policy.conflict_rules import BY_MEAN
from qc_webhooks.schedulers.defaults_preview import queue_previews
from qc_webhooks.store.previews import PreviewStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import PREVIEWS, PROJECTS
from qc_webhooks.studio.connect import connect
from tests.qc_webhooks.conftest import PROJECT


@pytest.fixture
def projects(engine, settings, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(settings.home))
    return ProjectStore(engine)


@pytest.fixture
def older(projects):
    """The project as an earlier version connected it."""
    projects.add(PROJECT)
    with projects.engine.begin() as connection:
        connection.execute(sa.update(PROJECTS).values(defaults=None))
    return projects


@pytest.fixture
def missing_of_ten(studio, box):
    """A task where the second annotator misses 3 of 10 objects."""
    task = studio.add_task()
    objects = [box(10 * index, width=6.0) for index in range(10)]
    studio.annotate(task, 1, objects)
    studio.annotate(task, 2, objects[:7])
    return task


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["qc", *map(str, words)])
    return ended.value.code


def test_new_projects_dispute_missing_objects(projects, check, missing_of_ten):
    projects.add(PROJECT)
    assert check(missing_of_ten).verdict.outcome == "disputed"


def test_older_projects_keep_the_mean_and_see_what_changes(older, check, missing_of_ten, capsys):
    assert check(missing_of_ten).verdict.outcome == "agreed"
    capsys.readouterr()
    assert not run("what-if", PROJECT)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The new default would dispute 1 of 1 task: missed object 1."
    assert lines[1] == f"Tasks: {missing_of_ten}."
    assert f"labelloop qc adopt {PROJECT}" in lines[2]
    assert check(missing_of_ten).verdict.outcome == "agreed"


def test_adopting_judges_the_tasks_again_and_can_be_reverted(
    older, studio, settings, check, missing_of_ten, capsys, monkeypatch
):
    check(missing_of_ten)
    monkeypatch.setattr(defaults.Studio, "from_settings", lambda *_: studio)
    assert not run("adopt", PROJECT)
    assert "1 task will be judged again" in capsys.readouterr().out
    assert check(missing_of_ten).verdict.outcome == "disputed"
    assert not run("adopt", PROJECT, "--back")
    assert check(missing_of_ten).verdict.outcome == "agreed"
    policy = settings.home / "qc" / str(PROJECT) / "policy.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text('[conflicts]\ndecide_by = "mean"\n')
    assert not run("adopt", PROJECT)
    assert f"Not in force: [conflicts] in {policy}" in capsys.readouterr().out


def test_defaults_stay_where_the_tasks_cannot_be_judged_again(older, studio, settings, capsys, monkeypatch):
    monkeypatch.setattr(defaults.Studio, "from_settings", lambda *_: studio)
    policy = settings.home / "qc" / str(PROJECT) / "policy.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text("agreement = 7")  # refused
    assert run("adopt", PROJECT) == 1
    assert older.get(PROJECT).defaults == 1
    policy.write_text('rules = [{kind = "count", label = "No such label", at_most = 1}]')  # does not fit the config
    assert run("adopt", PROJECT) == 1
    assert older.get(PROJECT).defaults == 1
    policy.unlink()
    assert not run("adopt", PROJECT)
    assert "will be judged again" in capsys.readouterr().out


def test_tasks_judged_before_are_previewed_in_the_background(older, engine, settings, check, missing_of_ten):
    check(missing_of_ten)
    with engine.begin() as connection:
        connection.execute(sa.delete(PREVIEWS))
    previews, inbox, connected = PreviewStore(engine), Inbox.from_settings(settings, engine), older.get(PROJECT)
    policy = older.policy(settings.home, PROJECT)
    assert (previews.summary(PROJECT).tasks, previews.summary(PROJECT).known) == (1, 0)
    assert [queue_previews(previews, inbox, connected, policy) for _ in range(2)] == [1, 0]
    check(missing_of_ten)
    assert previews.summary(PROJECT).disputed == (missing_of_ten,)
    assert queue_previews(previews, inbox, connected, Policy()) == 0


def test_decisions_of_older_projects_are_not_made_again(task, box):
    answers = read_answers(task([box(0)], [box(1)]))
    settings = {name: value for name, value in asdict(Policy(conflicts=BY_MEAN)).items() if name != "conflicts"}
    versions = sorted((item.annotation, item.annotator, item.updated_at, item.ground_truth) for item in answers)
    before = hashlib.sha256(msgspec.json.encode([versions, settings])).hexdigest()
    assert fingerprint(answers, Policy(conflicts=BY_MEAN)) == before
    assert fingerprint(answers, Policy()) != before


def test_connecting_again_and_the_status_name_the_new_default(older, studio, settings, engine, capsys):
    settings = Settings(home=settings.home, webhook_secret="s3cret", qc_url="http://qc.internal:9091")
    said = [change.what for change in connect(studio, PROJECT, settings, engine)]
    assert any(f"labelloop qc adopt {PROJECT}" in text for text in said)
    capsys.readouterr()
    assert not run("status", PROJECT)
    shown = capsys.readouterr().out
    assert f"labelloop qc what-if {PROJECT}" in shown
    assert "compared   no task yet" in shown
    older.advance(PROJECT, cursor="2026-02-01T03:04:05.678901Z", caught_up=True, swept=True)
    assert not run("status", PROJECT)
    assert "compared   tasks changed up to 2026-02-01 03:04:05 UTC" in capsys.readouterr().out
    assert older.get(PROJECT).defaults == 1
    older.adopt_defaults(PROJECT)
    assert not any("qc adopt" in change.what for change in connect(studio, PROJECT, settings, engine))
