"""Every endpoint answers what Label Studio sends, in the forms that were recorded from it, and never with a 500."""

import base64
import json
import threading
import time

import pytest
from structlog.testing import capture_logs

from labelloop.service.db.engine import open_database
from labelloop.service.media import NotAnImage
from labelloop.service.settings import Settings
from ml_backend.cli.learn import phase_text
from ml_backend.learning.service import LearningState
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.predict.task_score import NEUTRAL
from ml_backend.server.app import create_app
from tests.accessibility import faults

PROJECT = "5.1795467589"
TASK = {
    "id": 1, "data": {"image": "/data/upload/5/26bb72f8-img1.png"}, "meta": {}, "created_at": "2026-11-23T20:59:49Z",
    "updated_at": "2026-11-23T20:59:49Z", "is_labeled": False, "overlap": 2, "inner_id": 1, "total_annotations": 0,
    "cancelled_annotations": 0, "total_predictions": 0, "comment_count": 0, "unresolved_comment_count": 0,
    "last_comment_updated_at": None, "project": 5, "updated_by": None, "file_upload": 1, "comment_authors": [],
    "annotations": [], "predictions": [],
}  # fmt: skip
SETUP = {
    "project": PROJECT,
    "hostname": "http://localhost:18080",
    "access_token": "0123456789abcdef",
    "extra_params": None,
}


@pytest.fixture
def photos(album, astronaut):
    return album({TASK["data"]["image"]: astronaut, "bad": NotAnImage("bad", "it is truncated")})


@pytest.fixture
def client(client_of, labelloop_model, photos):
    return client_of(labelloop_model(), photos)


def predict_body(config, *tasks, **more):
    params = {"login": None, "password": None, "context": None}
    return {"tasks": list(tasks), "project": PROJECT, "label_config": config, "params": params, **more}


