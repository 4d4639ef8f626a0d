"""Data sets by themselves: when one is due, what is exported, who is told, what is run. Real parts: tests/system."""

import hashlib
import hmac
import json
import os
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from exporters import jobs
from exporters.automation import foreground
from exporters.automation.events import PROJECT, THEN, WEBHOOK
from exporters.automation.followers import followers
from exporters.automation.policy import (
    ExportPolicy,
    ExportPolicyError,
    policy_files,
    read_export_policy,
    watched_projects,
)
from exporters.automation.then import CommandFailed, run_post_export_command, words
from exporters.automation.triggers import TRIGGERS, Last, Now, due
from exporters.automation.watcher import Watcher
from exporters.automation.webhook import WebhookFailed, WebhookForbidden, send
from exporters.dataset.versions import versions
from exporters.errors import BadOption
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Reject
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.studio import StudioUnreachable
from tests.web_server import WebServer

ZONE = timezone(timedelta(hours=2))
NOON = datetime(2026, 3, 4, 12, 0, tzinfo=ZONE)


@pytest.fixture
def settings(tmp_path):
    return Settings(
        home=tmp_path / "home",
        label_studio_url="http://label-studio",
        label_studio_api_key="",
        media_hosts=("127.0.0.1",),
        export_webhook_secret="s3cret",
        poll_seconds=0.01,
    )


