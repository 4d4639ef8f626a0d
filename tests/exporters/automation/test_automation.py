"""Automatic exports: triggers, policies, webhooks, commands, the watch. With real services: tests/system."""

import hashlib
import hmac
import inspect
import json
import os
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from exporters import jobs
from exporters.automation import watch
from exporters.automation.notify import (
    CommandFailed,
    WebhookFailed,
    WebhookForbidden,
    run_post_export_command,
    send,
    split_command,
)
from exporters.automation.policy import (
    ExportPolicy,
    ExportPolicyError,
    policy_files,
    read_export_policy,
    watched_projects,
)
from exporters.automation.triggers import TRIGGERS, LastExport, ProjectSnapshot, due
from exporters.automation.watch import PROJECT, THEN, WEBHOOK, Watcher, post_export_handlers
from exporters.dataset.versions import versions
from exporters.errors import BadOption
from exporters.pipeline.export import export
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
            studio.put_task(7, **build.task(number, build.annotation(build.box(1, 1, 5, 5), number=number), **data))

    return label


@pytest.fixture
def receiver():
    """A web server that keeps what it is sent; ``receiver.answers`` are the statuses it gives, then 200."""

    receiver = SimpleNamespace(got=[], answers=[])

    def answer(request):
        receiver.got.append((request.headers, request.body))
        return (receiver.answers.pop(0) if receiver.answers else 200), b"", {"Location": "/elsewhere"}

    with WebServer(answer) as server:
        receiver.url = f"{server.url}/hook/token"
        yield receiver


def now(accepted=10, tasks=20, newest="b", at=NOON):
    return ProjectSnapshot(accepted, tasks, newest, at)


def last(accepted=5, newest="a", at=NOON - timedelta(hours=5), version="v000001"):
    return LastExport(accepted, newest, at, version)


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
        ({"when_done": True}, now(accepted=20, newest="a"), last(accepted=20), False),  # exported already
        ({"every_tasks": 1}, now(accepted=0), last(accepted=-1), False),
        ({}, now(), last(), False),
    ],
)
def test_when_an_export_is_due(policy, now, last, is_due):
    assert bool(due(ExportPolicy(**policy), now, last)) is is_due


def test_every_trigger_is_a_key_of_the_policy():
    assert set(TRIGGERS) <= set(ExportPolicy.__dataclass_fields__)
    assert not ExportPolicy().is_automatic


def test_every_field_of_the_policy_reaches_the_run():
    of_this_run = {
        "source", "settings", "studio", "label_config", "fetch", "afresh", "workers", "ray",
        "progress", "file_progress", "look_progress",
    }  # fmt: skip
    options = ExportPolicy(to="s3://bucket/cars", format="coco, voc", copy_images=True).options()
    assert set(options) == set(inspect.signature(export).parameters) - of_this_run
    assert (options["to"], options["formats"], options["copy_images"]) == ("s3://bucket/cars", ("coco", "voc"), True)
    assert (ExportPolicy().options()["to"], ExportPolicy().options()["formats"]) == (None, ())


def test_disputed_waiting_and_open_tasks_are_not_accepted(watcher, label, studio, build):
    label(4, qc_status="disputed")
    label(5, qc_status="waiting")
    label(6)  # no quality control
    studio.put_task(7, **build.task(7))
    state = watcher.read_state(7)
    assert (state.accepted, state.tasks) == (4, 7)
    assert state.newest == studio.tasks_by_id[7]["updated_at"]


def test_every_two_new_tasks_publish_exactly_one_version(watcher, settings, label):
    policy = ExportPolicy(every_tasks=2)
    exported = []
    for numbers in ((), (), (4,), (5,), (), (6, 7)):
        label(*numbers)
        _, _, reason = watcher.check(7, policy)
        exported.append(reason and watcher.export(7, policy, reason).version)
    assert exported == ["v000001", "", "", "v000002", "", "v000003"]
    store = open_store(f"{settings.store_url}/cars", settings)
    assert [version.accounts.tasks.kept for version in versions(store)] == [3, 5, 7]


def test_due_export_is_enqueued_once_and_follows_the_file(settings, studio, engine, watcher):
    file = policy_files(settings.home, 7)[1]
    file.parent.mkdir(parents=True)
    file.write_text(f'[export]\nto = "file://{settings.home}/set"\nformat = "coco"\nevery_tasks = 1\n')
    assert watched_projects(settings.home) == [7]
    (job,) = jobs.periodic_jobs(settings, studio, engine)
    job.run()
    job.run()
    inbox = Inbox.from_settings(settings, engine)
    claim = inbox.claim(PROJECT, "7", "test")
    assert len(claim.events) == 1
    jobs.handlers(settings, studio, engine)[PROJECT]("7", claim.events)
    inbox.mark_done(claim)
    (version,) = versions(open_store(f"file://{settings.home}/set", settings))
    assert version.formats == ("coco",)
    job.run()
    assert inbox.claim(PROJECT, "7", "test") is None


