"""The web service: who is let in, what is stored, and that nothing else happens in the request."""

import time

import pytest
import sqlalchemy as sa

from labelloop.labeling.studio.task import Annotation
from labelloop.service.jobs.inbox import EVENTS
from labelloop.service.settings import Settings
from qc_webhooks.decision.context import LastDecision
from qc_webhooks.server.app import create_app
from qc_webhooks.verdict.verdict import TaskVerdict

SECRET = {"X-Labelloop-Secret": "s3cret"}
CREATED = {
    "action": "ANNOTATION_CREATED",
    "annotation": {"id": 1, "task": 2, "project": 5, "updated_at": "2026-11-23T21:02:28.534548Z", "result": []},
    "project": {"id": 5},
}


@pytest.fixture
def client(tmp_path):
    app = create_app(Settings(home=tmp_path, webhook_secret="s3cret"))
    return app.test_client()


def stored(engine):
    with engine.connect() as connection:
        rows = connection.execute(sa.select(EVENTS).order_by(EVENTS.c.id)).all()
    return [(row.topic, row.subject, row.key) for row in rows]


@pytest.fixture
def rows(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/labelloop.sqlite3")
    yield lambda: stored(engine)
    engine.dispose()


def test_an_event_becomes_one_row_and_its_duplicate_none(client, rows):
    for new in (1, 0, 0):
        answer = client.post("/webhook", json=CREATED, headers=SECRET)
        assert (answer.status_code, answer.json) == (200, {"events": 1, "new": new})
    assert rows() == [("qc.task", "5:2", "annotation:1:2026-11-23T21:02:28.534548Z")]


@pytest.mark.parametrize("headers", [{}, {"X-Labelloop-Secret": "wrong"}, {"X-Labelloop-Secret": ""}])
def test_without_the_secret_nobody_gets_in(client, rows, headers):
    answer = client.post("/webhook", json=CREATED, headers=headers)
    assert answer.status_code == 401
    assert answer.json["error"]["code"] == "wrong_secret"
    assert "s3cret" not in answer.text
    assert rows() == []


def test_secret_replaces_basic_auth_for_the_webhook_only(tmp_path):
    settings = Settings(home=tmp_path, webhook_secret="s3cret", basic_auth_user="u", basic_auth_password="p")
    client = create_app(settings).test_client()
    assert client.post("/webhook", json=CREATED, headers=SECRET).status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/health").status_code == 200


def test_without_a_secret_basic_auth_guards_the_webhook(tmp_path):
    client = create_app(Settings(home=tmp_path, basic_auth_user="u", basic_auth_password="p")).test_client()
    assert client.post("/webhook", json=CREATED).status_code == 401
    assert client.post("/webhook", json=CREATED, auth=("u", "p")).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"{}", b'{"action": "ANNOTATION_CREATED", "annotation": 1}']
)
def test_what_is_no_event_is_a_400_that_says_why(client, rows, body):
    answer = client.post("/webhook", data=body, headers=SECRET, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json["error"]["message"]
    assert rows() == []


def test_unknown_actions_are_answered_and_counted_under_one_name(client, rows):
    for action in ("SOMETHING_NEW", "ANOTHER"):
        assert client.post("/webhook", json={"action": action}, headers=SECRET).status_code == 200
    assert rows() == []
    metrics = client.get("/metrics").text
    assert 'labelloop_qc_events_total{action="unknown"} 2.0' in metrics
    assert "ANOTHER" not in metrics


def test_a_deletion_finds_its_task_by_what_was_read_before(client, rows, memory, settings, tmp_path):
    client = create_app(Settings(home=settings.home, webhook_secret="s3cret")).test_client()
    read = [Annotation(id=77, updated_at="2026-01-01T00:00:00Z")]
    memory.save_decision(5, 9, LastDecision("f"), TaskVerdict("waiting", 1), read, born="b", review=False)
    body = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 77}], "project": {"id": 5}}
    assert client.post("/webhook", json=body, headers=SECRET).json["new"] == 1
    assert stored(memory.engine) == [("qc.task", "5:9", "annotation:77:2026-01-01T00:00:00.000000Z:deleted")]


def test_health_ready_and_metrics(client, engine):
    assert client.get("/health").json["status"] == "UP"
    checks = client.get("/ready").json["checks"]
    assert {name for name, output in checks.items() if output == "ok"} == {"database", "integrity", "home", "events"}
    assert "labelloop worker" in checks["worker"]
    assert "labelloop_inbox_events" in client.get("/metrics").text


def test_the_figures_tell_verdicts_and_writes(studio, box, check, settings):
    task = studio.add_task()
    studio.annotate(task, 1, [box(0)])
    studio.annotate(task, 2, [box(60)])
    check(task)
    metrics = create_app(settings).test_client().get("/metrics").text
    assert 'labelloop_qc_tasks{outcome="disputed",project="7"} 1.0' in metrics
    assert 'labelloop_qc_routes_total{route="one_more_annotator+flag",state="done"} 1.0' in metrics


def test_an_answer_waits_for_nobody(client):
    took = []
    for n in range(30):
        body = CREATED | {"annotation": CREATED["annotation"] | {"id": n}}
        started = time.perf_counter()
        assert client.post("/webhook", json=body, headers=SECRET).status_code == 200
        took.append(time.perf_counter() - started)
    assert sorted(took)[15] < 0.5  # 10 ms is the aim, which bench/ measures; this machine may be busy
