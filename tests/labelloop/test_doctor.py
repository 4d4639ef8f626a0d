"""The doctor: faults of real parts that need no Label Studio, and running the checks in parallel."""

import io
import json
import logging
import socket
import sqlite3
import threading
import time
from collections import namedtuple
from dataclasses import replace

import pytest
import structlog
from rich.console import Console
from werkzeug.serving import make_server

from labelloop.cli import doctor as commands
from labelloop.doctor import label_studio, policies, project, services, storage
from labelloop.doctor.checks import CHECKS
from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import DoctorCheck, Finding, ok, problem, warning
from labelloop.doctor.label_studio import is_single_label, webhook_hosts
from labelloop.doctor.run import DoctorReport, diagnose
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.db.engine import open_database
from labelloop.service.errors import DatabaseError
from labelloop.service.jobs.inbox import Backoff, Inbox
from labelloop.service.settings import SecretStr, Settings
from labelloop.service.store import open_store
from labelloop.service.web.app import create_web_app
from labelloop.service.web.webhook_secret import WebhookSecrets
from ml_backend.checksums import write_checksum
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.registry import Registry
from tests.fake_label_studio import FakeLabelStudio


@pytest.fixture
def settings(tmp_path):
    def make(**values):
        return Settings(home=tmp_path / "home", **values)

    return make


@pytest.fixture
def context(settings):
    return lambda **values: DoctorContext(settings(**values))


@pytest.fixture
def silent_port():
    """A port that accepts connections and never answers."""
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


# --- running the checks --------------------------------------------------------------------------------------------


def test_crashing_check_becomes_its_own_finding(context):
    def crash(_context):
        raise ZeroDivisionError("by the password hunter2")

    secret = context(webhook_secret=SecretStr("hunter2"))
    findings = diagnose(secret, {"bad": DoctorCheck(crash), "good": DoctorCheck(lambda _c: ok("fine"))}).findings
    assert findings["good"] == ok("fine")
    assert findings["bad"].level == "problem"
    assert "ZeroDivisionError" in findings["bad"].what
    assert "hunter2" not in findings["bad"].what + findings["bad"].fix


def test_labelloop_error_is_reported_with_its_fix(context):
    def fail(_context):
        raise DatabaseError("The disk is on fire.", fix="Put it out.")

    assert diagnose(context(), {"database": DoctorCheck(fail)}).findings["database"] == problem(
        "The disk is on fire.", "Put it out."
    )


def test_hanging_check_is_abandoned_and_blocks_no_other(context):
    released = threading.Event()
    started = time.monotonic()
    try:
        findings = diagnose(
            context(),
            {"hangs": DoctorCheck(lambda _c: ok(str(released.wait(60)))), "good": DoctorCheck(lambda _c: ok("fine"))},
            timeout_s=3,
        ).findings
    finally:
        released.set()
    assert time.monotonic() - started < 30
    assert findings["hangs"].level == "problem"
    assert "No answer within 3 s" in findings["hangs"].what
    assert findings["good"].level == "ok"


def test_checks_run_in_parallel(context):
    together = threading.Barrier(3, timeout=60)

    def meet(_context):
        together.wait()
        return ok("met")

    findings = diagnose(context(), {name: DoctorCheck(meet) for name in "abc"}).findings
    assert {finding.what for finding in findings.values()} == {"met"}


def test_checks_that_need_a_broken_part_are_skipped(context):
    table = {
        "grandchild": DoctorCheck(lambda _c: ok("never"), needs=("child",)),
        "child": DoctorCheck(lambda _c: ok("never"), needs=("root",)),
        "root": DoctorCheck(lambda _c: problem("broken", "fix it")),
        "other": DoctorCheck(lambda _c: warning("meh", "maybe")),
        "after-warning": DoctorCheck(lambda _c: ok("ran"), needs=("other",)),
    }
    diagnosis = diagnose(context(), table)
    assert list(diagnosis.findings) == list(table)  # in the order of the table
    levels = {name: finding.level for name, finding in diagnosis.findings.items()}
    assert levels == {
        "grandchild": "skipped", "child": "skipped", "root": "problem", "other": "warning", "after-warning": "ok",
    }  # fmt: skip
    assert "root" in diagnosis.findings["child"].what
    assert not diagnosis.healthy


