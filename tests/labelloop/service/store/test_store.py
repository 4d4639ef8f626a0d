"""Local stores under concurrent processes, and S3 servers without conditional writes. Both: tests/system."""

import multiprocessing
import os
import re
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from labelloop.service.settings import Settings
from labelloop.service.store import ObjectChanged, ObjectExists, ObjectNotFound, StoreError, bulk_put, open_store, s3
from labelloop.service.store.bulk_put import sync_disk
from labelloop.service.store.keys import validate_key
from tests.bare_s3 import BareS3

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"), Settings(home=tmp_path))


def run(target, *args, count=4):
    workers = [FORK.Process(target=target, args=(*args, n)) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * count


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "a\nb", "a\0b", "x" * 901, ".labelloop/a"],
)
def test_invalid_keys_are_refused(key, store):
    with pytest.raises(StoreError, match="the key is invalid"):
        validate_key("s3://bucket", key)
    for call in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(StoreError, match="the key is invalid"):
            call()


def test_the_start_of_an_object_is_read(store):
    store.put("a/b", b"12345")
    assert [store.start("a/b", size) for size in (0, 3, 9)] == [b"", b"123", b"12345"]
    with pytest.raises(ObjectNotFound):
        store.start("a", 3)


@pytest.mark.parametrize("key", ["a", "a/b.txt", "..a", "a..b", "ü/日本", "a b%20c", ".hidden", "x" * 250])
def test_valid_keys_are_accepted(key, store):
    store.put(key, b"1")
    assert list(store.list()) == [key]
    assert store.get(key) == b"1"


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("file:///tmp/a%20b", "file:///tmp/a%20b"),
        ("file://localhost/tmp/a", "file:///tmp/a"),
        ("file:/tmp/a", "file:///tmp/a"),
        ("/tmp/a b", "file:///tmp/a%20b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ],
)
def test_store_addresses_are_normalised(url, opened, settings):
    assert open_store(url, settings).url == opened


@pytest.mark.parametrize(
    "url", ["", "file://relative/path", "s3://", "s3://key:secret@bucket", "ftp://bucket", "http://host/a"]
)
def test_invalid_store_addresses_are_refused(url, settings):
    with pytest.raises(StoreError, match=re.escape("s3://bucket/prefix")) as caught:
        open_store(url, settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3:/cars/x", "s3://cars/x"),
        ("s3//cars/x", "s3://cars/x"),
        ("S3://cars/x", "s3://cars/x"),
        ("gs:cars", "gs://cars"),
        ("az:///cars/x", "az://container/prefix"),
        ("s3:/key:secret@cars", "s3://bucket/prefix"),
    ],
)
def test_addresses_with_a_typing_error_are_no_folders(url, meant, settings):
    with pytest.raises(StoreError) as caught:
        open_store(url, settings)
    assert meant in caught.value.fix
    assert "secret" not in str(caught.value)


def _create(folder, won, n):
    try:
        open_store(folder, Settings()).create("model", b"%d" % n * 1000)
        won.put(n)
    except ObjectExists:
        pass


def test_of_many_processes_one_creates(tmp_path):
    won = FORK.SimpleQueue()
    run(_create, str(tmp_path), won, count=6)
    winner = won.get()
    assert won.empty()
    assert open_store(str(tmp_path), Settings()).get("model") == b"%d" % winner * 1000


def _count(folder, _):
    store = open_store(folder, Settings())
    for _turn in range(25):
        while True:
            data, etag = store.read("counter")
            try:
                store.swap("counter", b"%d" % (int(data) + 1), etag=etag)
                break
            except ObjectChanged:
                continue


def test_swaps_of_many_processes_lose_no_increment(tmp_path):
    store = open_store(str(tmp_path), Settings())
    store.put("counter", b"0")
    run(_count, str(tmp_path))
    assert store.get("counter") == b"100"


def _rewrite(folder):
    store = open_store(folder, Settings())
    for turn in range(10**6):
        store.put("big", b"%d" % (turn % 10) * 3_000_000)


def test_a_killed_writer_leaves_a_complete_object(tmp_path):
    store = open_store(str(tmp_path), Settings())
    for turn in range(4):
        worker = FORK.Process(target=_rewrite, args=(str(tmp_path),))
        worker.start()
        while not store.exists("big"):
            time.sleep(0.01)
        time.sleep(0.05 + turn * 0.03)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        data = store.get("big")
        assert (len(data), len(set(data))) == (3_000_000, 1)
        assert list(store.list()) == ["big"]


