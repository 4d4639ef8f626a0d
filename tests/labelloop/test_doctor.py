"""The doctor: every fault that needs no Label Studio is provoked on the real part; how checks run side by side."""

import json
import logging
import socket
import sqlite3
import threading
import time
from collections import namedtuple

import pytest
import structlog
from rich.console import Console
from werkzeug.serving import make_server

from labelloop.cli import doctor as commands
from labelloop.doctor import exports, label_studio, model, policy, project, services, storage
from labelloop.doctor.checks import CHECKS
from labelloop.doctor.context import Context
from labelloop.doctor.finding import Check, Finding, ok, problem, warning
from labelloop.doctor.label_studio import is_single_label, webhook_hosts
from labelloop.doctor.run import Diagnosis, diagnose
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.db.engine import open_database
from labelloop.service.errors import DatabaseError
from labelloop.service.jobs.inbox import Backoff, Inbox
from labelloop.service.settings import SecretStr, Settings
from labelloop.service.store import open_store
from labelloop.service.studio import StudioRefused
from labelloop.service.web.app import create_web
from labelloop.service.web.webhook_secret import WebhookSecrets
from ml_backend.checksums import keep_checksum
from ml_backend.inference.detector import embedded_model
from ml_backend.serving.active_versions import activate_in
from ml_backend.serving.registry import Registry


@pytest.fixture
def settings(tmp_path):
    def make(**values):
        return Settings(home=tmp_path / "home", **values)

    return make


@pytest.fixture
def context(settings):
    return lambda **values: Context(settings(**values))