def test_health_answers_with_and_without_a_slash(client):
    for path in ("/health", "/health/"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.json["status"] == "UP"


def test_setup_and_every_prediction_carry_the_same_version(client, boxes_config):
    version = client.post("/setup", json={**SETUP, "schema": boxes_config}).json["model_version"]
    answer = client.post("/predict", json=predict_body(boxes_config, TASK, {**TASK, "id": 2}))
    assert answer.status_code == 200
    assert [entry["model_version"] for entry in answer.json["results"]] == [version, version]
    assert all(isinstance(entry["score"], float) for entry in answer.json["results"])
    assert client.get("/versions").json == {"versions": [version]}


@pytest.mark.parametrize("value", [None, "", "  ", {}, "{}", {"score_threshold": None}, {"unknown": [1]}])
def test_extra_params_may_be_empty_in_every_way(value, client, boxes_config):
    assert client.post("/setup", json={**SETUP, "schema": boxes_config, "extra_params": value}).status_code == 200


def test_class_thresholds_apply_and_unknown_names_are_logged(client, boxes_config):
    requested = {"score_thresholds": {"car": 0.05, "CAT": 0.99, "Unicorn": 0.4}}
    with capture_logs() as logs:
        client.post("/setup", json={**SETUP, "schema": boxes_config, "extra_params": requested})
    assert any("Unicorn" in entry.get("note", "") for entry in logs)
    [entry] = client.post("/predict", json=predict_body(boxes_config, TASK)).json["results"]
    assert {result["value"]["rectanglelabels"][0] for result in entry["result"]} == {"Person", "Car"}


@pytest.mark.parametrize("value", [{"score_threshold": 0.05}, '{"score_threshold": 0.05}'])
def test_extra_params_apply_to_their_project_in_every_worker(value, client_of, labelloop_model, photos, boxes_config):
    model = labelloop_model()
    requested, other_worker = client_of(model, photos), client_of(model, photos)
    body = predict_body(boxes_config, TASK)
    before = len(other_worker.post("/predict", json=body).json["results"][0]["result"])
    requested.post("/setup", json={**SETUP, "schema": boxes_config, "extra_params": value})
    after = len(other_worker.post("/predict", json=body).json["results"][0]["result"])
    elsewhere = len(other_worker.post("/predict", json={**body, "project": "6.1"}).json["results"][0]["result"])
    assert (before, after, elsewhere) == (2, 3, 2)
    requested.post("/setup", json={**SETUP, "schema": boxes_config, "extra_params": None})
    assert len(other_worker.post("/predict", json=body).json["results"][0]["result"]) == 2


@pytest.mark.parametrize(
    "value", ["high", {"score_threshold": "high"}, {"score_threshold": 7}, [1], {"score_threshold": True}]
)
def test_invalid_extra_params_return_400_with_an_example(value, client, boxes_config):
    answer = client.post("/setup", json={**SETUP, "schema": boxes_config, "extra_params": value})
    assert answer.status_code == 400
    assert '{"score_threshold": 0.4}' in answer.json["error"]["message"]


def test_an_unreadable_image_gives_a_reason_and_is_counted(client, boxes_config):
    with capture_logs() as logs:
        answer = client.post("/predict", json=predict_body(boxes_config, {**TASK, "data": {"image": "bad"}}, TASK))
    bad, good = answer.json["results"]
    assert "result" not in bad  # Label Studio stores nothing of such an entry
    assert "truncated" in bad["error"]
    assert (bad["score"], bad["model_version"]) == (NEUTRAL, good["model_version"])
    assert good["result"]
    [message] = [line for line in logs if line["event"] == "photo_skipped"]
    assert message["task"] == 1
    assert "truncated" in message["reason"]
    assert 'labelloop_ml_photos_skipped_total{reason="not_an_image"} 1.0' in client.get("/metrics").text


IMAGE = '<Image name="i" value="$image"/>'
NO_BOXES = {
    "no config": None,
    "an empty config": "",
    "no image": '<View><Text name="t" value="$text"/></View>',
    "no box control": f'<View>{IMAGE}<Choices name="c" toName="i"><Choice value="a"/></Choices></View>',
    "another data key": '<View><Image name="i" value="$photo"/>'
    '<RectangleLabels name="r" toName="i"><Label value="Cat"/></RectangleLabels></View>',
}


@pytest.mark.parametrize("config", NO_BOXES.values(), ids=NO_BOXES)
def test_without_box_controls_predict_gives_a_reason(config, client):
    assert client.post("/setup", json={**SETUP, "schema": config}).status_code == 200
    answer = client.post("/predict", json=predict_body(config, TASK))
    assert answer.status_code == 200
    [entry] = answer.json["results"]
    assert "result" not in entry  # Label Studio stores nothing of such an entry
    assert entry["error"]


TEXTS = '<View><Text name="t" value="$text"/><Labels name="ner" toName="t"><Label value="a"/></Labels></View>'


def test_setup_predict_pages_and_training_say_the_same_reason(client, tmp_path):
    logged = client.post("/setup", json={**SETUP, "schema": TEXTS}).json
    [note] = logged["notes"]
    assert note.startswith("ner (Labels on Text) is not pre-labelled and not learned from")
    assert logged["controls"][0]["control"] == "ner"
    assert note in client.post("/predict", json=predict_body(TEXTS, TASK)).json["results"][0]["error"]
    assert note in client.post("/validate", json={"config": TEXTS}).json["problems"]
    training = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 5}}).json
    assert training["status"] == "ignored"
    assert note in training["reason"]
    TrainingDataStore(open_database(Settings(home=tmp_path / "home"))).connect(5)
    page = client.get("/projects/5/learning").text
    assert note in page
    assert "The first fit comes" not in page
    assert note in client.get("/").text


@pytest.mark.parametrize("params", [None, {}, {"context": None}, "absent"])
def test_params_may_be_null_or_absent(params, client, boxes_config):
    body = predict_body(boxes_config, TASK, params=params)
    if params == "absent":
        del body["params"]
    assert client.post("/predict", json=body).json["results"][0]["result"]


def test_no_tasks_no_results(client, boxes_config):
    assert client.post("/predict", json=predict_body(boxes_config)).json == {"results": []}


