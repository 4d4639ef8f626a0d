"""Several annotators' annotations as one: the consensus, who is believed, and what became of every region."""

import json

import numpy as np
import pytest
from shapely.geometry import box

from exporters.convert.tally import MERGED, OUTVOTED, PARTLY_READABLE, TOO_LARGE
from exporters.convert.task_assembler import OTHER_SIZE, UNSETTLED_APART, UNSETTLED_IN
from labelloop.labeling.consensus import clustering as clusters
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import read_task

KEY_CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="person"/></RectangleLabels><KeyPointLabels name="points" toName="image"><Label value="nose"/>
<Label value="tail"/></KeyPointLabels></View>"""


def three(build, number, *boxes, **data):
    """A task of three annotators, each with these boxes (a list an annotator)."""
    annotations = [
        build.annotation(
            *[build.box(*shape[:4], shape[4], id=f"r{index}") for index, shape in enumerate(drawn)],
            number=100 * number + who,
            completed_by=who,
        )
        for who, drawn in enumerate(boxes, start=1)
    ]
    return build.task(number, *annotations, **data)


def test_consensus_keeps_what_most_annotators_drew(run, build):
    car, other = (10, 10, 20, 20, "car"), (60, 60, 10, 10, "car")
    tasks = [
        three(build, number, [car], [(10.5, 10, 20, 20, "car")], [(10, 10.5, 20, 20, "car")]) for number in range(2, 12)
    ]
    tasks.append(three(build, 1, [car], [(11, 10, 20, 20, "car")], [(10, 12, 20, 20, "car"), other]))
    out = run(tasks, annotation="consensus")
    instances = out.instances()
    (fused,) = [annotation for annotation in instances["annotations"] if annotation["image_id"] == 1]
    # the middle of the three, each weighed by how exactly they draw: nearer to the two than to the one apart
    assert 64 <= fused["bbox"][0] < 67.2
    assert 36 <= fused["bbox"][1] < 39.6
    assert fused["bbox"][2:] == pytest.approx([128, 72], abs=0.01)
    assert fused["annotation_id"] is None
    assert fused["annotator"] is None
    assert 0.9 < fused["score"] <= 1
    assert fused["annotators"] == [1, 2, 3]
    accounts = out.report.accounts
    assert accounts.chosen_by == {"consensus": 11}
    assert accounts.annotations.input == accounts.annotations.kept == 33
    assert accounts.regions.input == 34
    assert accounts.regions.kept == 11
    assert accounts.regions.dropped == {MERGED: 22, OUTVOTED: 1}
    assert accounts.failed == 0
    (loss,) = [loss for loss in out.losses if loss["reason"] == OUTVOTED]
    assert (loss["task"], loss["annotation"], loss["region"]) == (1, 103, "r1")
    assert set(out.manifest["policy"]["annotators"]) == {"1", "2", "3"}


def test_ground_truth_precedes_the_consensus(run, build):
    truth = build.annotation(build.box(1, 1, 5, 5), number=11, completed_by=3, ground_truth=True)
    tasks = [
        build.task(1, build.annotation(build.box(50, 50, 5, 5), number=12, completed_by=4), truth),
        build.task(2, build.annotation(build.box(20, 20, 5, 5), number=21)),
        three(build, 3, [(10, 10, 20, 20, "car")], [(10, 10, 20, 20, "car")], [(10, 10, 20, 20, "car")]),
    ]
    out = run(tasks, annotation="consensus")
    assert out.report.accounts.chosen_by == {"consensus": 1, "ground truth": 1, "one annotator": 1}
    assert [annotation["annotation_id"] for annotation in out.instances()["annotations"]] == [11, 21, None]


def test_annotations_that_cannot_be_read_outvote_nobody(run, build):
    car, broken = (10, 10, 20, 20, "car"), {"id": "bad", "type": "rectanglelabels", "from_name": "label", "value": {}}
    tasks = [three(build, number, [car], [car, (60, 60, 9, 9, "car")], [car]) for number in range(1, 9)]
    for annotation in tasks[0]["annotations"][1:]:
        annotation["result"] = [broken, *annotation["result"][1:]]
    for annotation in tasks[1]["annotations"]:
        annotation["result"].append(broken)
    out = run(tasks, annotation="consensus", max_errors=1.0)
    objects = [
        annotation["annotation_id"] for annotation in out.instances()["annotations"] if annotation["image_id"] in {1, 2}
    ]
    assert len(objects) == 2  # the readable annotation; without one, the latest
    accounts = out.report.accounts
    assert accounts.regions.dropped[PARTLY_READABLE] == 1 + 3
    assert accounts.regions.input == accounts.regions.kept + sum(accounts.regions.dropped.values())


def test_annotations_without_an_id_form_a_consensus_too(run, build):
    task = three(build, 1, *[[(10 + who, 10, 20, 20, "car")] for who in range(3)])
    for annotation in task["annotations"]:
        annotation["id"] = None
    assert run([task], annotation="consensus").report.accounts.chosen_by == {"consensus": 1}


def test_one_annotators_older_annotation_is_no_second_opinion(run, build):
    old = build.annotation(build.box(60, 60, 5, 5), number=11, completed_by=1, day=1)
    new = build.annotation(build.box(20, 20, 5, 5), number=12, completed_by=1, day=2)
    out = run([build.task(1, old, new)], annotation="consensus")
    assert [annotation["annotation_id"] for annotation in out.instances()["annotations"]] == [12]
    assert out.report.accounts.regions.dropped == {"not chosen by the policy": 1}


def test_who_confuses_labels_is_outvoted_by_who_does_not(run, build):
    # 2 and 3 always say the same; 1 calls every dog a cat. With 1 and 2 alone on a task, 2 is believed.
    tasks = [
        three(
            build,
            number,
            *[[(10, 10, 30, 30, label)] for label in (("cat", "cat", "cat") if number % 2 else ("cat", "dog", "dog"))],
        )
        for number in range(2, 42)
    ]
    pair = three(build, 1, [(10, 10, 30, 30, "cat")], [(10, 10, 30, 30, "dog")])
    out = run([pair, *tasks], annotation="consensus")
    names = {category["id"]: category["name"] for category in out.instances()["categories"]}
    (first,) = [annotation for annotation in out.instances()["annotations"] if annotation["image_id"] == 1]
    assert names[first["category_id"]] == "dog"
    reliability = out.manifest["policy"]["annotators"]
    assert reliability["1"]["label right"] < 0.7 < reliability["2"]["label right"]


def test_order_of_annotations_does_not_change_the_bytes(run, build):
    tasks = [
        three(
            build,
            number,
            [(10, 10, 20, 20, "car")],
            [(11, 10, 20, 21, "car"), (40, 40, 9, 9, "bus")],
            [(10, 12, 22, 20, "bus")],
        )
        for number in range(1, 6)
    ]
    turned = [task | {"annotations": task["annotations"][::-1]} for task in tasks]
    first = run(tasks, to="one", annotation="consensus").files()
    second = run(turned, to="two", annotation="consensus").files()
    del first["dropped.jsonl"], second["dropped.jsonl"]  # losses are listed in the order of the input
    assert first == second


@pytest.mark.parametrize("ids", [("a", "a", "a"), ("", "", ""), ("x", "y", "x")], ids=["shared", "none", "mixed"])
def test_regions_of_one_id_or_of_none_are_told_apart(run, build, ids):
    # annotators who correct the same prediction keep its regions' ids
    annotations = [
        build.annotation(
            build.box(10 + who, 10, 20, 20, id=name),
            build.box(60, 60 + who, 20, 20, id=name and f"{name}2"),
            number=who,
            completed_by=who,
        )
        for who, name in enumerate(ids, start=1)
    ]
    out = run([build.task(1, *annotations)], annotation="consensus")
    assert out.report.accounts.regions.kept == 2
    regions = [annotation["region_id"] for annotation in out.instances()["annotations"]]
    assert len(set(regions)) == 2 or not any(ids)


def test_key_points_stay_with_what_their_person_became(run, build):
    def annotation(who, shift):
        person = build.box(10 + shift, 10, 30, 60, "person", id=f"p{who}")
        nose = build.keypoint(20 + shift, 20, "nose", id=f"n{who}", parentID=f"p{who}", from_name="points")
        tail = build.keypoint(30 + shift, 60, "tail", id=f"t{who}", parentID=f"p{who}", from_name="points")
        return build.annotation(person, nose, tail, number=who, completed_by=who)

    out = run(
        [build.task(1, *[annotation(who, shift) for who, shift in ((1, 0.0), (2, 0.2), (3, 0.1))])],
        annotation="consensus",
        label_config=KEY_CONFIG,
    )
    (person,) = out.instances()["annotations"]
    assert person["num_keypoints"] == 2
    assert person["keypoints"] == pytest.approx([20.1 * 6.4, 20 * 3.6, 2, 30.1 * 6.4, 60 * 3.6, 2], abs=0.05)


def test_masks_are_joined_by_the_pixels_that_most_painted(run, build):
    def mask(*columns):
        pixels = np.zeros((20, 20), dtype=bool)
        pixels[5:15, columns[0] : columns[1]] = True
        return pixels

    drawn = [mask(4, 12), mask(4, 12), mask(5, 14)]
    annotations = [
        build.annotation(build.brush(shape), number=who, completed_by=who) for who, shape in enumerate(drawn, 1)
    ]
    out = run([build.task(1, *annotations)], annotation="consensus")
    (fused,) = out.instances()["annotations"]
    assert fused["bbox"] == [4, 5, 8, 10]
    assert fused["area"] == 80


LARGE = {"original_width": 1280, "original_height": 720}


def test_annotators_who_state_other_sizes_of_an_image_agree(run, build):
    """Label Studio's values are in percent: the size that most regions state is that of the image."""
    car = build.box(10, 10, 20, 20)

    def tasks(*sizes):
        drawn = [
            [build.annotation(car | size, number=10 * number + who, completed_by=who) for who, size in enumerate(sizes)]
            for number in range(1, 6)
        ]
        return [build.task(number, *annotations) for number, annotations in enumerate(drawn, 1)]

    alike = run(tasks({}, {}, {}), to="alike", annotation="consensus")
    out = run(tasks({}, LARGE, {}), to="other", annotation="consensus")
    assert out.instances() == alike.instances()
    assert out.manifest["policy"]["annotators"] == alike.manifest["policy"]["annotators"]
    assert out.report.accounts.regions.dropped == {MERGED: 10}
    assert out.report.accounts.notes == {OTHER_SIZE: 5}
    assert not alike.report.accounts.notes