def test_invalid_policy_of_one_project_does_not_block_others(settings, studio, engine):
    for project, text in ((3, "[export"), (7, "[export]\nevery_tasks = 1")):
        file = policy_files(settings.home, project)[1]
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (job,) = jobs.periodic_jobs(settings, studio, engine)
    with capture_logs() as lines:
        job.run()
        job.run()
    assert Inbox.from_settings(settings, engine).due_subjects(9) == [(PROJECT, "7")]
    assert [line["projects"] for line in lines if line["event"] == "export_watch_failed"] == [[3]], "said once"


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
def test_invalid_policy_names_file_and_key(settings, text, key):
    file = policy_files(settings.home, 7)[0]
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ExportPolicyError, match=r"export\.toml") as caught:
        read_export_policy(settings.home, 7)
    assert [fault.key for fault in caught.value.faults] == [key]
    assert str(file) in caught.value.message
    assert f": {key} " in caught.value.message
    assert caught.value.fix


def test_all_faults_of_a_policy_are_reported_with_fixes(settings):
    file = policy_files(settings.home, 7)[1]
    file.parent.mkdir(parents=True)
    file.write_text("[export]\nformat = 'coco,yolo'\nevry_tasks = 5\nat = '2:30'\nwebhook = 'ftp://secret@host'\n")
    with pytest.raises(ExportPolicyError) as caught:
        read_export_policy(settings.home, 7)
    message = f"{caught.value.message} {caught.value.fix}"
    for expected in ("'yolo'", "yolo-detect", "Did you mean every_tasks?", "such as 02:30", "http:// or https://"):
        assert expected in message
    assert "secret" not in message


def test_projects_own_policy_overrides_the_general_one(settings):
    general, own = policy_files(settings.home, 7)
    own.parent.mkdir(parents=True)
    general.write_text('[export]\nformat = "coco"\nevery_hours = 24\n')
    own.write_text('[export]\nevery_tasks = 50\nthen = ["train.sh", "--fast"]\n')
    assert read_export_policy(settings.home, 7) == ExportPolicy(
        format="coco", every_hours=24.0, every_tasks=50, then=("train.sh", "--fast")
    )


def test_webhook_is_signed_and_describes_the_version(watcher, receiver, settings):
    policy = ExportPolicy(every_tasks=1, webhook=receiver.url)
    report = watcher.export(7, policy, "3 newly accepted tasks")
    claim = watcher.inbox.claim(WEBHOOK, f"7:{report.version}", "test")
    post_export_handlers(settings)[WEBHOOK](claim.subject, claim.events)
    ((headers, body),) = receiver.got
    payload = json.loads(body)
    assert (payload["event"], payload["version"], payload["project"]) == ("dataset.published", "v000001", 7)
    assert payload["manifest_sha256"] == report.manifest_sha256
    signed = f"{headers['X-Labelloop-Timestamp']}.".encode() + body
    digest = hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    assert headers["X-Labelloop-Signature"] == f"v1={digest}"


@pytest.mark.parametrize("status", [301, 404, 500])
def test_rejected_webhook_fails_and_redirects_are_not_followed(settings, receiver, status):
    receiver.answers = [status]
    with pytest.raises(WebhookFailed, match=str(status)) as caught:
        send(settings, receiver.url, {"event": "e", "id": "1"})
    assert "token" not in str(caught.value)  # the path of a hook may be its secret
    assert len(receiver.got) == 1
    send(settings, receiver.url, {"event": "e", "id": "1"})
    assert receiver.got[0][0]["X-Labelloop-Delivery"] == receiver.got[1][0]["X-Labelloop-Delivery"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"])
def test_webhook_never_goes_to_a_forbidden_private_host(settings, receiver, host):
    closed = settings.replace(media_hosts=())
    url = receiver.url.replace("127.0.0.1", host)
    with pytest.raises(WebhookForbidden):
        send(closed, url, {"event": "e", "id": "1"})
    assert receiver.got == []
    event = type("Event", (), {"payload": {"to": url, "body": {"event": "e", "id": "1"}}})
    with pytest.raises(Reject):
        post_export_handlers(closed)[WEBHOOK]("7:v1", [event])


def test_command_gets_environment_variables_and_no_shell(watcher, settings, tmp_path, studio):
    studio.fields["title"] = "cars; touch hacked $(touch hacked)"
    script = "import os, json, sys; json.dump([sys.argv[1:], dict(os.environ)], open(sys.argv[1], 'w'))"
    command = (
        sys.executable,
        "-c",
        script,
        str(tmp_path / "environment.json"),
        "$HOME; touch hacked",
        "`touch hacked`",
    )
    report = watcher.export(7, ExportPolicy(every_tasks=1, then=command), "x")
    claim = watcher.inbox.claim(THEN, f"7:{report.version}", "test")
    post_export_handlers(settings)[THEN](claim.subject, claim.events)
    arguments, environment = json.loads((tmp_path / "environment.json").read_text())
    assert arguments[1:] == ["$HOME; touch hacked", "`touch hacked`"]
    assert environment["DATASET_URL"] == report.url
    assert environment["DATASET_VERSION"] == "v000001"
    assert environment["DATASET_MANIFEST"] == f"{report.url}/versions/v000001/manifest.json"
    assert environment["DATASET_PROJECT"] == "7"
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), 3, "ended with 3"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), 137, "signal 9"),
        (("/no/such/program",), 127, "cannot be started"),
    ],
)
def test_failed_command_is_reported_with_its_status(command, status, message):
    with pytest.raises(CommandFailed, match=message) as caught:
        run_post_export_command(command, {})
    assert caught.value.exit_status == status