def test_checks_of_a_project_are_left_out_without_one(settings):
    table = {"one": DoctorCheck(lambda _c: ok("1")), "two": DoctorCheck(lambda _c: ok("2"), project=True)}
    assert list(diagnose(DoctorContext(settings()), table).findings) == ["one"]
    assert list(diagnose(DoctorContext(settings(), 7), table).findings) == ["one", "two"]


def test_concurrent_checks_fetch_a_value_once(context):
    fetches = []
    checked = context()

    def fetch():
        fetches.append(1)
        time.sleep(0.05)
        return "answer"

    findings = diagnose(
        checked, {str(n): DoctorCheck(lambda c: ok(c.fetch_once("fact", fetch))) for n in range(5)}
    ).findings
    assert {finding.what for finding in findings.values()} == {"answer"}
    assert len(fetches) == 1


def test_every_needed_check_is_in_the_table():
    for name, check in CHECKS.items():
        assert set(check.needs) <= set(CHECKS), name
        if not check.project:
            assert not any(CHECKS[need].project for need in check.needs), name


def test_stopped_services_are_reported_one_by_one_in_time(settings, closed_port):
    url = f"http://127.0.0.1:{closed_port}"
    context = DoctorContext(settings(label_studio_url=url, ml_url=url, qc_url=url), 1)
    started = time.monotonic()
    findings = diagnose(context, CHECKS).findings
    assert time.monotonic() - started < 60
    assert {name for name, finding in findings.items() if finding.level == "problem"} == {
        "label-studio",
        "ml-backend",
        "qc",
    }
    for name in ("label-studio", "ml-backend", "qc"):
        assert "does not answer at" in findings[name].what
        assert findings[name].fix
    assert findings["tabs"].level == "skipped"


def test_silent_label_studio_times_out(settings, silent_port, monkeypatch):
    monkeypatch.setattr("labelloop.doctor.context.HTTP_TIMEOUT_S", 0.3)
    context = DoctorContext(settings(label_studio_url=f"http://127.0.0.1:{silent_port}"))
    findings = diagnose(context, {"label-studio": CHECKS["label-studio"], "token": CHECKS["token"]}).findings
    assert findings["label-studio"].level == "problem"
    assert findings["token"].level == "skipped"


# --- our own state --------------------------------------------------------------------------------------------------


def test_unknown_setting_is_named(context, monkeypatch):
    assert storage.settings(context()).level == "ok"
    monkeypatch.setenv("LABELLOOP_MODLE", "x.onnx")
    finding = storage.settings(context())
    assert finding.level == "warning"
    assert "LABELLOOP_MODLE" in finding.what
    assert "did you mean LABELLOOP_MODEL?" in finding.fix


Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - the shape of shutil.disk_usage's answer


@pytest.mark.parametrize(("free", "level"), [(100 * 2**20, "problem"), (2 * 2**30, "warning"), (50 * 2**30, "ok")])
def test_nearly_full_disk_is_reported(context, monkeypatch, free, level):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(2**40, 0, free))
    finding = storage.disk(context())
    assert finding.level == level
    assert ("LABELLOOP_HOME" in finding.fix) == (level != "ok")


def test_current_or_missing_database_is_ok(settings):
    context = DoctorContext(settings())
    assert "does not exist yet" in storage.database(context).what
    open_database(settings()).dispose()
    assert storage.database(context) == ok(f"{settings().database_url} answers and has the newest schema")