def test_a_key_below_another_object_is_refused(store):
    store.put("a", b"1")
    with pytest.raises(StoreError, match="below another object"):
        store.put("a/b", b"2")
    store.put("c/d", b"3")
    with pytest.raises(StoreError, match="folder of other"):
        store.put("c", b"4")
    assert {key: store.get(key) for key in store.list()} == {"a": b"1", "c/d": b"3"}
    for key in ("a/b", "c"):
        assert not store.exists(key)
        with pytest.raises(ObjectNotFound):
            store.get(key)


def test_an_emptied_folder_can_become_an_object(store):
    store.put("a/b/c", b"1")
    store.delete("a/b/c")
    store.put("a", b"2")
    assert list(store.list()) == ["a"]


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        open_store(str(tmp_path / "file"), Settings()).put("k", b"")
    assert caught.value.reason == f"{tmp_path / 'file'} is a file"
    assert "Choose a folder" in caught.value.fix


def test_the_first_put_error_of_many_reaches_the_caller(store):
    def items():
        yield "a", b"1"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.put_many(items())


def test_put_many_writes_all_files_and_leaves_no_parts(tmp_path):
    store = open_store(str(tmp_path / "s"), Settings())
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    store.put("old", b"old")
    items = [(f"deep/{n % 7}/{n}.txt", b"%d" % n) for n in range(1200)] + [
        ("large", tmp_path / "large"),
        ("old", b"new"),
    ]
    calls = []
    assert store.put_many(items, lambda done, size: calls.append((done, size))) == 1202
    assert store.get("deep/3/1109.txt") == b"1109"
    assert (store.get("large"), store.get("old")) == (b"x" * 100_000, b"new")
    assert calls[-1] == (1202, sum(len(data) for _, data in items if isinstance(data, bytes)) + 100_000)
    assert list((tmp_path / "s/.labelloop/parts").iterdir()) == []


def test_file_of_many_that_cannot_be_written_is_named(tmp_path):
    store = open_store(str(tmp_path / "s"), Settings())
    store.put("a", b"")
    with pytest.raises(StoreError, match=r"a/b\.txt|/a"):
        store.put_many([("good", b"1"), ("a/b.txt", b"2")])
    with pytest.raises(StoreError):
        store.put_many([("../out", b"")])
    assert list((tmp_path / "s/.labelloop/parts").iterdir()) == []


def test_concurrent_batches_do_not_deadlock(tmp_path):
    store = open_store(str(tmp_path / "s"), Settings())
    keys = [f"{n}" for n in range(300)]

    def batch(turn):
        return store.put_many([(key, b"%d" % turn) for key in (keys if turn % 2 else reversed(keys))])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(batch, range(8))) == [300] * 8
    assert {len(store.get(key)) for key in keys} == {1}


def test_files_of_the_scratch_folder_are_moved_and_others_copied(tmp_path, settings):
    store = open_store(f"file://{tmp_path}/a folder", settings)
    outside = tmp_path / "outside"
    outside.write_bytes(b"my file")
    calls = []
    with store.scratch() as scratch:
        (scratch / "made").write_bytes(b"made")
        inode = (scratch / "made").stat().st_ino
        items = [("a/made", scratch / "made"), ("a/copied", outside)]
        store.put_many(items, lambda done, size: calls.append((done, size)))
        assert not (scratch / "made").exists()
    assert (tmp_path / "a folder/a/made").stat().st_ino == inode
    assert (store.get("a/made"), store.get("a/copied"), outside.read_bytes()) == (b"made", b"my file", b"my file")
    assert calls == [(1, 4), (2, 11)]
    assert not scratch.exists()


def test_scratch_leftovers_are_deleted_after_a_week(tmp_path, settings):
    store = open_store(f"file://{tmp_path}", settings)
    week = time.time() - 8 * 24 * 3600
    with store.scratch() as scratch:
        for name in ("old", "new"):
            (scratch.parent / name).mkdir()
            (scratch.parent / name / "shard").write_bytes(b"1")
        os.utime(scratch.parent / "old", (week, week))
        with store.scratch() as other:
            assert {path.name for path in scratch.parent.iterdir()} == {"new", scratch.name, other.name}


