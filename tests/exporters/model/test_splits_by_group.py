"""Images of one group are in one split; leaks between splits are found."""

import random
from collections import defaultdict

import pytest

from exporters.convert.image_placer import NO_GROUP
from exporters.convert.tally import MOVED
from exporters.model.accounting import ExportReport
from exporters.model.splits import SplitPolicy
from exporters.validate.version import verify
from labelloop.service.store import open_store

HALVES = "train=.5,val=.5"


def task(build, number, **data):
    return build.task(number, build.annotation(build.box(1, 1, 5, 5), number=number), **data)


def splits_of(out, key):
    """Group -> the splits that its images are in."""
    splits = defaultdict(set)
    for image in out.catalogue:
        splits[key(image["task"])].add(image["split"])
    return splits


@pytest.mark.parametrize("afresh", [False, True])
def test_groups_stay_in_one_split_as_the_project_grows(run, build, afresh):
    tasks = [task(build, n, patient=f"p{n % 20}") for n in range(1, 101)]
    first = splits_of(run(tasks, split=HALVES, group_by="patient"), lambda n: n % 20)
    assert all(len(splits) == 1 for splits in first.values())
    assert set().union(*first.values()) == {"train", "val"}
    tasks += [task(build, n, patient=f"p{n % 20}") for n in range(101, 141)]
    grown = splits_of(run(tasks, split=HALVES, group_by="patient", afresh=afresh), lambda n: n % 20)
    assert grown == first


def test_key_may_lead_into_objects_and_values_may_be_numbers(run, build):
    tasks = [task(build, n, video={"id": n % 7}) for n in range(1, 50)]
    splits = splits_of(run(tasks, split=HALVES, group_by="video.id"), lambda n: n % 7)
    assert all(len(names) == 1 for names in splits.values())


@pytest.mark.parametrize(
    "address",
    [
        "s3://b/{0}/{1}.jpg",
        "https://h/{0}/{1}.jpg?x={1}/y",
        "/data/local-files/?d={0}/{1}.jpg",
        "/data/upload/{0}/{1}.jpg",
    ],
)
def test_folder_groups_by_the_address(run, build, address):
    tasks = [task(build, n, image=address.format(f"clip{n % 9}", n)) for n in range(1, 60)]
    splits = splits_of(run(tasks, split=HALVES, group_by="folder"), lambda n: n % 9)
    assert len(splits) == 9
    assert all(len(names) == 1 for names in splits.values())
    assert set().union(*splits.values()) == {"train", "val"}


def test_task_without_a_group_is_split_by_its_image(run, build):
    tasks = [task(build, n, **({"patient": "p1"} if n < 5 else {"patient": None})) for n in range(1, 30)]
    out = run(tasks, split=HALVES, group_by="patient")
    assert out.report.accounts.notes[NO_GROUP] == 25
    plain = run(tasks, to="plain", split=HALVES)
    ungrouped = [[image["split"] for image in export.catalogue if image["task"] >= 5] for export in (out, plain)]
    assert ungrouped[0] == ungrouped[1]
    assert out.manifest["policy"]["group_by"] == "patient"
    assert isinstance(out.report, ExportReport)


def test_a_value_groups_nothing_under_another_key():
    by_patient, by_site = (SplitPolicy.parse(HALVES, group_by=key) for key in ("patient", "site"))
    places = [(by_patient.assign("x", str(n)), by_site.assign("x", str(n))) for n in range(60)]
    assert len(set(places)) == 4


def leaks(out, settings):
    _, problems = verify(open_store(f"file://{out.root}", settings), out.report.version)
    return [issue.where for issue in problems.issues if issue.flaw == "version-leak"]


def moves(out):
    """The tasks whose images are in the split of another task's."""
    moved = [loss["task"] for loss in out.losses if loss["kind"] == "split"]
    assert out.report.accounts.notes.get(MOVED, 0) == len(moved)
    return moved


@pytest.mark.parametrize("option", ["group_by", "split_key"])
def test_shared_image_is_in_the_split_of_the_first_task(run, build, settings, option):
    tasks = [task(build, n, image="s3://b/same.jpg", key=("val", "train", "val", "test")[n % 4]) for n in range(1, 9)]
    tasks.append(task(build, 9, image="s3://b/other.jpg", key="val"))
    options = {"split": HALVES, option: "key"}
    out = run(tasks[:2], **options)
    out = run(tasks, **options)
    first = out.catalogue[0]["split"]
    wanted = {
        n: (SplitPolicy.parse(HALVES, group_by="key").assign("", tasks[n - 1]["data"]["key"])) for n in range(1, 9)
    }
    if option == "split_key":
        wanted = {n: tasks[n - 1]["data"]["key"] for n in range(1, 9)}
    assert {image["split"] for image in out.catalogue[:8]} == {first} == {wanted[1]}
    assert moves(out) == [n for n in range(1, 9) if wanted[n] != first]
    assert not leaks(out, settings)
    assert [run(tasks, to="afresh", **options).catalogue] == [out.catalogue]


