"""Versions are whole or not there, the pointer loses no activation, copies are checked."""

import threading

import msgspec
import pytest

from labelloop.service.store import StoreError, StoreUnreachable, open_store
from ml_backend.errors import ModelBroken, ModelError
from ml_backend.inference.detector import load_detector
from ml_backend.serving.active_versions import (
    ActivationState,
    Pointer,
    read_pointer,
    roll_back_active,
    set_active,
)
from ml_backend.serving.model_cache import ModelCache
from ml_backend.serving.pointer_watcher import PointerWatcher
from ml_backend.serving.registry import Registry


@pytest.fixture
def store(settings):
    return open_store(settings.store_url, settings)


@pytest.fixture
def registry(store):
    return Registry(store)


def test_added_version_has_the_name_of_its_file(registry, labelloop_model):
    model = labelloop_model()
    added = registry.add(model, metrics={"ap50": 0.5}, parent="base-1", project="3", note="test")
    assert added.version == load_detector(model).version
    assert registry.add(model) == added == registry.manifest(added.version)
    assert registry.versions() == (added,)
    assert added.classes == ("cat", "person", "car")


def test_thresholds_names_and_a_forced_layout_make_another_version(registry, labelloop_model, tmp_path):
    model = labelloop_model()
    names = tmp_path / "other.txt"
    names.write_text("a\nb\nc\n")
    versions = {
        registry.add(model, **options).version
        for options in ({}, {"thresholds": {"cat": 0.4}}, {"thresholds": {"cat": 0.5}}, {"names": names},
                        {"layout": "labelloop"})
    }  # fmt: skip
    assert len(versions) == 5


def test_layout_file_travels_with_the_version(registry, make_onnx, tmp_path):
    import numpy as np

    rows = np.concatenate([np.full((1, 30, 2), 20.0), np.full((1, 30, 2), 8.0), np.full((1, 30, 1), 0.4)], axis=2)
    model = make_onnx({"rows": rows}, name="odd.onnx")
    with pytest.raises(ModelError, match="no known layout"):
        registry.add(model)
    layout_file = model.with_name("odd.layout.toml")
    layout_file.write_text(
        '[input]\nrange = "0..255"\n[boxes]\noutput = "rows"\ncolumns = [0, 4]\nformat = "centre"\n'
        '[scores]\noutput = "rows"\ncolumns = [4, 5]\n[classes]\nnames = ["thing"]\n'
    )
    added = registry.add(model)
    assert "odd.onnx.layout.toml" in added.files
    copy = ModelCache(tmp_path / "cache").fetch(registry, added)
    served = load_detector(copy)
    assert (served.version, served.layout, served.names.names) == (added.version, "layout-file", ("thing",))
    layout_file.write_text(layout_file.read_text().replace("0..255", "0..1"))
    assert registry.add(model).version != added.version


def test_preprocessing_of_hugging_face_travels_with_the_version(registry, labelloop_model, tmp_path):
    model = labelloop_model()
    model.with_name("preprocessor_config.json").write_text('{"do_normalize": false}')
    added = registry.add(model)
    assert "preprocessor_config.json" in added.files
    assert load_detector(ModelCache(tmp_path / "cache").fetch(registry, added)).version == added.version


def test_a_copy_carries_its_names_with_it(registry, make_onnx, tmp_path):
    import numpy as np

    model = make_onnx({"out": np.zeros((1, 10, 7))}, name="plain.onnx")
    names = tmp_path / "elsewhere.txt"
    names.write_text("thing\nother\n")
    with pytest.raises(ModelError, match="their names are unknown"):
        registry.add(model, layout="yolov5")
    manifest = registry.add(model, layout="yolov5", names=names)
    copy = ModelCache(tmp_path / "cache").fetch(registry, manifest)
    assert load_detector(copy, layout="yolov5").names.names == ("thing", "other")


def test_what_cannot_be_served_is_not_added(registry, tmp_path):
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"nothing")
    with pytest.raises(ModelError):
        registry.add(file)
    assert registry.versions() == ()
    with pytest.raises(ModelError, match="models list"):
        registry.manifest("broken-000000000000")


def test_files_without_a_manifest_are_no_version(registry, store, labelloop_model):
    store.put("models/versions/half-000000000000/half.onnx", labelloop_model())
    assert registry.versions() == ()


def test_bytes_that_changed_on_the_store_are_not_served(registry, store, labelloop_model, tmp_path):
    manifest = registry.add(labelloop_model())
    store.put(f"models/versions/{manifest.version}/tiny.onnx", b"something else")
    with pytest.raises(ModelBroken, match="do not match version"):
        ModelCache(tmp_path / "cache").fetch(registry, manifest)
    assert [item.name for item in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_copy_that_is_there_needs_no_store(registry, store, labelloop_model, tmp_path, monkeypatch):
    manifest = registry.add(labelloop_model())
    cache = ModelCache(tmp_path / "cache")
    first = cache.fetch(registry, manifest)
    monkeypatch.setattr(registry, "get", lambda *_: pytest.fail("it was fetched again"))
    assert cache.fetch(registry, manifest) == first


def test_concurrent_activations_all_count_and_roll_back_singly(store):
    threads = [threading.Thread(target=set_active, args=(store, f"v{n}", "3")) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = read_pointer(store)[0].state("3")
    assert {index.version, *index.before} == {"", *(f"v{n}" for n in range(6))}
    for expected in reversed(index.before):
        assert roll_back_active(store, "3").version == expected
    with pytest.raises(StoreError, match="nothing to roll back to"):
        roll_back_active(store, "3")


@pytest.mark.parametrize(
    ("places", "project", "active", "choices"),
    [
        ({}, "3", "", ("",)),
        ({"": ActivationState("b", ("", "a"))}, "3", "b", ("b", "a", "")),
        ({"": ActivationState("b"), "3": ActivationState("p", ("", "o"))}, "3", "p", ("p", "o", "b", "")),
        ({"": ActivationState("b"), "3": ActivationState("p")}, "4", "b", ("b", "")),
        ({"": ActivationState("b"), "3": ActivationState("", ("", "p"))}, "3", "b", ("b", "")),
    ],
    ids=["nothing", "everywhere", "its own first", "another's", "its own taken back"],
)
def test_what_is_active_for_a_project(places, project, active, choices):
    pointer = Pointer(places)
    assert pointer.active(project) == active
    assert pointer.candidates(project) == choices


class Bucket:
    """A remote store that answers, or not."""

    url = "s3://bucket"

    def __init__(self):
        self.data, self.up = msgspec.json.encode(Pointer({"": ActivationState("v1")})), True

    def get(self, key):
        if not self.up:
            raise StoreUnreachable(self.url, key, "it is away")
        return self.data


def test_restart_without_the_bucket_uses_the_last_pointer(tmp_path):
    bucket, memory = Bucket(), tmp_path / "home" / "active.json"
    watch = PointerWatcher(bucket, memory=memory)
    assert watch.pointer.active() == ""
    assert watch.poll()
    assert not watch.poll()
    bucket.up = False
    assert not watch.poll()
    assert watch.pointer.active() == "v1"
    assert PointerWatcher(bucket, memory=memory).pointer.active() == "v1"
