"""What is named is what is served: damaged files are fetched again, or refused and said."""

import shutil
import threading

import numpy as np
import pytest

from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from ml_backend.catalogue.entries import CatalogueEntry, Release
from ml_backend.checksums import ModelDamaged, sidecar_of, verify_file, write_checksum
from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelError
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.inference.session_cache import OnnxSessionCache
from ml_backend.segmentation.outline_network import OutlineSegmenter, embedded_outline
from ml_backend.serving import model_server as serving_module
from ml_backend.serving.activation import open_version
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import Registry
from ml_backend.training.backbone import open_backbone

SCORES = ((0.1, 0.9, 0.0), (1.0, 0.2, 0.1), (0.0, 0.1, 0.5))
"""Thresholds that differ from those of the default model, to tell which of the two is served."""


@pytest.fixture
def default_model(labelloop_model):
    return labelloop_model()


@pytest.fixture
def settings(tmp_path, default_model):
    return Settings(home=tmp_path / "home", model=default_model)


@pytest.fixture
def store(settings):
    return open_store(settings.store_url, settings)


@pytest.fixture
def version(store, labelloop_model):
    created = Registry(store).add(labelloop_model(name="learned.onnx", scores=SCORES)).version
    set_active(store, created)
    return created


@pytest.fixture
def started(settings):
    def start():
        serving = ModelServer.from_settings(settings)
        serving.start()
        serving.detector(wait_s=30)
        # The loader looks once more for a version that was activated meanwhile; a file changed before that is loaded.
        for thread in threading.enumerate():
            if thread.name == "load-model":
                thread.join()
        return serving

    return start


def flip(file, default_model):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


DAMAGES = {
    "a flipped byte": flip,
    "cut short": lambda file, default_model: file.write_bytes(file.read_bytes()[:-20]),
    "emptied": lambda file, default_model: file.write_bytes(b""),
    "replaced by another model": lambda file, default_model: shutil.copy(default_model, file),
    "removed": lambda file, default_model: file.unlink(),
}


def copy_of(settings, store, version):
    manifest = Registry(store).manifest(version)
    return settings.home / "ml_backend" / "models" / manifest.checksum / manifest.model


def seen_by(detector):
    photo = np.full((64, 96, 3), 114, np.uint8)
    [result] = detector.detect([prepare(photo, detector.spec)], floor=0.3)
    return [detector.names.names[index] for index in result.classes.tolist()]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_is_fetched_again(damage, settings, store, version, default_model, started):
    whole = seen_by(open_version(settings, version)[0])
    damage(copy_of(settings, store, version), default_model)
    serving = started()
    assert serving.version() == version
    assert seen_by(serving.detector()) == whole != seen_by(load_detector(default_model))
    serving.check()


def test_a_note_that_was_changed_is_read_from_the_store(settings, store, version):
    open_version(settings, version)
    note = settings.home / "ml_backend" / "models" / f"{version}.json"
    note.write_text(note.read_text().replace("learned.onnx", "another.onnx"))
    assert open_version(settings, version)[0].version == version


def test_what_cannot_be_opened_is_said_and_retried_when_mended(
    settings, store, version, default_model, started, monkeypatch, wait_until, client_of
):
    monkeypatch.setattr(serving_module, "RETRY_REFUSED_S", 0.1)
    key = f"models/versions/{version}/learned.onnx"
    whole = store.get(key)
    store.put(key, b"torn")
    serving = started()
    base = load_detector(default_model).version
    assert serving.version() == base == serving.served().version == serving.active()
    with pytest.raises(ModelError, match=f"{base} is served, because the active version {version} cannot"):
        serving.check()
    assert "do not match version" in serving.unserved()
    store.put(key, whole)
    wait_until(lambda: serving.version() == version)
    serving.check()
    assert serving.unserved() == ""
    assert Registry(store).refusal_reason(version) == ""


def test_ready_setup_and_page_name_what_is_served_instead(store, version, default_model, client_of):
    store.put(f"models/versions/{version}/learned.onnx", b"torn")
    client = client_of(default_model)
    base = load_detector(default_model).version
    ready, setup = client.get("/ready"), client.post("/setup", json={"project": "5.1", "schema": "<View/>"}).json
    assert ready.status_code == 503
    assert f"{base} is served, because the active version {version}" in ready.json["checks"]["model"]
    assert setup["model_version"] == base
    assert version in setup["notes"][0]
    assert base in client.get("/").text