def test_a_prompt_without_a_place_is_answered_with_nothing_drawn(client, boxes_config, photos):
    context = {"result": [{"id": "p", "type": "keypointlabels", "is_positive": True, "value": {"x": 1, "y": 2}}]}
    task = {"id": 1, "data": TASK["data"], "annotations": [], "drafts": [], "predictions": [], "file_upload": "x.png"}
    answer = client.post("/predict", json=predict_body(boxes_config, task, params={"context": context}))
    assert answer.status_code == 200
    [entry] = answer.json["results"]
    assert entry["result"] == []
    assert entry["model_version"]
    assert photos.asked == []


def test_mismatches_are_logged_once_per_label_config(client, boxes_config):
    config = boxes_config.replace("Car", "Spaceship")
    with capture_logs() as logs:
        for _ in range(3):
            client.post("/setup", json={**SETUP, "schema": config})
    message = [line["note"] for line in logs if line["event"] == "labels_and_classes"]
    assert sum("Spaceship" in line for line in message) == 1
    assert sum("car" in line for line in message) == 1


ANNOTATION = {"id": 7, "task": 3, "project": 5, "updated_at": "2026-01-01T00:00:00Z"}
EVENTS = [
    ({"action": "ANNOTATION_CREATED", "annotation": ANNOTATION}, 1),
    ({"action": "ANNOTATION_UPDATED", "annotation": ANNOTATION}, 1),
    ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 7}]}, 1),
    ({"action": "ANNOTATION_CREATED"}, 1),  # a hook without payload
    ({"action": "TASKS_CREATED", "tasks": [{"id": 3, "total_annotations": 1}]}, 2),
    ({"action": "TASKS_DELETED", "tasks": [{"id": 3}]}, 1),
    ({"action": "PROJECT_UPDATED"}, 0),
    ({"action": "SOMETHING_NEW"}, 0),
]


@pytest.mark.parametrize(("event", "rows"), EVENTS)
def test_events_are_stored_for_the_worker_and_answered_at_once(event, rows, client):
    answer = client.post("/webhook", json={**event, "project": {"id": 5}})
    assert answer.status_code == 200
    assert (answer.json["events"], answer.json["new"]) == (rows, rows)
    assert answer.json["status"] == ("ok" if rows else "ignored")
    waiting = client.post("/job_status", json={"job": "learn-5"}).json
    assert waiting["job_status"] == ("queued" if rows else "completed")


def test_the_same_event_told_twice_is_stored_once(client):
    event = {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "project": {"id": 5}}
    assert [client.post("/webhook", json=event).json["new"] for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "broken",
    [{"annotation": "x"}, {"annotation": []}, {"annotation": {"id": "x"}}, {"project": {}}, {"project": "x"}],
)
def test_a_malformed_event_is_the_callers_error(broken, client):
    event = {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "project": {"id": 5}, **broken}
    answer = client.post("/webhook", json=event)
    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "bad_request"


@pytest.mark.parametrize("project", [{"id": 5}, 5, "5.1795467589"])
def test_start_training_gives_a_job_whose_status_can_be_asked(project, client):
    for path, body in (("/webhook", {"action": "START_TRAINING"}), ("/train", {"annotations": []})):
        answer = client.post(path, json={**body, "project": project})
        assert answer.json["job"] == "learn-5"
        assert client.post("/job_status", json={"job": answer.json["job"]}).json["job_status"] == "queued"


def test_a_killed_worker_is_not_reported_as_running(client, tmp_path):
    client.post("/train", json={"project": 5})
    lessons = TrainingDataStore(open_database(Settings(home=tmp_path / "home")))
    lessons.connect(5)
    lessons.set_phase(5, "fit")
    assert client.post("/job_status", json={"job": "learn-5"}).json["job_status"] == "running"
    lessons.update_project(5, phase_at=time.time() - 600)
    assert client.post("/job_status", json={"job": "learn-5"}).json["job_status"] == "queued"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (LearningState("queued", waiting=1, waiting_s=2.0), "1 event waits for the worker"),
        (
            LearningState("queued", waiting=3, waiting_s=45.2),
            "3 events wait for the worker for 45 s. Is `labelloop worker`",
        ),
        (LearningState("running", "photos", 3, 9), "Computing image features 3/9"),
        (LearningState("completed"), "Waiting for a submit"),
    ],
)
def test_watch_shows_the_phase_and_missing_workers(state, message):
    assert phase_text(state).startswith(message)


