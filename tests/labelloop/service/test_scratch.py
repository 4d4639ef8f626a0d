"""Folders for files on their way: gone at the end, and after a killed process; never taken from a living one."""

import subprocess
import sys
import threading

import pytest

from labelloop.service import scratch
from labelloop.service.scratch import LOCK_NAME, PREFIX, is_in_use, leftover_folders, scratch_folder


def test_a_folder_is_gone_at_the_end(tmp_path):
    with scratch_folder(tmp_path) as folder:
        (folder / "part").write_text("x")
        assert is_in_use(folder)
        assert leftover_folders(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_removed_by_the_next(tmp_path):
    program = (
        "import os, pathlib, sys; from labelloop.service.scratch import scratch_folder\n"
        "with scratch_folder(pathlib.Path(sys.argv[1])) as folder: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False, timeout=60)
    assert len(leftover_folders(tmp_path)) == 1
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_folders_that_are_not_ours_stay(tmp_path):
    (tmp_path / f"{PREFIX}foreign").mkdir()
    with scratch_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}foreign"]


def test_a_lock_is_never_seen_before_it_is_held(tmp_path, monkeypatch):
    flock = scratch.fcntl.flock

    def look_first(lock, how):
        if how == scratch.fcntl.LOCK_EX:  # the moment before a new folder is locked
            assert leftover_folders(tmp_path) == []
        flock(lock, how)

    monkeypatch.setattr(scratch.fcntl, "flock", look_first)
    with scratch_folder(tmp_path) as folder:
        assert (folder / LOCK_NAME).exists()


@pytest.mark.parametrize("threads", [8])
def test_many_at_once_take_nothing_from_each_other(tmp_path, threads):
    lost = []

    def work():
        for _ in range(30):
            with scratch_folder(tmp_path) as folder:
                if not (folder / LOCK_NAME).exists():
                    lost.append(folder)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert lost == []
    assert list(tmp_path.iterdir()) == []
