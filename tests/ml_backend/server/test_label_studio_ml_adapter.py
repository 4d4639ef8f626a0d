"""The same model under upstream's own server, label-studio-ml 2.x; skipped where that is not installed."""

import importlib.util
import warnings

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("label_studio_ml") is None,
    reason="label-studio-ml is not installed: docs/how-to/own-model.md",
)

PROJECT = "5.1795467589"


@pytest.fixture
def adapter(tmp_path, monkeypatch, labelloop_model):
    """The adapter on a tiny model, and upstream's own test client."""
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABELLOOP_MODEL", str(labelloop_model()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upstream's own
        from label_studio_ml.api import init_app

        from ml_backend.server import label_studio_ml_adapter as ours
    ours.shared_state.cache_clear()
    yield ours, init_app(ours.LabelloopModel).test_client()
    ours.shared_state().serving.served(wait_s=60)


@pytest.fixture
def astronaut_url(astronaut):
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(astronaut).save(buffer, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_upstreams_server_answers_as_ours_does(adapter, client_of, album, astronaut, astronaut_url, boxes_config):
    ours, other_value = adapter
    setup = {"project": PROJECT, "schema": boxes_config, "extra_params": {"score_threshold": 0.3}}
    version = other_value.post("/setup", json=setup).json["model_version"]
    body = {
        "tasks": [{"id": 1, "data": {"image": astronaut_url}}, {"id": 2, "data": {"image": "data:nothing"}}],
        "project": PROJECT, "label_config": boxes_config, "params": {"login": None, "password": None, "context": None},
    }  # fmt: skip
    answer = other_value.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    first, second = answer.json["results"]
    assert first["model_version"] == second["model_version"] == version
    assert first["result"]
    assert second["result"] == []
    client = client_of(ours.kit().serving.path, album({astronaut_url: astronaut}))
    client.post("/setup", json=setup)
    [same, _] = client.post("/predict", json=body).json["results"]
    assert [first["value"]["rectanglelabels"] for first in same["result"]] == [
        item["value"]["rectanglelabels"] for item in first["result"]
    ]


def test_a_smart_prompt_and_an_event(adapter, astronaut_url):
    _, other_value = adapter
    config = """<View><Image name="image" value="$image"/>
    <RectangleLabels name="box" toName="image" smart="true"><Label value="Car"/></RectangleLabels></View>"""
    prompt = {
        "id": "drawn", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "original_width": 192,
        "original_height": 128, "value": {"x": 10, "y": 10, "width": 60, "height": 60, "rectanglelabels": ["Car"]},
    }  # fmt: skip
    body = {
        "tasks": [{"id": 1, "data": {"image": astronaut_url}}], "project": PROJECT, "label_config": config,
        "params": {"context": {"result": [prompt]}},
    }  # fmt: skip
    [entry] = other_value.post("/predict", json=body).json["results"]
    assert entry["result"][0]["type"] == "rectanglelabels"
    event = {
        "action": "ANNOTATION_CREATED", "project": {"id": 5, "label_config": config},
        "task": {"id": 1, "data": {}},
        "annotation": {"id": 7, "task": 1, "result": [], "project": 5, "updated_at": "2026-11-23T21:00:00Z"},
    }  # fmt: skip
    answer = other_value.post("/webhook", json=event)
    assert answer.status_code == 201
    assert answer.json["result"]["events"] >= 1
    assert other_value.post("/webhook", json=event).json["result"]["new"] == 0