def test_home_that_no_service_used_is_a_warning(settings):
    finding = storage.home(DoctorContext(settings()))
    assert (finding.level, "LABELLOOP_HOME" in finding.fix) == ("warning", True)
    assert "No service has run" in finding.what
    open_database(settings()).dispose()
    assert storage.home(DoctorContext(settings())).level == "ok"


def test_a_home_that_does_not_exist_stays_so(settings):
    context = DoctorContext(settings())
    assert not context.settings.home.exists()
    state = ("settings", "disk", "home", "database", "integrity", "inbox", "worker", "events", "queue", "store")
    levels = {finding.level for finding in diagnose(context, {name: CHECKS[name] for name in state}).findings.values()}
    assert levels == {"ok", "warning", "skipped"}
    assert not context.settings.home.exists()


def test_locked_database_is_a_problem(settings, tmp_path, monkeypatch):
    open_database(settings()).dispose()
    monkeypatch.setattr(storage, "LOCK_S", 0.1)
    holder = sqlite3.connect(tmp_path / "home" / "labelloop.sqlite3", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        finding = storage.database(DoctorContext(settings()))
    finally:
        holder.close()
    assert finding.level == "problem"
    assert "locked" in finding.what
    assert "fuser" in finding.fix


def test_database_schema_of_another_release_is_reported(settings, tmp_path):
    open_database(settings()).dispose()
    file = sqlite3.connect(tmp_path / "home" / "labelloop.sqlite3", isolation_level=None)
    file.execute("DELETE FROM alembic_version")
    assert storage.database(DoctorContext(settings())).level == "warning"
    file.execute("INSERT INTO alembic_version VALUES ('9999_future')")
    file.close()
    finding = storage.database(DoctorContext(settings()))
    assert finding.level == "problem"
    assert "9999_future" in finding.what
    assert "Upgrade" in finding.fix


def test_file_that_is_no_database_is_a_problem(settings, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "labelloop.sqlite3").write_bytes(b"this is not a database, it is a text" * 100)
    finding = storage.database(DoctorContext(settings()))
    assert finding.level == "problem"
    assert "not a database" in finding.what
    assert "labelloop restore FILE --force" in finding.fix


def test_unreachable_postgres_is_named_without_its_password(settings, closed_port):
    context = DoctorContext(settings(database_url=f"postgresql://me:hunter2@127.0.0.1:{closed_port}/x"))
    finding = storage.database(context)
    assert finding.level == "problem"
    assert "cannot be opened" in finding.what
    assert "hunter2" not in finding.what + finding.fix


def test_dead_events_and_unclaimed_events_are_reported(settings):
    engine = open_database(settings())
    now = [1000.0]
    events = Inbox(engine, backoff=Backoff(attempts=1), clock=lambda _c: now[0])
    assert storage.inbox(DoctorContext(settings())).level == "ok"
    events.put("qc.task", "1:7", "a", {})  # long ago, never claimed
    finding = storage.inbox(DoctorContext(settings()))
    assert finding.level == "warning"
    assert "labelloop worker" in finding.fix
    events.retry(events.claim("qc.task", "1:7", "me"), "Label Studio refused the task: 404")
    finding = storage.inbox(DoctorContext(settings()))
    engine.dispose()
    assert finding.level == "problem"
    assert "1 event failed for good" in finding.what
    assert "404" in finding.what
    assert "labelloop inbox replay" in finding.fix


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:{port}/0", "postgresql://me:hunter2@127.0.0.1:{port}/x"])
def test_unreachable_queue_is_a_problem(settings, closed_port, url):
    finding = storage.queue(DoctorContext(settings(queue_url=url.format(port=closed_port))))
    assert finding.level == "problem"
    assert "LABELLOOP_QUEUE_URL" in finding.fix
    assert "hunter2" not in finding.what + finding.fix


def test_real_postgres_and_redis_are_ok(settings, postgres_url, redis_url):
    context = DoctorContext(settings(database_url=postgres_url, queue_url=redis_url))
    assert "older schema" in storage.database(context).what  # it is empty
    open_database(context.settings).dispose()
    assert storage.database(context).level == storage.inbox(context).level == storage.queue(context).level == "ok"
    assert storage.queue(DoctorContext(settings(queue_url=postgres_url))).level == "ok"


def test_wrong_password_for_postgres_and_redis_is_a_problem(settings, postgres_url, redis_url):
    wrong = {"database_url": postgres_url, "queue_url": redis_url}
    context = DoctorContext(settings(**{name: url.replace("secret@", "hunter2@") for name, url in wrong.items()}))
    for finding in (storage.database(context), storage.queue(context)):
        assert finding.level == "problem"
        assert "hunter2" not in finding.what + finding.fix


def test_the_queue_on_disk_answers(context):
    assert storage.queue(context()).level == "ok"


def test_folder_passes_the_store_checks(settings, tmp_path):
    context = DoctorContext(settings(store_url=f"file://{tmp_path}/store"))
    assert storage.store(context).level == "ok"
    assert storage.store_conditions(context).level == "ok"


def test_store_below_a_file_is_a_problem(settings, tmp_path):
    (tmp_path / "taken").write_text("a file")
    findings = diagnose(
        DoctorContext(settings(store_url=f"file://{tmp_path}/taken/store")),
        {name: CHECKS[name] for name in ("store", "store-conditions")},
    ).findings
    assert findings["store"].level == "problem"
    assert findings["store"].fix
    assert findings["store-conditions"].level == "skipped"


def test_unreachable_s3_server_is_a_problem(settings, closed_port):
    context = DoctorContext(
        settings(
            store_url="s3://labelloop",
            s3_endpoint_url=f"http://127.0.0.1:{closed_port}",
            s3_access_key_id="key",
            s3_secret_access_key=SecretStr("hunter2"),
        )
    )
    finding = diagnose(context, {"store": CHECKS["store"]}, timeout_s=30).findings["store"]
    assert finding.level == "problem"
    assert "hunter2" not in finding.what + finding.fix
    assert str(closed_port) in finding.what + finding.fix


# --- the model ------------------------------------------------------------------------------------------------------


def test_embedded_model_can_be_served(context):
    finding = policies.served_model(context())
    assert finding.level == "ok"
    assert finding.what.startswith("base-")


def test_missing_or_invalid_model_file_is_a_problem(settings, tmp_path):
    broken = tmp_path / "mine.onnx"
    broken.write_bytes(b"not a model")
    for path in (tmp_path / "gone.onnx", broken):
        finding = diagnose(DoctorContext(settings(model=path)), {"model": CHECKS["model"]}).findings["model"]
        assert finding.level == "problem"
        assert str(path) in finding.what
        assert finding.fix


def test_model_of_the_project_is_the_one_checked(settings):
    configured = settings()
    store = open_store(configured.store_url, configured)
    own = Registry(store).add(embedded_model(), thresholds={"person": 0.7}).version
    set_active(store, own, "3")
    assert DoctorContext(configured, 3).detector().version == own
    assert policies.served_model(DoctorContext(configured, 3)).what.startswith(own)
    assert DoctorContext(configured).detector().version != own


def config_of(*labels: str, control: str = "RectangleLabels") -> LabelConfig:
    tags = "".join(f'<Label value="{label}"/>' for label in labels)
    return LabelConfig.parse(
        f'<View><Image name="img" value="$image"/><{control} name="c" toName="img">{tags}</{control}></View>'
    )


def test_labels_and_classes_without_a_match_are_reported(context):
    checked = context()
    names = checked.detector().names.names
    cases = [
        (config_of(*names), "ok", "classes have a label"),
        (config_of(names[0], "Flux capacitor"), "warning", "Flux capacitor"),
        (config_of("Flux capacitor"), "warning", "No class of the model"),
        (config_of(names[0], control="PolygonLabels"), "ok", "1 of 20 classes have a label"),
        (LabelConfig.parse("<View/>"), "problem", "The label config has no image"),
    ]
    for config, level, message in cases:
        checked = context()
        checked.fetch_once("config", lambda config=config: config)
        finding = policies.labels(checked)
        assert finding.level == level, message
        assert message in finding.what


@pytest.mark.parametrize(("layout", "learn", "level", "advice"), [
    ("labelloop", "true", "warning", "the model learns them"),
    ("labelloop", "false", "problem", "serve a model with these classes"),
    ("classifier", "true", "problem", "serve a model with these classes"),
])  # fmt: skip
def test_labels_that_the_model_does_not_know_are_learned_where_it_can_be(context, layout, learn, level, advice):
    checked = context()
    checked.fetch_once("detector", lambda: replace(load_detector(embedded_model()), layout=layout))
    folder = checked.settings.home / "ml_backend"
    folder.mkdir(parents=True)
    (folder / "learn.toml").write_text(f"learn = {learn}\n")
    checked.fetch_once("config", lambda: config_of("Flux capacitor"))
    finding = policies.labels(checked)
    assert finding.level == level
    assert advice in finding.fix


@pytest.mark.parametrize("tags", [
    '<Text name="text" value="$text"/><Labels name="c" toName="text"><Label value="Name"/></Labels>',
    '<Image name="image" value="$image"/><TextArea name="c" toName="image"/>',
])  # fmt: skip
def test_a_project_that_only_quality_control_serves_is_healthy(tags, context):
    checked = context()
    checked.fetch_once("config", lambda: LabelConfig.parse(f"<View>{tags}</View>"))
    finding = policies.labels(checked)
    assert finding.level == "ok"
    assert "quality control" in finding.what
    assert policies.controls(checked).level == "warning"


def test_a_project_of_image_labels_is_healthy_before_it_has_learned(context):
    checked = context()
    xml = '<Image name="image" value="$image"/><Choices name="kind" toName="image"><Choice value="A"/></Choices>'
    checked.fetch_once("config", lambda: LabelConfig.parse(f"<View>{xml}</View>"))
    finding = policies.labels(checked)
    assert (finding.level, "kind: filled once learned" in finding.what) == ("ok", True)


def test_sampling_is_ok_where_the_model_gives_no_pre_labels(context):
    checked = context()
    checked.fetch_once("config", lambda: config_of("Flux capacitor", control="VectorLabels"))
    fields = {"id": 1, "sampling": "Uncertainty sampling", "model_version": "v1", "task_number": 3}
    checked.fetch_once("project", lambda: fields)
    finding = project.sampling(checked)
    assert (finding.level, "pre-labels no control" in finding.what) == ("ok", True)


def test_damaged_or_missing_smart_tool_file_is_a_problem(settings, context, tmp_path):
    assert diagnose(context(), {"smart-model": CHECKS["smart-model"]}).findings["smart-model"].level == "ok"
    encoder, decoder = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    configured = DoctorContext(settings(smart_encoder=encoder, smart_decoder=decoder))
    assert "encoder.onnx is missing" in policies.smart_model(configured).what
    for file in (encoder, decoder):
        file.write_bytes(b"whole")
        write_checksum(file)
    assert policies.smart_model(configured).level == "ok"
    decoder.write_bytes(b"torn")
    finding = diagnose(configured, {"smart-model": CHECKS["smart-model"]}).findings["smart-model"]
    assert (finding.level, "decoder.onnx" in finding.what) == ("problem", True)


def test_unsupported_controls_are_a_warning_with_the_reason(context):
    names = context().detector().names.names[0]
    text = LabelConfig.parse('<View><Text name="t" value="$t"/><Rating name="stars" toName="t"/></View>')
    cases = [
        (config_of(names), "ok", "c: pre-labelled and learned from"),
        (config_of(names, control="VectorLabels"), "warning", "c (VectorLabels on Image) is not pre-labelled and not"),
        (text, "warning", "stars (Rating on Text) is not pre-labelled and not learned from"),
        (LabelConfig({}, {}), "warning", "no control"),
    ]
    for config, level, message in cases:
        checked = context()
        checked.fetch_once("config", lambda config=config: config)
        finding = policies.controls(checked)
        assert (finding.level, message in finding.what) == (level, True), finding.what


@pytest.mark.parametrize(
    ("controls", "level", "message"),
    [({"c": False}, "warning", "switched off in the extra params"), ({"d": False}, "problem", "names 'd'")],
)
def test_controls_are_checked_with_the_extra_params(controls, level, message, settings):
    studio = FakeLabelStudio()
    studio.put_project(1, label_config="<View/>")
    studio.put_backend(1, settings().ml_url, "", extra_params={"controls": controls})
    checked = DoctorContext(settings(), 1, studio=studio)
    config = config_of(checked.detector().names.names[0])
    checked.fetch_once("config", lambda: config)
    finding = policies.controls(checked)
    assert (finding.level, message in finding.what) == (level, True), finding.what


def test_backend_that_serves_another_version_is_a_problem(settings, serve):
    finding = policies.served_model(DoctorContext(settings(ml_url=serve(ml_app(settings())))))
    assert finding.level == "problem"
    assert "answers with base-1" in finding.what


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
def test_single_label_hosts_are_recognised(url, single):
    assert is_single_label(url) is single


def test_webhook_host_without_a_dot_is_named_with_fix(context):
    finding = webhook_hosts(context(qc_url="http://qc:9091"))
    assert finding.level == "problem"
    assert "LABELLOOP_QC_URL=http://qc:9091" in finding.what
    assert "qc.labelloop.internal" in finding.fix
    assert webhook_hosts(context()).level == "ok"


def ml_app(settings: Settings, **ready):
    app = create_web_app("ml-backend", settings, ready=ready)
    app.get("/versions")(lambda: {"versions": ["base-1"]})
    return app


LOGIN = {"basic_auth_user": "labelloop", "basic_auth_password": SecretStr("hunter2")}
OTHER = {"basic_auth_user": "labelloop", "basic_auth_password": SecretStr("other")}


@pytest.mark.parametrize(
    ("service", "ours", "level"),
    [(LOGIN, LOGIN, "ok"), ({}, {}, "ok"), (OTHER, LOGIN, "problem"), (LOGIN, {}, "problem"), ({}, LOGIN, "warning")],
)
def test_the_log_in_of_the_ml_backend(settings, serve, service, ours, level):
    url = serve(ml_app(settings(**service)))
    context = DoctorContext(settings(ml_url=url, **ours))
    assert services.ml_backend(context).level == "ok"  # /health needs no log-in
    finding = services.ml_login(context)
    assert finding.level == level
    assert "hunter2" not in finding.what + finding.fix


def test_service_that_is_not_ready_names_the_failed_check(settings, serve):
    def broken():
        raise DatabaseError("The database is locked.", fix="Unlock it.")

    url = serve(ml_app(settings(), model=lambda: None, database=broken))
    finding = services.ml_ready(DoctorContext(settings(ml_url=url)))
    assert finding.level == "problem"
    assert "database: The database is locked." in finding.what
    assert (
        services.ml_ready(DoctorContext(settings(ml_url=serve(ml_app(settings(), model=lambda: None))))).level == "ok"
    )


def test_foreign_service_at_the_address_is_a_problem(settings, serve):
    from flask import Flask

    app = Flask("other")
    app.get("/health")(lambda: "<html>Grafana</html>")
    finding = services.ml_backend(DoctorContext(settings(ml_url=serve(app))))
    assert finding.level == "problem"
    assert "is not the ML backend" in finding.what


def qc_app(settings: Settings):
    from flask import request

    app = create_web_app("qc", settings, open_paths=("/health", "/webhook"))

    @app.post("/webhook")
    def webhook():
        WebhookSecrets(settings).check(request)
        return {}

    return app


@pytest.mark.parametrize(
    ("service", "ours", "level"),
    [("hunter2", "hunter2", "ok"), ("other", "hunter2", "problem"), ("hunter2", "", "problem"), ("", "", "warning")],
)
def test_the_secret_of_quality_control(settings, serve, service, ours, level):
    url = serve(qc_app(settings(webhook_secret=SecretStr(service))))
    finding = services.qc_secret(DoctorContext(settings(qc_url=url, webhook_secret=SecretStr(ours))))
    assert finding.level == level
    assert ("LABELLOOP_WEBHOOK_SECRET" in finding.fix) == (level != "ok")
    assert "hunter2" not in finding.what + finding.fix


# --- what a Label Studio of the tested release cannot show (tests/system/test_doctor.py has the rest) ----------------


def studio_with(*backends, release="1.22.0", **fields):
    """A Label Studio of another release, or one without any protection, with project 1 and these ML backends."""
    studio = FakeLabelStudio(release=release)
    studio.put_project(1, **{"title": "x", "model_version": "base-1"} | fields)
    for backend in backends:
        studio.put_backend(1, **backend)
    return studio


@pytest.mark.parametrize(
    ("release", "level"), [("1.23.2", "ok"), ("1.23", "ok"), ("1.230.0", "warning"), ("2.0", "warning")]
)
def test_untested_release_of_label_studio_is_a_warning(settings, release, level):
    finding = label_studio.version(DoctorContext(settings(), studio=studio_with(release=release)))
    assert finding.level == level
    assert release in finding.what


def test_an_open_metadata_address_is_a_warning(settings):
    finding = label_studio.metadata_address(DoctorContext(settings(), studio=studio_with()))
    assert finding.level == "warning"
    assert "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16" in finding.fix


def test_backend_that_is_not_the_projects_first_is_a_warning(settings):
    row = {"state": "CO", "title": "base-1", "model_version": "base-1"}
    own = {**row, "id": 9, "url": "http://localhost:9090"}
    other = {**row, "id": 2, "url": "http://gpu.lan:9090"}
    alone, second = (DoctorContext(settings(), 1, studio=studio_with(*rows)) for rows in ([own], [own, other]))
    assert project.backend(alone).level == "ok"
    finding = project.backend(second)
    assert finding.level == "warning"
    assert "gpu.lan" in finding.what


@pytest.mark.parametrize(
    ("title", "answered", "level"),
    [
        ("base-1", "base-1", "ok"),
        ("base-1", "learned-2-abc", "warning"),  # its order is being computed
        ("My model", "learned-2-abc", "problem"),
        ("base-1", "mine-abc", "problem"),
    ],
)
def test_newly_learned_version_is_only_a_warning(settings, title, answered, level):
    row = {"state": "CO", "title": title, "model_version": answered, "id": 1, "url": "http://localhost:9090"}
    finding = project.model_version(DoctorContext(settings(), 1, studio=studio_with(row)))
    assert finding.level == level


@pytest.fixture
def policied(fake_label_studio):
    """A project with one control and no ground truth."""
    boxes = '<RectangleLabels name="boxes" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels>'
    fake_label_studio.put_project(
        7, title="x", label_config=f'<View><Image name="image" value="$image"/>{boxes}</View>'
    )
    return fake_label_studio


@pytest.mark.parametrize(
    ("written", "level", "message"),
    [
        ("", "ok", "is valid"),
        ("agreement = 0.8\n[controls.boxes]\nweight = 2", "ok", "is valid"),
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
def test_policy_with_unknown_names_is_reported(settings, policied, written, level, message):
    configured = settings()
    file = configured.home / "qc" / "7" / "policy.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(written)
    finding = policies.qc_policy(DoctorContext(configured, 7, studio=policied))
    assert (finding.level, message in finding.what) == (level, True), finding.what


@pytest.mark.parametrize(
    ("written", "level", "message"),
    [
        (None, "ok", "no automatic exports"),
        ("every_tasks = 5", "ok", "is valid"),
        ("every_tasks = 5\nthen = ['no-such-program']", "problem", "'no-such-program'"),
        ("format = 'coco'", "warning", "sets no trigger"),
        ("format = 'yolo'\nat = 'noon'", "problem", "at must be a time of day"),
    ],
)
def test_invalid_export_policy_is_reported(settings, policied, written, level, message):
    configured = settings()
    file = configured.home / "exporters" / "7" / "export.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    if written is not None:
        file.write_text(f"[export]\n{written}")
    finding = policies.export_policy(DoctorContext(configured, 7, studio=policied))
    assert (finding.level, message in finding.what) == (level, True), finding.what
    assert level == "ok" or finding.fix


# --- output ------------------------------------------------------------------------------------------------

SEEN = DoctorReport(
    {
        "disk": ok("50 GiB free"),
        "token": problem("Label Studio does not accept our token: expired.", "Make a new one and set it."),
        "sampling": warning("Tasks are served in order.", "Run `labelloop connect 1`."),
        "tabs": Finding("skipped", "Not looked at."),
    }
)


@pytest.mark.parametrize("width", [50, 80, 200])
def test_list_shows_everything_at_any_width(width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    commands.print_diagnosis(SEEN, console)
    console.file.close()
    message = console.export_text()
    column = max(width, len("PROBLEM  sampling  ") + 30)  # of the findings: never narrower than 30
    assert all(len(line.rstrip()) <= column for line in message.splitlines())
    flat = " ".join(message.split())
    for name, finding in SEEN.findings.items():
        for words in (name, *finding.what.split(), *finding.fix.split()):
            assert words in flat
    assert "1 problem and 1 warning." in flat


def test_a_long_path_stays_in_one_piece_to_be_copied():
    path = f"/srv/{'a-folder-with-a-long-name/' * 5}labelloop.sqlite3"
    console = Console(width=80, file=io.StringIO())
    commands.print_diagnosis(DoctorReport({"database": ok(f"{path} answers")}), console)
    assert path in console.file.getvalue()


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


def test_log_lines_stay_out_of_the_json(monkeypatch, capsys, settings, serve, own_logging):
    """Retries are logged; a log line on standard output would make the JSON invalid."""
    from flask import Flask

    app = Flask("label-studio")
    app.add_url_rule("/health", "health", view_func=lambda: {"status": "UP"})
    app.add_url_rule("/<path:any_>", "any", view_func=lambda any_: ("bad gateway", 502), methods=["GET", "POST"])
    monkeypatch.setenv("LABELLOOP_HOME", str(settings().home))
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_URL", serve(app))
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_API_KEY", "0" * 40)
    monkeypatch.setattr("labelloop.doctor.CHECKS", {name: CHECKS[name] for name in ("label-studio", "token")})
    with pytest.raises(SystemExit):
        commands.doctor(json=True)
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings["token"]["level"] == "problem"
    assert "502" in findings["token"]["what"]


def test_problem_sets_exit_status_one(monkeypatch, capsys, tmp_path, own_logging):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("labelloop.doctor.CHECKS", {"good": DoctorCheck(lambda _c: ok("fine"))})
    commands.doctor(json=True)
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    monkeypatch.setattr("labelloop.doctor.CHECKS", {"bad": DoctorCheck(lambda _c: problem("broken", "fix it"))})
    with pytest.raises(SystemExit) as ended:
        commands.doctor()
    assert ended.value.code == 1
    message = capsys.readouterr().out
    assert "broken" in message
    assert "fix it" in message