@pytest.fixture
def silent_port():
    """A port where somebody listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=5) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def serve():
    """Serves a Flask app on a free port of loopback and returns its address."""
    servers = []

    def start(app):
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


# --- how checks run -------------------------------------------------------------------------------------------------


def test_a_check_that_crashes_costs_itself_alone(context):
    def crash(_context):
        raise ZeroDivisionError("by the password hunter2")

    secret = context(webhook_secret=SecretStr("hunter2"))
    found = diagnose(secret, {"bad": Check(crash), "good": Check(lambda _c: ok("fine"))}).findings
    assert found["good"] == ok("fine")
    assert found["bad"].level == "problem"
    assert "ZeroDivisionError" in found["bad"].what
    assert "hunter2" not in found["bad"].what + found["bad"].fix


def test_an_error_of_labelloop_is_told_with_its_fix(context):
    def fail(_context):
        raise DatabaseError("The disk is on fire.", fix="Put it out.")

    assert diagnose(context(), {"database": Check(fail)}).findings["database"] == problem(
        "The disk is on fire.", "Put it out."
    )


def test_a_check_that_hangs_is_left_behind_and_holds_nobody_up(context):
    released = threading.Event()
    started = time.monotonic()
    try:
        found = diagnose(
            context(),
            {"hangs": Check(lambda _c: ok(str(released.wait(60)))), "good": Check(lambda _c: ok("fine"))},
            timeout_s=3,
        ).findings
    finally:
        released.set()
    assert time.monotonic() - started < 30
    assert found["hangs"].level == "problem"
    assert "No answer within 3 s" in found["hangs"].what
    assert found["good"].level == "ok"


def test_checks_run_side_by_side(context):
    together = threading.Barrier(3, timeout=60)

    def meet(_context):
        together.wait()
        return ok("met")

    found = diagnose(context(), {name: Check(meet) for name in "abc"}).findings
    assert {finding.what for finding in found.values()} == {"met"}


def test_what_needs_a_broken_part_is_skipped_and_said_so(context):
    table = {
        "grandchild": Check(lambda _c: ok("never"), needs=("child",)),
        "child": Check(lambda _c: ok("never"), needs=("root",)),
        "root": Check(lambda _c: problem("broken", "mend it")),
        "other": Check(lambda _c: warning("meh", "maybe")),
        "after-warning": Check(lambda _c: ok("ran"), needs=("other",)),
    }
    diagnosis = diagnose(context(), table)
    assert list(diagnosis.findings) == list(table)  # in the order of the table
    levels = {name: finding.level for name, finding in diagnosis.findings.items()}
    assert levels == {
        "grandchild": "skipped", "child": "skipped", "root": "problem", "other": "warning", "after-warning": "ok",
    }  # fmt: skip
    assert "root" in diagnosis.findings["child"].what
    assert not diagnosis.healthy


def test_without_a_project_only_what_needs_none_is_looked_at(settings):
    table = {"one": Check(lambda _c: ok("1")), "two": Check(lambda _c: ok("2"), project=True)}
    assert list(diagnose(Context(settings()), table).findings) == ["one"]
    assert list(diagnose(Context(settings(), 7), table).findings) == ["one", "two"]


def test_a_fact_is_asked_for_once_even_by_many_at_a_time(context):
    asked = []
    one = context()

    def ask():
        asked.append(1)
        time.sleep(0.05)
        return "answer"

    found = diagnose(one, {str(n): Check(lambda c: ok(c._once("fact", ask))) for n in range(5)}).findings
    assert {finding.what for finding in found.values()} == {"answer"}
    assert len(asked) == 1


def test_every_need_in_the_table_is_a_check_of_the_table():
    for name, check in CHECKS.items():
        assert set(check.needs) <= set(CHECKS), name
        if not check.project:
            assert not any(CHECKS[need].project for need in check.needs), name


def test_nothing_running_is_told_part_by_part_and_in_time(settings, closed_port):
    url = f"http://127.0.0.1:{closed_port}"
    context = Context(settings(label_studio_url=url, ml_url=url, qc_url=url), 1)
    started = time.monotonic()
    found = diagnose(context, CHECKS).findings
    assert time.monotonic() - started < 60
    assert {name for name, finding in found.items() if finding.level == "problem"} == {
        "label-studio",
        "ml-backend",
        "qc",
    }
    for name in ("label-studio", "ml-backend", "qc"):
        assert "does not answer at" in found[name].what
        assert found[name].fix
    assert found["tabs"].level == "skipped"


def test_a_label_studio_that_stays_silent_is_given_up_on(settings, silent_port, monkeypatch):
    monkeypatch.setattr("labelloop.doctor.context.HTTP_TIMEOUT_S", 0.3)
    context = Context(settings(label_studio_url=f"http://127.0.0.1:{silent_port}"))
    found = diagnose(context, {"label-studio": CHECKS["label-studio"], "token": CHECKS["token"]}).findings
    assert found["label-studio"].level == "problem"
    assert found["token"].level == "skipped"


# --- our own state --------------------------------------------------------------------------------------------------


def test_a_setting_that_nothing_reads_is_named(context, monkeypatch):
    assert storage.settings(context()).level == "ok"
    monkeypatch.setenv("LABELLOOP_MODLE", "x.onnx")
    found = storage.settings(context())
    assert found.level == "warning"
    assert "LABELLOOP_MODLE" in found.what


Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - the shape of shutil.disk_usage's answer


@pytest.mark.parametrize(("free", "level"), [(100 * 2**20, "problem"), (2 * 2**30, "warning"), (50 * 2**30, "ok")])
def test_a_disk_that_is_nearly_full(context, monkeypatch, free, level):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(2**40, 0, free))
    found = storage.disk(context())
    assert found.level == level
    assert ("LABELLOOP_HOME" in found.fix) == (level != "ok")


def test_a_database_that_is_fine_or_not_made_yet(settings):
    context = Context(settings())
    assert "is not there yet" in storage.database(context).what
    open_database(settings()).dispose()
    assert storage.database(context) == ok(f"{settings().database_url} answers and has the newest schema")


def test_a_database_that_another_program_holds(settings, tmp_path, monkeypatch):
    open_database(settings()).dispose()
    monkeypatch.setattr(storage, "LOCK_S", 0.1)
    holder = sqlite3.connect(tmp_path / "home" / "labelloop.sqlite3", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        found = storage.database(Context(settings()))
    finally:
        holder.close()
    assert found.level == "problem"
    assert "locked" in found.what
    assert "fuser" in found.fix


def test_a_database_of_an_older_release_and_of_a_newer_one(settings, tmp_path):
    open_database(settings()).dispose()
    file = sqlite3.connect(tmp_path / "home" / "labelloop.sqlite3", isolation_level=None)
    file.execute("DELETE FROM alembic_version")
    assert storage.database(Context(settings())).level == "warning"
    file.execute("INSERT INTO alembic_version VALUES ('9999_future')")
    file.close()
    found = storage.database(Context(settings()))
    assert found.level == "problem"
    assert "9999_future" in found.what
    assert "upgrade" in found.fix


def test_a_database_file_that_is_none(settings, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "labelloop.sqlite3").write_bytes(b"this is not a database, it is a text" * 100)
    found = storage.database(Context(settings()))
    assert found.level == "problem"
    assert "not a database" in found.what


def test_a_postgres_that_does_not_answer_is_named_without_its_password(settings, closed_port):
    context = Context(settings(database_url=f"postgresql://me:hunter2@127.0.0.1:{closed_port}/x"))
    found = storage.database(context)
    assert found.level == "problem"
    assert "cannot be opened" in found.what
    assert "hunter2" not in found.what + found.fix


def test_events_that_were_given_up_and_events_that_nobody_handles(settings):
    engine = open_database(settings())
    now = [1000.0]
    events = Inbox(engine, backoff=Backoff(attempts=1), clock=lambda _c: now[0])
    assert storage.inbox(Context(settings())).level == "ok"
    events.put("qc.task", "1:7", "a", {})  # long ago: nobody has taken it
    found = storage.inbox(Context(settings()))
    assert found.level == "warning"
    assert "labelloop worker" in found.fix
    events.retry(events.claim("qc.task", "1:7", "me"), "Label Studio refused the task: 404")
    found = storage.inbox(Context(settings()))
    engine.dispose()
    assert found.level == "problem"
    assert "1 event was given up" in found.what
    assert "404" in found.what
    assert "labelloop inbox replay" in found.fix


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:{port}/0", "postgresql://me:hunter2@127.0.0.1:{port}/x"])
def test_a_queue_that_does_not_answer(settings, closed_port, url):
    found = storage.queue(Context(settings(queue_url=url.format(port=closed_port))))
    assert found.level == "problem"
    assert "LABELLOOP_QUEUE_URL" in found.fix
    assert "hunter2" not in found.what + found.fix


def test_a_real_postgres_and_a_real_redis(settings, postgres_url, redis_url):
    context = Context(settings(database_url=postgres_url, queue_url=redis_url))
    assert "older schema" in storage.database(context).what  # it is empty
    open_database(context.settings).dispose()
    assert storage.database(context).level == storage.inbox(context).level == storage.queue(context).level == "ok"
    assert storage.queue(Context(settings(queue_url=postgres_url))).level == "ok"


def test_a_wrong_password_for_postgres_and_redis(settings, postgres_url, redis_url):
    wrong = {"database_url": postgres_url, "queue_url": redis_url}
    context = Context(settings(**{name: url.replace("secret@", "hunter2@") for name, url in wrong.items()}))
    for found in (storage.database(context), storage.queue(context)):
        assert found.level == "problem"
        assert "hunter2" not in found.what + found.fix


def test_the_queue_on_disk_answers(context):
    assert storage.queue(context()).level == "ok"


def test_a_folder_is_a_whole_store(settings, tmp_path):
    context = Context(settings(store_url=f"file://{tmp_path}/store"))
    assert storage.store(context).level == "ok"
    assert storage.store_conditions(context).level == "ok"


def test_a_store_in_a_place_that_cannot_be_a_folder(settings, tmp_path):
    (tmp_path / "taken").write_text("a file")
    found = diagnose(
        Context(settings(store_url=f"file://{tmp_path}/taken/store")),
        {name: CHECKS[name] for name in ("store", "store-conditions")},
    ).findings
    assert found["store"].level == "problem"
    assert found["store"].fix
    assert found["store-conditions"].level == "skipped"


def test_an_s3_server_that_does_not_answer(settings, closed_port):
    context = Context(
        settings(
            store_url="s3://labelloop",
            s3_endpoint_url=f"http://127.0.0.1:{closed_port}",
            s3_access_key_id="key",
            s3_secret_access_key=SecretStr("hunter2"),
        )
    )
    found = diagnose(context, {"store": CHECKS["store"]}, timeout_s=30).findings["store"]
    assert found.level == "problem"
    assert "hunter2" not in found.what + found.fix
    assert str(closed_port) in found.what + found.fix


# --- the model ------------------------------------------------------------------------------------------------------


def test_the_embedded_model_can_be_served(context):
    found = model.model(context())
    assert found.level == "ok"
    assert found.what.startswith("base-")


def test_a_model_file_that_is_missing_or_none(settings, tmp_path):
    broken = tmp_path / "mine.onnx"
    broken.write_bytes(b"not a model")
    for path in (tmp_path / "gone.onnx", broken):
        found = diagnose(Context(settings(model=path)), {"model": CHECKS["model"]}).findings["model"]
        assert found.level == "problem"
        assert str(path) in found.what
        assert found.fix


def test_the_model_that_is_looked_at_is_the_one_that_is_served_to_the_project(settings):
    given = settings()
    store = open_store(given.store_url, given)
    own = Registry(store).add(embedded_model(), thresholds={"person": 0.7}).version
    activate_in(store, own, "3")
    assert Context(given, 3).detector().version == own
    assert model.model(Context(given, 3)).what.startswith(own)
    assert Context(given).detector().version != own


def config_of(*labels: str, control: str = "RectangleLabels") -> LabelConfig:
    tags = "".join(f'<Label value="{label}"/>' for label in labels)
    return LabelConfig.parse(
        f'<View><Image name="img" value="$image"/><{control} name="c" toName="img">{tags}</{control}></View>'
    )


def test_labels_and_classes_that_do_not_know_each_other(context):
    one = context()
    known = one.detector().names.names
    cases = [
        (config_of(*known), "ok", "classes have a label"),
        (config_of(known[0], "Flux capacitor"), "warning", "Flux capacitor"),
        (config_of("Flux capacitor"), "problem", "No class of the model"),
        (config_of(known[0], control="PolygonLabels"), "problem", "no control for boxes"),
    ]
    for config, level, said in cases:
        looked_at = context()
        looked_at._once("config", lambda config=config: config)
        found = model.labels(looked_at)
        assert found.level == level, said
        assert said in found.what


def test_no_pre_labels_are_promised_where_the_model_gives_none(context):
    looked_at = context()
    looked_at._once("config", lambda: config_of(looked_at.detector().names.names[0], control="PolygonLabels"))
    fields = {"id": 1, "sampling": "Uncertainty sampling", "model_version": "v1", "task_number": 3}
    looked_at._once("project", lambda: fields)
    found = project.sampling(looked_at)
    assert (found.level, "pre-labels no control" in found.what) == ("ok", True)


def test_a_damaged_or_missing_file_of_the_smart_tools_is_a_problem(settings, context, tmp_path):
    assert diagnose(context(), {"smart-model": CHECKS["smart-model"]}).findings["smart-model"].level == "ok"
    encoder, decoder = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    given = Context(settings(smart_encoder=encoder, smart_decoder=decoder))
    assert "encoder.onnx is missing" in model.smart_model(given).what
    for file in (encoder, decoder):
        file.write_bytes(b"whole")
        keep_checksum(file)
    assert model.smart_model(given).level == "ok"
    decoder.write_bytes(b"torn")
    found = diagnose(given, {"smart-model": CHECKS["smart-model"]}).findings["smart-model"]
    assert (found.level, "decoder.onnx" in found.what) == ("problem", True)


def test_controls_that_get_or_teach_nothing_are_a_warning_with_the_reason(context):
    known = context().detector().names.names[0]
    text = LabelConfig.parse('<View><Text name="t" value="$t"/><Rating name="stars" toName="t"/></View>')
    cases = [
        (config_of(known), "ok", "c: pre-labelled and learned from"),
        (
            config_of(known, control="PolygonLabels"),
            "warning",
            "c (PolygonLabels on Image) is not pre-labelled and not",
        ),
        (text, "warning", "stars (Rating on Text) is not pre-labelled and not learned from"),
        (LabelConfig({}, {}), "warning", "no control"),
    ]
    for config, level, said in cases:
        looked_at = context()
        looked_at._once("config", lambda config=config: config)
        found = model.controls(looked_at)
        assert (found.level, said in found.what) == (level, True), found.what


def test_a_backend_that_serves_another_version_is_a_problem(settings, serve):
    found = model.model(Context(settings(ml_url=serve(ml_app(settings())))))
    assert found.level == "problem"
    assert "answers with base-1" in found.what


# --- addresses and our services -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "single"),
    [
        ("http://qc:9091", True),
        ("http://qc-service/hook", True),
        ("http://qc.:9091", True),
        ("http://localhost:9091", False),
        ("http://127.0.0.1:9091", False),
        ("http://[::1]:9091", False),
        ("http://qc.labelloop.internal:9091", False),
        ("http://host.docker.internal", False),
    ],
)
def test_a_host_without_a_dot(url, single):
    assert is_single_label(url) is single


def test_a_webhook_host_without_a_dot_is_named_with_the_way_out(context):
    found = webhook_hosts(context(qc_url="http://qc:9091"))
    assert found.level == "problem"
    assert "LABELLOOP_QC_URL=http://qc:9091" in found.what
    assert "qc.labelloop.internal" in found.fix
    assert webhook_hosts(context()).level == "ok"


def ml_app(settings: Settings, **ready):
    app = create_web("ml-backend", settings, ready=ready)
    app.get("/versions")(lambda: {"versions": ["base-1"]})
    return app


LOGIN = {"basic_auth_user": "labelloop", "basic_auth_password": SecretStr("hunter2")}
OTHER = {"basic_auth_user": "labelloop", "basic_auth_password": SecretStr("other")}


@pytest.mark.parametrize(
    ("theirs", "ours", "level"),
    [(LOGIN, LOGIN, "ok"), ({}, {}, "ok"), (OTHER, LOGIN, "problem"), (LOGIN, {}, "problem"), ({}, LOGIN, "warning")],
)
def test_the_log_in_of_the_ml_backend(settings, serve, theirs, ours, level):
    url = serve(ml_app(settings(**theirs)))
    context = Context(settings(ml_url=url, **ours))
    assert services.ml_backend(context).level == "ok"  # /health needs no log-in
    found = services.ml_login(context)
    assert found.level == level
    assert "hunter2" not in found.what + found.fix


def test_a_service_that_is_not_ready_says_what_it_waits_for(settings, serve):
    def broken():
        raise DatabaseError("The database is locked.", fix="Unlock it.")

    url = serve(ml_app(settings(), model=lambda: None, database=broken))
    found = services.ml_ready(Context(settings(ml_url=url)))
    assert found.level == "problem"
    assert "database: The database is locked." in found.what
    assert services.ml_ready(Context(settings(ml_url=serve(ml_app(settings(), model=lambda: None))))).level == "ok"


def test_something_else_at_the_address_of_a_service(settings, serve):
    from flask import Flask

    app = Flask("other")
    app.get("/health")(lambda: "<html>Grafana</html>")
    found = services.ml_backend(Context(settings(ml_url=serve(app))))
    assert found.level == "problem"
    assert "is not the ML backend" in found.what


def qc_app(settings: Settings):
    from flask import request

    app = create_web("qc", settings, open_paths=("/health", "/webhook"))

    @app.post("/webhook")
    def webhook():
        WebhookSecrets(settings).check(request)
        return {}

    return app


@pytest.mark.parametrize(
    ("theirs", "ours", "level"),
    [("hunter2", "hunter2", "ok"), ("other", "hunter2", "problem"), ("hunter2", "", "problem"), ("", "", "warning")],
)
def test_the_secret_of_quality_control(settings, serve, theirs, ours, level):
    url = serve(qc_app(settings(webhook_secret=SecretStr(theirs))))
    found = services.qc_secret(Context(settings(qc_url=url, webhook_secret=SecretStr(ours))))
    assert found.level == level
    assert ("LABELLOOP_WEBHOOK_SECRET" in found.fix) == (level != "ok")
    assert "hunter2" not in found.what + found.fix


# --- what a Label Studio of the tested release cannot show (tests/system/test_doctor.py has the rest) ----------------


class OtherStudio:
    """A Label Studio of another release, or one without any protection."""

    def __init__(self, release="1.22.0", backends=()):
        self.release, self.backends = release, backends

    def version(self):
        return self.release

    def request(self, method, path, *, json, retry):
        raise StudioRefused(f"{method} {path}", 400, "Validation error {'actions': ['not a valid choice']}")

    def project(self, _project):
        return {"id": 1, "title": "x", "model_version": "base-1"}

    def ml_backends(self, _project):
        return list(self.backends)

    def webhooks(self, _project):
        return []


@pytest.mark.parametrize(
    ("release", "level"), [("1.23.2", "ok"), ("1.23", "ok"), ("1.230.0", "warning"), ("2.0", "warning")]
)
def test_another_release_of_label_studio_is_a_warning(settings, release, level):
    found = label_studio.version(Context(settings(), studio=OtherStudio(release)))
    assert found.level == level
    assert release in found.what


def test_an_open_metadata_address_is_a_warning(settings):
    found = label_studio.metadata_address(Context(settings(), studio=OtherStudio()))
    assert found.level == "warning"
    assert "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16" in found.fix


def test_a_backend_that_is_not_the_first_of_its_project_is_never_asked(settings):
    row = {"state": "CO", "title": "base-1", "model_version": "base-1"}
    mine = {**row, "id": 9, "url": "http://localhost:9090"}
    other = {**row, "id": 2, "url": "http://gpu.lan:9090"}
    alone, second = (Context(settings(), 1, studio=OtherStudio(backends=rows)) for rows in ([mine], [mine, other]))
    assert project.backend(alone).level == "ok"
    found = project.backend(second)
    assert found.level == "warning"
    assert "gpu.lan" in found.what


@pytest.mark.parametrize(
    ("title", "answered", "level"),
    [
        ("base-1", "base-1", "ok"),
        ("base-1", "learned-2-abc", "warning"),  # its order is being made
        ("My model", "learned-2-abc", "problem"),
        ("base-1", "mine-abc", "problem"),
    ],
)
def test_a_version_that_was_just_learned_is_no_fault(settings, title, answered, level):
    row = {"state": "CO", "title": title, "model_version": answered, "id": 1, "url": "http://localhost:9090"}
    found = project.model_version(Context(settings(), 1, studio=OtherStudio(backends=[row])))
    assert found.level == level


class PoliciedStudio(OtherStudio):
    """A project with one control and no ground truth."""

    def project(self, _project):
        boxes = (
            '<RectangleLabels name="boxes" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels>'
        )
        config = f'<View><Image name="image" value="$image"/>{boxes}</View>'
        return {"id": 7, "title": "x", "label_config": config, "ground_truth_number": 0}


@pytest.mark.parametrize(
    ("written", "level", "said"),
    [
        ("", "ok", "can be followed"),
        ("agreement = 0.8\n[controls.boxes]\nweight = 2", "ok", "can be followed"),
        ("agreement = 2", "problem", "agreement: must be above 0"),
        ("[controls.box]\nweight = 2", "problem", "controls.box names 'box' ('boxes'?)"),
        ('[[review]]\ndimension = "colour"', "problem", "review[1].dimension names 'colour'"),
        (
            '[[rules]]\nrule = "min_box_px"\nvalue = 8\nlabels = ["car"]',
            "problem",
            "rules[1].labels names 'car' ('Car'?)",
        ),
        ("ground_truth_share = 0.1", "warning", "the project has none"),
    ],
)
def test_a_policy_that_names_what_is_not_there_is_found(settings, written, level, said):
    given = settings()
    file = given.home / "qc" / "7" / "policy.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(written)
    found = policy.qc_policy(Context(given, 7, studio=PoliciedStudio()))
    assert (found.level, said in found.what) == (level, True), found.what


@pytest.mark.parametrize(
    ("written", "level", "said"),
    [
        (None, "ok", "not exported by itself"),
        ("every_tasks = 5", "ok", "can be followed"),
        ("every_tasks = 5\nthen = ['no-such-program']", "problem", "'no-such-program'"),
        ("format = 'coco'", "warning", "says nothing of when"),
        ("format = 'yolo'\nat = 'noon'", "problem", "at must be a time of day"),
    ],
)
def test_a_policy_of_exports_that_cannot_be_followed_is_found(settings, written, level, said):
    given = settings()
    file = given.home / "exporters" / "7" / "export.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    if written is not None:
        file.write_text(f"[export]\n{written}")
    found = exports.export_policy(Context(given, 7, studio=PoliciedStudio()))
    assert (found.level, said in found.what) == (level, True), found.what
    assert level == "ok" or found.fix


# --- how it is shown ------------------------------------------------------------------------------------------------

SEEN = Diagnosis(
    {
        "disk": ok("50 GiB free"),
        "token": problem("Label Studio does not accept our token: expired.", "Make a new one and set it."),
        "sampling": warning("Tasks are served in order.", "Run `labelloop connect 1`."),
        "tabs": Finding("skipped", "Not looked at."),
    }
)


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_list_shows_everything_whatever_the_width(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    commands.show(SEEN, console)
    console.file.close()
    said = console.export_text()
    assert all(len(line) <= width for line in said.splitlines())
    flat = " ".join(said.split())
    for name, finding in SEEN.findings.items():
        for words in (name, *finding.what.split(), *finding.fix.split()):
            assert words in flat
    assert "1 problem and 1 warning." in flat


def test_json_holds_every_finding():
    body = json.loads(commands.as_json(SEEN))
    assert body["healthy"] is False
    assert body["findings"]["token"] == {
        "level": "problem",
        "what": "Label Studio does not accept our token: expired.",
        "fix": "Make a new one and set it.",
    }


@pytest.fixture
def own_logging():
    """What a command does to the process's logging, undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_json_stays_json_while_label_studio_makes_trouble(monkeypatch, capsys, settings, serve, own_logging):
    """Retries are logged; a log line on standard output would break whoever reads the JSON."""
    from flask import Flask

    app = Flask("label-studio")
    app.add_url_rule("/health", "health", view_func=lambda: {"status": "UP"})
    app.add_url_rule("/<path:any_>", "any", view_func=lambda any_: ("bad gateway", 502), methods=["GET", "POST"])
    monkeypatch.setenv("LABELLOOP_HOME", str(settings().home))
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_URL", serve(app))
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_API_KEY", "0" * 40)
    monkeypatch.setattr(commands, "CHECKS", {name: CHECKS[name] for name in ("label-studio", "token")})
    with pytest.raises(SystemExit):
        commands.doctor(json=True)
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings["token"]["level"] == "problem"
    assert "502" in findings["token"]["what"]


def test_the_command_ends_with_one_on_a_problem_and_prints_json(monkeypatch, capsys, tmp_path, own_logging):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(commands, "CHECKS", {"good": Check(lambda _c: ok("fine"))})
    commands.doctor(json=True)
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    monkeypatch.setattr(commands, "CHECKS", {"bad": Check(lambda _c: problem("broken", "mend it"))})
    with pytest.raises(SystemExit) as ended:
        commands.doctor()
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "broken" in said
    assert "mend it" in said