def test_training_of_a_project_without_learning_is_refused(client_of, labelloop_model, photos, tmp_path):
    policy = tmp_path / "home" / "ml_backend" / "5" / "learn.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text("learn = false\n")
    client = client_of(labelloop_model(), photos, loaded=False)
    answer = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 5}})
    assert answer.json["status"] == "ignored"
    assert "learn.toml" in answer.json["reason"]
    assert "job" not in answer.json


def test_the_learning_page_has_a_strict_content_policy(client, tmp_path):
    missing = client.get("/projects/5/learning")
    assert (missing.status_code, missing.json["error"]["code"]) == (404, "not_connected_to_learning")
    assert client.get(f"/projects/{10**30}/learning").status_code == 404
    assert client.post("/job_status", json={"job": f"learn-{10**30}"}).status_code == 410
    TrainingDataStore(open_database(Settings(home=tmp_path / "home"))).connect(5)
    page = client.get("/projects/5/learning")
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "Project 5: learning" in page.text


def test_the_front_page_leads_to_each_project(client, tmp_path):
    empty = client.get("/")
    assert (empty.status_code, empty.content_type) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in empty.headers["Content-Security-Policy"]
    assert "labelloop connect PROJECT" in empty.text
    TrainingDataStore(open_database(Settings(home=tmp_path / "home"))).connect(5)
    page = client.get("/")
    assert 'href="projects/5/learning"' in page.text
    assert faults(empty.text) == faults(page.text) == []
    assert client.post("/setup", json={"project": "5.1", "schema": ""}).json["model_version"] in page.text


def test_the_endpoints_that_label_studio_reserves_answer(client, boxes_config):
    assert client.post("/job_status", json={"job": "1"}).status_code == 410  # Label Studio reads it as "removed"
    assert client.post("/train", json={"annotations": [], "project": PROJECT}).json["status"] == "ok"
    answer = client.post("/validate", json={"config": boxes_config})
    assert answer.json["matched"] == {"cat": "Cat", "person": "Person", "car": "Car"}
    assert client.post("/validate", json={"config": "<View"}).status_code == 400


def test_options_are_copied_and_deleted_with_the_project(client, boxes_config):
    client.post("/setup", json={**SETUP, "schema": boxes_config, "extra_params": {"score_threshold": 0.05}})
    assert client.post("/duplicate_model", json={"project_src": PROJECT, "project_dst": "9.1"}).status_code == 200
    regions = lambda project: len(  # noqa: E731
        client.post("/predict", json=predict_body(boxes_config, TASK, project=project)).json["results"][0]["result"]
    )
    assert regions("9.1") == 3
    assert client.post("/delete", json={"project": "9.1"}).status_code == 200
    assert (regions("9.1"), regions(PROJECT)) == (2, 3)


def test_a_project_key_is_never_a_path(client, boxes_config, tmp_path):
    body = {**SETUP, "schema": boxes_config, "project": "../../../outside", "extra_params": {"score_threshold": 0.05}}
    assert client.post("/setup", json=body).status_code == 200
    files = list(tmp_path.rglob("*.json"))
    assert [file.parent for file in files] == [tmp_path / "home" / "ml_backend" / "projects"]


MALFORMED = {
    "no body": {},
    "not JSON": {"data": b"{", "content_type": "application/json"},
    "a list": {"json": []},
    "no tasks": {"json": {"project": PROJECT}},
    "tasks of the wrong type": {"json": {"tasks": "all"}},
    "a task that is a number": {"json": {"tasks": [1]}},
    "a config that is no XML": {"json": {"tasks": [], "label_config": "<View"}},
    "a config with entities": {"json": {"tasks": [], "label_config": '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>'}},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_returns_400_with_the_reason(case, client):
    answer = client.post("/predict", **MALFORMED[case])
    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "bad_request"
    assert "Traceback" not in answer.text


def test_basic_auth_guards_everything_but_health(client_of, labelloop_model, photos, boxes_config):
    client = client_of(labelloop_model(), photos, loaded=False, basic_auth_user="u", basic_auth_password="p")
    header = {"Authorization": "Basic " + base64.b64encode(b"u:p").decode()}
    assert client.get("/health").status_code == client.get("/health/").status_code == 200
    for path, body in (
        ("/setup", {**SETUP, "schema": boxes_config}),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 5}}),
    ):
        assert client.post(path, json=body).status_code == 401
        assert client.post(path, json=body, headers=header).status_code == 200


