"""Fingerprints are computed once: on a machine, and for all that use a data set."""

import numpy as np
import pytest

from exporters.look import cache as cache_module
from exporters.look.cache import FingerprintCache, identity_of
from exporters.look.fingerprint import SIDE, Fingerprint
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

IDENTITIES = [identity_of(f"image {number}") for number in range(7)]


def look(number: int) -> Fingerprint:
    return Fingerprint(np.full((SIDE, SIDE), number, np.uint8), 100 + number, 50)


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "set").as_uri(), Settings(home=tmp_path / "home"))


def test_known_fingerprints_are_not_missing_after_a_restart(tmp_path):
    with FingerprintCache(tmp_path / "look.sqlite") as cache:
        assert cache.missing(IDENTITIES) == list(range(7))
        cache.add((IDENTITIES[number], look(number)) for number in (1, 4))
    with FingerprintCache(tmp_path / "look.sqlite") as cache:
        assert cache.missing(IDENTITIES) == [0, 2, 3, 5, 6]
        thumbnails, sizes = cache.load(IDENTITIES, tmp_path / "thumbnails")
    assert thumbnails[:, 0, 0].tolist() == [0, 1, 0, 0, 4, 0, 0]
    assert sizes[4].tolist() == [104, 50]


def test_another_machine_takes_the_fingerprints_of_the_data_set(tmp_path, store):
    with FingerprintCache(tmp_path / "one.sqlite") as cache:
        cache.add((identity, look(number)) for number, identity in enumerate(IDENTITIES))
        assert cache.publish(store, IDENTITIES) == ""
    with FingerprintCache(tmp_path / "two.sqlite") as cache:
        cache.fetch(store)
        assert cache.missing(IDENTITIES) == []


def test_files_of_fingerprints_are_merged(tmp_path, store, monkeypatch):
    monkeypatch.setattr(cache_module, "_MAX_FILES", 3)
    with FingerprintCache(tmp_path / "one.sqlite") as cache:
        for number, identity in enumerate(IDENTITIES):
            cache.add([(identity, look(number))])
            cache.publish(store, [identity])
    assert len(list(store.list("look/"))) <= 4
    with FingerprintCache(tmp_path / "two.sqlite") as cache:
        cache.fetch(store)
        assert cache.missing(IDENTITIES) == []


def test_merging_keeps_what_others_added_and_drops_damage(tmp_path, store, monkeypatch):
    monkeypatch.setattr(cache_module, "_MAX_FILES", 1)
    with FingerprintCache(tmp_path / "one.sqlite") as cache, FingerprintCache(tmp_path / "two.sqlite") as other:
        other.add([(IDENTITIES[1], look(1))])
        other.publish(store, IDENTITIES[1:2])
        store.put("look/1-damaged", b"damaged")
        cache.add([(IDENTITIES[0], look(0))])
        assert cache.publish(store, IDENTITIES[:1]) == ""
    assert "look/1-damaged" not in store.list("look/")
    with FingerprintCache(tmp_path / "three.sqlite") as cache:
        cache.fetch(store)
        assert cache.missing(IDENTITIES[:2]) == []


def test_damaged_file_in_the_store_is_read_again(tmp_path, store):
    with FingerprintCache(tmp_path / "one.sqlite") as cache:
        cache.add([(IDENTITIES[0], look(0))])
        cache.publish(store, IDENTITIES[:1])
    [key] = store.list("look/")
    store.put(key, b"damaged")
    with FingerprintCache(tmp_path / "two.sqlite") as cache:
        cache.fetch(store)
        assert cache.missing(IDENTITIES[:1]) == [0]


def test_store_that_cannot_be_written_is_no_error(tmp_path, store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read only")

    monkeypatch.setattr(type(store), "put", refuse)
    with FingerprintCache(tmp_path / "one.sqlite") as cache:
        cache.add([(IDENTITIES[0], look(0))])
        assert "read only" in cache.publish(store, IDENTITIES[:1])
