"""Runs of ONNX Runtime in a process that computes other things between them."""

import threading

import numpy as np
import pytest

from ml_backend.inference import run_limit
from ml_backend.inference.detector import embedded_model
from ml_backend.inference.run_limit import give_memory_back
from ml_backend.inference.session import Engine


class Session:
    """Remembers the options of its runs."""

    def __init__(self):
        self.options = []

    def run(self, _outputs, _feeds, options):
        self.options.append(options.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
        return []


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(run_limit, "_GIVES_BACK", threading.Event())


def test_a_worker_gives_memory_back_after_each_run_and_a_server_keeps_it():
    session, limit = Session(), run_limit.RunLimit()
    with pytest.raises(RuntimeError, match="enable_memory_arena_shrinkage"):
        limit.run(session, None, {})  # not set
    give_memory_back()
    limit.run(session, None, {})
    assert session.options == ["cpu:0"]


def test_a_run_that_gives_memory_back_answers_the_same():
    engine = Engine(embedded_model(), threads=1)
    height, width = engine.graph.image.shape[-2:]
    image = np.random.default_rng(0).random((3, height or 416, width or 416), np.float32)
    kept = engine.run([image])
    give_memory_back()
    for name, array in engine.run([image]).items():
        np.testing.assert_array_equal(array, kept[name])
