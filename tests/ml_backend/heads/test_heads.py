"""Heads are stored with a version, named by it, and loaded and swapped with its detector."""

import time
from dataclasses import dataclass

import pytest

import ml_backend.heads
from labelloop.service.store import open_store
from ml_backend.errors import ModelError
from ml_backend.heads import HEADS, load_heads, serialized
from ml_backend.heads.base import HeadKind
from ml_backend.serving.active_versions import set_active
from ml_backend.serving.model_cache import ModelCache
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.pointer_watcher import PointerWatcher
from ml_backend.serving.registry import Registry


@dataclass(frozen=True)
class Word:
    """A head that holds one word."""

    text: str

    def to_bytes(self) -> bytes:
        return self.text.encode()

    @classmethod
    def from_bytes(cls, data: bytes):
        if data == b"damaged":
            raise ValueError("not a word")
        return cls(data.decode())


@pytest.fixture
def word_head(monkeypatch):
    kind = HeadKind("word", Word.from_bytes, lambda _: None, lambda _, prediction: prediction)
    monkeypatch.setattr(ml_backend.heads, "HEADS", {**HEADS, "word": kind})


@pytest.fixture
def registry(settings):
    return Registry(open_store(settings.store_url, settings))


def test_names_of_the_table_are_those_of_its_kinds():
    assert all(name == kind.name and name.isidentifier() for name, kind in HEADS.items())


def test_heads_are_part_of_the_version(registry, labelloop_model, word_head):
    model = labelloop_model()
    versions = [registry.add(model, heads=heads).version for heads in (None, {"word": Word("a")}, {"word": Word("b")})]
    assert len(set(versions)) == 3
    manifest = registry.add(model, heads={"word": Word("a")})
    assert manifest == registry.manifest(versions[1])
    assert manifest.heads == {"word": "word.head.npz"}
    assert registry.get(manifest.version, "word.head.npz") == b"a"


def test_a_head_that_cannot_be_read_back_is_not_stored(word_head):
    with pytest.raises(ValueError, match="not a word"):
        serialized({"word": Word("damaged")})


def test_a_manifest_without_the_file_of_a_head_is_refused(registry, labelloop_model, word_head):
    manifest = registry.add(labelloop_model(), heads={"word": Word("a")})
    path = f"models/versions/{manifest.version}/manifest.json"
    registry.store.put(path, registry.store.get(path).replace(b'"word":"word.', b'"word":"other.'))
    with pytest.raises(ModelError, match="inconsistent"):
        registry.manifest(manifest.version)


def test_unknown_and_damaged_heads_are_left_out(tmp_path, word_head):
    (tmp_path / "word.head.npz").write_bytes(b"damaged")
    assert load_heads(tmp_path, {"word": "word.head.npz", "later": "later.head.npz"}) == {}
    (tmp_path / "word.head.npz").write_bytes(b"good")
    assert load_heads(tmp_path, {"word": "word.head.npz"}) == {"word": Word("good")}


def test_heads_are_swapped_with_the_detector(settings, registry, labelloop_model, word_head, tmp_path):
    model = labelloop_model()
    first, second = (registry.add(model, heads={"word": Word(text)}).version for text in ("a", "b"))
    set_active(registry.store, first)
    serving = ModelServer(
        model,
        watcher=PointerWatcher(registry.store, memory=tmp_path / "active.json"),
        cache=ModelCache(tmp_path / "cache"),
    )
    serving.start()
    assert serving.served(wait_s=20).heads == {"word": Word("a")}
    set_active(registry.store, second)
    deadline = time.monotonic() + 20
    while serving.served().version != second and time.monotonic() < deadline:
        time.sleep(0.05)
    assert serving.served().heads == {"word": Word("b")}