def test_command_line_is_split_into_words():
    assert split_command("train.sh --epochs 3 'a b'") == ("train.sh", "--epochs", "3", "a b")
    for text in ("", "  ", "'open"):
        with pytest.raises(BadOption, match="--then"):
            split_command(text)


def test_unpublished_version_notifies_no_receiver_and_is_not_repeated(watcher, receiver, studio, build):
    studio.put_task(7, **build.task(9, build.annotation(build.box(300, 300, 5, 5), number=9)))
    policy = ExportPolicy(every_tasks=1, max_errors=0.0, webhook=receiver.url, then=("true",))
    assert not watcher.export(7, policy, "x").published
    assert watcher.inbox.due_subjects(9) == []
    assert watcher.check(7, policy)[2] == ""


def test_foreground_watch_exports_notifies_and_survives_faults(
    settings, studio, label, receiver, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch.Studio, "from_settings", lambda settings: studio)
    receiver.answers = [503]
    settings = settings.replace(job_backoff_s=0.01)
    stop, lines, reports = threading.Event(), [], []
    log = tmp_path / "log"
    script = f"import os; open({str(log)!r}, 'a').write(os.environ['DATASET_VERSION'] + '\\n')"
    policy = ExportPolicy(every_tasks=2, webhook=receiver.url, then=(sys.executable, "-c", script))
    count = studio.count_tasks

    def unreachable(*_, **__):
        studio.count_tasks = count
        label(4, 5)
        raise StudioUnreachable(url=studio.url, reason="the cable is cut")

    def on_report(report):
        reports.append(report.version)
        if len(reports) == 1:
            studio.count_tasks = unreachable

    def on_message(line):
        lines.append(line)
        if len(reports) == 2 and len(receiver.got) >= 3:
            stop.set()

    timer = threading.Timer(120, stop.set)
    timer.start()
    monkeypatch.setattr(watch, "deliver_due_events", _then(watch.deliver_due_events, lambda: on_message("delivered")))
    handlers = post_export_handlers(settings)
    watch.watch(7, policy, settings=settings, handlers=handlers, on_message=on_message, on_report=on_report, stop=stop)
    timer.cancel()
    assert reports == ["v000001", "v000002"]
    assert log.read_text().split() == reports
    assert [json.loads(body)["version"] for _, body in receiver.got] == ["v000001", "v000001", "v000002"]
    assert any("does not answer" in line for line in lines)
    assert any("tried again" in line for line in lines)
    assert "every 2 newly accepted tasks" in lines[0]


def _then(function, follow_up):
    def both(*args, **kwargs):
        function(*args, **kwargs)
        follow_up()

    return both


def test_single_export_runs_command_and_returns_its_status(run, build, tmp_path, capfd, monkeypatch):
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


def test_shrunken_project_publishes_only_where_the_policy_allows(watcher, receiver, studio, label):
    label(4, 5, 6)
    policy = ExportPolicy(every_tasks=1, webhook=receiver.url, then=("true",))
    assert watcher.export(7, ExportPolicy(every_tasks=1), "x").published
    for number in (3, 4, 5, 6):
        del studio.tasks_by_id[number]
    report = watcher.export(7, policy, "x")
    assert "2 of 6 tasks" in report.refused
    assert watcher.inbox.due_subjects(9) == []
    assert watcher.export(7, replace(policy, allow_shrink=True), "x").published
    assert len(watcher.inbox.due_subjects(9)) == 2


def test_export_without_images_publishes_nothing_and_is_not_repeated(watcher, receiver, studio):
    policy = ExportPolicy(when_done=True, annotation="user:99", webhook=receiver.url, then=("true",))
    assert watcher.check(7, policy)[2]
    report = watcher.export(7, policy, "x")
    assert not report.published
    assert not report.version
    assert watcher.inbox.due_subjects(9) == []
    assert watcher.check(7, policy)[2] == ""
