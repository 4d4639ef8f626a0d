"""Copies that do not move bytes through this machine, and locks by name, in a folder and in a bucket."""

import os
import subprocess
import sys

import pytest

from labelloop.service.store import ObjectNotFound, StoreError, open_store
from tests.bare_s3 import BareS3


@pytest.fixture(params=["folder", "bucket"])
def opened(request, tmp_path, settings, monkeypatch):
    """Open the same store again and again, as other processes do."""
    monkeypatch.setattr("labelloop.service.store.s3_conditional_writes.SETTLE_S", 0.01)
    if request.param == "folder":
        yield lambda: open_store(f"file://{tmp_path / 'store'}", settings)
        return
    with BareS3() as server:
        yield lambda: open_store("s3://bucket/store", server.settings(tmp_path / "home"))


@pytest.fixture
def settings(tmp_path):
    from labelloop.service.settings import Settings

    return Settings(home=tmp_path / "home", label_studio_api_key="")


def test_copy_is_an_object_of_its_own(opened):
    store = opened()
    store.put("a/ü 1.jpg", b"one")
    store.copy("a/ü 1.jpg", "b/copy.jpg")
    store.copy("a/ü 1.jpg", "b/copy.jpg")  # again
    store.put("a/ü 1.jpg", b"two")
    assert store.get("b/copy.jpg") == b"one"
    store.delete("a/ü 1.jpg")
    assert store.get("b/copy.jpg") == b"one"


def test_copy_of_nothing_is_an_error(opened):
    with pytest.raises((ObjectNotFound, StoreError)):
        opened().copy("nothing", "b")


def test_lock_excludes_others_and_is_free_afterwards(opened):
    with opened().lock("latest", wait_s=5) as is_held:
        assert is_held()
        with pytest.raises(StoreError, match="lock"), opened().lock("latest", wait_s=0.1):
            pass
        with opened().lock("another", wait_s=1) as other_is_held:
            assert other_is_held()
    with opened().lock("latest", wait_s=1) as is_held:
        assert is_held()
    assert list(opened().list()) == []


def test_file_lock_ends_with_its_process(tmp_path, settings):
    code = (
        "import os, sys\n"
        "from labelloop.service.settings import Settings\n"
        "from labelloop.service.store import open_store\n"
        "with open_store(sys.argv[1], Settings()).lock('latest', wait_s=1):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    url = f"file://{tmp_path / 'store'}"
    environment = {**os.environ, "LABELLOOP_HOME": str(tmp_path / "home")}
    assert subprocess.run([sys.executable, "-c", code, url], env=environment, check=False).returncode == -9
    with open_store(url, settings).lock("latest", wait_s=1) as is_held:
        assert is_held()
