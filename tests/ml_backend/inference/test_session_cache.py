"""A cached model reopens without optimisation or a trial run, and detects the same."""

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


def detections_of(detector):
    photo = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    [detections] = detector.detect([prepare(photo, detector.spec)], floor=0.01)
    return detections


def test_second_opening_uses_the_cache(model, tmp_path, monkeypatch):
    first = load_detector(model, cache_folder=tmp_path / "opened")
    runs = []
    monkeypatch.setattr(Engine, "run", lambda self, *args: runs.append(self))
    second = load_detector(model, cache_folder=tmp_path / "opened")
    assert runs == []
    monkeypatch.undo()
    assert (second.version, second.layout, second.why, second.names) == (
        first.version, first.layout, first.why, first.names,
    )  # fmt: skip
    for before, after in zip(
        (detections_of(first).boxes, detections_of(first).scores),
        (detections_of(second).boxes, detections_of(second).scores),
        strict=True,
    ):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("harm", ["graph", "trial"])
def test_damaged_entry_is_replaced(model, tmp_path, harm):
    folder = tmp_path / "opened"
    load_detector(model, cache_folder=folder)
    [file] = folder.glob("*.onnx" if harm == "graph" else "*.npz")
    file.write_bytes(b"torn")
    assert load_detector(model, cache_folder=folder).layout == "labelloop"
    assert OnnxSessionCache(folder).load() is not None
    assert file.read_bytes() != b"torn"


def test_unwritable_folder_is_ignored(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert load_detector(model, cache_folder=tmp_path / "file" / "opened").layout == "labelloop"


def test_missing_or_broken_model_leaves_no_entry(model, tmp_path):
    load_detector(model, cache_folder=tmp_path / "opened")
    model.unlink()
    with pytest.raises(ModelMissing):
        load_detector(model, cache_folder=tmp_path / "opened", version="v")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelBroken):
        load_detector(broken, cache_folder=tmp_path / "other")
    assert OnnxSessionCache(tmp_path / "other").load() is None
    assert not list((tmp_path / "other").glob("*.onnx"))


def test_subprocess_fills_the_cache(model, tmp_path):
    check_model(model, session_folder=tmp_path / "opened")
    assert OnnxSessionCache(tmp_path / "opened").load().layout == "labelloop"
