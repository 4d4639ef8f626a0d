"""Sights are kept within their bound, come back as they were seen, and a full disk costs nothing but time."""

import numpy as np
import pytest

from ml_backend.detection.preprocess import Fit
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.feature_cache import FeatureCache


def sight(value):
    some = np.full(50, value, np.float32)
    boxes = np.tile(some[:, None], (1, 4))
    return CandidateFeatures(boxes, some, boxes[:, :2], boxes, Fit(0.5, 0.5, 1, 2, 640, 480))


def never():
    raise AssertionError("it was to be on disk")


def test_a_photo_is_looked_at_once(tmp_path):
    seen = FeatureCache(tmp_path, max_bytes=10**6).get("a", lambda: sight(0.25))
    again = FeatureCache(tmp_path, max_bytes=10**6).get("a", never)
    assert again.fit == seen.fit == Fit(0.5, 0.5, 1, 2, 640, 480)
    for name in ("boxes", "objectness", "scores", "embeddings"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))


def test_the_folder_stays_within_its_bound(tmp_path):
    sights = FeatureCache(tmp_path, max_bytes=10_000)
    for number in range(20):
        sights.get(str(number), lambda: sight(0.5))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    sights.get("19", never)


def test_a_full_disk_costs_nothing_but_the_time_to_look_again(tmp_path, monkeypatch):
    sights = FeatureCache(tmp_path, max_bytes=10**6)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(np, "savez", full)
        assert sights.get("a", lambda: sight(0.5)).boxes[0, 0] == pytest.approx(0.5)
        assert list(tmp_path.iterdir()) == []
    sights.get("a", lambda: sight(0.5))
    sights.get("a", never)
