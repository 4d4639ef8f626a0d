"""A worker takes over what becomes active while it serves, by project too; what cannot be loaded changes nothing."""

import threading

import pytest

from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.errors import ModelError
from ml_backend.inference.detector import load_detector
from ml_backend.serving.activation import activate, roll_back, served_version
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import Registry


@pytest.fixture
def default_model(labelloop_model, tmp_path):
    return labelloop_model()


@pytest.fixture
def settings(tmp_path, default_model):
    return Settings(home=tmp_path / "home", model=default_model)


@pytest.fixture
def store(settings):
    return open_store(settings.store_url, settings)


@pytest.fixture
def add(store, labelloop_model):
    return lambda name, **options: Registry(store).add(labelloop_model(name=f"{name}.onnx"), **options).version


@pytest.fixture
def serving(settings):
    running = ModelServer.from_settings(settings)
    running.start()
    running.detector(wait_s=20)
    return running


def test_activations_and_rollbacks_are_served(serving, settings, add, wait_until):
    before = serving.version()
    version = add("new", thresholds={"cat": 0.95})
    held = serving.served()
    done = activate(version, settings=settings)
    assert (done.version, done.before) == (version, before)
    assert "LABELLOOP_LABEL_STUDIO_API_KEY" in done.notes[0]
    wait_until(lambda: serving.version() == version)
    assert serving.served().thresholds == {"cat": 0.95}
    assert held.version == held.detector.version == before  # the request that began with it keeps it
    assert roll_back(settings=settings).version == before == served_version(settings)
    wait_until(lambda: serving.version() == before)


def test_a_project_of_its_own_version_and_the_others(serving, settings, store, add, wait_until):
    shared, own = add("shared"), add("own")
    assert serving.version("3.17") == serving.version("4.17")
    set_active(store, own, "3")
    wait_until(lambda: serving.version("3.17") == own)
    set_active(store, shared)
    wait_until(lambda: serving.version("4.17") == shared)
    assert serving.version("3.17") == own == serving.served("3.17").version
    assert serving.version() == shared
    set_active(store, "", "3")
    wait_until(lambda: serving.version("3.17") == shared)


def test_new_worker_loads_project_versions_on_demand(settings, store, add):
    set_active(store, add("shared"))
    own = add("own")
    set_active(store, own, "3")
    serving = ModelServer.from_settings(settings)
    serving.start()
    assert serving.version("3.17") == own
    assert serving.served("3.17", wait_s=20).version == own
    assert serving.served(wait_s=20).version.startswith("shared-")


def break_copy(settings, store, version):
    """Its bytes on the store are no longer those that were added."""
    name = Registry(store).manifest(version).model
    store.put(f"models/versions/{version}/{name}", b"no model")


def test_unloadable_version_is_marked_and_the_old_one_stays(serving, settings, store, add, wait_until):
    before, version = serving.version(), add("bad")
    break_copy(settings, store, version)
    set_active(store, version)
    wait_until(lambda: Registry(store).refusal_reason(version))
    assert "do not match version" in Registry(store).refusal_reason(version)
    assert serving.version() == before == serving.served().version
    good = add("good")
    set_active(store, good)
    wait_until(lambda: serving.version() == good)


def test_a_fresh_worker_falls_back_to_what_was_active_before(settings, store, add):
    good, bad = add("good"), add("bad")
    set_active(store, good)
    break_copy(settings, store, bad)
    set_active(store, bad)
    serving = ModelServer.from_settings(settings)
    serving.start()
    assert serving.served(wait_s=20).version == good == serving.version()


def test_activating_what_cannot_be_loaded_changes_nothing(settings, store, add):
    version = add("bad")
    break_copy(settings, store, version)
    with pytest.raises(ModelError):
        activate(version, settings=settings)
    assert served_version(settings) == load_detector(settings.model).version
    assert Registry(store).refusal_reason(version)


def test_nothing_waits_while_the_next_model_is_opened(settings, store, add, default_model, wait_until):
    go = threading.Event()

    def load(path, **options):
        if path != default_model:
            go.wait(20)
        return load_detector(path, **options)

    serving = ModelServer.from_settings(settings)
    serving._load = load
    serving.start()
    before = serving.served(wait_s=20).version
    version = add("slow")
    set_active(store, version)
    threading.Event().wait(0.5)
    assert serving.served(wait_s=0).version == before == serving.version()
    go.set()
    wait_until(lambda: serving.version() == version)


def test_app_uses_the_active_version_and_its_thresholds(
    client_of, default_model, settings, store, add, album, astronaut, boxes_config, wait_until
):
    client = client_of(default_model, album({"a": astronaut}))
    body = {"tasks": [{"id": 1, "data": {"image": "a"}}], "project": "3.1", "label_config": boxes_config}
    first = client.post("/predict", json=body).json["results"][0]
    version = add("new", thresholds={"cat": 0.99})
    set_active(store, version, "3")
    setup = {"project": "3.1", "schema": boxes_config}
    wait_until(lambda: client.post("/setup", json=setup).json["model_version"] == version)
    entry = client.post("/predict", json=body).json["results"][0]
    assert entry["model_version"] == version
    assert len(entry["result"]) == len(first["result"]) - 1  # the cat, at 0.81
    assert client.get("/versions").json == {"versions": [first["model_version"], version]}
    assert client.get("/versions?project=3.1").json == {"versions": [version]}


def test_label_config_is_matched_with_the_project_version(
    client_of, default_model, store, add, album, boxes_config, tmp_path
):
    (tmp_path / "others.txt").write_text("fork\nknife\nspoon\n")
    set_active(store, add("own", names=tmp_path / "others.txt"), "3")
    client = client_of(default_model, album({}))
    matched = {
        project: client.post("/validate", json={"config": boxes_config, "project": project}).json["matched"]
        for project in ("3.1", "4.1")
    }
    assert matched["3.1"] == {}
    assert matched["4.1"]