@pytest.fixture
def engine(settings):
    engine = open_database(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def studio(fake_studio, build, config):
    tasks = [build.task(n, build.annotation(build.box(1, 1, 5, 5), number=n), qc_status="agreed") for n in (1, 2, 3)]
    return fake_studio(tasks, config("car"))


@pytest.fixture
def watcher(settings, studio, engine):
    return Watcher(settings, studio, engine)


@pytest.fixture
def label(studio, build):
    """Annotate further tasks."""

    def label(*numbers, **data):
        for number in numbers:
            studio.save(build.task(number, build.annotation(build.box(1, 1, 5, 5), number=number), **data))

    return label


@pytest.fixture
def receiver():
    """A web server that keeps what it is sent; ``receiver.answers`` are the statuses it gives, then 200."""

    receiver = SimpleNamespace(got=[], answers=[])

    def answer(asked):
        receiver.got.append((asked.headers, asked.body))
        return (receiver.answers.pop(0) if receiver.answers else 200), b"", {"Location": "/elsewhere"}

    with WebServer(answer) as server:
        receiver.url = f"{server.url}/hook/token"
        yield receiver


def now(accepted=10, tasks=20, newest="b", at=NOON):
    return Now(accepted, tasks, newest, at)


def last(accepted=5, newest="a", at=NOON - timedelta(hours=5), version="v000001"):
    return Last(accepted, newest, at, version)


@pytest.mark.parametrize(
    ("policy", "now", "last", "is_due"),
    [
        ({"every_tasks": 5}, now(), last(), True),
        ({"every_tasks": 6}, now(), last(), False),
        ({"every_tasks": 5}, now(accepted=3), last(), False),  # some were disputed since
        ({"every_hours": 5}, now(), last(), True),
        ({"every_hours": 5.1}, now(), last(), False),
        ({"every_hours": 5}, now(accepted=5, newest="a"), last(), False),  # nothing changed
        ({"every_hours": 5}, now(accepted=5, newest="a"), last(version=""), True),  # but there is none yet
        ({"at": "11:30"}, now(), last(), True),
        ({"at": "12:00"}, now(), last(), True),
        ({"at": "12:01"}, now(), last(), False),  # yesterday's 12:01 was before the last one
        ({"at": "06:59"}, now(), last(), False),
        ({"at": "13:00"}, now(), last(at=NOON - timedelta(days=2)), True),  # the machine was off at night
        ({"at": "11:30"}, now(accepted=5, newest="a"), last(), False),
        ({"when_done": True}, now(accepted=20), last(), True),
        ({"when_done": True}, now(accepted=19), last(), False),
        ({"when_done": True}, now(accepted=20, newest="a"), last(accepted=20), False),  # told already
        ({"every_tasks": 1}, now(accepted=0), last(accepted=-1), False),
        ({}, now(), last(), False),
    ],
)
def test_when_an_export_is_due(policy, now, last, is_due):
    assert bool(due(ExportPolicy(**policy), now, last)) is is_due


def test_each_trigger_is_a_key_of_the_policy():
    assert set(TRIGGERS) <= set(ExportPolicy.__dataclass_fields__)
    assert not ExportPolicy().triggered


def test_project_is_accepted_as_far_as_it_is_annotated_and_not_disputed_or_waiting(watcher, label, studio, build):
    label(4, qc_status="disputed")
    label(5, qc_status="waiting")
    label(6)  # no quality control
    studio.save(build.task(7))
    found = watcher.now(7)
    assert (found.accepted, found.tasks) == (4, 7)
    assert found.newest == studio.tasks_by_id[7]["updated_at"]


def test_every_two_new_tasks_make_a_version_and_none_is_made_twice(watcher, settings, label):
    policy = ExportPolicy(every_tasks=2)
    made = []
    for numbers in ((), (), (4,), (5,), (), (6, 7)):
        label(*numbers)
        _, _, reason = watcher.look(7, policy)
        made.append(reason and watcher.run(7, policy, reason).version)
    assert made == ["v000001", "", "", "v000002", "", "v000003"]
    store = open_store(f"{settings.store_url}/cars", settings)
    assert [each.accounts.tasks.kept for each in versions(store)] == [3, 5, 7]


def test_worker_is_asked_once_and_exports_by_the_file(settings, studio, engine, watcher):
    file = policy_files(settings.home, 7)[1]
    file.parent.mkdir(parents=True)
    file.write_text(f'[export]\nto = "file://{settings.home}/set"\nformat = "coco"\nevery_tasks = 1\n')
    assert watched_projects(settings.home) == [7]
    (look,) = jobs.periodics(settings, studio, engine)
    look.run()
    look.run()
    inbox = Inbox.from_settings(settings, engine)
    claim = inbox.claim(PROJECT, "7", "test")
    assert len(claim.events) == 1
    jobs.handlers(settings, studio, engine)[PROJECT]("7", claim.events)
    inbox.done(claim)
    (version,) = versions(open_store(f"file://{settings.home}/set", settings))
    assert version.formats == ("coco",)
    look.run()
    assert inbox.claim(PROJECT, "7", "test") is None


def test_broken_policy_of_one_project_does_not_keep_others_from_being_looked_at(settings, studio, engine):
    for project, text in ((3, "[export"), (7, "[export]\nevery_tasks = 1")):
        file = policy_files(settings.home, project)[1]
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (look,) = jobs.periodics(settings, studio, engine)
    look.run()
    assert Inbox.from_settings(settings, engine).due(9) == [(PROJECT, "7")]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[export]\nevery = 1", "every"),
        ("[export]\nevery_tasks = true", "every_tasks"),
        ("[export]\nevery_tasks = -1", "every_tasks"),
        ("[export]\nat = '25:00'", "at"),
        ("[export]\nwebhook = 'ftp://x'", "webhook"),
        ("[export]\nthen = 'rm -rf'", "then"),
        ("[export]\nmax_errors = 2.0", "max_errors"),
        ("[export]\nformat = 'coco,yolo'", "format"),
        ("[export]\nannotation = 'newest'", "annotation"),
        ("[export]\nsplit = 'train=x'", "split"),
        ("[export]\ndisputed = 'maybe'", "disputed"),
        ("[export]\nto = 'ftp://host/set'", "to"),
        ("[export]\nthen = ['']", "then"),
        ("export = 5", "export"),
        ("every_tasks = 1", "every_tasks"),
        ("[export", "it"),
    ],
)
def test_policy_that_cannot_be_used_is_said(settings, text, key):
    file = policy_files(settings.home, 7)[0]
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ExportPolicyError, match=r"export\.toml") as caught:
        read_export_policy(settings.home, 7)
    assert [each.key for each in caught.value.faults] == [key]
    assert str(file) in caught.value.message
    assert f": {key} " in caught.value.message
    assert caught.value.fix


def test_all_faults_of_a_policy_are_said_at_once_each_with_what_would_be_right(settings):
    file = policy_files(settings.home, 7)[1]
    file.parent.mkdir(parents=True)
    file.write_text("[export]\nformat = 'coco,yolo'\nevry_tasks = 5\nat = '2:30'\nwebhook = 'ftp://secret@host'\n")
    with pytest.raises(ExportPolicyError) as caught:
        read_export_policy(settings.home, 7)
    said = f"{caught.value.message} {caught.value.fix}"
    for expected in ("'coco,yolo'", "yolo-detect", "Did you mean every_tasks?", "such as 02:30", "http:// or https://"):
        assert expected in said
    assert "secret" not in said


