"""A model that this machine opened before opens again without being optimised or tried, and finds the same."""

import numpy as np
import pytest

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken, ModelMissing
from ml_backend.inference.detector import load_detector
from ml_backend.inference.session import Engine
from ml_backend.inference.session_cache import OnnxSessionCache
from ml_backend.serving.smoke_test import check_model


@pytest.fixture
def model(labelloop_model):
    return labelloop_model()


def seen_by(detector):
    photo = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    [found] = detector.detect([prepare(photo, detector.spec)], floor=0.01)
    return found


def test_the_second_opening_neither_tries_nor_optimises_and_finds_the_same(model, tmp_path, monkeypatch):
    first = load_detector(model, kept=tmp_path / "opened")
    runs = []
    monkeypatch.setattr(Engine, "run", lambda self, *args: runs.append(self))
    second = load_detector(model, kept=tmp_path / "opened")
    assert runs == []
    monkeypatch.undo()
    assert (second.version, second.layout, second.why, second.names) == (
        first.version, first.layout, first.why, first.names,
    )  # fmt: skip
    for one, other in zip(
        (seen_by(first).boxes, seen_by(first).scores), (seen_by(second).boxes, seen_by(second).scores), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("harm", ["graph", "trial"])
def test_a_damaged_opening_costs_time_and_nothing_else(model, tmp_path, harm):
    folder = tmp_path / "opened"
    load_detector(model, kept=folder)
    [file] = folder.glob("*.onnx" if harm == "graph" else "*.npz")
    file.write_bytes(b"torn")
    assert load_detector(model, kept=folder).layout == "labelloop"
    assert OnnxSessionCache(folder).find() is not None
    assert file.read_bytes() != b"torn"


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert load_detector(model, kept=tmp_path / "file" / "opened").layout == "labelloop"


def test_a_model_that_is_gone_or_broken_keeps_no_opening(model, tmp_path):
    load_detector(model, kept=tmp_path / "opened")
    model.unlink()
    with pytest.raises(ModelMissing):
        load_detector(model, kept=tmp_path / "opened", version="v")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelBroken):
        load_detector(broken, kept=tmp_path / "other")
    assert OnnxSessionCache(tmp_path / "other").find() is None
    assert not list((tmp_path / "other").glob("*.onnx"))


def test_a_check_in_another_process_keeps_the_opening_for_this_one(model, tmp_path):
    check_model(model, kept=tmp_path / "opened")
    assert OnnxSessionCache(tmp_path / "opened").find().layout == "labelloop"