def test_regions_of_an_annotation_that_state_other_sizes_are_on_one_image(run, build):
    mask = build.brush(np.ones((720, 1280), bool), id="mask")
    boxes = [build.box(10 * number, 10, 20, 20, id=f"r{number}") for number in range(1, 5)]
    out = run([build.task(1, build.annotation(boxes[0] | LARGE, *boxes[1:], mask))])
    shapes = {entry["region_id"]: entry["bbox"] for entry in out.instances()["annotations"]}
    assert shapes == {f"r{number}": pytest.approx([64 * number, 36, 128, 72]) for number in range(1, 5)}
    assert out.report.accounts.notes == {OTHER_SIZE: 1}
    (loss,) = out.losses
    assert loss["region"] == "mask"
    assert "a mask of 1280 x 720 pixels on an image of 640 x 360" in loss["detail"]


def test_consensus_is_what_qc_consensus_writes(run, build, tmp_path):
    """The referee is the other way to the consensus: `labelloop qc consensus` on the same file."""
    from qc_webhooks.report.report import Export, write_consensus

    rng = np.random.default_rng(4)
    tasks = []
    for number in range(1, 30):
        truth = rng.uniform(5, 60, (3, 4)) * [1, 1, 0.5, 0.5] + [0, 0, 5, 5]
        people = [
            [(*(shape + rng.normal(0, 0.6, 4)), "car") for shape in truth if rng.random() < 0.85] for _ in range(3)
        ]
        tasks.append(three(build, number, *people))
    out = run(tasks, annotation="consensus")
    with (tmp_path / "consensus.json").open("wb") as file:
        write_consensus(Export(tmp_path / "export.json"), file)
    wanted = {
        task.id: [region.geometry.bounds for region in read_annotation(task.annotations[0], task=task).regions]
        for task in map(read_task, json.loads((tmp_path / "consensus.json").read_bytes()))
    }
    actual = {number: [] for number in wanted}
    for annotation in out.instances()["annotations"]:
        x, y, w, h = annotation["bbox"]
        actual[annotation["image_id"]].append((x, y, x + w, y + h))
    assert sum(map(len, wanted.values())) > 50
    for number, shapes in wanted.items():
        assert len(actual[number]) == len(shapes)
        for bounds, expected in zip(sorted(actual[number]), sorted(shapes), strict=True):
            a, b = box(*bounds), box(*expected).intersection(box(0, 0, build.width, build.height))
            assert a.intersection(b).area / a.union(b).area > 0.999


