"""A worker's detector: known by its version at once, waited for by those who need it, its failure said to all."""

import threading
from types import SimpleNamespace

import pytest

from ml_backend.cli.serve import serve
from ml_backend.errors import ModelBroken, ModelError, ModelMissing
from ml_backend.inference.detector import load_detector
from ml_backend.serving.active_versions import ActivationState, Pointer
from ml_backend.serving.model_server import MAX_PROJECTS, ModelServer
from ml_backend.serving.smoke_test import check_model


def test_version_is_known_before_the_model_is_loaded(labelloop_model):
    serving = ModelServer(labelloop_model())
    before = serving.version()
    assert serving.loaded() is None
    with pytest.raises(ModelError, match="still being loaded"):
        serving.check()
    serving.start()
    assert serving.detector(wait_s=20).version == before == serving.version()


def test_active_versions_of_many_projects_evict_no_model(labelloop_model):
    places = {str(number): ActivationState(f"learned-{number}") for number in range(1, 2 * MAX_PROJECTS)}
    serving = ModelServer(labelloop_model(), watcher=SimpleNamespace(pointer=Pointer(places)))
    serving.version("1")  # takes a place in memory
    stored = serving._slots()
    assert [serving.active(number) for number in places] == [index.version for index in places.values()]
    assert serving.active() == serving.active("99") == serving.version("99")
    assert serving._slots() == stored


def test_those_who_need_the_model_wait_for_it(labelloop_model):
    go = threading.Event()

    def load(*args, **options):
        go.wait(10)
        return load_detector(*args, **options)

    serving = ModelServer(labelloop_model(), load=load)
    serving.start()
    with pytest.raises(ModelError, match="still being loaded"):
        serving.detector(wait_s=0.05)
    threading.Timer(0.1, go.set).start()
    assert serving.detector(wait_s=20).layout == "labelloop"


def test_a_model_that_cannot_be_loaded_is_said_to_everybody(tmp_path):
    serving = ModelServer(tmp_path / "gone.onnx")
    serving.start()
    for ask in (serving.version, lambda: serving.detector(wait_s=10), serving.check):
        with pytest.raises(ModelMissing):
            ask()


def test_unexpected_failure_is_a_broken_model(labelloop_model):
    def load(*args, **options):
        raise MemoryError("no room")

    serving = ModelServer(labelloop_model(), load=load)
    serving.start()
    with pytest.raises(ModelBroken, match="no room"):
        serving.detector(wait_s=10)


def test_a_model_is_checked_in_a_process_of_its_own(labelloop_model):
    model = labelloop_model()
    result = check_model(model)
    assert result.version == load_detector(model).version
    assert (result.layout, result.names) == ("labelloop", ("cat", "person", "car"))


def test_serving_a_missing_or_unknown_model_ends_before_anything_listens(tmp_path, make_onnx, settings, capsys):
    import numpy as np

    unknown = make_onnx({"quality": np.zeros((1, 1))})
    for model, words in ((tmp_path / "gone.onnx", "There is no model file"), (unknown, "no known layout")):
        with pytest.raises(ModelError, match=words) as error:
            serve(model, port=9090, settings=settings)
        assert error.value.fix
    assert capsys.readouterr().out == ""


def test_file_that_crashes_the_loader_is_a_broken_model(labelloop_model, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ModelBroken, match="ended the process with status 1"):
        check_model(labelloop_model())