@pytest.fixture(params=["ignore", "refuse"])
def bare(request, tmp_path):
    with BareS3(request.param) as server:
        yield open_store("s3://bucket/p", server.settings(tmp_path))


def test_the_self_test_detects_missing_conditional_writes(bare):
    measured = bare.self_test()
    assert (measured.writable, measured.create_only, measured.compare_and_swap) == (True, False, False)
    assert "neither create-only nor compare-and-swap" in measured.detail
    assert list(bare.list()) == []


def test_conditions_are_emulated_with_a_warning(bare, monkeypatch):
    warnings = []
    monkeypatch.setattr(s3, "_log", SimpleNamespace(warning=lambda message, **_: warnings.append(message)))
    etag = bare.create("once", b"first")
    assert warnings == ["store_without_conditional_writes"]
    with pytest.raises(ObjectExists):
        bare.create("once", b"second")
    with pytest.raises(ObjectChanged):
        bare.swap("once", b"second", etag='"other"')
    bare.swap("once", b"third", etag=etag)
    assert bare.get("once") == b"third"
    bare.delete("once")
    with pytest.raises(ObjectNotFound):
        bare.get("once")


@pytest.mark.parametrize("conditions", ["ignore", "refuse", "begin"])
def test_one_concurrent_writer_wins_without_server_conditions(conditions, tmp_path):
    with BareS3(conditions, slow_s=0.05) as server, ThreadPoolExecutor(6) as threads:
        stores = [open_store("s3://bucket/p", server.settings(tmp_path)) for _ in range(6)]

        def won(write, n):
            try:
                write(stores[n], b"%d" % n)
            except (ObjectExists, ObjectChanged):
                return False
            return True

        etag = stores[0].put("swapped", b"old")
        for key, write in (
            ("created", lambda store, data: store.create("created", data)),
            ("swapped", lambda store, data: store.swap("swapped", data, etag=etag)),
        ):
            winners = [n for n, did in enumerate(threads.map(lambda n, w=write: won(w, n), range(6))) if did]
            assert len(winners) == 1
            assert stores[0].get(key) == b"%d" % winners[0]


def test_exclusive_writers_skip_the_settle_delay(tmp_path):
    with BareS3() as server:
        store = open_store("s3://bucket/p", server.settings(tmp_path))
        assert store.write_settle_s > 0
        store.create("first", b"")  # probes the server

        def requests_of(write):
            server.asked.clear()
            started = time.monotonic()
            write()
            return [method for method, *_ in server.asked], time.monotonic() - started

        soon = time.monotonic() + 300
        assert requests_of(lambda: store.create("a", b"1", exclusive_until=soon))[0] == ["PUT"]
        etag = store.read("a")[1]
        assert requests_of(lambda: store.swap("a", b"2", etag=etag, exclusive_until=soon))[0] == ["PUT"]
        methods, lasted = requests_of(lambda: store.create("b", b"1", exclusive_until=time.monotonic()))
        assert methods == ["PUT", "HEAD"], "it checks whose object stayed"
        assert lasted >= store.write_settle_s
        with pytest.raises(ObjectExists):
            store.create("a", b"3", exclusive_until=soon)
        assert store.get("a") == b"2"


def test_aws_is_recognised_by_the_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert open_store("s3://bucket", Settings(home=tmp_path)).write_settle_s == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert open_store("s3://bucket", Settings(home=tmp_path)).write_settle_s > 0


def test_the_disk_of_a_folder_is_synced_or_the_reason_is_raised(tmp_path):
    sync_disk(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        sync_disk(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("content_call", "write"),
    [
        ("fsync", lambda store: store.put("a/b", b"1")),
        ("fsync", lambda store: store.create("a/b", b"1")),
        ("fsync", lambda store: store.swap("a/b", b"1", etag=None)),
        ("sync_disk", lambda store: store.put_many([("a/b", b"1")])),
    ],
    ids=["put", "create", "swap", "put_many"],
)
def test_content_is_synced_before_its_name_and_the_folder_after(store, tmp_path, monkeypatch, content_call, write):
    target, synced = tmp_path / "store" / "a" / "b", []

    def fsync(handle):
        what = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync"
        synced.append((what, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(bulk_put, "sync_disk", lambda _: synced.append(("sync_disk", target.exists())))
    write(store)
    assert synced == [(content_call, False), ("folder", True)]