def test_events_need_the_secret_but_start_training_cannot_carry_it(client_of, labelloop_model, photos):
    client = client_of(labelloop_model(), photos, loaded=False, webhook_secret="s3cret")
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 5}}
    assert client.post("/webhook", json=event).status_code == 403
    assert client.post("/webhook", json=event, headers={"X-Labelloop-Secret": "s3cret"}).status_code == 200
    assert client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 5}}).status_code == 200


def test_setup_and_ready_report_a_missing_model(client_of, tmp_path, boxes_config):
    client = client_of(tmp_path / "gone.onnx")
    assert client.get("/health").status_code == 200
    for answer in (
        client.post("/setup", json={**SETUP, "schema": boxes_config}),
        client.post("/predict", json=predict_body(boxes_config, TASK)),
    ):
        assert answer.status_code == 503
        assert answer.json["error"]["code"] == "model_missing"
        assert "gone.onnx" in answer.json["error"]["message"]
    assert client.get("/ready").status_code == 503


def test_a_broken_model_is_said_by_setup(client_of, tmp_path, boxes_config):
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"nothing of an ONNX file")
    answer = client_of(file).post("/setup", json={**SETUP, "schema": boxes_config})
    assert answer.status_code == 503
    assert answer.json["error"]["code"] == "model_broken"


def test_health_and_setup_respond_during_loading(monkeypatch, settings, labelloop_model, photos, boxes_config):
    loading = threading.Event()
    from ml_backend.inference.detector import load_detector
    from ml_backend.serving.model_server import ModelServer

    def slowly(*args, **options):
        loading.wait(60)
        return load_detector(*args, **options)

    monkeypatch.setattr(ModelServer.__init__, "__kwdefaults__", {**ModelServer.__init__.__kwdefaults__, "load": slowly})
    model = labelloop_model()
    client = create_app(settings.replace(model=model), photos=photos).test_client()
    try:
        started = time.perf_counter()
        assert client.get("/health").status_code == 200
        version = client.post("/setup", json={**SETUP, "schema": boxes_config}).json["model_version"]
        assert time.perf_counter() - started < 20
        assert client.get("/ready").status_code == 503
        assert "still being loaded" in json.dumps(client.get("/ready").json)
    finally:
        loading.set()
    answer = client.post("/predict", json=predict_body(boxes_config, TASK))  # waits for the model
    assert answer.json["results"][0]["model_version"] == version
    assert client.get("/ready").status_code == 200


def replayed(value):
    """Every recorded request of a capture file, however deep it lies."""
    if isinstance(value, dict):
        if value.get("role") == "ml" and "path" in value:
            yield value
        for first in value.values():
            yield from replayed(first)
    elif isinstance(value, list):
        for first in value:
            yield from replayed(first)


def test_every_request_recorded_from_label_studio_is_answered(client, shared):
    """The real thing, as Label Studio 1.23.2 sent it: none may fail, and `/predict` gives one entry a task."""
    received = set()
    for file in sorted((shared / "facts" / "captures").glob("*.json")):
        for request in replayed(json.loads(file.read_text())):
            options = {} if request["body"] is None else {"json": request["body"]}
            answer = client.open(request["path"], method=request["method"], **options)
            assert answer.status_code == 200, (file.name, request["path"], answer.text)
            if request["path"] == "/predict":
                assert len(answer.json["results"]) == len(request["body"]["tasks"])
            received.add(request["path"])
    assert {"/health", "/setup", "/predict", "/versions", "/webhook"} <= received