@pytest.mark.parametrize("name", ["coco", "voc", "yolo-detect"])
def test_disputed_tasks_apart_have_a_split_of_their_own(run, build, name):
    tasks = [
        build.task(1, build.annotation(build.box(1, 1, 5, 5)), qc_status="disputed"),
        build.task(2, build.annotation(build.box(1, 1, 5, 5)), qc_status="agreed"),
    ]
    out = run(tasks, disputed="apart", formats=[name])
    assert out.report.images == {"train": 1, "disputed": 1}
    assert [image["split"] for image in out.catalogue] == ["disputed", "train"]
    assert out.report.accounts.notes == {UNSETTLED_APART.format("disputed"): 1}
    wanted = {
        "coco": lambda: [image["task_id"] for image in out.instances("disputed")["images"]] == [1],
        "voc": lambda: (
            [
                (out.folder / f"voc/ImageSets/Main/{split}.txt").read_text()
                for split in ("disputed", "train", "trainval")
            ]
            == ["1\n", "2\n", "2\n"]
        ),
        "yolo-detect": lambda: (
            [(out.folder / f"yolo-detect/{split}.txt").read_text() for split in ("disputed", "train")]
            == ["./images/disputed/1.jpg\n", "./images/train/2.jpg\n"]
        ),
    }
    assert wanted[name]()


def test_disputed_tasks_that_are_in_are_counted(run, build):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)), qc_status="disputed")], disputed="in")
    assert out.report.accounts.notes == {UNSETTLED_IN.format("disputed"): 1}


def test_task_too_large_for_a_consensus_is_left_out(run, build, monkeypatch):
    monkeypatch.setattr(clusters, "MAX_REGIONS", 5)
    car = (10, 10, 20, 20, "car")
    small, large = three(build, 1, [car], [car]), three(build, 2, [car] * 3, [car] * 3)
    out = run([small, large], annotation="consensus", max_errors=1.0)
    assert {annotation["image_id"] for annotation in out.instances()["annotations"]} == {1}
    assert [(loss["task"], loss["detail"]) for loss in out.losses if loss["kind"] == "task"] == [
        (2, "6 regions, at most 5 are compared")
    ]
    accounts = out.report.accounts
    assert accounts.tasks.dropped == {TOO_LARGE: 1}
    assert accounts.regions.dropped[TOO_LARGE] == 6
    assert accounts.failed == 7  # the task, and every region of it