def test_projects_own_policy_is_laid_over_the_general_one(settings):
    general, own = policy_files(settings.home, 7)
    own.parent.mkdir(parents=True)
    general.write_text('[export]\nformat = "coco"\nevery_hours = 24\n')
    own.write_text('[export]\nevery_tasks = 50\nthen = ["train.sh", "--fast"]\n')
    assert read_export_policy(settings.home, 7) == ExportPolicy(
        format="coco", every_hours=24.0, every_tasks=50, then=("train.sh", "--fast")
    )


def test_webhook_is_signed_and_says_what_was_published(watcher, receiver, settings):
    policy = ExportPolicy(every_tasks=1, webhook=receiver.url)
    report = watcher.run(7, policy, "3 newly accepted tasks")
    claim = watcher.inbox.claim(WEBHOOK, f"7:{report.version}", "test")
    followers(settings)[WEBHOOK](claim.subject, claim.events)
    ((headers, body),) = receiver.got
    told = json.loads(body)
    assert (told["event"], told["version"], told["project"]) == ("dataset.published", "v000001", 7)
    assert told["manifest_sha256"] == report.manifest_sha256
    signed = f"{headers['X-Labelloop-Timestamp']}.".encode() + body
    digest = hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    assert headers["X-Labelloop-Signature"] == f"v1={digest}"


@pytest.mark.parametrize("status", [301, 404, 500])
def test_webhook_that_is_not_taken_is_tried_again_and_redirects_are_not_followed(settings, receiver, status):
    receiver.answers = [status]
    with pytest.raises(WebhookFailed, match=str(status)) as caught:
        send(settings, receiver.url, {"event": "e", "id": "1"})
    assert "token" not in str(caught.value)  # the path of a hook may be its secret
    assert len(receiver.got) == 1
    send(settings, receiver.url, {"event": "e", "id": "1"})
    assert receiver.got[0][0]["X-Labelloop-Delivery"] == receiver.got[1][0]["X-Labelloop-Delivery"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"])
def test_webhook_never_goes_to_a_private_host_that_is_not_allowed(settings, receiver, host):
    closed = settings.but(media_hosts=())
    url = receiver.url.replace("127.0.0.1", host)
    with pytest.raises(WebhookForbidden):
        send(closed, url, {"event": "e", "id": "1"})
    assert receiver.got == []
    event = type("Event", (), {"payload": {"to": url, "body": {"event": "e", "id": "1"}}})
    with pytest.raises(Reject):
        followers(closed)[WEBHOOK]("7:v1", [event])


def test_command_is_told_by_its_environment_and_no_shell_reads_it(watcher, settings, tmp_path, studio):
    studio.title = "cars; touch hacked $(touch hacked)"
    script = "import os, json, sys; json.dump([sys.argv[1:], dict(os.environ)], open(sys.argv[1], 'w'))"
    command = (sys.executable, "-c", script, str(tmp_path / "told.json"), "$HOME; touch hacked", "`touch hacked`")
    report = watcher.run(7, ExportPolicy(every_tasks=1, then=command), "x")
    claim = watcher.inbox.claim(THEN, f"7:{report.version}", "test")
    followers(settings)[THEN](claim.subject, claim.events)
    arguments, environment = json.loads((tmp_path / "told.json").read_text())
    assert arguments[1:] == ["$HOME; touch hacked", "`touch hacked`"]
    assert environment["DATASET_URL"] == report.url
    assert environment["DATASET_VERSION"] == "v000001"
    assert environment["DATASET_MANIFEST"] == f"{report.url}/versions/v000001/manifest.json"
    assert environment["DATASET_PROJECT"] == "7"
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), 3, "ended with 3"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), 137, "signal 9"),
        (("/no/such/program",), 127, "cannot be started"),
    ],
)
def test_command_that_fails_is_reported_with_its_status(command, status, said):
    with pytest.raises(CommandFailed, match=said) as caught:
        run_post_export_command(command, {})
    assert caught.value.exit_status == status


def test_command_line_becomes_words():
    assert words("train.sh --epochs 3 'a b'") == ("train.sh", "--epochs", "3", "a b")
    for text in ("", "  ", "'open"):
        with pytest.raises(BadOption, match="--then"):
            words(text)


