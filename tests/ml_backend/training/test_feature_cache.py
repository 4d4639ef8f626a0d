"""The feature cache stays within its limit, returns what was stored, and tolerates a full disk."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ml_backend.detection.fit import Fit
from ml_backend.learning.features import FeatureProvider
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.feature_cache import FeatureCache


def features(value):
    values = np.full(50, value, np.float32)
    boxes = np.tile(values[:, None], (1, 4))
    return CandidateFeatures(boxes, values, boxes[:, :2], boxes, Fit(0.5, 0.5, 1, 2, 640, 480))


def never():
    raise AssertionError("the features should be on disk")


def test_features_are_computed_once(tmp_path):
    computed = FeatureCache(tmp_path, max_bytes=10**6).get("a", lambda: features(0.25))
    cached = FeatureCache(tmp_path, max_bytes=10**6).get("a", never)
    assert cached.fit == computed.fit == Fit(0.5, 0.5, 1, 2, 640, 480)
    for name in ("boxes", "objectness", "scores", "embeddings"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(computed, name))


def test_folder_stays_within_its_limit(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=10_000)
    for number in range(20):
        cache.get(str(number), lambda: features(0.5))
    assert sum(file.stat().st_size for file in tmp_path.glob("??/*")) <= 10_000
    cache.get("19", never)


def test_full_disk_only_costs_recomputation(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, max_bytes=10**6)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(np, "savez", full)
        assert cache.get("a", lambda: features(0.5)).boxes[0, 0] == pytest.approx(0.5)
        assert list(tmp_path.glob("??/*")) == []
    cache.get("a", lambda: features(0.5))
    cache.get("a", never)


def test_unwritable_folder_only_costs_recomputation(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = FeatureCache(tmp_path / "file", max_bytes=10**6)
    assert cache.get("a", lambda: features(0.5)).boxes[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-30], lambda data: b"x" * len(data)])
def test_damaged_file_is_replaced(tmp_path, damage):
    cache = FeatureCache(tmp_path, max_bytes=10**6)
    cache.get("a", lambda: features(0.5))
    [file] = tmp_path.glob("??/*")
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert cache.get("a", lambda: features(0.25)).boxes[0, 0] == pytest.approx(0.25)
    assert cache.get("a", never).boxes[0, 0] == pytest.approx(0.25)


def test_error_of_the_computation_is_raised_once(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=10**6)
    with pytest.raises(AssertionError):
        cache.get("a", never)
    assert list(tmp_path.glob("??/*")) == []


def test_files_of_earlier_releases_are_removed(tmp_path):
    (tmp_path / "base-0123456789ab.npz").write_bytes(b"old")
    FeatureCache(tmp_path, max_bytes=1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_mapped_features_are_those_in_half_precision_until_the_last_use(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=10**6)
    mapped = cache.get_mapped("a", lambda: features(0.1))
    in_memory = cache.get("a", never).half_precision()
    for file in tmp_path.glob("??/*"):
        file.unlink()  # another process evicts it
    mapped.release()
    for name in ("boxes", "objectness", "scores", "embeddings"):
        array = getattr(mapped, name)
        assert array.dtype == getattr(in_memory, name).dtype
        assert not array.flags.owndata
        np.testing.assert_array_equal(array, getattr(in_memory, name))
    kept = mapped.embeddings
    del mapped, array
    assert kept[0, 0] == np.float16(0.1)


def test_mapped_features_hold_no_open_file(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=10**7)
    before = len(list(Path("/dev/fd").iterdir()))
    kept = [cache.get_mapped(str(number), lambda: features(0.5)) for number in range(20)]
    assert len(list(Path("/dev/fd").iterdir())) < before + len(kept)


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[:900] + b"x" * 20 + data[920:]])
def test_damaged_file_is_not_mapped(tmp_path, damage):
    cache = FeatureCache(tmp_path, max_bytes=10**6)
    cache.get("a", lambda: features(0.5))
    [file] = tmp_path.glob("??/*")
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert cache.get_mapped("a", lambda: features(0.25)).boxes[0, 0] == pytest.approx(0.25)
    assert cache.get_mapped("a", never).boxes[0, 0] == pytest.approx(0.25)


def test_files_held_in_memory_stay_within_the_limit_of_the_disk(tmp_path):
    provider = FeatureProvider(None, FeatureCache(tmp_path, max_bytes=10_000))
    provider.prepared_image = lambda *_, **__: None
    backbone = SimpleNamespace(cache_key="b", extract_features=lambda _: [features(0.5)])
    for number in range(20):
        assert provider.features(backbone, str(number), task=None).boxes[0, 0] == 0.5
    held = list(provider._memory.values())
    assert len(held) > 1
    assert sum(one.file.size for one in held) <= 10_000  # those that the cache deleted stay on the disk until then
