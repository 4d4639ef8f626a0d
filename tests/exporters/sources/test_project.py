"""A live project is read once; after that what changed is, also after a kill or a fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporters.sources import open_source
from labelloop.service.studio import StudioRefused, StudioUnreachable

CUT = StudioUnreachable(url="http://label-studio", reason="the cable is cut")
TIMEOUT = StudioRefused("POST /api/projects/7/exports/", 504, "Gateway Timeout")


@pytest.fixture
def tasks(build):
    return [build.task(number, build.annotation(build.box(10, 10, 20, 20), number=number)) for number in range(1, 251)]


@pytest.fixture
def studio(fake_studio, tasks, config):
    return fake_studio(tasks, config("car"))


@pytest.fixture
def take(settings, studio):
    """Read project 7 as an export does; gives the tasks by id."""

    def take(**options):
        source = open_source(7, settings=settings, studio=studio, **options)
        try:
            first = {task.id: task for task in source.tasks()}
            assert list(first) == sorted(first)
            assert source.total == len(first)
            assert {task.id: task for task in source.tasks()} == first  # reading again is the same
            return first
        finally:
            source.close()

    return take


def test_large_project_comes_as_a_snapshot_that_is_removed_again(take, studio):
    assert len(take()) == 250
    assert studio.read == [246, 247, 248, 249, 250]  # those of the last seconds once more
    assert studio.snapshots_by_id == {}


def test_small_project_comes_in_pages(take, studio):
    for number in range(100, 251):
        del studio.tasks_by_id[number]
    assert len(take()) == 99
    assert studio.read[:99] == list(range(1, 100))


def test_where_snapshots_fail_pages_do(take, studio):
    studio.refuse["snapshot"] = TIMEOUT
    assert len(take()) == 250
    assert set(studio.read) == set(range(1, 251))


@pytest.mark.parametrize("changed", [[], [3], [3, 4, 249]])
def test_second_reading_brings_what_changed(take, studio, build, changed):
    take()
    take()  # what is younger than the newest by seconds is looked at once more
    studio.read.clear()
    for number in changed:
        studio.put_task(7, **build.task(number, build.annotation(number=number)))
    changed_tasks = take()
    assert studio.read == changed
    assert [number for number, task in changed_tasks.items() if not task.annotations[0].results] == changed


def test_deleted_tasks_go(take, studio):
    take()
    del studio.tasks_by_id[9]
    assert 9 not in take()
    assert len(take()) == 249


def test_changes_without_timestamp_are_found_by_counts(take, studio):
    take()
    take()
    studio.read.clear()
    studio.tasks_by_id[9]["annotations"] = []
    assert take()[9].annotations == ()
    assert studio.read == [9]


def test_first_reading_that_was_cut_off_is_gone_on_with(take, studio):
    studio.refuse["snapshot"] = TIMEOUT
    studio.fail_next(calls=["raw_tasks"], items=210, error=CUT)
    with pytest.raises(StudioUnreachable):
        take()
    assert len(take()) == 250
    assert sorted(studio.read) == sorted([*range(1, 251), *range(246, 251)])


def test_snapshot_whose_download_broke_is_taken_again_not_made_again(take, studio):
    studio.refuse |= {"download_snapshot": CUT, "raw_tasks": CUT}
    with pytest.raises(StudioUnreachable):
        take()
    studio.refuse.clear()
    assert len(take()) == 250


def test_tasks_change_during_the_first_reading_and_are_read_again(take, studio, build):
    download = studio.download_snapshot

    def changing(number, snapshot, to):
        download(number, snapshot, to)
        studio.put_task(7, **build.task(5, build.annotation(number=5)))

    studio.download_snapshot = changing
    assert take()[5].annotations[0].results == ()


def test_fresh_reads_everything_again(take, studio):
    take()
    studio.tasks_by_id[5] |= {"data": {"image": "s3://photos/other.jpg"}}  # as after a restore from a backup
    assert take()[5].data["image"] != "s3://photos/other.jpg"
    assert take(fresh=True)[5].data["image"] == "s3://photos/other.jpg"


def test_another_project_of_the_same_number_is_another(take, studio, build):
    take()
    studio.fields["created_at"] = "2026-05-05"
    studio.tasks_by_id.clear()
    studio.put_task(7, **build.task(1, build.annotation(number=1)))
    assert list(take()) == [1]


def test_two_exports_at_once_see_whole_states(settings, studio, build):
    first = open_source(7, settings=settings, studio=studio)
    before = [task.annotations[0].results for task in first.tasks()]
    studio.put_task(7, **build.task(5, build.annotation(number=5)))
    second = open_source(7, settings=settings, studio=studio)
    assert [task.annotations[0].results for task in second.tasks()] != before
    assert [task.annotations[0].results for task in first.tasks()] == before
    first.close()
    second.close()


KILLED = """
import json, os, sys
from exporters.sources import open_source
from labelloop.service.studio.task_cache import LocalTaskCache
from labelloop.service.settings import Settings
from labelloop.service.studio import StudioRefused
from tests.exporters.fake_studio import ExportStudio

home, file, writes, snapshot = sys.argv[1:]
studio = ExportStudio(json.loads(open(file).read()), "<View><Image name='i' value='$image'/></View>")
if snapshot == "no":
    studio.refuse["snapshot"] = StudioRefused("POST /api/projects/7/exports/", 504, "Gateway Timeout")
put, done = LocalTaskCache.put, 0

def counted(self, rows):
    global done
    put(self, rows)
    done += 1
    if done == int(writes):
        os.kill(os.getpid(), 9)

LocalTaskCache.put = counted
source = open_source(7, settings=Settings(home=home, label_studio_api_key=""), studio=studio)
print(len(list(source.raw())), len(studio.read))
"""


@pytest.mark.parametrize("snapshot", ["yes", "no"])
@pytest.mark.parametrize("writes", [1, 2])
def test_interrupted_read_is_resumed(tmp_path, tasks, writes, snapshot):
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    (tmp_path / "read.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "read.py"), str(tmp_path / "home"), str(tmp_path / "tasks.json")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([*command, str(writes), snapshot], env=environment, capture_output=True, check=False)
    assert killed.returncode == -9
    again = subprocess.run([*command, "0", snapshot], env=environment, capture_output=True, text=True, check=True)
    count, request_count = map(int, again.stdout.split())
    assert count == 250
    # Tasks written from pages are not read again, except for the last seconds; a snapshot is read from the disk.
    assert request_count == (5 if snapshot == "yes" else max(0, 250 - 100 * writes) + 5)


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"[null" + data[1:]])
def test_snapshot_that_is_cut_or_broken_is_replaced_by_pages(take, studio, monkeypatch, harm):
    download = studio.download_snapshot

    def harmed(number, snapshot, to):
        download(number, snapshot, to)
        to.write_bytes(harm(to.read_bytes()))

    monkeypatch.setattr(studio, "download_snapshot", harmed)
    assert len(take()) == len(studio.tasks_by_id)