def test_a_manifest_that_was_changed_is_not_believed(store, version):
    key = f"models/versions/{version}/manifest.json"
    store.put(key, store.get(key).replace(b'"sha256":"', b'"sha256":"0'))
    with pytest.raises(ModelError, match="is inconsistent"):
        Registry(store).manifest(version)


def test_a_model_file_replaced_under_the_service_is_said(settings, started, labelloop_model):
    serving = started()
    before = serving.version()
    serving.check()
    labelloop_model(scores=SCORES)
    with pytest.raises(ModelError, match=f"was replaced after it was opened. {before} is still served") as text:
        serving.check()
    assert load_detector(settings.model).version in text.value.fix
    assert serving.version() == before == serving.served().version
    settings.model.unlink()
    with pytest.raises(ModelError, match="was removed"):
        serving.check()


def test_file_changed_during_loading_is_not_served(default_model, labelloop_model):
    def load(path, **options):
        detector = load_detector(path, **options)
        labelloop_model(scores=SCORES)
        return detector

    serving = ModelServer(default_model, load=load)
    serving.start()
    with pytest.raises(ModelError, match="was replaced"):
        serving.served(wait_s=30)


@pytest.mark.parametrize("file", [embedded_model(), embedded_outline()], ids=["base", "outline"])
def test_the_embedded_models_are_checked_when_they_are_opened(file, tmp_path, default_model):
    verify_file(file)
    copy = tmp_path / file.name
    shutil.copy(file, copy)
    shutil.copy(sidecar_of(file), sidecar_of(copy))
    flip(copy, default_model)
    with pytest.raises(ModelDamaged, match="sha256"):
        load_detector(copy) if file == embedded_model() else OutlineSegmenter(copy)


def test_a_checksum_that_cannot_be_read_is_no_consent(default_model):
    sidecar_of(default_model).write_text("")
    with pytest.raises(ModelDamaged, match="cannot be read"):
        load_detector(default_model)


def test_a_pulled_file_is_checked_whenever_it_is_opened(default_model, tmp_path, monkeypatch):
    import hashlib

    from ml_backend.catalogue import pull as pulling

    checksum = hashlib.sha256(default_model.read_bytes()).hexdigest()
    entry = CatalogueEntry("a model", "detector", "MIT", "", (Release("https://example.org/pulled.onnx", checksum),))
    monkeypatch.setattr(pulling, "download", lambda release, file, **_: shutil.copy(default_model, file))
    [file] = pulling.pull(entry, tmp_path, client=object())
    assert load_detector(file).names.names == ("cat", "person", "car")
    flip(file, default_model)
    with pytest.raises(ModelDamaged):
        load_detector(file)


def test_an_optimised_graph_that_was_changed_is_not_run(default_model, tmp_path, labelloop_model):
    folder, other = tmp_path / "opened", tmp_path / "other"
    whole = seen_by(load_detector(default_model, cache_folder=folder))
    load_detector(labelloop_model(name="other.onnx", scores=SCORES), cache_folder=other)
    [graph], [replacement] = folder.glob("*.onnx"), other.glob("*.onnx")
    shutil.copy(replacement, graph)
    assert OnnxSessionCache(folder).load() is None
    assert seen_by(load_detector(default_model, cache_folder=folder)) == whole


def test_a_backbone_that_was_changed_is_made_again(tmp_path, default_model):
    open_backbone(embedded_model(), folder=tmp_path)
    [stored] = tmp_path.glob("*.features3.onnx")
    whole = stored.read_bytes()
    flip(stored, default_model)
    open_backbone(embedded_model(), folder=tmp_path)
    assert len(stored.read_bytes()) == len(whole)
    verify_file(stored)


def test_checksums_are_written_as_sha256sum_reads_them(default_model):
    write_checksum(default_model)
    checksum, name = sidecar_of(default_model).read_text().split()
    assert (len(checksum), name) == (64, default_model.name)
