"""The disk cache is bounded, atomic and fetches a file once, with concurrent readers and writers."""

import multiprocessing
import os
import threading
import time

import pytest

from labelloop.service.media.disk_cache import DiskCache


def writer(data):
    return lambda file: file.write(data)


def cached_files(folder):
    return sorted(path for path in folder.glob("??/*") if path.is_file())


def test_the_oldest_use_goes_first_when_the_cache_is_full(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    for n in range(9):
        path = cache.path(f"{n}", writer(b"x" * 100))
        os.utime(path, (1_000_000 + n, 1_000_000 + n))
    cache.path("0", writer(b""))  # used again just now
    cache.path("9", writer(b"x" * 100))
    cache.path("10", writer(b"x" * 100))
    assert sum(path.stat().st_size for path in cached_files(tmp_path)) <= 1000
    fetched = []
    cache.path("0", lambda file: fetched.append(0))
    cache.path("10", lambda file: fetched.append(10))
    assert fetched == []
    cache.path("1", lambda file: fetched.append(1))
    assert fetched == [1]


def test_a_file_larger_than_the_cache_is_readable_and_goes_next(tmp_path):
    cache = DiskCache(tmp_path, 10)
    with cache.open("large", writer(b"x" * 100)) as file:
        assert file.read() == b"x" * 100
    cache.path("next", writer(b"y"))
    assert [path.read_bytes() for path in cached_files(tmp_path)] == [b"y"]


def test_an_open_file_stays_whole_when_it_is_dropped(tmp_path):
    cache = DiskCache(tmp_path, 10)
    with cache.open("a", writer(b"first")) as file:
        cache.remove("a")
        assert file.read() == b"first"


def test_a_failed_fetch_leaves_nothing(tmp_path):
    cache = DiskCache(tmp_path, 1000)

    def fetch(file):
        file.write(b"half")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.path("a", fetch)
    assert cached_files(tmp_path) == []
    assert cache.path("a", writer(b"whole")).read_bytes() == b"whole"


def test_of_many_threads_that_miss_one_fetches(tmp_path):
    cache, fetched = DiskCache(tmp_path, 1000), []

    def fetch(file):
        fetched.append(1)
        time.sleep(0.1)
        file.write(b"data")

    read = []
    threads = [threading.Thread(target=lambda: read.append(cache.path("a", fetch).read_bytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]
    assert read == [b"data"] * 8


def _work(folder, seed):
    cache = DiskCache(folder, 20_000)
    for n in range(150):
        name = f"{(n * 7 + seed) % 40}"
        content = name.encode() * 500
        with cache.open(name, writer(content)) as file:
            if file.read() != content:
                os._exit(1)


def test_processes_that_fill_and_empty_one_cache_read_whole_files_only(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0] * 4
    DiskCache(tmp_path, 20_000).path("last", writer(b"x"))  # what was added while another process evicted goes now
    assert sum(path.stat().st_size for path in cached_files(tmp_path)) <= 20_000


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    part = tmp_path / "ab" / "left.part"
    part.parent.mkdir()
    part.write_bytes(b"x")
    os.utime(part, (1, 1))
    DiskCache(tmp_path, 1000).path("a", writer(b"y"))
    assert not part.exists()


def test_the_folder_is_for_its_owner_alone(tmp_path):
    path = DiskCache(tmp_path / "media", 1000).path("a", writer(b"y"))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_what_was_added_while_another_evicts_is_evicted_next(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    cache.path("a", writer(b"a" * 600))
    with cache._locked("evict", wait=True):
        cache.path("b", writer(b"b" * 600))
    cache.path("c", writer(b"c"))
    assert sum(path.stat().st_size for path in cached_files(tmp_path)) <= 1000
