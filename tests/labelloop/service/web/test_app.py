"""What every web service answers."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import re
import threading

import pytest
from flask import request

from labelloop.service.db.engine import open_database
from labelloop.service.errors import Busy, LabelloopError, SettingsError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings
from labelloop.service.web.app import create_web_app, metrics_of
from labelloop.service.web.gunicorn import require_authentication
from labelloop.service.web.metrics import InboxCollector
from labelloop.service.web.request_body import json_body
from labelloop.service.web.webhook_secret import WebhookSecrets


class TaskMissing(LabelloopError):
    code = "not_found"
    status = 404


class TeapotBroken(LabelloopError):
    code = "teapot_broken"
    status = 418


def fail(error):
    raise error


def make(tmp_path, *, ready=None, **values):
    app = create_web_app("demo", Settings(home=tmp_path, **values), ready=ready)

    @app.post("/echo")
    def echo():
        return json_body(request)

    @app.get("/task/<int:number>")
    def task(number):
        return {"task": number}

    @app.get("/missing")
    def missing():
        raise TaskMissing("There is no task 7.", fix="Import it.")

    @app.get("/teapot")
    def teapot():
        raise TeapotBroken("It leaks.")

    @app.get("/crash")
    def crash():
        raise ZeroDivisionError("the secret is hunter2")

    @app.post("/hook")
    def hook():
        WebhookSecrets(Settings(home=tmp_path, webhook_secret="s3cr3t")).check(request)
        return {"ok": True}

    @app.post("/open-hook")
    def open_hook():
        WebhookSecrets(Settings(home=tmp_path)).check(request)
        return {"ok": True}

    return app


@pytest.fixture
def client(tmp_path):
    return make(tmp_path).test_client()


def test_health_says_that_the_process_is_up(client):
    answer = client.get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "UP", "service": "demo"})


def test_ready_names_every_check(tmp_path):
    checks = {
        "database": lambda: None,
        "studio": lambda: fail(TaskMissing("Label Studio does not answer at http://u:pw@h.", fix="Start it.")),
        "model": lambda: fail(OSError("no such file")),
    }
    answer = make(tmp_path, ready=checks).test_client().get("/ready")
    assert answer.status_code == 503
    assert answer.json == {
        "status": "not ready",
        "checks": {
            "database": "ok",
            "studio": "Label Studio does not answer at http://u:********@h. Start it.",
            "model": "OSError: no such file",
        },
    }
    answer = make(tmp_path, ready={"database": lambda: None}).test_client().get("/ready")
    assert (answer.status_code, answer.json) == (200, {"status": "ready", "checks": {"database": "ok"}})


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("/nowhere", 404, "not_found", "There is nothing at /nowhere."),
        ("/task/x", 404, "not_found", "There is nothing at /task/x."),
        ("/echo", 405, "method_not_allowed", "/echo does not accept GET."),
        ("/missing", 404, "not_found", "There is no task 7. Import it."),
        ("/teapot", 418, "teapot_broken", "It leaks."),
    ],
)
def test_an_error_is_a_code_and_a_message(client, path, status, code, message):
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json == {"error": {"code": code, "message": message}}
    assert answer.headers["X-Request-ID"]


def test_a_crash_shows_its_traceback_in_the_log_only(client, caplog):
    with caplog.at_level(logging.ERROR):
        answer = client.get("/crash", headers={"X-Request-ID": "req-1"})
    assert answer.status_code == 500
    assert answer.json["error"]["code"] == "internal_error"
    assert "req-1" in answer.json["error"]["message"]
    assert "hunter2" not in answer.text
    assert "ZeroDivisionError" not in answer.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The request has no body; a JSON object is expected."),
        (b'{"a": }', "The request's body is not JSON: JSON is malformed: invalid character (byte 6)."),
        (b"[1]", "The request's body is a JSON array; an object is expected."),
        (b'"x"', "The request's body is a JSON string; an object is expected."),
        (b"true", "The request's body is a JSON boolean; an object is expected."),
        (b"1", "The request's body is a JSON number; an object is expected."),
        (b"null", "The request's body is a JSON null; an object is expected."),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(client, body, message):
    answer = client.post("/echo", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json == {"error": {"code": "bad_request", "message": message}}


@pytest.mark.parametrize("body", [b"\xff\xfe", b'"\xff"', b"[" * 100_000, gzip.compress(b"{}", mtime=0)])
def test_junk_is_a_bad_request_and_no_crash(client, body):
    assert client.post("/echo", data=body, content_type="application/json").status_code == 400


def test_json_comes_through_with_any_json_type(client):
    body = {"text": "naïve ☃", "list": [1, 2.5, None]}
    answer = client.post("/echo", data=json.dumps(body), content_type="application/vnd.api+json; charset=utf-8")
    assert answer.json == body


def test_a_body_over_the_limit_is_refused(tmp_path):
    client = make(tmp_path, max_body_bytes=1000).test_client()
    assert client.post("/echo", json={"a": "x" * 900}).status_code == 200
    answer = client.post("/echo", json={"a": "x" * 1001})
    assert answer.status_code == 413
    assert answer.json["error"] == {
        "code": "body_too_large",
        "message": "The request's body is larger than 1000 bytes."
        " Send less at once, or raise LABELLOOP_MAX_BODY_BYTES.",
    }


@pytest.mark.parametrize(
    ("sent", "kept_id"),
    [("abc-1:2_3.4", True), ("", False), ("a" * 129, False), ("<script>", False), ("a b", False)],
)
def test_a_safe_request_id_is_kept_others_are_replaced(client, sent, kept_id):
    answer = client.get("/health", headers={"X-Request-ID": sent})
    echoed = answer.headers["X-Request-ID"]
    assert (echoed == sent) is kept_id
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", echoed)


def test_two_requests_get_two_ids(client):
    assert client.get("/health").headers["X-Request-ID"] != client.get("/health").headers["X-Request-ID"]


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (basic("me", "wrong"), 401),
        (basic("you", "pässwörd"), 401),
        (basic("", ""), 401),
        ({"Authorization": "Bearer me"}, 401),
        ({"Authorization": "Basic ???"}, 401),
        (basic("me", "pässwörd"), 200),
    ],
)
def test_basic_auth_guards_everything_but_health(tmp_path, headers, status):
    client = make(tmp_path, basic_auth_user="me", basic_auth_password="pässwörd").test_client()
    for path in ("/task/1", "/metrics", "/ready"):
        assert client.get(path, headers=headers).status_code == status
    assert client.get("/health", headers=headers).status_code == 200


def test_a_refusal_asks_for_credentials(tmp_path):
    answer = make(tmp_path, basic_auth_user="me", basic_auth_password="pw").test_client().get("/nowhere")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert answer.json["error"]["code"] == "unauthorized"


def test_a_service_can_disable_basic_auth(tmp_path):
    settings = Settings(home=tmp_path, basic_auth_user="me", basic_auth_password="pw")
    assert create_web_app("qc", settings, basic_auth=False).test_client().get("/metrics").status_code == 200
    opened = create_web_app("qc", settings, open_paths=("/health", "/metrics")).test_client()
    assert (opened.get("/metrics").status_code, opened.get("/ready").status_code) == (200, 401)


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 403, "The header X-Labelloop-Secret is missing."),
        ({"X-Labelloop-Secret": "wrong"}, 403, "The header X-Labelloop-Secret is wrong."),
        ({"X-Labelloop-Secret": "ß"}, 403, "The header X-Labelloop-Secret is wrong."),
        ({"X-Labelloop-Secret": "s3cr3t"}, 200, ""),
    ],
)
def test_a_hook_takes_only_requests_with_its_secret(client, headers, status, message):
    answer = client.post("/hook", headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert answer.json["error"]["code"] == "forbidden"
        assert answer.json["error"]["message"].startswith(message)


def test_an_empty_secret_checks_nothing(client):
    assert client.post("/open-hook").status_code == 200


def samples(client) -> dict[str, float]:
    text = client.get("/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_requests_are_counted_by_rule_and_status(client):
    for number in range(3):
        client.get(f"/task/{number}")
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    client.get("/crash")
    metrics = samples(client)
    count = 'labelloop_http_requests_total{{app="demo",endpoint="{}",method="GET",status="{}"}}'
    assert metrics[count.format("/task/<int:number>", 200)] == 3
    assert metrics[count.format("(none)", 404)] == 2
    assert metrics[count.format("/crash", 500)] == 1
    latency = 'labelloop_http_request_seconds_count{app="demo",endpoint="/task/<int:number>",method="GET",status="200"}'
    assert metrics[latency] == 3


def test_two_apps_in_one_process_keep_their_metrics_apart(tmp_path):
    first, second = make(tmp_path).test_client(), make(tmp_path).test_client()
    first.get("/task/1")
    assert not any("/task" in name for name in samples(second))


def test_programs_add_metrics_of_their_own(tmp_path, settings):
    app = make(tmp_path)
    metrics = metrics_of(app)
    metrics.counter("tasks", "Tasks.", ("kind",)).labels("photo").inc(2)
    metrics.gauge("loaded", "Models.").set(1)
    metrics.histogram("size_bytes", "Sizes.", buckets=(10, 100)).observe(50)
    engine = open_database(settings)
    inbox = Inbox(engine)
    metrics.register(InboxCollector(inbox))
    inbox.put("t", "s", "k", {})
    metrics = samples(app.test_client())
    engine.dispose()
    assert metrics['labelloop_tasks_total{kind="photo"}'] == 2
    assert metrics["labelloop_loaded"] == 1
    assert metrics['labelloop_size_bytes_bucket{le="100.0"}'] == 1
    assert metrics['labelloop_inbox_events{state="pending"}'] == 1
    assert metrics['labelloop_inbox_events{state="dead"}'] == 0
    assert 0 <= metrics["labelloop_inbox_lag_seconds"] < 5


def test_metrics_are_what_prometheus_reads(client):
    from prometheus_client.parser import text_string_to_metric_families

    client.get("/task/1")
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"labelloop_http_requests", "labelloop_http_request_seconds"} <= families


def test_a_busy_service_says_when_to_ask_again(tmp_path):
    app = make(tmp_path)
    app.add_url_rule("/busy", view_func=lambda: fail(Busy(reason="8 requests wait.")))
    answer = app.test_client().get("/busy")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"]["code"] == "busy"


@pytest.mark.parametrize("body", [b"[" + b"[]," * 200_000 + b"[]]", b'{"a":[' + b"1," * 400_000 + b"1]}"])
def test_a_small_body_that_decodes_to_much_is_refused(tmp_path, body):
    client = make(tmp_path, max_body_bytes=2**20).test_client()
    answer = client.post("/echo", data=body, content_type="application/json")
    assert (answer.status_code, answer.json["error"]["code"]) == (413, "body_too_large")


def test_large_bodies_wait_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("labelloop.service.web.request_body.BODY_BUDGET_TIMEOUT_S", 0.01)
    app = make(tmp_path, max_body_bytes=3 * 2**20)
    client, inner = app.test_client(), []

    @app.post("/again")
    def again():
        json_body(request)

        def post():  # in a thread: a request within a request would share its context
            inner.append(app.test_client().post("/echo", json={"a": "x" * (2 * 2**20)}).status_code)

        thread = threading.Thread(target=post)
        thread.start()
        thread.join()
        return {}

    assert client.post("/again", json={"a": "x" * (2 * 2**20)}).status_code == 200
    assert inner == [503]
    assert client.post("/echo", json={"a": "x" * (2 * 2**20)}).status_code == 200


def test_two_secrets_are_valid_while_one_replaces_the_other(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    file = home / "settings.env"
    file.write_text("LABELLOOP_WEBHOOK_SECRET=first\n")
    secrets = WebhookSecrets(Settings(home=home))
    assert secrets.accepted() == (b"first",)
    file.write_text("LABELLOOP_WEBHOOK_SECRET=second\nLABELLOOP_WEBHOOK_SECRET_PREVIOUS=first\n")
    os.utime(file, ns=(1, 1))
    assert secrets.accepted() == (b"second", b"first")
    file.write_text("LABELLOOP_WEBHOOK_SECRET=second\n")
    os.utime(file, ns=(2, 2))
    assert secrets.accepted() == (b"second",)


ELSEWHERE = {
    "another host": ({"Host": "evil.example"}, 421, "foreign_host"),
    "another origin": ({"Origin": "https://evil.example"}, 403, "forbidden"),
    "an origin that is no address": ({"Origin": "http://[::1"}, 403, "forbidden"),
    "an opaque origin": ({"Origin": "null"}, 403, "forbidden"),
    "a port of the same host": ({"Origin": "http://localhost:8080"}, 403, "forbidden"),
    "a cross-site request": ({"Sec-Fetch-Site": "cross-site"}, 403, "forbidden"),
    "a form": ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "not_json"),
    "plain text": ({"Content-Type": "text/plain"}, 415, "not_json"),
    "no type": ({"Content-Type": ""}, 415, "not_json"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_a_web_page_elsewhere_can_send_is_refused(case, client):
    headers, status, code = ELSEWHERE[case]
    answer = client.post("/echo", data=b'{"a": 1}', headers={"Content-Type": "application/json", **headers})
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    "host", ["localhost:9090", "127.0.0.1:9090", "[::1]:9090", "10.0.0.7", "qc.internal", "My.Host:1"]
)
def test_our_hosts_and_addresses_are_answered(host, tmp_path):
    client = make(tmp_path, qc_url="http://qc.internal:9091", allowed_hosts=("my.host",)).test_client()
    for origin in ({}, {"Origin": f"http://{host}"}):
        answer = client.post("/echo", json={"a": 1}, headers={"Host": host, **origin})
        assert answer.status_code == 200


@pytest.mark.parametrize(("host", "closed", "refused"), [
    ("127.0.0.1", False, False), ("localhost", False, False), ("[::1]", False, False),
    ("0.0.0.0", False, True), ("10.0.0.7", False, True), ("[::]", False, True), ("0.0.0.0", True, False),
])  # fmt: skip
def test_without_a_key_a_service_listens_on_loopback_only(host, closed, refused):
    def ask():
        require_authentication(host, authenticated=closed, service="The ML backend", settings_names="LABELLOOP_X")

    if refused:
        with pytest.raises(SettingsError, match=r"without authentication.*LABELLOOP_X"):
            ask()
    else:
        ask()