def test_without_the_first_task_the_second_decides(run, build, settings):
    tasks = [task(build, n, image="s3://b/same.jpg", key=split) for n, split in enumerate(("val", "train", "test"), 1)]
    run(tasks, split_key="key")
    assert {image["split"] for image in run(tasks[1:], split_key="key", allow_shrink=True).catalogue} == {"train"}
    tasks[0]["data"]["key"] = "test"
    out = run(tasks, split_key="key")
    assert {image["split"] for image in out.catalogue} == {"test"}
    assert not leaks(out, settings)


def test_disputed_image_apart_decides_nothing_about_others(run, build, settings):
    tasks = [task(build, n, image="s3://b/same.jpg", key="val") for n in (1, 2)]
    tasks[0]["data"]["qc_status"] = "disputed"
    out = run(tasks, split_key="key", disputed="apart")
    assert [image["split"] for image in out.catalogue] == ["disputed", "val"]


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("sized", [True, False])
def test_equal_bytes_under_two_addresses_share_a_split(run, build, settings, photos, grown, sized):
    tasks = [task(build, n, image=photos(f"copy{n}.jpg")) for n in range(1, 9)]  # the same pixels each
    options = {"split": HALVES, "copy_images": True, "fetch": True}
    if not sized:
        for entry in tasks:
            entry["annotations"][0]["result"] *= 2  # two regions of one id are not usual
    if grown:
        run([tasks[2], tasks[4]], **options)
    out = run(tasks, **options)
    assert len({image["split"] for image in out.catalogue}) == 1
    assert moves(out)
    assert not leaks(out, settings)
    assert not leaks(run(tasks, to="unread", split=HALVES), settings)


@pytest.mark.parametrize("afresh", [True, False])
def test_split_key_takes_precedence_over_shares(run, build, afresh):
    stated = {1: "test", 2: "valid", 3: "train2017", 4: "TEST", 5: None, 6: "unknown", 7: 3}
    tasks = [
        build.task(number, build.annotation(build.box(1, 1, 5, 5)), **({"split": split} if split else {}))
        for number, split in stated.items()
    ]
    run(tasks[:3], split="train=1", split_key="split")
    out = run(tasks, split="train=1", split_key="split", afresh=afresh)
    assert {image["task"]: image["split"] for image in out.catalogue} == {
        1: "test",
        2: "val",
        3: "train",
        4: "test",
        5: "train",
        6: "train",
        7: "train",
    }
    assert out.report.accounts.notes == {"images whose task does not say its split, split by shares": 3}
    assert [image["task_id"] for image in out.instances("test")["images"]] == [1, 4]
    assert run(tasks, split="train=1").report.images == {"train": 7}  # only where it is asked for


@pytest.mark.parametrize("option", ["split_key", "group_by", "copy_images"])
def test_incremental_exports_never_split_one_image(run, build, settings, photos, option):
    rng = random.Random(2)
    urls = [photos(f"{n}.jpg", 100 + n // 2 * 10, 100) for n in range(8)]  # each two have the same bytes
    options = {"split": "train=.4,val=.3,test=.3", "disputed": "apart", "allow_shrink": True, "split_key": "key"}
    options |= {"split_key": "", "group_by": "key"} if option == "group_by" else {}
    options |= {"copy_images": True, "fetch": True} if option == "copy_images" else {}
    tasks = {}
    for step in range(4):
        for number in rng.sample(range(1, 15), 8):
            more = {"qc_status": "disputed"} if rng.random() < 0.2 else {}
            key = rng.choice(("train", "val", "test", "x"))
            tasks[number] = task(build, number, image=rng.choice(urls), key=key, step=step, **more)
        tasks.pop(rng.choice(list(tasks)))
        listed = [tasks[number] for number in sorted(tasks)]
        out = run(listed, **options)
        assert not leaks(out, settings)
        if option != "copy_images":  # there a photo of the published version keeps its split
            afresh = run(listed, to=f"afresh {step}", **options)
            assert (out.catalogue, out.report.accounts) == (afresh.catalogue, afresh.report.accounts)
