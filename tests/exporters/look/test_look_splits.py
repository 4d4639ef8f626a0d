"""`--group-by look`: near-duplicates share a split, and images stay where they are as a project grows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from exporters.model.splits import SplitPolicy
from exporters.pipeline.look_splits import _assign, _Known
from tests.exporters.look.look_images import CHANGES, drawn, encoded

SPLIT = "train=.5,val=.5"


@pytest.fixture
def photo(settings):
    def photo(name: str, data: bytes) -> str:
        path = settings.local_files_root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return f"/data/local-files/?d={name}"

    return photo


@pytest.fixture
def tasks(build, photo):
    """Tasks of images: (number, seed, change)."""

    def tasks(*wanted):
        return [
            build.task(
                number,
                build.annotation(build.box(10, 10, 30, 30)),
                image=photo(f"{number}.jpg", CHANGES[change](drawn(seed)) if change else encoded(drawn(seed))),
            )
            for number, seed, change in wanted
        ]

    return tasks


def splits(exported) -> dict[int, str]:
    lines = (exported.folder / "images.jsonl").read_text().splitlines()
    return {image["task"]: image["split"] for image in map(json.loads, lines)}


def group(run, tasks, **options):
    return run(tasks, split=SPLIT, group_by="look", formats=("coco",), **options)


TWENTY = [(number, number, "") for number in range(1, 21)]


def test_twins_share_a_split_and_single_images_keep_their_own(run, tasks):
    copies = [(100 + number, number, "all of it") for number in range(1, 13)]
    grouped = splits(group(run, tasks(*TWENTY, *copies)))
    assert all(grouped[number] == grouped[100 + number] for number in range(1, 13))
    assert set(grouped.values()) == {"train", "val"}
    policy = SplitPolicy.parse(SPLIT)
    assert all(grouped[n] == policy.assign(f"/data/local-files/?d={n}.jpg") for n in range(13, 21))


def test_new_twin_follows_an_image_that_stays(run, tasks):
    first = group(run, tasks(*TWENTY))
    before = splits(first)
    copies = [(100 + number, number, "half the size") for number in range(1, 13)]
    second = group(run, tasks(*TWENTY, *copies))
    after = splits(second)
    assert {number: after[number] for number in before} == before
    assert all(after[100 + number] == before[number] for number in range(1, 13))
    assert second.report.written.tasks == 12
    assert not second.report.warnings


def test_again_and_afresh_give_the_same_splits(run, tasks):
    wanted = tasks(*TWENTY, *[(100 + number, number, "darker") for number in range(1, 7)])
    first = splits(group(run, wanted))
    assert splits(group(run, wanted)) == first
    assert splits(group(run, wanted, afresh=True)) == first


def test_twins_of_an_ungrouped_version_move_and_it_is_said(run, tasks):
    wanted = tasks(*TWENTY, *[(100 + number, number, "grey") for number in range(1, 13)])
    before = splits(run(wanted, split=SPLIT, formats=("coco",)))
    apart = sum(before[number] != before[100 + number] for number in range(1, 13))
    assert apart
    exported = group(run, wanted)
    after = splits(exported)
    assert all(after[number] == after[100 + number] for number in range(1, 13))
    assert sum(before[number] != after[number] for number in before) == apart
    assert any("moved" in warning for warning in exported.report.warnings)


def assigned(groups, known, explicit=()):
    """The outcome for images 0, 1, 2 ... with these groups, of which some are known in a split."""
    images = SimpleNamespace(keys=list(range(len(groups))), explicit=dict(explicit))
    policy = SplitPolicy.parse(SPLIT)
    known = {key: _Known(split, 10 + key, f"{key}.jpg") for key, split in known.items()}
    return _assign(images, np.array(groups), policy, known, [])


def test_image_that_joins_two_groups_moves_the_smaller_one():
    look = assigned([0, 0, 0, 0], {0: "val", 1: "train", 2: "train"})
    assert look.moved_tasks == {10}
    assert look.moved_images == {"0.jpg"}
    assert [look.twins.get(key, "train") for key in range(4)] == ["train"] * 4
    assert "1 from val to train" in look.notes[0]


def test_image_whose_twin_left_stays_in_its_split():
    look = assigned([0, 1], {0: "val", 1: "train"})  # by its own address, key 0 is in train
    assert look.twins == {0: "val"}
    assert not look.moved_tasks
    assert not look.notes


def test_split_stated_by_a_task_decides_for_its_twins():
    look = assigned([0, 0, 0], {0: "train", 1: "train"}, explicit={2: "val"})
    assert look.twins == {0: "val", 1: "val"}


def test_group_of_half_the_images_is_said():
    look = assigned([0] * 30 + list(range(30, 60)), {})
    assert "30 of 60 images" in look.notes[-1]


def test_copied_images_follow_their_group_too(run, tasks):
    wanted = tasks(*TWENTY[:8], *[(100 + number, number, "grey") for number in range(1, 9)])
    run(wanted, split=SPLIT, formats=("coco",), copy_images=True)
    after = splits(group(run, wanted, copy_images=True))
    assert all(after[number] == after[100 + number] for number in range(1, 9))


def test_unreadable_images_are_split_by_address_and_said(run, tasks, build):
    broken = build.task(99, build.annotation(build.box(10, 10, 30, 30)), image="/data/local-files/?d=none.jpg")
    exported = group(run, [*tasks(*TWENTY[:3]), broken])
    assert splits(exported)[99] == SplitPolicy.parse(SPLIT).assign("/data/local-files/?d=none.jpg")
    assert any("1 images could not be read" in warning for warning in exported.report.warnings)


def test_tasks_without_images_are_not_grouped_and_it_is_said(run, build):
    answer = {"from_name": "c", "to_name": "t", "type": "choices", "value": {"choices": ["a"]}, "id": "r"}
    task = {"id": 1, "data": {"text": "words"}, "annotations": [build.annotation(answer)]}
    config = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>'
    exported = run([task], group_by="look", label_config=config, formats=("tasks-jsonl",))
    assert any("no annotated task has an image" in warning for warning in exported.report.warnings)