def test_version_that_is_not_published_is_told_to_nobody_and_not_made_again(watcher, receiver, studio, build):
    studio.save(build.task(9, build.annotation(build.box(300, 300, 5, 5), number=9)))
    policy = ExportPolicy(every_tasks=1, max_errors=0.0, webhook=receiver.url, then=("true",))
    assert not watcher.run(7, policy, "x").published
    assert watcher.inbox.due(9) == []
    assert watcher.look(7, policy)[2] == ""


def test_watching_in_the_foreground_exports_tells_and_runs_and_outlives_faults(
    settings, studio, label, receiver, tmp_path, monkeypatch
):
    monkeypatch.setattr(foreground.Studio, "from_settings", lambda settings: studio)
    receiver.answers = [503]
    settings = settings.but(job_backoff_s=0.01)
    stop, lines, reports = threading.Event(), [], []
    log = tmp_path / "log"
    script = f"import os; open({str(log)!r}, 'a').write(os.environ['DATASET_VERSION'] + '\\n')"
    policy = ExportPolicy(every_tasks=2, webhook=receiver.url, then=(sys.executable, "-c", script))
    count = studio.count_tasks

    def away(*_, **__):
        studio.count_tasks = count
        label(4, 5)
        raise StudioUnreachable(studio.url, "the cable is cut")

    def show(report):
        reports.append(report.version)
        if len(reports) == 1:
            studio.count_tasks = away

    def tell(line):
        lines.append(line)
        if len(reports) == 2 and len(receiver.got) >= 3:
            stop.set()

    timer = threading.Timer(120, stop.set)
    timer.start()
    monkeypatch.setattr(foreground, "deliver", _then_look(foreground.deliver, lambda: tell("looked")))
    foreground.watch(7, policy, settings=settings, followers=followers(settings), tell=tell, show=show, stop=stop)
    timer.cancel()
    assert reports == ["v000001", "v000002"]
    assert log.read_text().split() == reports
    assert [json.loads(body)["version"] for _, body in receiver.got] == ["v000001", "v000001", "v000002"]
    assert any("does not answer" in line for line in lines)
    assert any("tried again" in line for line in lines)
    assert "every 2 newly accepted tasks" in lines[0]


def _then_look(function, look):
    def both(*args, **kwargs):
        function(*args, **kwargs)
        look()

    return both


def test_export_once_runs_the_command_and_gives_its_status(run, build, tmp_path, capfd, monkeypatch):
    from exporters.cli.export import export

    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([build.task(1, build.annotation(build.box(1, 1, 5, 5)))]))
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    then = f"{sys.executable} -c 'import os; print(os.environ[\"DATASET_URL\"]); raise SystemExit(4)'"
    assert export(str(file), to=f"file://{tmp_path / 'set'}", fetch=False, then=then) == 4
    out, err = capfd.readouterr()
    assert f"file://{tmp_path / 'set'}" in out.splitlines()[-1] or f"file://{tmp_path / 'set'}\n" in out
    assert "ended with 4" in err
    with pytest.raises(BadOption, match="--from"):
        export(str(file), watch=True, every_tasks=1)
    with pytest.raises(BadOption, match="--watch"):
        export("7", watch=True)
    with pytest.raises(BadOption, match="--afresh"):
        export("7", watch=True, every_tasks=1, afresh=True)
    assert os.environ.get("DATASET_URL") is None


def test_project_that_lost_most_tasks_publishes_only_where_the_policy_allows(watcher, receiver, studio, label):
    label(4, 5, 6)
    policy = ExportPolicy(every_tasks=1, webhook=receiver.url, then=("true",))
    assert watcher.run(7, ExportPolicy(every_tasks=1), "x").published
    for number in (3, 4, 5, 6):
        del studio.tasks_by_id[number]
    report = watcher.run(7, policy, "x")
    assert "2 of 6 tasks" in report.refused
    assert watcher.inbox.due(9) == []
    assert watcher.run(7, replace(policy, allow_shrink=True), "x").published
    assert len(watcher.inbox.due(9)) == 2


def test_export_without_images_makes_no_version_and_is_not_made_again(watcher, receiver, studio):
    policy = ExportPolicy(when_done=True, annotation="user:99", webhook=receiver.url, then=("true",))
    assert watcher.look(7, policy)[2]
    report = watcher.run(7, policy, "x")
    assert not report.published
    assert not report.version
    assert watcher.inbox.due(9) == []
    assert watcher.look(7, policy)[2] == ""
